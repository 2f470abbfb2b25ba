"""scDeepSort: the graph of the publication walked edge by edge, features of genes, rejection, what it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import tenfold as tf
from tenfold.annotate.scdeepsort import ScDeepSort, gene_features, of_cells
from tenfold.data.preprocess import normalize_log1p
from tenfold.kernels.rows import take_rows
from tenfold.nn.gene_cell_graph import GeneCellNet

CELLS = tf.data.simulate(300, 100, n_types=4, type_strength=1.2, seed=2)
TRAIN, TEST = CELLS[:200].copy(), CELLS[200:].copy()
TRUTH = TEST.obs["cell_type"].astype(str).to_numpy()


def fit(adata=TRAIN, **params) -> ScDeepSort:
    settings = {"epochs": 60, "n_components": 40, "n_hidden": 32, "batch_size": 25, **params}
    return ScDeepSort(**settings).fit(adata, labels="cell_type", progress=False)


def walked(x: np.ndarray, net: GeneCellNet) -> np.ndarray:
    """Logits by the published graph: weights normalised to mean 1 at each cell, loops added, messages averaged."""
    genes = net.features.numpy()
    alpha, loop = net.confidence.detach().numpy(), float(net.loop)
    found = []
    for cell in x:
        expressed = np.flatnonzero(cell > 0)
        weights = len(expressed) * cell[expressed] / cell[expressed].sum()
        own = (cell / cell.sum()) @ genes
        messages = [alpha[g] * w * genes[g] for g, w in zip(expressed, weights, strict=True)] + [loop * 1.0 * own]
        hidden = np.mean(messages, axis=0) @ net.hidden.weight.detach().numpy().T + net.hidden.bias.detach().numpy()
        found.append(np.maximum(hidden, 0) @ net.head.weight.detach().numpy().T + net.head.bias.detach().numpy())
    return np.array(found)


def test_the_closed_form_is_the_graph_walked_edge_by_edge():
    torch.manual_seed(0)
    x = normalize_log1p(TEST.X)[:20]
    net = GeneCellNet(torch.randn(100, 7), 5, 4)
    with torch.no_grad():
        net.confidence.uniform_(0.5, 2)
        net.loop.fill_(1.7)
    shares, n = of_cells(x)
    expected = walked(x.toarray(), net)
    logits = net(take_rows(shares, np.arange(20)), torch.from_numpy(n))
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_weight_of_every_gene():
    torch.manual_seed(0)
    shares, n = of_cells(normalize_log1p(TRAIN.X))
    net = GeneCellNet(torch.randn(100, 7), 5, 4)
    net(take_rows(shares, np.arange(200)), torch.from_numpy(n)).logsumexp(dim=1).sum().backward()
    seen = np.asarray(TRAIN.X.sum(axis=0)).ravel() > 0
    assert ((net.confidence.grad.numpy() != 0) == seen).all() and net.loop.grad != 0
    step = 1e-2
    gene = int(np.flatnonzero(seen)[0])
    before, after = [], []
    for sign, kept in ((-1, before), (1, after)):
        with torch.no_grad():
            net.confidence[gene] += sign * step
            logits = net(take_rows(shares, np.arange(200)), torch.from_numpy(n)).double()
            kept.append(logits.logsumexp(dim=1).sum().item())
            net.confidence[gene] -= sign * step
    assert (after[0] - before[0]) / (2 * step) == pytest.approx(net.confidence.grad[gene].item(), rel=0.05, abs=0.02)


def test_labelling_by_tables_is_the_network():
    model, x = fit(epochs=3), normalize_log1p(TEST.X)
    shares, n = of_cells(x)
    with torch.no_grad():
        expected = model.net_(take_rows(shares, np.arange(100)), torch.from_numpy(n)).softmax(dim=1)
    np.testing.assert_allclose(model._score(x), expected, atol=1e-5)


def test_features_are_components_of_genes():
    x = normalize_log1p(TRAIN.X)
    expected = PCA(5).fit_transform(x.toarray().T.astype(np.float64))
    found = gene_features(x, 5, 0)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-2)
    assert gene_features(x, 400, 0).shape == (100, 99)


def test_it_learns_labels_and_nothing_from_permuted_ones():
    assert (fit().predict(TEST) == TRUTH).mean() > 0.8
    shuffled = TRAIN.copy()
    shuffled.obs["cell_type"] = np.random.default_rng(0).permutation(TRAIN.obs["cell_type"].astype(str))
    assert (fit(shuffled).predict(TEST) == TRUTH).mean() < 0.45


def test_unsure_cells_are_unknown():
    model, x = fit(calibration=0.0), normalize_log1p(TEST.X)
    sure = model._score(x).max(axis=1) >= 2 / 4
    told = model.predict(TEST)
    assert ((told != "Unknown") == sure).all() and 0 < (~sure).sum() < 50
    assert "Unknown" not in set(fit(calibration=0.0, rejection=0.0).predict(TEST))
    two = TRAIN[TRAIN.obs["cell_type"].isin(["type_1", "type_2"])].copy()
    assert (fit(two).predict(TEST) != "Unknown").any()  # 2 / 2 would reject all


def test_weights_of_genes_are_learnt_and_named():
    weights = fit().gene_confidence()
    assert set(weights.index) == set(CELLS.var_names) and weights.is_monotonic_decreasing
    assert weights.std() > 0.01
