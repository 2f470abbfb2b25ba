"""How spatial domains are judged: against annotated layers where there are any, and always against shuffled tissue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from tenfold import metrics
from tenfold.data import graph
from tenfold.domains import _controls
from tenfold.domains._ranking import ranked, recommended
from tenfold.domains._scores import DESCRIBED, across_sections, by_layers, marker_moran, smoothness
from tenfold.domains._trial import Tissue, Trial, clustered_embedding, judged, own_labels
from tenfold.method import Method
from tenfold.task import Assessment, ComparedTask, Control, Recommendation, Score

#: Components of expression whose autocorrelation tells whether positions mean anything.
_COMPONENTS = 10


class Domains(ComparedTask):
    """Spatial domains: annotated layers found, with the number of domains given and not, and nothing invented."""

    name = "domains"
    baseline = "pca_leiden"
    companions = ("smooth_pca",)
    recommended = ("smooth_pca", "banksy", "graphst", "stagate")
    needs = ()
    accepts = ("labels", "sample", "spatial", "batch", "layer")

    def assess(self, adata: AnnData, roles: dict[str, str], seed: int) -> Assessment:
        """Say whether expression depends on where cells lie, and what the annotation's own smoothness is."""
        tissue = Tissue(adata, roles)
        components = tissue.inputs.pca(min(_COMPONENTS, min(adata.shape) - 1), 2000).embedding
        found = metrics.moran(components, tissue.graph)
        clear = int((found.pvalue < 0.001 / components.shape[1]).sum())
        positions = tissue.positions
        numbers: dict[str, Any] = {
            "largest Moran's I of a component": float(np.nanmax(found.statistic)), "unit": positions.unit,
            "distance to the nearest cell": positions.spacing, "slices": len(positions.sections.names),
        }  # fmt: skip
        rule = f"Moran's I of the first {_COMPONENTS} components on the six nearest cells, p < 0.001 after Bonferroni."
        place = f"Positions are in units of: {positions.unit}; nearest cells lie {positions.spacing:.3g} apart."
        if not clear:
            sentence = f"No component of expression varies smoothly over the tissue. {place} Are these the positions?"
            return Assessment("no spatial structure", sentence, rule, numbers)
        sentence = f"{clear} of {components.shape[1]} components of expression vary smoothly over the tissue. {place}"
        return Assessment("spatial structure", sentence + _own_smoothness(tissue, numbers), rule, numbers)

    def evaluate(self, method: Method, adata: AnnData, roles: dict[str, str], seed: int) -> list[Score]:
        """Score the domains of a fitted method."""
        tissue = Tissue(adata, roles)
        scores: list[Score] = []
        found = judged(method, tissue, seed)
        if tissue.layers is not None:
            scores = by_layers(method, found, tissue, seed)
        scores += smoothness(found, tissue)
        return scores + across_sections(method, found, tissue, seed)

    def controls(
        self,
        make: Callable[[int], Method],
        fitted: Method,
        adata: AnnData,
        roles: dict[str, str],
        seed: int,
        thorough: bool = False,
    ) -> list[tuple[Control, list[Score]]]:
        """Run the controls, with the annotated number of domains or that which the method chose."""
        tissue, trial = Tissue(adata, roles), Trial(make, thorough)
        number = tissue.layers.number if tissue.layers else max(2, len(np.unique(own_labels(fitted))))
        done = []
        for name, title, run in (
            ("shuffled_positions", "Shuffled positions", _controls.shuffled_positions),
            ("seeds", "Other seeds", _controls.seeds),
        ):
            try:
                done.append(run(trial, fitted, tissue, number, seed))
            except Exception as error:  # a method may break on a control's cells; that is a finding
                sentence = f"Could not be run: {error}"
                done.append((Control(name, title, "not run", sentence, "Needs the method to run on the control."), []))
        return done

    def display(self, method: Method, shown: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return a UMAP layout of the embedding of the cells `shown`, or of their domains where there is none."""
        embedding = clustered_embedding(method)
        if embedding is None:
            labels = own_labels(method)
            embedding = np.eye(int(labels.max()) + 1, dtype=np.float32)[labels]
            embedding += np.random.default_rng(seed).normal(scale=0.1, size=embedding.shape).astype(np.float32)
        points = embedding[shown]
        connectivities = graph.neighbor_graph(points, min(15, len(points) - 1)).connectivities
        return graph.layout(connectivities, points, seed=seed), embedding

    def pictures(
        self, method: Method, adata: AnnData, roles: dict[str, str], shown: np.ndarray, layout: np.ndarray, seed: int
    ) -> dict[str, np.ndarray]:
        """Return the domains of the cells `shown`, as clustered and after the majority vote, for the maps."""
        found = judged(method, Tissue(adata, roles), seed)
        return {"domains": found.plain[shown].astype(np.int32), "refined": found.refined[shown].astype(np.int32)}

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Return the description of every metric, with the known criticism of each."""
        return DESCRIBED

    def rank(
        self, scores: pd.DataFrame, controls: dict[str, list[Control]], assessment: Assessment, sees_labels: set[str]
    ) -> tuple[list[dict[str, Any]], Recommendation]:
        """Rank by ARI with annotated layers; without them by what needs none, with the criticism of it."""
        ranking = ranked(scores, controls)
        return ranking, recommended(ranking, assessment)


def _own_smoothness(tissue: Tissue, numbers: dict[str, Any]) -> str:
    """Add the annotation's own scores to `numbers`, and return the sentence on them."""
    if tissue.layers is None:
        return (
            " No annotated layers were given: nothing here tells right domains from wrong ones. Name a column of "
            "layers with labels= if there is one."
        )
    layers, told = tissue.layers, tissue.layers.told
    where, names, sections = tissue.positions.points[told], layers.names[told], tissue.sections[told]
    part = tissue.part(told)
    own = {
        "PAS": metrics.pas(where, names, sections),
        "CHAOS": metrics.chaos(where, names, sections),
        "contiguity": metrics.contiguity(where, names, sections),
        "Moran's I of markers": marker_moran(names, part),
    }
    if len(tissue.positions.sections.names) > 1:
        own["domains shared"] = metrics.shared_domains(names, sections)
    numbers |= {f"{name} of the annotation": value for name, value in own.items()}
    numbers["annotated layers"], numbers["cells without a layer"] = layers.number, int((~told).sum())
    words = ", ".join(f"{name} {value:.3f}" for name, value in own.items())
    return f" The {layers.number} annotated layers themselves have {words}: domains that are smoother are too smooth."


TASK = Domains()
