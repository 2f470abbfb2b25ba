"""The language model annotator: offline, its markers name the major groups of blood; with an endpoint, what is sent.

A stand-in for a model runs on this machine and answers with what it is told to: no model's knowledge is judged here.
"""

from __future__ import annotations

import json
import threading
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from classical_annotators import GROUPS
from recording import record, sha256, write

import tenfold as tf
from tenfold.data.marker_genes import BLOOD

#: Groups with fewer cells are not major; so many of the major ones must get a right name.
FEWEST, RIGHT = 19, 6
DATASET = "tenfold.data.pbmc"


class Echo(BaseHTTPRequestHandler):
    """Answers in the form that is asked for, and keeps what it was sent."""

    seen: list[bytes] = []

    def do_POST(self) -> None:
        """Answer a request."""
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(raw)
        prompt = json.loads(raw)["messages"][0]["content"]
        asked = [line.partition(": ")[0] for line in prompt.splitlines() if line.partition(": ")[0].isdigit()]
        lines = [json.dumps({"cluster": int(n), "cell_type": f"type {n}", "supporting_genes": []}) for n in asked]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": "\n".join(lines)}}]}).encode())

    def log_message(self, *args: Any) -> None:
        """Stay quiet."""


def offline(adata: Any, digest: str) -> dict[str, Any]:
    model = tf.annotate.LLM().fit(adata, markers=BLOOD, clusters="cell_type", progress=False)
    given = model.overlaps(adata).groupby("cluster")["given"].first()
    sizes = adata.obs["cell_type"].value_counts()
    major = [name for name in GROUPS if sizes[name] >= FEWEST]
    right = sum(given[name] in GROUPS[name] for name in major)
    print({name: given[name] for name in major})
    return record("llm", "check", f"without an endpoint, {RIGHT} of the {len(major)} major groups get a right name",
                  DATASET, digest, "groups named right", right, tolerance=RIGHT, passed=right >= RIGHT)  # fmt: skip


def sent(adata: Any, digest: str) -> dict[str, Any]:
    """Count the words of a request that are neither gene names nor those of a request about other cells."""
    server = HTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    for cells, key in ((adata, "cell_type"), (tf.data.simulate(300, 200, n_types=10, seed=0), "cell_type")):
        tf.annotate.LLM(base_url=url, model="m").fit(cells, clusters=key, progress=False)
    server.shutdown()
    words = [set(json.loads(raw)["messages"][0]["content"].replace(",", " ").split()) for raw in Echo.seen]
    strange = words[0] - words[1] - set(adata.var_names)
    return record("llm", "check", "what differs between requests is gene names", DATASET, digest,
                  "words sent that are neither genes nor the same for other cells", len(strange), tolerance=0,
                  passed=not strange)  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    adata = tf.data.pbmc()
    digest = sha256(adata.X.toarray())
    write([offline(adata, digest), sent(adata, digest)])


if __name__ == "__main__":
    main()
