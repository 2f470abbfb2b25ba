"""SpaCell: its loss written out, shares between 0 and 1, and what the picture adds."""

import numpy as np
import pytest
import torch
from scipy import sparse
from torch.nn import functional as F

import tenfold as tf
from tenfold.data.inputs import Inputs
from tenfold.domains.spacell import SpaCell
from tenfold.kernels.rows import SparseRows
from tenfold.nn.joint_autoencoder import JointAutoencoder
from test_spagcn import pictured
from test_spatial import tissue


def rows(matrix):
    places = (torch.from_numpy(part.astype(np.int64)) for part in (matrix.indptr, matrix.indices))
    return SparseRows(*places, torch.from_numpy(matrix.data), matrix.shape[1])


@pytest.mark.parametrize("n_picture", [0, 6])
def test_the_loss_is_the_cross_entropy_of_each_side(n_picture):
    torch.manual_seed(0)
    matrix = sparse.random(9, 12, 0.3, format="csr", random_state=0, dtype=np.float32)
    net, picture = JointAutoencoder(12, n_picture, 4), torch.rand(9, n_picture)
    batch = {"genes": rows(matrix), "picture": picture}
    z = net.encode(batch)
    x = torch.from_numpy(matrix.toarray())
    if n_picture:
        h = F.relu(net.back(z))
        expected = F.binary_cross_entropy(net.to_genes(h).sigmoid(), x)
        expected = expected + F.binary_cross_entropy(net.to_picture(h).sigmoid(), picture)
        first = F.relu(x @ net.genes.weight + net.genes.bias)
        both = torch.cat([first, F.relu(net.picture(picture))], dim=1)
        torch.testing.assert_close(z, net.code(both))
    else:
        expected = F.binary_cross_entropy(net.alone.decode(z).sigmoid(), x)
    assert net.terms(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_shares_lie_between_0_and_1():
    adata = tissue()
    dense = adata.X.toarray()
    dense[:, 0] += 5  # no cell without it
    dense[:, 1] = 0
    dense[0, 1] = 1  # seen in one cell of 400
    adata.X = sparse.csr_matrix(dense)
    found = SpaCell(n_top_genes=None)._shares(Inputs(adata, {})).toarray()
    assert found.shape == (400, 39) and found.min() == 0
    np.testing.assert_allclose(found.max(axis=0), 1, rtol=1e-5)
    shares = dense[:, 0] / dense.sum(axis=1)
    np.testing.assert_allclose(found[:, 0], (shares - shares.min()) / np.ptp(shares), atol=1e-5)


def test_the_picture_tells_halves_that_expression_hardly_shows():
    adata = pictured(tissue(noise=6.0))
    adata.uns["spatial"]["one"]["scalefactors"]["spot_diameter_fullres"] = 0.8
    told, blind = (
        SpaCell(n_clusters=2, epochs=15, histology=kind).fit(adata, progress=False) for kind in ("yes", "no")
    )
    scores = [tf.metrics.ari(model.cluster(), adata.obs["domain"]) for model in (told, blind)]
    assert told.saw_picture_ and not blind.saw_picture_ and scores[0] > 0.75 > scores[1] + 0.2
    course = told.history.query("term == 'loss'")["train"].to_numpy()
    assert course[-1] < course[0]
    with pytest.warns(UserWarning, match="expression alone"):
        SpaCell(n_clusters=2, epochs=1).fit(tissue(), progress=False)
