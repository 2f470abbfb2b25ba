"""The language model annotator against a server of our own: what is sent, what is refused, votes, cache, fallback."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

import tenfold as tf
from tenfold.annotators import chat
from tenfold.annotators.naming import Answer, parsed, term_of, votes_of
from tenfold.annotators.ontology import Ontology
from tenfold.data.marker_genes import BLOOD
from tenfold.errors import EndpointError, ParameterError, RoleError

NAMES = {"1": "B cell", "2": "T cells", "3": "Monocyte"}


class Server:
    """A chat endpoint on this machine that plays a script: each entry is (status, text or bytes, headers, seconds)."""

    def __init__(self, *script):
        self.script, self.seen = list(script), []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                outer.seen.append(
                    {"path": self.path, "headers": dict(self.headers), "body": json.loads(raw), "raw": raw}
                )
                step = outer.script[min(len(outer.seen), len(outer.script)) - 1]
                status, text, headers, seconds = (*step, {}, 0)[:4] if len(step) < 4 else step
                if callable(text):
                    text = text(outer.seen[-1]["body"]["messages"][0]["content"])
                time.sleep(seconds)
                body = (
                    text
                    if isinstance(text, bytes)
                    else json.dumps({"choices": [{"message": {"content": text}}]}).encode()
                )
                try:
                    self.send_response(status)
                    for key, value in headers.items():
                        self.send_header(key, value)
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:  # the asker has gone
                    pass

            def log_message(self, *args):
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.http.shutdown()
        self.http.server_close()


def listed(prompt: str) -> dict[str, list[str]]:
    """The clusters and genes that a prompt asks about."""
    rows = [line.partition(": ") for line in prompt.splitlines() if line.partition(": ")[0].isdigit()]
    return {number: genes.split(", ") for number, _, genes in rows}


def good(prompt: str, names=NAMES, **more) -> str:
    lines = [
        json.dumps({"cluster": int(n), "cell_type": names[n], "supporting_genes": genes[:2], "confidence": 0.8,
                    "alternative": "", **more})
        for n, genes in listed(prompt).items()
    ]  # fmt: skip
    return "\n".join(lines)


@pytest.fixture(scope="module")
def cells():
    adata = tf.data.simulate(150, 60, n_types=3, type_strength=1.5, seed=3)
    adata.obs["secret_cluster"] = adata.obs["cell_type"].map(
        {"type_1": "patient 7", "type_2": "tumour", "type_3": "relapse"}
    )
    return adata


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(chat, "WAIT_SECONDS", 0.01)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def fit(cells, server, **params):
    settings = {"base_url": server.url, "model": "tiny", **params}
    return tf.annotate.LLM(**settings).fit(cells, clusters="secret_cluster", progress=False)


def test_only_genes_tissue_and_species_are_sent(cells, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sesame")
    with Server((200, good)) as server:
        fit(cells, server, tissue="bone marrow", species="human", key_variable="MY_KEY", n_genes=4)
    (seen,) = server.seen
    assert seen["path"] == "/v1/chat/completions" and seen["headers"]["Authorization"] == "Bearer sesame"
    assert set(seen["body"]) == {"model", "messages", "temperature", "seed"} and seen["body"]["temperature"] == 0
    prompt = seen["body"]["messages"][0]["content"]
    assert "human bone marrow cells" in prompt
    asked = listed(prompt)
    assert list(asked) == ["1", "2", "3"] and all(len(genes) == 4 for genes in asked.values())
    assert set().union(*asked.values()) <= set(cells.var_names)
    text = seen["raw"].decode()
    for private in ("patient", "tumour", "relapse", "secret_cluster", "cell_1", "type_1", "sesame", "batch_1"):
        assert private not in text
    rest = "\n".join(line for line in prompt.splitlines() if not line.partition(": ")[0].isdigit())
    with Server((200, good)) as other:  # other cells, other counts: all but the genes is the same
        fit(cells[:, 10:][20:].copy(), other, tissue="bone marrow", species="human", n_genes=4)
    prompt = other.seen[0]["body"]["messages"][0]["content"]
    assert rest == "\n".join(line for line in prompt.splitlines() if not line.partition(": ")[0].isdigit())
    assert "Authorization" not in other.seen[0]["headers"]


def test_cells_get_the_names_of_their_clusters_and_later_ones_by_markers(cells, tmp_path):
    with Server((200, good)) as server:
        model = fit(cells, server, n_genes=5)
    groups = cells.obs["secret_cluster"]
    order = dict(zip(groups.cat.categories, NAMES.values(), strict=True))
    assert (model.predict() == groups.map(order)).all() and len(server.seen) == 1
    assert (model.predict(cells) == model.predict()).all() and len(server.seen) == 1
    later = tf.data.simulate(150, 60, n_types=3, type_strength=1.5, seed=3)[::2].copy()
    later.obs_names = [f"new {name}" for name in later.obs_names]
    expected = groups[::2].map(order).to_numpy()
    assert (model.predict(later) == expected).mean() > 0.7 and len(server.seen) == 1
    table = model.answers().set_index("cluster")
    assert table.loc["tumour", "label"] == order["tumour"] and table["share"].tolist() == [1.0] * 3
    model.save(tmp_path / "model")
    again = tf.load(tmp_path / "model")
    assert (again.predict() == model.predict()).all() and again.asked_ == model.asked_
    written = cells.copy()
    again.write(written)
    kept = json.loads(written.uns["tenfold"]["llm"]["asked"])
    assert kept[0]["prompt"] == server.seen[0]["body"]["messages"][0]["content"] and "B cell" in kept[0]["answer"]
    assert "sesame" not in json.dumps(dict(written.uns["tenfold"]["llm"]))


def test_votes_make_the_confidence_and_order_is_shuffled(cells):
    def voter(prompt):
        voter.asked += 1
        return good(prompt, NAMES if voter.asked != 2 else {**NAMES, "1": "Plasma cell"})

    voter.asked = 0
    with Server((200, voter)) as server:
        model = fit(cells, server, n_votes=4)
    first = model.answers().iloc[0]
    assert first["label"] == "B cell" and first["share"] == 0.75
    assert first["entropy"] == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    found = model.probabilities()
    mine = (cells.obs["secret_cluster"] == first["cluster"]).to_numpy()
    np.testing.assert_allclose(found.loc[mine, "B cell"], 0.75)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    bodies = [seen["body"] for seen in server.seen]
    assert [body["seed"] for body in bodies] == [0, 1, 2, 3] and {body["temperature"] for body in bodies} == {0.7}
    orders = {tuple(listed(body["messages"][0]["content"])) for body in bodies}
    assert len(orders) > 1


BAD_ANSWERS = {
    "too few lines": (lambda p: good(p).rpartition("\n")[0], "2 lines for 3 clusters"),
    "too many lines": (lambda p: good(p) + "\nHope this helps!", "4 lines for 3 clusters"),
    "no JSON": (lambda p: "B cell\nT cell\nMonocyte", "not the JSON"),
    "another cluster": (lambda p: good(p).replace('"cluster": 3', '"cluster": 9'), "cluster 9"),
    "a cluster twice": (lambda p: good(p).replace('"cluster": 3', '"cluster": 2'), "cluster 2"),
    "no name": (lambda p: good(p).replace('"Monocyte"', '""'), "no cell type for cluster 3"),
}


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_answers_that_cannot_be_read_are_asked_for_again_then_an_error(cells, case):
    answer, words = BAD_ANSWERS[case]
    with Server((200, answer)) as server, pytest.raises(EndpointError, match=words):
        fit(cells, server, max_retries=1)
    assert len(server.seen) == 2 and server.seen[0]["body"]["seed"] != server.seen[1]["body"]["seed"]
    with Server((200, answer), (200, good)) as server:
        assert len(fit(cells, server, max_retries=1).predict()) == 150


def test_a_fence_and_a_list_around_the_lines_are_forgiven(cells):
    with Server((200, lambda p: "```json\n[\n" + good(p).replace("}\n", "},\n") + "\n]\n```")) as server:
        assert set(fit(cells, server).predict()) == set(NAMES.values())


def test_names_that_rest_on_made_up_genes_count_as_none(cells):
    def liar(prompt):
        return good(prompt).replace(listed(prompt)["2"][0], "MADEUP1")

    with Server((200, liar)) as server, pytest.warns(UserWarning, match="got no name"):
        model = fit(cells, server, max_retries=1)
    assert len(server.seen) == 2 and "Unknown" in set(model.predict())
    assert "(not from its genes)" in model.answers()["answers"].tolist()
    with (
        Server((200, lambda p: good(p, supporting_genes=["X"]))) as server,
        pytest.raises(EndpointError, match="no cl"),
    ):
        fit(cells, server)


def test_a_slow_server_is_given_up(cells):
    with Server((200, good, {}, 0.6)) as server, pytest.raises(EndpointError, match=r"0\.1 seconds.*2 tries"):
        fit(cells, server, timeout=0.1, max_retries=1)


def test_busy_servers_are_asked_again_others_not(cells):
    with Server((503, b"busy"), (429, b"slow down"), (200, good)) as server:
        fit(cells, server)
    assert len(server.seen) == 3
    with Server((400, b"bad model")) as server, pytest.raises(EndpointError, match="status 400: bad model"):
        fit(cells, server)
    assert len(server.seen) == 1


def test_keys_that_are_missing_or_refused(cells, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with Server((200, good)) as server, pytest.raises(EndpointError, match=r"'MY_KEY'.*not set"):
        fit(cells, server, key_variable="MY_KEY")
    assert not server.seen
    with Server((401, b"no key")) as server, pytest.raises(EndpointError, match="key_variable="):
        fit(cells, server)


def test_another_address_is_not_followed(cells, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sesame")
    with Server((200, good)) as elsewhere:
        moved = (307, b"", {"Location": f"{elsewhere.url}/chat/completions"}, 0)
        for status in (301, 302, 307, 308):
            with Server((status, *moved[1:])) as server, pytest.raises(EndpointError, match="another address"):
                fit(cells, server, key_variable="MY_KEY")
        assert not elsewhere.seen


def test_nobody_there_and_no_chat(cells):
    with Server((200, good)) as server:
        pass
    with pytest.raises(EndpointError, match="cannot be reached"):
        fit(cells, server, max_retries=0)
    for raw in (b"<html>", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": null}}]}'):
        with Server((200, raw)) as server, pytest.raises(EndpointError, match="like a chat"):
            fit(cells, server)


def test_the_cache_answers_the_same_question(cells, tmp_path):
    with Server((200, good)) as server:
        first = fit(cells, server, cache=str(tmp_path / "kept"), n_votes=2)
        assert len(server.seen) == 2
        again = fit(cells, server, cache=str(tmp_path / "kept"), n_votes=2)
        assert len(server.seen) == 2 and (again.predict() == first.predict()).all()
        fit(cells, server, cache=str(tmp_path / "kept"), n_votes=2, tissue="lung")
        assert len(server.seen) == 4
    assert all("sesame" not in path.read_text() for path in (tmp_path / "kept").iterdir())


def test_many_clusters_are_asked_about_in_parts():
    adata = tf.data.simulate(400, 60, n_types=4, seed=0)
    adata.obs["fine"] = [f"c{i % 40}" for i in range(400)]
    with Server((200, lambda p: good(p, {str(n): f"type {n % 3}" for n in range(1, 41)}))) as server:
        tf.annotate.LLM(base_url=server.url, model="m").fit(adata, clusters="fine", progress=False)
    assert [len(listed(seen["body"]["messages"][0]["content"])) for seen in server.seen] == [30, 10]


def test_without_an_endpoint_it_is_markers(cells):
    adata = tf.data.pbmc()
    roles = {"markers": BLOOD, "clusters": "cell_type", "progress": False}
    ours, plain = tf.annotate.LLM().fit(adata, **roles), tf.annotate.Markers().fit(adata, **roles)
    assert (ours.predict() == plain.predict()).all() and ours.answers().empty and ours.asked_ == []


def test_prompts_are_shown_without_being_sent(cells):
    (prompt,) = tf.annotate.LLM(base_url="http://127.0.0.1:9/v1", model="m").prompts(cells, "secret_cluster")
    assert list(listed(prompt)) == ["1", "2", "3"] and all(len(genes) == 10 for genes in listed(prompt).values())


def test_what_is_missing_is_named(cells):
    with pytest.raises(RoleError, match="clusters='<obs column>'"):
        tf.annotate.LLM(base_url="http://x/v1", model="m").fit(cells, progress=False)
    with pytest.raises(RoleError, match="labels= has no use"):
        tf.annotate.LLM(base_url="http://x/v1", model="m").fit(cells, labels="cell_type", clusters="batch")
    bad = [{"base_url": url, "model": "m"} for url in ("localhost:80", "http://key@x/v1", "http://x/v1?key=k")]
    for params in (*bad, {"base_url": "http://x/v1"}):
        with pytest.raises(ParameterError, match=r"base_url=|model="):
            tf.annotate.LLM(**params).fit(cells, clusters="secret_cluster", progress=False)


def test_spellings_and_terms():
    answers = {1: [Answer(n, [], 0.5, "") for n in ("B cells", "B cell", "b-cell", "T cell")], 2: []}
    found = votes_of(answers, None)
    assert found[1].shares == {"B cell": 0.75, "T cell": 0.25} and found[2].name == ""
    ontology = Ontology({"cell": (), "B cell": ("cell",), "classical monocyte": ("cell",)}, {"b lymphocyte": "B cell"})
    assert term_of("B lymphocytes", ontology) == "B cell"
    assert term_of("Monocyte, classical", ontology) == "classical monocyte"
    assert term_of("Neuron", ontology) is None
    mixed = {1: [Answer(n, [], 0.5, "") for n in ("B lymphocytes", "B cells", "Neuron")]}
    assert votes_of(mixed, ontology)[1].shares == {"B cell": 2 / 3, "Neuron": 1 / 3}


def test_genes_are_compared_in_any_case():
    line = json.dumps({"cluster": 1, "cell_type": "B cell", "supporting_genes": ["cd19"], "confidence": "high"})
    answer = parsed(line, {1: ["CD19"]})[1]
    assert answer.name == "B cell" and np.isnan(answer.confidence)
