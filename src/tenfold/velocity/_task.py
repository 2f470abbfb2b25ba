"""How velocity is judged: first beside what the same method makes of counts without velocity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import spearmanr

from tenfold import metrics
from tenfold.data import graph
from tenfold.method import Method
from tenfold.task import Assessment, ComparedTask, Control, Recommendation, Score
from tenfold.velocity import _controls, _stability
from tenfold.velocity._nulls import (
    REPEATS,
    REPEATS_THOROUGH,
    direction,
    fewer_cells,
    labels_of,
    null_models,
    own_roles,
    pairs_of,
)  # fmt: skip
from tenfold.velocity._pictures import arrows, arrows_of_null
from tenfold.velocity._ranking import DESCRIBED, ranked, recommended
from tenfold.velocity.scvelo_stochastic import ScVeloStochastic
from tenfold.velocity_models.base import VelocityMethod


class Velocity(ComparedTask):
    """RNA velocity: coherence beyond permuted counts, known directions, agreement with the reference model."""

    name = "velocity"
    baseline = "random_velocity"
    companions = ("pseudotime_velocity",)
    recommended = ("velocyto", "scvelo_deterministic", "scvelo_stochastic", "scvelo_dynamical")
    needs = ()
    accepts = ("labels", "transitions", "pseudotime", "spliced", "unspliced", "use_rep", "batch", "layer")

    def assess(self, adata: AnnData, roles: dict[str, str], seed: int) -> Assessment:
        """Say whether there is evidence of velocity in the data, by the stochastic model and its null models."""
        found = null_models(lambda _: ScVeloStochastic(), fewer_cells(adata, seed), roles, seed, REPEATS)
        rule = f"scVelo's stochastic model. {_controls.RULE}"
        _, sentence = _controls.judged(found)
        if found.evidence:
            return Assessment("evidence of velocity", sentence, rule, found.numbers())
        sentence = f"No evidence of velocity in these data. {sentence}"
        if found.real.genes > 3 * max(found.most_genes, 1):
            sentence += " Unspliced and spliced counts of genes do belong together; directions do not follow from it."
        if found.direction_beyond is None:
            sentence += (
                " Coherence is a blunt measure: name known directions with labels= and transitions='A > B, B > C' "
                "for a sharper one."
            )
        return Assessment("no evidence of velocity", sentence, rule, found.numbers())

    def evaluate(self, method: Method, adata: AnnData, roles: dict[str, str], seed: int) -> list[Score]:
        """Score the velocities of a fitted method; none of these numbers means anything without the null models."""
        fitted = cast(VelocityMethod, method)
        own = fitted.velocity_[:, fitted.trusted_]
        scores = [Score("velocity", "coherence", float(fitted.confidence().mean()))]
        labels = labels_of(adata, roles)
        if labels is not None:
            names = np.asarray(labels.names, dtype=object)[labels.values]
            within = metrics.in_cluster_coherence(own, fitted.neighbors_, names)
            scores.append(Score("velocity", "iccoh", within))
        crossed = direction(fitted, labels, pairs_of(roles.get("transitions")))
        for (first, second), (value, cells) in crossed.items():
            scores += [
                Score(f"label:{first} > {second}", "cbdir", value),
                Score(f"label:{first} > {second}", "boundary_cells", cells),
            ]
        seen = [value for value, cells in crossed.values() if cells]
        if seen:
            scores.append(Score("velocity", "cbdir", float(np.mean(seen))))
        if "pseudotime" in roles:
            known = adata.obs[roles["pseudotime"]].to_numpy(dtype=float)
            told = np.isfinite(known)
            scores.append(Score("velocity", "time_order", float(spearmanr(fitted.time()[told], known[told])[0])))
        return [*scores, *self._agreement(fitted, adata, roles)]

    @staticmethod
    def _agreement(fitted: VelocityMethod, adata: AnnData, roles: dict[str, str]) -> list[Score]:
        """Compare with the stochastic model on the genes that both trust."""
        reference = ScVeloStochastic()
        if isinstance(fitted, ScVeloStochastic):
            return []
        reference.fit(adata, progress=False, **own_roles(reference, roles))
        shared = np.intersect1d(fitted.columns_[fitted.trusted_], reference.columns_[reference.trusted_])
        if len(shared) < 2:
            return []
        cosine = metrics.velocity_agreement(fitted.velocity()[:, shared], reference.velocity()[:, shared])
        return [
            Score("velocity", "agreement", float(cosine.mean())),
            Score("velocity", "agreeing_cells", float((cosine > 0.3).mean())),
        ]

    def controls(
        self,
        make: Callable[[int], Method],
        fitted: Method,
        adata: AnnData,
        roles: dict[str, str],
        seed: int,
        thorough: bool = False,
    ) -> list[tuple[Control, list[Score]]]:
        """Run the null models, and the fit to half of the counts; if `thorough`, fits to fewer cells and genes, too."""
        few, build = fewer_cells(adata, seed), cast("Callable[[int], VelocityMethod]", make)
        repeats = REPEATS_THOROUGH if thorough else REPEATS
        runs: list[tuple[str, str, Callable[[], tuple[Control, list[Score]]]]] = [
            ("null_models", "Permuted unspliced counts",
             lambda: _controls.null_control(build, few, roles, seed, repeats)),
            ("fewer_counts", "Half of the counts", lambda: _stability.fewer_counts(build, few, roles, seed)),
        ]  # fmt: skip
        if thorough:
            title = "Fewer cells, counts and genes, other neighbours"
            runs.append(("changes", title, lambda: _stability.changes(build, few, roles, seed)))
        done = []
        for name, title, run in runs:
            try:
                done.append(run())
            except Exception as error:  # a method may break on a control's counts; that is a finding
                sentence = f"Could not be run: {error}"
                done.append((Control(name, title, "not run", sentence, "Needs the method to run on the control."), []))
        return done

    def display(self, method: Method, shown: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return a UMAP layout of the neighbour graph of the cells `shown`."""
        connectivities = cast(VelocityMethod, method).connectivities_
        return graph.layout(connectivities[shown][:, shown].tocsr(), None, seed=seed), None

    def pictures(
        self, method: Method, adata: AnnData, roles: dict[str, str], shown: np.ndarray, layout: np.ndarray, seed: int
    ) -> dict[str, np.ndarray]:
        """Return the arrows of the cells in the layout."""
        return {"arrows": arrows(cast(VelocityMethod, method), shown, layout)}

    def control_pictures(
        self, make: Callable[[int], Method], method: Method, adata: AnnData, roles: dict[str, str], shown: np.ndarray,
        layout: np.ndarray, seed: int,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Return the arrows of the method on permuted counts, where it finds any."""
        build, fitted = cast("Callable[[int], VelocityMethod]", make), cast(VelocityMethod, method)
        try:
            return {"null_arrows": arrows_of_null(build, fitted, adata, roles, shown, layout, seed)}
        except Exception:  # the control of null models says what a method makes of such counts
            return {}

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Return the description of every metric, excess coherence first."""
        return DESCRIBED

    def rank(
        self, scores: pd.DataFrame, controls: dict[str, list[Control]], assessment: Assessment, sees_labels: set[str]
    ) -> tuple[list[dict[str, Any]], Recommendation]:
        """Rank by coherence, and direction where known, beyond permuted counts; without evidence recommend nothing."""
        ranking = ranked(scores, controls)
        return ranking, recommended(ranking, assessment, (self.baseline, *self.companions))


TASK = Velocity()
