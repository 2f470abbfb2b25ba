"""TOSICA: tokens that belong to pathways, what attention says of them, and labels."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse

from tenfold.annotate.tosica import TOSICA
from tenfold.data.gene_sets import Memberships, memberships, read_gene_sets
from tenfold.data.minibatches import Minibatches
from tenfold.errors import DataError, FileFormatError, RoleError
from tenfold.kernels.dropout import dropout
from tenfold.kernels.set_rows import rows_of_sets, set_product
from tenfold.nn.attention import TransformerBlock, rollout
from tenfold.nn.set_tokens import SetTokens, SetTransformer


def network(mask: np.ndarray, width: int = 4, **options: Any) -> SetTransformer:
    starts, sets = Memberships.of_mask(mask, map(str, range(mask.shape[1])))[1:]
    torch.manual_seed(0)
    return SetTransformer(SetTokens(starts, sets, mask.shape[1], width), 3, n_heads=2, **options).eval()


def rows(x: np.ndarray) -> Any:
    return next(iter(Minibatches({"x": sparse.csr_matrix(x, dtype=np.float32)}, None, shuffle=False)))["x"]


@pytest.fixture(scope="module")
def disjoint() -> np.ndarray:
    """Six sets of five genes."""
    return np.kron(np.eye(6, dtype=bool), np.ones((5, 1), dtype=bool))


# ---- tokens ----------------------------------------------------------------------------------------------------------


def test_tokens_are_a_masked_linear_map_and_so_is_their_gradient():
    rng = np.random.default_rng(0)
    mask = rng.random((40, 7)) < 0.3
    x = rng.poisson(0.5, (9, 40)).astype(np.float32)
    tokens = network(mask).tokens
    genes, sets = np.nonzero(mask)
    dense = torch.zeros(40, 7, 4)
    dense[genes, sets] = tokens.weight.detach()
    dense.requires_grad_()
    expected = torch.einsum("bg,gpe->bpe", torch.from_numpy(x), dense) + tokens.bias
    found = tokens(rows(x))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    expected.square().sum().backward()
    expected_bias = tokens.bias.grad.clone()
    tokens.zero_grad()
    found.square().sum().backward()
    torch.testing.assert_close(tokens.weight.grad, dense.grad[genes, sets], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokens.bias.grad, expected_bias, atol=1e-4, rtol=1e-4)
    spread = rows_of_sets(rows(x), tokens.starts, tokens.sets, 7)
    torch.testing.assert_close(set_product(spread, tokens.weight).view(9, 7, 4) + tokens.bias, found)


@pytest.mark.parametrize("pathway", range(6))
def test_genes_of_a_pathway_reach_its_token_alone_and_in_legacy_order_many(disjoint, pathway):
    base, raised = np.ones((1, 30)), np.ones((1, 30))
    raised[0, 5 * pathway : 5 * pathway + 5] += 1
    for mixed, changed in ((False, [pathway]), (True, sorted({(4 * pathway + e) % 6 for e in range(4)}))):
        net = network(disjoint, mixed=mixed)
        before, after = (net.sequence(net.tokens(rows(x)))[0, 1:] for x in (base, raised))
        moved = (before - after).abs() > 1e-7
        assert torch.nonzero(moved.any(dim=1))[:, 0].tolist() == changed
        # As published each of these tokens changes in one dimension, its own token in all.
        assert moved.sum(dim=1)[changed].tolist() == ([1] * 4 if mixed else [4])


def test_pathways_from_file_or_dict(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text(
        "A\thttp://x\tg1\tg2\tg3\tg4\tg5\n\nB\t\tg1\tg9\nC\tc\t" + "\t".join(f"g{i}" for i in range(30)) + "\n"
    )
    sets = read_gene_sets(path)
    assert list(sets) == ["A", "B", "C"] and sets["B"] == ["g1", "g9"]
    genes = np.array([f"g{i}" for i in range(8)], dtype=object)
    found = memberships(sets, genes, largest=25, most=300)
    assert found.names.tolist() == ["A"]  # B has too few genes in the data, C too many by far
    assert np.diff(found.starts).tolist() == [0, 1, 1, 1, 1, 1, 0, 0]
    assert memberships(sets, genes, 100, 1).names.tolist() == ["C"]  # most genes in the data
    with pytest.raises(DataError, match="organism"):
        memberships({"D": ["Abc1"] * 6}, genes, 100, 3)
    for wrong, error in (("A\tx\n", FileFormatError), ("", FileFormatError)):
        path.write_text(wrong)
        with pytest.raises(error):
            read_gene_sets(path)
    with pytest.raises(FileFormatError, match="not a file"):
        read_gene_sets(tmp_path / "none.gmt")
    with pytest.raises(RoleError, match="dict"):
        read_gene_sets(3)


# ---- attention -------------------------------------------------------------------------------------------------------


def test_a_block_of_which_one_token_is_read_computes_that_token():
    torch.manual_seed(0)
    x = torch.randn(5, 9, 8)
    mask = torch.ones(5, 9, dtype=torch.bool)
    mask[:, 6:] = False
    for pre_norm in (True, False):
        block = TransformerBlock(8, 2, 16, pre_norm=pre_norm).eval()
        torch.testing.assert_close(block(x, 1), block(x)[:, :1])
        torch.testing.assert_close(block(x, 1, mask), block(x[:, :6], 1))  # tokens that are not there do not count


def test_rollout_is_the_product_of_the_layers():
    torch.manual_seed(0)
    blocks = [TransformerBlock(8, 2, 16).eval() for _ in range(3)]
    x, product = torch.randn(4, 6, 8), torch.eye(6).expand(4, 6, 6)
    h = x
    for block in blocks:
        layer = block.weights(h) + torch.eye(6)
        product = layer / layer.sum(dim=2, keepdim=True) @ product
        h = block(h)
    torch.testing.assert_close(rollout(blocks, x), product[:, 0], atol=1e-6, rtol=1e-5)


def test_attribution_is_gradient_times_way_and_sums_to_what_the_logit_gains(disjoint):
    net = network(disjoint)
    x = np.random.default_rng(0).poisson(1.0, (3, 30)).astype(np.float32)
    mean = x.mean(axis=0, keepdims=True)
    label, step = net(rows(x)).argmax(dim=1), 1e-2

    def above(at: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            logits = net(rows(at))
        return logits.gather(1, label[:, None])[:, 0] - logits.mean(dim=1)

    found = net.attribution(rows(x), rows(mean), 1)
    for pathway in range(6):
        change = np.zeros_like(x)
        change[:, 5 * pathway : 5 * pathway + 5] = step * (x - mean)[:, 5 * pathway : 5 * pathway + 5]
        slope = (above(x + change) - above(x - change)) / (2 * step)
        torch.testing.assert_close(found[:, pathway], slope, atol=5e-5, rtol=2e-2)
    gained = above(x) - above(np.repeat(mean, 3, axis=0))
    torch.testing.assert_close(net.attribution(rows(x), rows(mean), 50).sum(dim=1), gained, atol=1e-3, rtol=1e-2)


def test_dropout_by_bytes():
    torch.manual_seed(0)
    x = torch.ones(200_000, requires_grad=True)
    found = dropout(x, 0.25)
    assert found.mean().item() == pytest.approx(1, abs=0.01)
    assert found.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    found.sum().backward()
    torch.testing.assert_close(x.grad, found.detach())
    assert dropout(x, 0.25, training=False) is x
    assert 0 < (dropout(x, 0.9999) > 0).sum() < 100  # beyond what bytes can say


# ---- the method ------------------------------------------------------------------------------------------------------

QUICK = {"epochs": 20, "n_hidden": 16, "dropout": 0.1, "stochastic_depth": 0.1, "learning_rate": 3e-3, "calibration": 0}


@pytest.fixture(scope="module")
def planted() -> tuple[ad.AnnData, dict[str, list[str]]]:
    """Three types and twelve pathways of ten genes; type 0 raises pathway 4, the others genes here and there."""
    rng = np.random.default_rng(0)
    types = rng.integers(0, 3, 360)
    rate = np.full((360, 120), 1.0)
    rate[types == 0, 40:50] = 5.0
    for label in (1, 2):
        rate[np.ix_(types == label, rng.choice(120, 12, replace=False))] = 5.0
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    adata.obs["cell_type"] = [f"type {label}" for label in types]
    return adata, {f"path {p}": adata.var_names[10 * p : 10 * p + 10].tolist() for p in range(12)}


def test_the_planted_pathway_is_the_first_one(planted):
    adata, sets = planted
    model = TOSICA(**QUICK).fit(adata[:240].copy(), labels="cell_type", pathways=sets, progress=False)
    other = adata[240:].copy()
    assert (model.predict(other) == other.obs["cell_type"]).mean() > 0.9
    cells = other[other.obs["cell_type"] == "type 0"].copy()
    assert (model.attribution(cells).idxmax(axis=1) == "path 4").mean() >= 0.8
    attention = model.attention(other)
    assert attention.shape == (120, 12) and (attention > 0).all(axis=None) and (attention.sum(axis=1) < 1).all()


def test_random_sets_and_rejection(planted):
    adata, _ = planted
    model = TOSICA(**{**QUICK, "epochs": 2, "n_sets": 20, "density": 0.1, "rejection": 1.0})
    model.fit(adata, labels="cell_type", progress=False)
    assert model.attention(adata).columns.str.startswith("random set").all()
    assert (model.predict() == "Unknown").all()


def test_cells_are_drawn_from_all_labels_alike(planted):
    adata, sets = planted
    rare = adata[
        np.r_[
            np.flatnonzero(adata.obs["cell_type"] != "type 0"), np.flatnonzero(adata.obs["cell_type"] == "type 0")[:24]
        ]
    ]
    model = TOSICA(**QUICK).fit(rare.copy(), labels="cell_type", pathways=sets, progress=False)
    found, truth = model.predict(adata), adata.obs["cell_type"].to_numpy()
    assert (found == truth)[truth == "type 0"].mean() > 0.7
