"""Sparse Gaussian processes against exact regression, and their bound against formulas written out with inverses."""

from math import log, pi

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from tenfold.nn.priors import Gaussian
from tenfold.nn.sparse_gp import JITTER, SparseGP, grid


def scene(n=30, n_processes=2, seed=0):
    """Places, and a noisy observation of each process at each."""
    torch.manual_seed(seed)
    places = 20 * torch.rand(n, 2, dtype=torch.float64)
    seen = Gaussian(torch.randn(n, n_processes).double(), torch.rand(n, n_processes).double() + 0.05)
    return places, seen


def plain_kernel(first, second, scale=20.0):
    return 1 / (1 + torch.cdist(first, second).square() / scale)


def test_with_a_point_at_every_cell_it_is_exact_regression():
    places, seen = scene()
    new = 20 * torch.rand(7, 2, dtype=torch.float64)
    field = SparseGP(places, 2)
    field.condition(places, None, seen)
    found = field(new)
    k, across = plain_kernel(places, places), plain_kernel(new, places)
    for process in range(2):
        noisy = k + torch.diag(seen.variance[:, process])
        mean = across @ torch.linalg.solve(noisy, seen.mean[:, process])
        variance = 1 - (across @ torch.linalg.solve(noisy, across.T)).diagonal()
        torch.testing.assert_close(found.mean[:, process], mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.variance[:, process], variance, rtol=1e-5, atol=1e-6)


def test_with_a_point_at_every_cell_the_bound_is_the_evidence_and_below_it_with_fewer():
    places, seen = scene(n_processes=1)
    noisy = plain_kernel(places, places) + torch.diag(seen.variance[:, 0])
    evidence = MultivariateNormal(torch.zeros(30).double(), noisy).log_prob(seen.mean[:, 0])

    def bound(points):
        field = SparseGP(points, 1)
        a = field.features(places)
        known = field.posterior(*field.seen(a, None, seen))
        f = field.at(known, a, None)
        told = -0.5 * ((f.variance + (seen.mean - f.mean) ** 2) / seen.variance + (2 * pi * seen.variance).log()).sum()
        return told - known.kl_from_prior()

    torch.testing.assert_close(bound(places), evidence, rtol=1e-5, atol=1e-4)
    assert bound(grid(4, 2, 20.0)) < evidence


def test_divergence_at_the_inducing_points_is_that_of_the_distributions():
    places, seen = scene()
    field = SparseGP(grid(4, 2, 20.0), 2)
    known = field.posterior(*field.seen(field.features(places), None, seen), times=3.0)
    k = plain_kernel(field.points, field.points) + JITTER * torch.eye(16).double()
    root = torch.linalg.cholesky(k)
    expected = sum(
        kl_divergence(
            MultivariateNormal(root @ known.mean[0, i], root @ torch.cholesky_inverse(known.root[0, i]) @ root.T),
            MultivariateNormal(torch.zeros(16).double(), k),
        )
        for i in range(2)
    )
    torch.testing.assert_close(known.kl_from_prior(), expected, rtol=1e-6, atol=1e-6)


def inverses(points, places, y, nu, n_cells, jitter=0.0):
    """The terms of the sheet for one process, with inverses and the (b, m, m) tensor."""
    b, eye = len(places), torch.eye(len(points)).double()
    kmm, knm = plain_kernel(points, points), plain_kernel(places, points)
    inverse = torch.linalg.inv(kmm + jitter * eye)
    sigma = torch.linalg.inv(kmm + n_cells / b * knm.T @ (knm / nu[:, None]) + jitter * eye)
    mean = n_cells / b * knm @ sigma @ knm.T @ (y / nu)
    variance = 1 - (knm @ inverse @ knm.T).diagonal() + (knm @ sigma @ knm.T).diagonal()
    m, a = n_cells / b * kmm @ sigma @ knm.T @ (y / nu), kmm @ sigma @ kmm
    outer = inverse @ (knm[:, :, None] * knm[:, None, :]) @ inverse
    trace = torch.einsum("mn,bnm->b", a, outer)
    rest = 1 - (knm @ inverse @ knm.T).diagonal()
    inside = -0.5 * ((rest + trace + (y - knm @ inverse @ m) ** 2) / nu + nu.log() + log(2 * pi)).sum()
    kl = 0.5 * (kmm.logdet() - a.logdet() - len(points) + (inverse @ a).trace() + m @ inverse @ m)
    crossed = -0.5 * ((variance + (mean - y) ** 2) / nu + nu.log() + log(2 * pi)).sum()
    return mean, variance, crossed - (inside - b / n_cells * kl)


def test_terms_are_those_of_the_sheet_whose_expected_likelihoods_cancel():
    places, seen = scene()
    field = SparseGP(grid(4, 2, 20.0), 2)
    a = field.features(places)
    known = field.posterior(*field.seen(a, None, seen), times=100 / 30)
    found, total = field.at(known, a, None), 0.0
    for process in range(2):
        y, nu = seen.mean[:, process], seen.variance[:, process]
        mean, variance, kl = inverses(field.points, places, y, nu, 100)
        torch.testing.assert_close(found.mean[:, process], mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.variance[:, process], variance, rtol=1e-6, atol=1e-6)
        total = total + kl
    torch.testing.assert_close(30 / 100 * known.kl_from_prior(), total, rtol=1e-6, atol=1e-6)


def test_sections_are_apart_as_with_a_one_hot_kernel():
    places, seen = scene()
    section = torch.arange(30) % 3
    joint = SparseGP(grid(4, 2, 20.0), 2, n_sections=3)
    joint.condition(places, section, seen, size=11)
    found = joint(places, section)
    for code in range(3):
        rows = section == code
        alone = SparseGP(joint.points, 2)
        alone.condition(places[rows], None, Gaussian(seen.mean[rows], seen.variance[rows]))
        for together, apart in zip(found, alone(places[rows]), strict=True):
            torch.testing.assert_close(together[rows], apart)
    assert not torch.allclose(found.mean, joint(places, (section + 1) % 3).mean)


def test_gradients_are_those_of_finite_differences():
    places, seen = scene(n=8)
    section = torch.arange(8) % 2
    field = SparseGP(grid(2, 2, 20.0), 2, n_sections=2).double()

    def terms(raw, mean, variance):
        def inner(self):
            a = self.features(places)
            known = self.posterior(*self.seen(a, section, Gaussian(mean, variance)), times=2.0)
            return known.kl_from_prior() + sum(part.sin().sum() for part in self.at(known, a, section))

        return torch.func.functional_call(_Wrapped(field, inner), {"field.raw_scale": raw}, ())

    given = (field.raw_scale.detach(), seen.mean, seen.variance)
    assert torch.autograd.gradcheck(terms, tuple(part.clone().requires_grad_() for part in given))


class _Wrapped(torch.nn.Module):
    def __init__(self, field, inner):
        super().__init__()
        self.field, self.inner = field, inner

    def forward(self):
        return self.inner(self.field)


@pytest.mark.parametrize("scale", [0.5, 20.0, 1e4])
def test_smooth_kernels_on_a_fine_lattice_are_not_singular(scale):
    places, seen = scene()
    field = SparseGP(grid(20, 2, 20.0), 2, scale=scale)
    assert field.scale.item() == pytest.approx(scale, rel=1e-4)
    field.condition(places, None, seen)
    found = field(places)
    assert torch.isfinite(found.mean).all() and (found.variance > 0).all() and (found.variance < 1.001).all()


def test_before_any_cell_is_seen_it_is_the_prior():
    found = SparseGP(grid(5, 2, 20.0), 2)(scene()[0])
    torch.testing.assert_close(found.mean, torch.zeros(30, 2).double())
    torch.testing.assert_close(found.variance, torch.ones(30, 2).double())


def test_lattices_cover_the_tissue_in_two_and_three_dimensions():
    assert grid(7, 2, 20.0).shape == (49, 2) and grid(3, 3, 1.0).shape == (27, 3)
    assert grid(7, 2, 20.0).min() == 0 and grid(7, 2, 20.0).max() == 20
