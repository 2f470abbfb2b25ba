"""STAligner: matches across sections, triplets in the loss, sections drawn together, and bad input."""

import anndata as ad
import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.domains.staligner import matches, shared_genes
from tenfold.errors import DataError
from test_spatial import tissue
from test_stagate import network


def two_sections(strength=0.0):
    """One tissue, cut twice; the second section has a share of the counts of some genes only."""
    first, second = tissue(12, seed=0, noise=1.5), tissue(12, seed=1, noise=1.5)
    lost = np.random.default_rng(0).random((144, 20)) < strength
    dense = second.X.toarray()
    dense[:, 20:] *= ~lost
    second.X = type(second.X)(dense)
    second.obsm["spatial"] = second.obsm["spatial"] + 100
    both = ad.concat({"a": first, "b": second}, label="slice", index_unique="-")
    both.obs["domain"] = both.obs["domain"].astype(str)
    return both


def test_matches_are_mutual_and_the_nearest():
    rng = np.random.default_rng(0)
    latent, sections = rng.normal(size=(60, 4)), np.split(np.arange(60), [20, 45])
    found = matches(latent, sections, 5)
    assert found.shape == (60, 2)
    distance = cdist(latent, latent)
    for cell in range(60):
        own = next(i for i, part in enumerate(sections) if cell in part)
        others = [i for i in range(3) if i != own]
        for column, other in enumerate(others):
            near = sections[other][np.argsort(distance[cell, sections[other]])[:5]]
            mutual = [x for x in near if cell in sections[own][np.argsort(distance[x, sections[own]])[:5]]]
            assert found[cell, column] == (mutual[0] if mutual else -1)


def test_triplets_join_the_loss():
    net, _, _ = network()
    anchor, positive, negative = torch.tensor([0, 5, 9]), torch.tensor([20, 30, 40]), torch.tensor([1, 2, 3])
    found = net.aligned_terms(anchor, positive, negative, 1.0)
    z = torch.from_numpy(net.embedding())
    near, far = ((z[anchor] - z[other] + 1e-6).norm(dim=1) for other in (positive, negative))
    assert found["triplets"].item() == pytest.approx((near - far + 1).clamp_min(0).mean().item(), rel=1e-5)
    assert found["loss"].item() == pytest.approx(net.terms()["loss"].item() + found["triplets"].item(), rel=1e-5)
    assert net.aligned_terms(anchor[:0], positive[:0], negative[:0], 1.0)["triplets"].item() == 0


def test_sections_are_drawn_together_and_training_resumes(tmp_path):
    both = two_sections(strength=0.2)
    options = {"n_clusters": 2, "n_hidden": 32, "n_latent": 6, "graph": "knn", "learning_rate": 0.01}
    single = tf.domains.STAGATE(epochs=60, **options).fit(both, progress=False, sample="slice")
    kwargs = {"epochs": 60, "n_matching": 60, **options}
    model = tf.domains.STAligner(**kwargs).fit(both, progress=False, sample="slice", checkpoint=tmp_path)
    section = both.obs["slice"].to_numpy()
    mixed = [tf.metrics.ilisi(tf.metrics.neighbors(m.embed(), 30), section) for m in (single, model)]
    assert mixed[1] > mixed[0] + 0.1
    found = [tf.metrics.ari(m.cluster(), both.obs["domain"]) for m in (single, model)]
    assert found[0] < 0.3 and found[1] > 0.8, "sections instead of domains, and domains"
    assert 0 < model.history.query("term == 'matched'")["train"].iloc[-1] <= 1
    again = tf.domains.STAligner(**kwargs).fit(both, progress=False, sample="slice", checkpoint=tmp_path)
    np.testing.assert_array_equal(again.embed(), model.embed())


def test_a_single_section_is_told():
    with pytest.warns(UserWarning, match="single section"):
        tf.domains.STAligner(n_clusters=2, epochs=2, n_hidden=8).fit(tissue(8), progress=False)


def test_genes_are_those_that_all_sections_share():
    both = two_sections()
    data = Inputs(both, {"sample": "slice"})
    sections = [np.arange(144), np.arange(144, 288)]
    assert len(shared_genes(data, sections, None)) == 40
    assert 10 <= len(shared_genes(data, sections, 30)) <= 30
    with pytest.raises(DataError, match="of every section"):
        shared_genes(data, np.split(np.random.default_rng(0).permutation(288), 9), 11)
