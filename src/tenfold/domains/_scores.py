"""What the scores of spatial domains mean, and how they are computed."""

from __future__ import annotations

from typing import Any

import numpy as np

from tenfold import metrics
from tenfold.domains._trial import HEADS, REFINING, Found, Tissue, clustered_embedding, labels_for
from tenfold.errors import DataError
from tenfold.method import Method
from tenfold.task import Score

_SMOOTH = "The annotation's own value, in the assessment above, is the yardstick: below it, domains are too smooth."
_VOTE = f"After a majority vote of {REFINING} neighbours, which alone can add 0.1 to 0.3, and eats thin layers."
_GIVEN = "The method is told the number of domains, which users do not know."


def _described(
    title: str, group: str, span: tuple[float | None, float | None], good: str, warning: str, formula: str,
    headline: bool = False,
) -> dict[str, Any]:  # fmt: skip
    return {
        "title": title, "group": group, "range": list(span), "good": good, "headline": headline, "warning": warning,
        "formula": formula,
    }  # fmt: skip


def _pair(name: str, title: str, group: str, warning: str, formula: str, headline: bool = False) -> dict[str, Any]:
    """Describe a score of agreement, plain and refined: both are always shown."""
    low = -1 if name.startswith("ari") else 0
    return {
        name: _described(title, group, (low, 1), "high", warning, formula, headline),
        f"{name}_refined": _described(f"{title}, refined", group, (low, 1), "high", _VOTE, formula, headline),
    }


DESCRIBED: dict[str, dict[str, Any]] = {
    **_pair("ari", "ARI", "layers", _GIVEN, "adjusted Rand index with the annotated layers, own head", True),
    "marker_moran": _described(
        "Moran's I of markers", "unannotated", (-1, 1), "high",
        "The markers were chosen by the domains: circular. Any smooth partition of a tissue scores high.",
        "median Moran's I, in log-counts, of the 5 genes with the largest t of each domain", True,
    ),
    "contiguity_gain": _described(
        "Contiguity gained", "control", (-1, 1), "high",
        "Says that domains follow the tissue, not that they are the right ones.",
        "contiguity of domains less that on positions shuffled within the slice", True,
    ),
    "seed_agreement": _described(
        "Agreement of seeds", "control", (-1, 1), "high",
        "A stable method may be wrong every time.", "mean ARI between fits that differ in the seed only", True,
    ),
    **_pair("nmi", "NMI", "layers", _GIVEN, "mutual information over the mean of the two entropies"),
    **_pair("homogeneity", "Homogeneity", "layers", "1 where every cell is a domain of its own.",
            "1 - H(layer | domain) / H(layer)"),
    **_pair("completeness", "Completeness", "layers", "1 for a single domain.", "1 - H(domain | layer) / H(domain)"),
    **_pair("ari_unknown", "ARI, number unknown", "unknown", "Own head, number of domains chosen from the data.",
            "as ARI"),
    **_pair("nmi_unknown", "NMI, number unknown", "unknown", "NMI favours many domains.", "as NMI"),
    "n_found": _described(
        "Domains found", "unknown", (1, None), "", "Compare with the number of annotated layers.",
        "number of domains chosen from the data",
    ),
    **{
        key: value for head in HEADS for key, value in _pair(
            f"ari_{head}", f"ARI, {head}", "heads", "What this head finds in the method's embedding.", "as ARI"
        ).items()
    },
    "pas": _described("PAS", "unannotated", (0, 1), "low", f"One giant domain has 0. {_SMOOTH}",
                      "share of cells for which more than half of the 10 nearest have another label"),
    "pas_refined": _described("PAS, refined", "unannotated", (0, 1), "low", "A vote drives it to 0.", "as PAS"),
    "chaos": _described("CHAOS", "unannotated", (0, None), "low",
                        f"No absolute scale; nearly flat on a lattice such as Visium's. {_SMOOTH}",
                        "mean distance to the nearest cell of the same domain, axes standardised"),
    "chaos_refined": _described("CHAOS, refined", "unannotated", (0, None), "low", "As CHAOS.", "as CHAOS"),
    "contiguity": _described("Contiguity", "unannotated", (-1, 1), "high",
                             "Averaging over neighbours raises it, also where there is nothing: see what is gained.",
                             "share of the 6 nearest cells of the same domain, corrected for chance"),
    "shuffled_contiguity": _described(
        "Contiguity, shuffled", "control", (-1, 1), "low",
        "Above 0 the method makes domains contiguous that are not there.", "contiguity on shuffled positions",
    ),
    "shared_domains": _described(
        "Domains shared", "sections", (0, 1), "high", "Slices may truly differ: compare with the annotation's own.",
        "1 - mean difference between the shares of domains in a slice and in the others",
    ),
    "mixing_in_domains": _described(
        "Slices mixed in domains", "sections", (0, 1), "high", "High for noise, too: read it beside ARI.",
        "LISI of slices among the neighbours in the embedding of the same domain, scaled",
    ),
    "joint_gain": _described(
        "ARI joint - single", "sections", (-1, 1), "high", "Below 0, slices are cut alike but called differently.",
        "ARI over all slices less the mean over slices",
    ),
}  # fmt: skip


def agreement(found: Found, tissue: Tissue, kinds: tuple[str, ...], group: str, suffix: str = "") -> list[Score]:
    """Score domains against annotated layers, on annotated cells."""
    layers = tissue.layers
    assert layers is not None
    scores = []
    for labels, mark in ((found.plain, ""), (found.refined, "_refined")):
        own, truth = labels[layers.told], layers.names[layers.told]
        scores += [Score(group, f"{kind}{suffix}{mark}", getattr(metrics, kind)(own, truth)) for kind in kinds]
    return scores


def by_layers(method: Method, found: Found, tissue: Tissue, seed: int) -> list[Score]:
    """Score a method against annotated layers: number of domains known (`found`) and unknown, and by every head."""
    layers = tissue.layers
    assert layers is not None
    scores = agreement(found, tissue, ("ari", "nmi", "homogeneity", "completeness"), "layers")
    chosen = labels_for(method, tissue, None, None, seed)
    if chosen is not None:
        scores += agreement(tissue.refined(chosen), tissue, ("ari", "nmi"), "unknown", "_unknown")
        scores.append(Score("unknown", "n_found", len(np.unique(chosen))))
    if clustered_embedding(method) is not None:
        for head in HEADS:
            own = found if head == method.parameters["head"] else None
            if own is None:
                labels = labels_for(method, tissue, layers.number, head, seed)
                assert labels is not None
                own = tissue.refined(labels)
            scores += agreement(own, tissue, ("ari",), "heads", f"_{head}")
    return scores


def smoothness(found: Found, tissue: Tissue) -> list[Score]:
    """Score domains without any annotation."""
    where, sections = tissue.positions.points, tissue.sections
    scores = [Score("unannotated", "marker_moran", marker_moran(found.plain, tissue)),
              Score("unannotated", "contiguity", metrics.contiguity(where, found.plain, sections))]  # fmt: skip
    for labels, mark in ((found.plain, ""), (found.refined, "_refined")):
        scores.append(Score("unannotated", f"pas{mark}", metrics.pas(where, labels, sections)))
        scores.append(Score("unannotated", f"chaos{mark}", metrics.chaos(where, labels, sections)))
    return scores


def marker_moran(labels: np.ndarray, tissue: Tissue) -> float:
    """Return the median Moran's I of the markers of all domains, in log-counts that no method has smoothed."""
    lognorm = tissue.inputs.lognorm
    markers = metrics.domain_markers(lognorm, labels)
    if not len(markers):
        return float("nan")
    return float(np.nanmedian(metrics.moran(lognorm[:, markers], tissue.graph).statistic))


def across_sections(method: Method, found: Found, tissue: Tissue, seed: int) -> list[Score]:
    """Score whether a domain is the same in every slice; nothing where there is one slice."""
    names = tissue.positions.sections.names
    if len(names) < 2:
        return []
    sections, layers = tissue.sections, tissue.layers
    scores = [Score("sections", "shared_domains", metrics.shared_domains(found.plain, sections))]
    embedding = clustered_embedding(method)
    if embedding is not None:
        try:
            mixed = metrics.cilisi(embedding, found.plain, sections, seed)
        except DataError:  # no domain is in two slices
            mixed = 0.0
        scores.append(Score("sections", "mixing_in_domains", mixed))
    if layers is not None:
        single = {}
        for code, name in enumerate(names):
            own = layers.told & (sections == code)
            if len(np.unique(layers.names[own])) > 1:
                single[name] = metrics.ari(found.plain[own], layers.names[own])
                scores.append(Score(f"sample:{name}", "ari", single[name]))
        if single:
            joint = metrics.ari(found.plain[layers.told], layers.names[layers.told])
            scores.append(Score("sections", "joint_gain", joint - float(np.mean(list(single.values())))))
    return scores
