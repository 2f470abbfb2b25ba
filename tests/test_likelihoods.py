"""Likelihoods of counts: fused kernels and plain PyTorch against torch.distributions and SciPy in float64."""

import itertools

import numpy as np
import pytest
import torch
import torch.distributions as D
from scipy import sparse, stats

from tenfold.errors import ParameterError
from tenfold.kernels.count_losses import fused_nll
from tenfold.kernels.rising import N_SMALL, rising_large, rising_small
from tenfold.kernels.rows import SparseRows, all_rows
from tenfold.nn.likelihoods import count_mean, count_nll, sample_counts

LIKELIHOODS = ("poisson", "nb", "zinb", "multinomial", "bernoulli")
LINKS = ("softmax", "exp", "softplus")
CASES = [
    (likelihood, link, dispersion)
    for likelihood, link in itertools.product(LIKELIHOODS, LINKS)
    for dispersion in (("gene", "level", "cell") if likelihood in ("nb", "zinb") else (None,))
]


def rows_of(x: np.ndarray | torch.Tensor, dtype: torch.dtype) -> SparseRows:
    matrix = sparse.csr_matrix(np.asarray(x, dtype=np.float64))
    return all_rows(matrix.astype(np.float32 if dtype == torch.float32 else np.float64))


def entries(likelihood, x, log_mean, log_theta=None, dropout=None):
    """Negative log-likelihood of every entry from torch.distributions; the multinomial has one a cell."""
    mean = log_mean.exp()
    if likelihood == "poisson":
        return mean - x * log_mean + torch.lgamma(x + 1)
    if likelihood == "multinomial":
        return torch.stack(
            [
                -D.Multinomial(int(row.sum()), logits=m, validate_args=False).log_prob(row)
                for row, m in zip(x, log_mean, strict=True)
            ]
        )
    if likelihood == "bernoulli":
        return torch.where(x > 0, -torch.log(-torch.expm1(-mean)), mean)
    nb = D.NegativeBinomial(log_theta.exp(), logits=log_mean - log_theta, validate_args=False).log_prob(x)
    if likelihood == "nb":
        return -nb
    kept, extra = -torch.nn.functional.softplus(dropout), -torch.nn.functional.softplus(-dropout)
    return -torch.where(x > 0, kept + nb, torch.logaddexp(extra, kept + nb))


def log_mean_of(link, logits, log_size):
    linked = {
        "softmax": lambda h: torch.log_softmax(h, -1),
        "exp": lambda h: h,
        "softplus": lambda h: torch.nn.functional.softplus(h).log(),
    }[link](logits)
    return linked + log_size[:, None]


def problem(link, dispersion, dtype, n=40, genes=30, seed=0):
    """Counts and arguments of a moderate problem, in `dtype`; the same numbers in any type."""
    rng = np.random.default_rng(seed)
    x = rng.negative_binomial(0.4, 0.1, (n, genes)) * (rng.random((n, genes)) < 0.7)
    x[3] = 0
    x[5, 7], x[6, 2] = 20_000, 17
    level = torch.from_numpy(rng.integers(0, 3, n))
    shape = {"gene": genes, "level": (3, genes), "cell": (n, genes), None: genes}[dispersion]
    raw = {
        "logits": rng.normal(size=(n, genes)),
        "log_size": rng.normal(1 if link != "softmax" else 5, 1, n),
        "log_theta": rng.normal(0, 2, shape),
        "dropout_logits": rng.normal(-1, 2, (n, genes)),
    }
    arguments = {key: torch.from_numpy(np.float32(value)).to(dtype).requires_grad_() for key, value in raw.items()}
    return x, level, arguments


def call(likelihood, link, dispersion, rows, level, arguments):
    options = {"link": link}
    if likelihood in ("nb", "zinb"):
        options |= {"log_theta": arguments["log_theta"], "level": level if dispersion == "level" else None}
    if likelihood == "zinb":
        options["dropout_logits"] = arguments["dropout_logits"]
    return count_nll(likelihood, rows, arguments["logits"], arguments["log_size"], **options)


def truth(likelihood, link, dispersion, x, level, arguments):
    log_theta = arguments["log_theta"][level] if dispersion == "level" else arguments["log_theta"]
    log_mean = log_mean_of(link, arguments["logits"], arguments["log_size"])
    counts = torch.from_numpy(np.asarray(x, dtype=np.float64))
    values = entries(likelihood, counts, log_mean, log_theta, arguments["dropout_logits"])
    return values if likelihood == "multinomial" else values.sum(1)


def gradients(nll, arguments, weight):
    found = torch.autograd.grad((nll * weight).sum(), list(arguments.values()), allow_unused=True)
    return [None if part is None else part.double() for part in found]


@pytest.mark.parametrize("weights", ["mean", "sum", "uneven"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("likelihood", "link", "dispersion"), CASES)
def test_values_and_gradients(likelihood, link, dispersion, dtype, weights):
    x, level, arguments = problem(link, dispersion, dtype)
    _, _, exact = problem(link, dispersion, torch.float64)
    n = len(x)
    weight = {"mean": torch.full((n,), 1 / n), "sum": torch.ones(n), "uneven": torch.linspace(-1, 2, n)}[weights]
    nll = call(likelihood, link, dispersion, rows_of(x, dtype), level, arguments)
    expected = truth(likelihood, link, dispersion, x, level, exact)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    assert nll.dtype == dtype
    torch.testing.assert_close(nll.double(), expected, rtol=tolerance, atol=tolerance)
    ours = gradients(nll, arguments, weight.to(dtype))
    theirs = gradients(expected, exact, weight.double())
    for name, mine, other in zip(arguments, ours, theirs, strict=True):
        if other is None or (name == "log_size" and likelihood == "multinomial"):
            assert mine is None or float(mine.abs().max()) < 1e-9, name
        else:
            scale = float(other.abs().max())
            torch.testing.assert_close(mine, other, rtol=tolerance * 10, atol=tolerance * scale, msg=name)


THETA = np.float32([1e-4, 1e-2, 1.0, 30.0, 1e4])
COUNTS = np.array([0, 1, 2, 3, 15, 16, 17, 100, 9_999, 1_000_000])
MEANS = np.float32([1e-12, 1e-4, 0.03, 1.0, 40.0, 3e3, 1e6])
DROPOUT = np.float32([-60, -3, 0, 4, 30])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dispersion", ["level", "cell"])
@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
def test_wide_grid_of_dispersion_count_and_mean(likelihood, dispersion, dtype):
    """One gene, so that a row is an entry: theta 1e-4 to 1e4, counts 0 to 1e6, means 1e-12 to 1e6."""
    t, x, m, pi = (part.ravel() for part in np.meshgrid(range(len(THETA)), COUNTS, MEANS, DROPOUT, indexing="ij"))
    log_theta, level = torch.from_numpy(np.log(THETA)[:, None]), torch.from_numpy(t)
    if dispersion == "cell":
        log_theta, level = log_theta[level], None
    raw = torch.from_numpy(np.log(m)[:, None]), log_theta, torch.from_numpy(pi[:, None])
    leaves = [part.to(dtype).requires_grad_() for part in raw]
    exact = [part.double().requires_grad_() for part in raw]
    options = {"dropout_logits": leaves[2]} if likelihood == "zinb" else {}
    nll = count_nll(
        likelihood, rows_of(x[:, None], dtype), leaves[0], torch.zeros(len(x), dtype=dtype), link="exp",
        log_theta=leaves[1], level=level, **options,
    )  # fmt: skip
    counts = torch.from_numpy(x[:, None].astype(np.float64))
    wide_theta = exact[1] if level is None else exact[1][level]
    expected = entries(likelihood, counts, exact[0], wide_theta, exact[2])[:, 0]
    # what an entry is the difference of: float32 keeps seven digits of it where the result itself is small
    terms = 1 + counts[:, 0].clamp(max=N_SMALL) * exact[0].detach()[:, 0].abs() + expected.detach().abs()
    assert float(((nll - expected).detach().abs() / terms).max()) < (3e-6 if dtype == torch.float32 else 1e-9)
    upstream = torch.ones_like(nll)
    ours = torch.autograd.grad(nll, leaves, upstream, allow_unused=True)
    theirs = torch.autograd.grad(expected, exact, upstream.double(), allow_unused=True)
    torch.testing.assert_close(ours[0].double(), theirs[0], rtol=1e-5, atol=1e-7)
    if likelihood == "zinb":
        torch.testing.assert_close(ours[2].double(), theirs[2], rtol=1e-4, atol=1e-6)
    if dispersion == "cell":
        reached = (exact[0].exp() + counts).detach()  # a gradient of theta is a difference of terms of this size
        error = (ours[1].double() - theirs[1]).abs() / (theirs[1].abs() + 0.01 * reached.clamp(max=1.0) + 1e-3)
        assert float(error.max()) < 1e-3


@pytest.mark.parametrize("theta", [1e-6, 1e-4, 0.3, 1.0, 15.0, 1e3, 1e8])
@pytest.mark.parametrize("x", [1, 2, 15, 16, 40, 3000, 1_000_000])
def test_gamma_terms_against_the_finite_sum(theta, x):
    j = np.arange(1, x, dtype=np.longdouble)
    total = np.log1p(j / theta).sum() - np.log(np.arange(1, x + 1, dtype=np.longdouble)).sum()
    slope = (j / (theta + j)).sum()
    for rising in [rising_large] + [rising_small] * (x < N_SMALL):
        value, derivative = rising(x if rising is rising_small else float(x), theta)
        assert value == pytest.approx(float(total), rel=1e-11, abs=1e-10 + 1e-15 * x * np.log(x))  # log x! cancels
        assert derivative == pytest.approx(float(slope), rel=1e-8, abs=1e-10)


def test_near_poisson_in_float32():
    """At theta = 1e7 differences of log-gamma are wrong by more than one nat in float32."""
    x = np.arange(1, 101)[:, None]
    log_mean = torch.full((100, 1), float(np.log(1.3)))
    nll = count_nll("nb", rows_of(x, torch.float32), log_mean, torch.zeros(100), link="exp",
                    log_theta=torch.full((1,), float(np.log(1e7))))  # fmt: skip
    np.testing.assert_allclose(nll.numpy(), -stats.nbinom.logpmf(x, 1e7, 1e7 / (1e7 + 1.3))[:, 0], rtol=3e-6)
    np.testing.assert_allclose(nll.numpy(), -stats.poisson.logpmf(x, 1.3)[:, 0], rtol=3e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scipy_agrees(dtype):
    rng = np.random.default_rng(2)
    x = rng.poisson(3.0, (20, 12))
    logits, log_size = torch.randn(20, 12, dtype=dtype), torch.full((20,), 3.5, dtype=dtype)
    mean = count_mean(logits, log_size).double().numpy()
    rows = rows_of(x, dtype)
    np.testing.assert_allclose(
        count_nll("poisson", rows, logits, log_size).numpy(), -stats.poisson.logpmf(x, mean).sum(1), rtol=1e-5
    )
    theta = 2.5
    nll = count_nll("nb", rows, logits, log_size, log_theta=torch.full((12,), np.log(theta), dtype=dtype))
    np.testing.assert_allclose(nll.numpy(), -stats.nbinom.logpmf(x, theta, theta / (theta + mean)).sum(1), rtol=1e-5)
    nll = count_nll("multinomial", rows, logits, log_size)
    p = mean / mean.sum(1, keepdims=True)
    np.testing.assert_allclose(nll.numpy(), -stats.multinomial.logpmf(x, x.sum(1), p), rtol=1e-5)


def test_bernoulli_with_softplus_is_logistic_regression():
    x, logits = torch.bernoulli(torch.full((9, 14), 0.3)), torch.randn(9, 14)
    nll = count_nll("bernoulli", rows_of(x, torch.float32), logits, torch.zeros(9), link="softplus")
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)
    torch.testing.assert_close(nll, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("likelihood", "link", "dispersion"), CASES)
def test_gradcheck(likelihood, link, dispersion):
    x, level, arguments = problem(link, dispersion, torch.float64, n=7, genes=8, seed=1)
    x = np.minimum(x, 30)
    rows, names = rows_of(x, torch.float64), list(arguments)

    def nll(*tensors):
        return call(likelihood, link, dispersion, rows, level, dict(zip(names, tensors, strict=True)))

    assert torch.autograd.gradcheck(nll, tuple(arguments.values()), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("likelihood", "link", "dispersion"), CASES)
def test_nothing_is_nan_at_extremes(likelihood, link, dispersion, dtype):
    x, level, arguments = problem(link, dispersion, dtype)
    x[4] = 0
    with torch.no_grad():
        arguments["logits"][:, ::3] = 200.0 if link == "exp" else 1e4
        arguments["logits"][:, 1::3] = -1e4
        arguments["log_theta"].view(-1)[::2] = 100.0
        arguments["log_theta"].view(-1)[1::2] = -100.0
        arguments["dropout_logits"][::2] = 1e4
        arguments["dropout_logits"][1::2] = -1e4
        arguments["log_size"][3:5] = -torch.inf  # a cell without counts
    nll = call(likelihood, link, dispersion, rows_of(x, dtype), level, arguments)
    assert torch.isfinite(nll).all()
    for part in gradients(nll, arguments, torch.ones_like(nll)):
        assert part is None or torch.isfinite(part).all()


@pytest.mark.parametrize("name", ["logits", "log_size", "log_theta", "dropout_logits"])
def test_nan_is_not_hidden(name):
    x, level, arguments = problem("softmax", "gene", torch.float32)
    with torch.no_grad():
        arguments[name].view(-1)[0] = torch.nan
    assert torch.isnan(call("zinb", "softmax", "gene", rows_of(x, torch.float32), level, arguments)[0])


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_odd_shapes(likelihood):
    def nll(x, logits):
        options = {"log_theta": torch.zeros(logits.shape[1])} if likelihood in ("nb", "zinb") else {}
        options |= {"dropout_logits": torch.zeros_like(logits)} if likelihood == "zinb" else {}
        return count_nll(likelihood, rows_of(x, torch.float32), logits, torch.zeros(len(x)), **options)

    assert nll(np.zeros((0, 5)), torch.zeros(0, 5)).shape == (0,)
    nll(np.zeros((0, 5)), torch.zeros(0, 5, requires_grad=True)).sum().backward()
    one = nll(np.array([[3.0]]), torch.zeros(1, 1))
    assert one.shape == (1,) and torch.isfinite(one).all()
    x, logits = np.random.default_rng(0).poisson(1.0, (6, 8)), torch.randn(8, 6, requires_grad=True)
    torch.testing.assert_close(nll(x, logits.T), nll(x, logits.T.contiguous()))
    nll(x, logits.T).mean().backward()
    assert logits.grad.shape == (8, 6)
    torch.testing.assert_close(nll(x, logits.T[:, :].expand(6, 8)), nll(x, logits.T.contiguous()))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_stored_zeros_count_as_zeros(likelihood):
    x, level, arguments = problem("softmax", "gene", torch.float32)
    rows = rows_of(x, torch.float32)
    full = rows_of(np.ones_like(x), torch.float32).with_values(torch.from_numpy(np.float32(x)).reshape(-1))
    for path in (torch.float32, torch.float64):
        moved = {key: value.to(path) for key, value in arguments.items()}
        torch.testing.assert_close(
            call(likelihood, "softmax", "gene", full.with_values(full.values.to(path)), level, moved),
            call(likelihood, "softmax", "gene", rows.with_values(rows.values.to(path)), level, moved),
        )


def test_threads_change_no_bit():
    x, level, arguments = problem("softmax", "level", torch.float32, n=300)
    rows, before, results = rows_of(x, torch.float32), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            nll = call("zinb", "softmax", "level", rows, level, arguments)
            results.append([nll.detach(), *gradients(nll, arguments, torch.full_like(nll, 0.1))])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_second_backward_and_no_grad_give_the_same():
    x, level, arguments = problem("softmax", "gene", torch.float32)
    rows = rows_of(x, torch.float32)
    nll = call("zinb", "softmax", "gene", rows, level, arguments)
    loss = nll.sum()
    first = torch.autograd.grad(loss, arguments["logits"], retain_graph=True)[0].clone()
    assert torch.equal(first, torch.autograd.grad(loss, arguments["logits"])[0])
    with torch.no_grad():
        assert torch.equal(call("zinb", "softmax", "gene", rows, level, arguments), nll)


def test_the_fused_path_is_taken_in_float32(monkeypatch):
    from tenfold.nn import likelihoods

    calls = []
    monkeypatch.setattr(likelihoods, "fused_nll", lambda *a: calls.append(a) or fused_nll(*a))
    for dtype in (torch.float32, torch.float64):
        x, level, arguments = problem("softmax", "gene", dtype)
        call("nb", "softmax", "gene", rows_of(x, dtype), level, arguments)
    assert len(calls) == 1


def test_half_precision_is_computed_in_float32():
    x, level, arguments = problem("softmax", "gene", torch.float32)
    rows = rows_of(x, torch.float32)
    half = arguments | {"logits": arguments["logits"].detach().bfloat16().requires_grad_()}
    full = arguments | {"logits": half["logits"].detach().float()}
    nll = call("nb", "softmax", "gene", rows, level, half)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, call("nb", "softmax", "gene", rows, level, full))
    nll.sum().backward()
    assert half["logits"].grad.dtype == torch.bfloat16


def test_errors_name_what_is_wrong():
    rows, logits, size = rows_of(np.eye(4), torch.float32), torch.zeros(4, 4), torch.zeros(4)
    theta = torch.zeros(4)
    for message, arguments, options in [
        ("Unknown likelihood", ("gauss", rows, logits, size), {}),
        ("Unknown link", ("poisson", rows, logits, size), {"link": "log"}),
        ("needs `log_theta`", ("nb", rows, logits, size), {}),
        ("takes no `log_theta`", ("poisson", rows, logits, size), {"log_theta": theta}),
        ("needs `dropout_logits`", ("zinb", rows, logits, size), {"log_theta": theta}),
        ("the counts", ("poisson", rows, logits[:, :3], size), {}),
        ("`log_size` must", ("poisson", rows, logits, size[:2]), {}),
        ("`log_theta` must", ("nb", rows, logits, size), {"log_theta": theta[:3]}),
        ("range\\(2\\)", ("nb", rows, logits, size), {"log_theta": torch.zeros(2, 4), "level": torch.arange(4)}),
    ]:
        with pytest.raises(ParameterError, match=message):
            count_nll(*arguments, **options)
    with pytest.raises(ParameterError, match="theta"):
        sample_counts("nb", logits)


def test_sampled_counts_have_the_right_moments():
    generator = torch.Generator().manual_seed(0)
    mean, theta = torch.full((200_000, 2), 3.0), torch.tensor([0.7, 5.0])
    logits = torch.full_like(mean, -1.0)
    kept = float(torch.sigmoid(torch.tensor(1.0)))
    nb_variance = 3 + 9 / theta
    for likelihood, expected, variance in [
        ("poisson", 3.0, torch.tensor([3.0, 3.0])),
        ("nb", 3.0, nb_variance),
        ("zinb", 3 * kept, kept * nb_variance + kept * (1 - kept) * 9),
    ]:
        drawn = sample_counts(likelihood, mean, theta, logits, generator)
        assert torch.equal(drawn, drawn.round()) and drawn.min() >= 0
        torch.testing.assert_close(drawn.mean(0), torch.full((2,), expected), rtol=0.02, atol=0)
        torch.testing.assert_close(drawn.var(0), variance, rtol=0.04, atol=0)
    detected = sample_counts("bernoulli", mean, generator=generator)
    assert float(detected.mean()) == pytest.approx(1 - np.exp(-3), abs=0.002)
    shares = torch.tensor([[5.0, 15.0, 0.0], [0.0, 0.0, 0.0]])
    drawn = sample_counts("multinomial", shares, generator=generator)
    assert drawn.sum(1).tolist() == [20, 0] and drawn[0, 2] == 0


def test_sampling_repeats_with_the_seed():
    mean = torch.rand(50, 20) * 10
    a, b = (sample_counts("nb", mean, torch.ones(20), generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(a, b)


def test_mean_of_each_link():
    logits, log_size = torch.randn(5, 7), torch.randn(5)
    torch.testing.assert_close(count_mean(logits).sum(-1), torch.ones(5))
    torch.testing.assert_close(count_mean(logits, log_size, link="exp"), (logits + log_size[:, None]).exp())
    torch.testing.assert_close(
        count_mean(logits, log_size, link="softplus"),
        torch.nn.functional.softplus(logits) * log_size.exp()[:, None],
    )
