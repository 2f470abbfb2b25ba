"""VeloVAE: one time for all genes, and transcription rates that follow the state of the cell."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import logit

from tenfold.data.inputs import Inputs
from tenfold.data.velocity import Moments
from tenfold.errors import DataError
from tenfold.method import MethodInfo, param
from tenfold.velocity_models import shared_time
from tenfold.velocity_models.base import Rates
from tenfold.velocity_models.steady_state import by_blocks, steady_state
from tenfold.velocity_models.trained import TrainedVelocity

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenfold.engine import History, Phase, Progress
    from tenfold.nn.velo_vae import VeloVAENet

#: Share of cells to train on; the others say when a stage ends: after PATIENCE looks, EVERY so many epochs, without a
#: gain of LEAST_GAIN nats a gene.
TRAINED, EVERY, PATIENCE, LEAST_GAIN = 0.7, 2, 5, 1e-3
#: Epochs in which rates are held, and how much faster than weights they are learnt then.
HELD, FASTER = 5, 8.0
#: How much earlier than a cell its course begins, as shares of all cells.
WINDOW = (0.03, 0.06)
#: Change of beginnings, relative to their spread, at which they are settled; least deviation, and least learning rate.
SETTLED, LEAST_SD, LEAST_RATE = 0.01, 1e-3, 1e-4


class VeloVAE(TrainedVelocity):
    """A variational autoencoder whose latent variables are one time for all genes and a state of the cell.

    Genes are spliced and degraded at constant rates; the rate of transcription is a share of its highest that a
    network makes of the cell's state. In a first stage each gene is either induced (from no RNA on) or repressed (no
    more transcription) in all cells, and the encoder learns time and state of cells. In the second, these are held, and
    a second network of shares is trained in rounds: the course of a cell begins with the averages of ten cells of
    like state among those 3 to 6 % of all cells earlier, as they came out of the round before. So branches can be
    followed.

    **Use it** for a common time and transcription rates that change along branches, beside `ScVeloStochastic`.

    **Do not use it** for a direction: that of time follows from which genes are taken for induced, a draw around 0.6 or
    0.4 for groups of genes. Others found it mostly reversed (Luo et al. 2026), and so it was here: on a real pancreas
    set (200 genes, cut short) the known direction was -0.31 to -0.28 with three seeds, that of `ScVeloStochastic` 0.12.
    Nor is its time reliable: on a simulation that branches its rank correlation with the truth was -0.18, 0.06 and 0.67
    (three seeds, cut short), that of `ScVeloStochastic` 0.95. Its confidence is no evidence either: 0.73 for the
    pancreas, 0.98 for its permuted counts.

    **Cost**: linear in cells × genes × epochs, up to 1,000 and 20 × 500 of them; both stages end early. A step takes
    less than half of the original's time (128 cells × 800 genes, one core: 0.04 seconds, then 0.02), the start a third.

    **Writes** ``layers["velovae_velocity"]`` (NaN for genes that are not used), ``obs["velovae_time"]`` (its latent
    time, from 0 to 1) and ``obs["velovae_confidence"]``.

    Parameters
    ----------
    n_top_genes
        Variable genes among those with enough counts; ``None`` takes all.
    min_shared_counts
        Least counts of a gene, spliced and unspliced, in cells that have both.
    n_components, n_neighbors
        Principal components in which neighbours are searched, and neighbours of a cell (itself counted) to average
        over.
    max_unspliced
        Share of unspliced counts above which the layers are taken for swapped; raise it for nuclei.
    normalize
        Divide each layer by its own totals; False for data that were not sampled, such as exact simulations.
    n_latent, n_hidden, dropout
        Width of the state; width of the hidden layers next to it, those next to the genes being twice as wide; dropout
        of both.
    n_origins, n_rounds
        Earlier cells that a course begins with, and rounds at most in which these beginnings are renewed.
    t_max, state_sd
        The prior of a cell's time is normal around half of `t_max`, with a twentieth as its deviation; that of states
        has this standard deviation.
    min_r2, max_r2, min_ratio
        Least and largest R², and least γ, of the steady-state fit of a gene whose velocity is used.
    epochs, batch_size, weight_decay
        Of the first stage, at most, and half as many a round; by Adam, on 70 % of the cells.
    learning_rate
        Of weights; that of rates is eight times as high. ``None``: 10^(-3 - 4 p), at least 1e-4, for a share p of
        counts that are not zero.
    device
        As in ``tenfold.engine.fit``.
    seed
        Of modes of genes, weights, noise and the order of cells.

    Notes
    -----
    The start differs from the original's: times of genes are joined by ranks, deviations are those of the two-phase fit
    itself, groups of genes are tested against the exact distribution of genes without a mode, and where a group is
    mixed a gene is drawn around the mean of its own part, there of either. Beginnings are searched among all cells,
    there among those trained on. Its learning rate has no lower bound, which leaves data with few zeros untrained.
    Prior times, the discrete likelihood and posteriors of rates are left out.

    Examples
    --------
    >>> import tenfold as tf
    >>> adata = tf.data.simulate_branching(n_cells=200, n_genes=60, seed=0)
    >>> model = tf.velocity.VeloVAE(n_neighbors=15, epochs=4, n_rounds=2).fit(adata)
    >>> model.latent().shape
    (200, 5)

    References
    ----------
    Gu, Blaauw and Welch (2022), doi 10.48550/arXiv.2207.03540.
    """

    info = MethodInfo(
        title="VeloVAE",
        tasks=("velocity",),
        family="deep",
        year=2022,
        doi="10.48550/arXiv.2207.03540",
        accepts=("spliced", "unspliced", "use_rep", "batch"),
        gives=("velocity", "time", "confidence"),
        readiness="research",
        advice="One time for all genes whose direction is a guess: look at it beside scVelo's stochastic model.",
    )

    n_latent: int = param(5, low=1)
    n_hidden: int = param(250, low=1)
    dropout: float = param(0.2, low=0.0, high=0.99)
    n_origins: int = param(10, low=1)
    n_rounds: int = param(20, low=1)
    t_max: float = param(20.0, low=1.0)
    state_sd: float = param(0.01, low=1e-4)
    min_r2: float = 0.01
    max_r2: float = 0.95
    min_ratio: float = 0.01
    epochs: int = param(1000, low=1)
    batch_size: int | None = param(128, low=3)
    learning_rate: float | None = param(None, low=0.0)  # type: ignore[assignment]
    weight_decay: float = param(1e-3, low=0.0)

    def _rates(self, data: Inputs, moments: Moments) -> Rates:
        from tenfold.engine import predict, seeded

        s, u = moments.spliced, moments.unspliced
        gamma, r2, _ = by_blocks(partial(steady_state, percentile=98.0), s, u)
        self.modelled_ = (((s > 0) & (u > 0)).sum(axis=0) > 3) & (s.std(axis=0) > 0) & (u.std(axis=0) > 0)
        if self.modelled_.sum() < 2:
            raise DataError("Spliced and unspliced counts vary together in fewer than two genes; are layers filled?")
        s, u = s[:, self.modelled_], u[:, self.modelled_]
        self.scale_ = u.std(axis=0) / s.std(axis=0)
        x = np.hstack([u / self.scale_, s])
        self.n_cells_ = data.n_cells
        self.start_, self.sd_ = self._start(*(part.astype(np.float64) for part in np.split(x, 2, axis=1)))
        rate = self.learning_rate or self._rate_of(moments)
        with seeded(self.seed):
            net = self._build()
        self._train(net, data, {"x": x}, self._phases(rate), train_fraction=TRAINED)
        found = predict(self.net_, {"x": x}, lambda net, batch: net.outputs(batch["index"])["velocity"])
        time, self.states_ = self.net_.time.numpy()[:, 0], self.net_.state.numpy().copy()
        span = np.ptp(time) or 1.0
        self.time_sd_ = np.sqrt(self.net_.time_variance.numpy()[:, 0]) / span
        velocity = np.full((data.n_cells, len(r2)), np.nan, np.float32)
        velocity[:, self.modelled_] = found
        table = {"r2": r2, "steady_ratio": gamma}
        for name, values in self.net_.of_genes()._asdict().items():
            table[name] = np.full(len(r2), np.nan)
            table[name][self.modelled_] = values.detach().numpy()
        table["ratio"] = table["gamma"] / table["beta"]
        table["ratio"][self.modelled_] *= self.scale_
        trusted = (r2 > self.min_r2) & (r2 < self.max_r2) & (gamma > self.min_ratio)
        return Rates(velocity, trusted, table, (time - time.min()) / span)

    def _start(self, u: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where the numbers of genes start, as the network holds them, and standard deviations."""
        fits = shared_time.two_phase_fits(u, s)
        induced = shared_time.gene_modes(u, s, shared_time.share_before_switch(fits, self.t_max), self.seed)
        alpha, gamma = shared_time.course_of_genes(u, s, self.t_max * shared_time.time_of_cells(fits.times))
        logs = np.log(np.maximum([alpha, np.ones_like(alpha), gamma, fits.u0, fits.s0], 1e-6))
        begin, odds = np.full_like(alpha, -10.0), logit(np.clip(induced, 1e-4, 1 - 1e-4)) / 2
        return np.vstack([logs, begin, odds]).astype(np.float32), np.maximum(fits.sd, 0.1).astype(np.float32)

    def _rate_of(self, moments: Moments) -> float:
        filled = np.mean([layer.nnz / np.prod(layer.shape) for layer in moments.layers])
        return max(10 ** (-3 - 4 * float(filled)), LEAST_RATE)

    def _phases(self, rate: float) -> list[Phase]:
        from tenfold.engine import Phase

        def phase(name: str, epochs: int, loss: Any, parts: Callable[[Any], list[Any]], **options: Any) -> Phase:
            return Phase(
                name, epochs, loss, optimizer=partial(_adam, rate=rate, decay=self.weight_decay), scheduler=_held,
                parameters=lambda net: [*(one for part in parts(net) for one in part.parameters()), net.numbers],
                validate_every=EVERY, **options,
            )  # fmt: skip

        gain = LEAST_GAIN * self.start_.shape[1]
        # Held-out cells are judged at the means of posteriors.
        courses = phase(
            "courses", self.epochs, lambda net, batch, _: net.first_terms(batch["x"], net.training),
            lambda net: [net.encoder, net.heads, net.first], until=lambda history: _stalled(history, "courses", gain),
        )  # fmt: skip
        return [courses] + [
            phase(
                name, max(self.epochs // 2, 1),
                lambda net, batch, _: net.second_loss(batch["x"], batch["index"], net.training),
                lambda net: [net.second], before_epoch=self._renew,
                until=lambda history, name=name: _stalled(history, name, gain) or _settled(history),
            )
            for name in (f"round {i + 1}" for i in range(self.n_rounds))
        ]  # fmt: skip

    def _renew(self, net: VeloVAENet, data: dict[str, Any], progress: Progress) -> dict[str, float] | None:
        """At the start of a round, let the course of each cell begin with what earlier cells like it have now."""
        import torch

        from tenfold.engine import predict

        if progress.epoch:
            return None
        first = progress.phase == "round 1"
        if first:
            self._place(net, data["x"])
        apply = (lambda net, batch: net.likelier_course(batch["index"])) if first else (
            lambda net, batch: net.outputs(batch["index"])["x"]
        )  # fmt: skip
        x, fitted = data["x"], predict(net, {"x": data["x"]}, apply)
        sd = np.maximum((fitted - x).std(axis=0), LEAST_SD).reshape(2, -1)
        time = net.time.cpu().numpy()[:, 0]
        begun = shared_time.averaged(fitted, net.earlier.cpu().numpy(), x[time <= np.quantile(time, 0.01)].mean(axis=0))
        before = net.left.cpu().numpy()
        moved = np.sqrt(((begun - before) ** 2).sum(axis=1).mean() / max(begun.var(axis=0).sum(), 1e-12))
        net.left.copy_(torch.from_numpy(begun))
        net.log_sd.copy_(torch.from_numpy(np.log(sd)))
        return None if first else {"moved": float(moved)}

    def _place(self, net: VeloVAENet, x: np.ndarray) -> None:
        """Fix time and state of every cell, and find the earlier cells that its course begins with."""
        import torch

        from tenfold.engine import predict

        def encoded(net: Any, batch: Any) -> dict[str, Any]:
            times, states = net.encode(batch["x"])
            return {"time": times.mean, "time_variance": times.variance, "state": states.mean,
                    "state_variance": states.variance}  # fmt: skip

        found = predict(net, {"x": x}, encoded)
        time = np.minimum(found["time"][:, 0], np.quantile(found["time"], 0.99))
        found["earlier"] = earlier = shared_time.earlier_cells(time, found["state"], self.n_origins, WINDOW)
        found["origin"] = shared_time.averaged(time[:, None], earlier, time.min() - WINDOW[0] * np.ptp(time))
        for name, values in found.items():
            getattr(net, name).copy_(torch.from_numpy(values))

    def _build(self) -> VeloVAENet:
        from tenfold.nn.velo_vae import VeloVAENet

        names = ("n_latent", "n_origins", "n_hidden", "dropout", "t_max", "state_sd")
        return VeloVAENet(self.start_, self.sd_, self.n_cells_, **{name: getattr(self, name) for name in names})

    def latent(self) -> np.ndarray:
        """Return the states of the fitted cells, which transcription rates follow, (n_cells, n_latent), float32."""
        self._check_fitted()
        return self.states_

    def uncertainty(self) -> np.ndarray:
        """Return the standard deviations of the posteriors of `time`, shape (n_cells,)."""
        self._check_fitted()
        return self.time_sd_


def _adam(parameters: list[Any], rate: float, decay: float) -> Any:
    from tenfold.kernels.adam import Adam

    weights, numbers = parameters[:-1], parameters[-1:]
    return Adam([{"params": weights, "weight_decay": decay}, {"params": numbers, "lr": FASTER * rate}], lr=rate)


def _held(optimizer: Any) -> Any:
    from torch.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, [lambda epoch: 1.0, lambda epoch: float(epoch >= HELD)])


def _stalled(history: History, phase: str, least: float) -> bool:
    """Whether none of the last looks at the held-out cells brought a gain."""
    losses = [value for value in history.values(validation=True, phase=phase) if np.isfinite(value)]
    return len(losses) > PATIENCE and bool((-np.diff(losses[-PATIENCE - 1 :]) <= least).all())


def _settled(history: History) -> bool:
    """Whether in an earlier round beginnings moved little, or hardly less than in the round before it."""
    moved = history.values("moved")[:-1]
    return any(now < SETTLED or (i > 0 and now > moved[i - 1] - SETTLED) for i, now in enumerate(moved))
