"""SCimilarity: triplets by the rules, kin by ontology, the index and its search, encoders of the original package."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch

import tenfold as tf
from tenfold.annotate.scimilarity import SCimilarity, balanced
from tenfold.annotators.cell_index import CellIndex
from tenfold.errors import FileFormatError, NotFittedError, ParameterError
from tenfold.nn.triplets import (
    Kinship,
    UnitEncoder,
    coarsened,
    semi_hard_triplets,
    triplet_loss,
)

OBO = """format-version: 1.2

[Term]
id: CL:0000000
name: cell

[Term]
id: CL:1
name: type_1
is_a: CL:0000000 ! cell

[Term]
id: CL:2
name: type_2
is_a: CL:1 ! type_1

[Term]
id: CL:3
name: type_3
is_a: CL:0000000 ! cell
"""
CELLS = tf.data.simulate(360, 100, n_types=3, n_batches=3, type_strength=1.2, batch_strength=0.5, seed=4)
TEST = CELLS[CELLS.obs["batch"] == "batch_3"].copy()
TRAIN = CELLS[CELLS.obs["batch"] != "batch_3"].copy()
TRUTH = TEST.obs["cell_type"].astype(str).to_numpy()


def fit(adata=TRAIN, **params) -> SCimilarity:
    settings = {"n_hidden": 32, "n_latent": 8, "epochs": 60, "n_neighbors": 15, **params}
    return SCimilarity(**settings).fit(adata, labels="cell_type", batch="batch", progress=False)


@pytest.fixture(scope="module")
def model() -> SCimilarity:
    return fit()


def strangers(n: int) -> Kinship:
    return Kinship(torch.eye(n, dtype=torch.bool), torch.zeros(n, n, dtype=torch.bool))


def drawn(n: int = 200) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(n, 6), dim=1)
    return points, torch.randint(0, 4, (n,)), torch.randint(0, 3, (n,))


# ---- triplets --------------------------------------------------------------------------------------------------------


def test_triplets_are_all_those_that_a_plain_loop_allows():
    points, labels, studies = drawn()
    kinship = strangers(4)
    kinship.related[0, 1] = kinship.related[1, 0] = True
    found = semi_hard_triplets(points, labels, kinship, studies, 0.3, 10**9)
    square = torch.cdist(points.double(), points.double()) ** 2
    chosen = {(a, p): n for a, p, n in zip(*(rows.tolist() for rows in found), strict=True)}
    for a in range(len(points)):
        for p in range(a + 1, len(points)):
            if labels[a] != labels[p] or studies[a] == studies[p]:
                assert (a, p) not in chosen
                continue
            gap = square[a] - square[a, p]
            allowed = (gap > 1e-5) & (gap < 0.3 - 1e-5) & ~kinship.related[labels[a], labels]
            if allowed.any():
                n = chosen[a, p]
                assert -1e-5 < gap[n] < 0.3 + 1e-5 and not kinship.related[labels[a], labels[n]]


def test_every_semi_hard_negative_is_drawn_alike():
    points, labels, _ = drawn(40)
    square = (2 - 2 * points @ points.T).clamp(min=0)
    a, p = next((a, p) for a in range(40) for p in range(a + 1, 40)
                if labels[a] == labels[p] and 4 <= ((square[a] > square[a, p]) & (square[a] < square[a, p] + 0.5)
                                                    & (labels != labels[a])).sum() <= 8)  # fmt: skip
    allowed = ((square[a] > square[a, p]) & (square[a] < square[a, p] + 0.5) & (labels != labels[a])).sum().item()
    drawn_for = []
    for _ in range(300):
        found = semi_hard_triplets(points, labels, strangers(4), None, 0.5, 10**9)
        drawn_for += found.negative[(found.anchor == a) & (found.positive == p)].tolist()
    counts = np.unique(drawn_for, return_counts=True)[1]
    assert len(counts) == allowed and counts.min() > 0.4 * 300 / allowed


def test_pairs_are_sampled_where_there_are_many_and_none_is_no_loss():
    points, labels, studies = drawn()
    assert len(semi_hard_triplets(points, labels, strangers(4), studies, 0.5, 50).anchor) <= 50
    one = semi_hard_triplets(points, torch.zeros_like(labels), strangers(4), studies, 0.5, 50)
    assert len(one.anchor) == 0
    points.requires_grad_()
    loss = triplet_loss(points, one, 0.5)
    loss.backward()
    assert loss.item() == 0 and points.grad.abs().sum() == 0


def test_the_loss_is_torch_s_own():
    points, labels, studies = drawn()
    found = semi_hard_triplets(points, labels, strangers(4), studies, 0.3, 10**9)
    expected = torch.nn.functional.triplet_margin_loss(*(points[rows] for rows in found), margin=0.3)
    torch.testing.assert_close(triplet_loss(points, found, 0.3), expected)


def test_coarse_labels_are_direct_parents_that_are_there():
    kinship = strangers(4)
    kinship.parents[2, 1] = kinship.parents[2, 3] = kinship.parents[1, 0] = True
    labels = torch.tensor([2] * 500 + [1] * 500)  # neither 0 nor 3 is in the batch
    found = coarsened(labels, kinship, 0.5)
    assert set(found[:500].tolist()) == {1, 2} and set(found[500:].tolist()) == {1}
    assert abs((found[:500] == 1).float().mean() - 0.5) < 0.1


def test_kin_by_ontology(tmp_path):
    (tmp_path / "cl.obo").write_text(OBO)
    model = SCimilarity(epochs=1, n_hidden=8, n_latent=4).fit(
        TRAIN, labels="cell_type", batch="batch", ontology=str(tmp_path / "cl.obo"), progress=False
    )
    kinship = model._kinship()
    assert kinship.related.tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    assert kinship.parents.tolist() == [[False] * 3, [True, False, False], [False] * 3]


# ---- labels and search -----------------------------------------------------------------------------------------------


def test_it_learns_labels_and_nothing_from_permuted_ones(model):
    assert (model.predict(TEST) == TRUTH).mean() > 0.75
    shuffled = TRAIN.copy()
    shuffled.obs["cell_type"] = np.random.default_rng(0).permutation(TRAIN.obs["cell_type"].astype(str))
    assert (fit(shuffled).predict(TEST) == TRUTH).mean() < 0.55


def test_the_network_ignores_zeros_alike_sparse_and_dense():
    from tenfold.kernels.rows import take_rows

    net = UnitEncoder(100, 8, (16, 12)).eval()
    x = TEST.X[:50].astype(np.float32)
    with torch.no_grad():
        torch.testing.assert_close(net(take_rows(x, np.arange(50))), net(torch.from_numpy(x.toarray())))
        assert np.allclose(net(torch.from_numpy(x.toarray())).norm(dim=1), 1, atol=1e-5)


def test_search_finds_the_nearest_of_all_indexed_cells(model):
    found = model.search(TEST[:5].copy(), n_neighbors=4)
    z, targets = model.embed(TEST[:5].copy()), model.embed(TRAIN)
    distance = 1 - z @ targets.T
    order = np.argsort(distance, axis=1)[:, :4]
    assert found["found"].tolist() == TRAIN.obs_names[order.ravel()].tolist()
    np.testing.assert_allclose(found["distance"], np.take_along_axis(distance, order, axis=1).ravel(), atol=1e-5)
    assert found["label"].tolist() == TRAIN.obs["cell_type"].astype(str).to_numpy()[order.ravel()].tolist()
    assert found["study"].tolist() == TRAIN.obs["batch"].astype(str).to_numpy()[order.ravel()].tolist()
    assert found["rank"].tolist() == [1, 2, 3, 4] * 5


def test_votes_weighted_and_not():
    index = CellIndex(np.eye(3, dtype=np.float32), None, np.array([0, 1, 1]))
    near, distance = np.array([[0, 1, 2]]), np.array([[0.1, 0.5, 1.0]])
    np.testing.assert_allclose(index.shares(near, distance, 2, False), [[1 / 3, 2 / 3]])
    np.testing.assert_allclose(index.shares(near, distance, 2, True), [[10 / 13, 3 / 13]])


def test_neighbors_tell_what_the_votes_are(model):
    told = model.neighbors(TEST)
    assert (told["label"] == model.predict(TEST)).all()
    assert (told["nearest"] <= told["farthest"]).all() and told["against_second"].between(0.5, 1).all()
    assert told["pvalue"].between(0, 1).all()


def test_far_cells_are_rejected_by_their_distance(model):
    strange = TEST.copy()
    strange.X = strange.X[:, np.random.default_rng(0).permutation(100)]
    careful = fit(rejection=0.1)
    rates = [(careful.predict(cells) == "Unknown").mean() for cells in (TRAIN, strange)]
    assert rates[0] < 0.05 and rates[1] > rates[0] + 0.2
    assert "Unknown" not in set(model.predict(strange))


def test_quantised_index_agrees_and_is_saved(model, tmp_path):
    other = fit(search_by="quantised")
    assert (other.predict(TEST) == model.predict(TEST)).mean() > 0.9
    assert other.index_["points"].shape[0] == 0
    other.save(tmp_path / "model")
    again = tf.load(tmp_path / "model")
    assert again.search(TEST[:3].copy(), 5).equals(other.search(TEST[:3].copy(), 5))


def test_some_labels_only(model):
    some = model.restricted(allow=["type_1", "type_2"])
    assert set(some.predict(TEST)) <= {"type_1", "type_2"} and "type_3" in set(model.predict(TEST))
    same = model.restricted(block=["type_3"])
    assert (some.predict(TEST) == same.predict(TEST)).all()
    with pytest.raises(ParameterError, match="Did you mean 'type_1'"):
        model.restricted(allow=["tipe_1"])
    with pytest.raises(ParameterError, match="either"):
        model.restricted()


def test_another_atlas_with_the_same_encoder(model):
    other = fit()
    other.index(TEST, labels="cell_type")
    assert set(other.search(TRAIN[:3].copy(), 5)["found"]) <= set(TEST.obs_names)
    assert (other.predict(TRAIN) == TRAIN.obs["cell_type"].astype(str)).mean() > 0.8


def test_labels_of_one_study_are_named():
    lonely = TRAIN.copy()
    lonely.obs["batch"] = np.where(lonely.obs["cell_type"] == "type_2", "batch_1", lonely.obs["batch"].astype(str))
    with pytest.warns(UserWarning, match="one study each \\(type_2"):
        fit(lonely, epochs=1)


def test_rare_labels_and_studies_weigh_more():
    codes, studies = np.array([0] * 90 + [1] * 10), np.array([0] * 50 + [1] * 50)
    weights = balanced(codes, None)
    assert weights[95] / weights[0] == pytest.approx(np.log1p(90e-4) / np.log1p(10e-4))
    assert balanced(codes, studies)[0] == pytest.approx(weights[0] / np.log1p(50e-6))


# ---- encoders of the original ----------------------------------------------------------------------------------------


def official(folder, net=None, genes=None) -> UnitEncoder:
    """A folder as the original writes it, with random weights."""
    net = net or UnitEncoder(100, 8, (16, 16))
    folder.mkdir(exist_ok=True)
    torch.save({"state_dict": net.state_dict()}, folder / "encoder.ckpt")
    (folder / "gene_order.tsv").write_text("\n".join(CELLS.var_names if genes is None else genes))
    (folder / "layer_sizes.json").write_text(json.dumps({k: list(v.shape) for k, v in net.state_dict().items()}))
    return net.eval()


def test_official_encoders_are_read_and_indexed(tmp_path):
    net = official(tmp_path / "m")
    model = SCimilarity.from_official(tmp_path / "m", n_neighbors=5)
    with pytest.raises(NotFittedError, match="index"):
        model.predict(TEST)
    from tenfold.data.preprocess import normalize_log1p

    with torch.no_grad():
        expected = net(torch.from_numpy(normalize_log1p(TEST.X).toarray())).numpy()
    np.testing.assert_allclose(model.embed(TEST), expected, atol=1e-5)
    assert model.index(TRAIN, labels="cell_type", batch="batch").predict(TEST).shape == (120,)
    model.save(tmp_path / "own")
    assert (tf.load(tmp_path / "own").predict(TEST) == model.predict(TEST)).all()


def test_official_files_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(FileFormatError, match=r"encoder\.ckpt"):
        SCimilarity.from_official(tmp_path)
    official(tmp_path / "m", genes=CELLS.var_names[:50])
    with pytest.raises(FileFormatError, match="same model"):
        SCimilarity.from_official(tmp_path / "m")
    net = official(tmp_path / "m")
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("running_mean")}
    torch.save({"state_dict": state}, tmp_path / "m" / "encoder.ckpt")
    with pytest.raises(FileFormatError, match="running_mean"):
        SCimilarity.from_official(tmp_path / "m")


class Harm:
    def __reduce__(self):
        return (print, ("run by a pickle",))


def test_official_files_are_not_unpickled(tmp_path, capsys):
    official(tmp_path / "m")
    (tmp_path / "m" / "encoder.ckpt").write_bytes(pickle.dumps({"state_dict": Harm()}))
    with pytest.raises(FileFormatError, match="more than arrays"):
        SCimilarity.from_official(tmp_path / "m")
    assert "run by a pickle" not in capsys.readouterr().out
