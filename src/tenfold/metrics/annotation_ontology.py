"""Agreement of labels that are terms of an ontology: a parent of the truth is less wrong than a stranger.

`parents` gives the direct parents of each label: ``tf.annotate.read_obo(path).under_labels(labels)`` reads them from an
OBO file. A label that is no term has itself as its only ancestor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tenfold.metrics._checks import groups

Parents = Mapping[str, Sequence[str]]
RELATIONS = ("same", "parent", "child", "sibling", "other")


def _ancestors(term: str, parents: Parents) -> dict[str, int]:
    """Return the term and all above it, each with the fewest steps to it."""
    found, level, distance = {term: 0}, [term], 0
    while level:
        distance += 1
        level = [above for each in level for above in parents.get(each, ()) if above not in found]
        found.update(dict.fromkeys(level, distance))
    return found


def _paired(truth: np.ndarray, predicted: np.ndarray, parents: Parents, of_pair: Any) -> np.ndarray:
    """Return a number for each cell; every pair of labels is looked at once."""
    a = groups(np.asarray(truth).astype(str), "truth")
    b = groups(np.asarray(predicted).astype(str), "predicted", len(a.codes))
    above = {term: _ancestors(term, parents) for term in {*a.levels, *b.levels}}
    table = np.array([[of_pair(above[x], above[y], x, y) for y in b.levels] for x in a.levels], dtype=float)
    return table[a.codes, b.codes]


def ontology_credit(truth: np.ndarray, predicted: np.ndarray, parents: Parents) -> float:
    """Mean credit: 1 for the right term, the ratio of depths for an ancestor of it, else 0.

    Depth counts the terms from the root, along the shortest way. From 0 to 1. High is good.

    Parameters
    ----------
    truth, predicted
        Term of every cell, shape (n,).
    parents
        Direct parents of each term.

    References
    ----------
    Silla & Freitas (2011), doi:10.1007/s10618-010-0175-9.
    """

    def credit(above: dict[str, int], other: dict[str, int], term: str, told: str) -> float:
        return (1 + max(other.values())) / (1 + max(above.values())) if told in above else 0.0

    return float(np.minimum(_paired(truth, predicted, parents, credit), 1).mean())


def ontology_jaccard(truth: np.ndarray, predicted: np.ndarray, parents: Parents) -> float:
    """Mean overlap of the terms above true and predicted label: shared / all of them, both labels included.

    From 0 to 1. High is good. Terms deep in the ontology share many ancestors whatever they are.

    Parameters
    ----------
    truth, predicted
        Term of every cell, shape (n,).
    parents
        Direct parents of each term.

    References
    ----------
    Pesquita et al. (2009), doi:10.1371/journal.pcbi.1000443.
    """

    def overlap(above: dict[str, int], other: dict[str, int], *_: str) -> float:
        return len(above.keys() & other.keys()) / len(above.keys() | other.keys())

    return float(_paired(truth, predicted, parents, overlap).mean())


def ontology_lin(truth: np.ndarray, predicted: np.ndarray, parents: Parents) -> float:
    """Mean similarity after Lin: what both labels share in information, over what they have.

    2 IC(common) / (IC(true) + IC(predicted)), where common is the most informative term above both, and
    IC = 1 - log(1 + terms below) / log(terms): 0 for the root, 1 for a term with nothing below it. From 0 to 1. High is
    good. Unlike Jaccard's, it does not reward two labels for sharing terms that nearly all share.

    Parameters
    ----------
    truth, predicted
        Term of every cell, shape (n,).
    parents
        Direct parents of each term, of the whole ontology.

    References
    ----------
    Lin (1998), ICML; Seco et al. (2004), ECAI, for the information of a term.
    """
    information = _information({*map(str, truth), *map(str, predicted)}, parents)

    def alike(above: dict[str, int], other: dict[str, int], term: str, told: str) -> float:
        if term == told:
            return 1.0
        shared = max((information[each] for each in above.keys() & other.keys()), default=0.0)
        both = information[term] + information[told]
        return 2 * shared / both if both > 0 else 0.0

    return float(_paired(truth, predicted, parents, alike).mean())


def _information(labels: set[str], parents: Parents) -> dict[str, float]:
    """Return the information of every term, from how many terms are below it."""
    terms = {*labels, *parents, *(above for each in parents.values() for above in each)}
    below = dict.fromkeys(terms, 0)
    for term in terms:
        for above in _ancestors(term, parents):
            below[above] += above != term
    most = np.log(max(len(terms), 2))
    return {term: float(1 - np.log(1 + count) / most) for term, count in below.items()}


def ontology_distance(truth: np.ndarray, predicted: np.ndarray, parents: Parents) -> float:
    """Mean number of steps between true and predicted term, by way of a term above both. Low is good.

    0 for the right term. NaN where some cells have terms with nothing above both.

    Parameters
    ----------
    truth, predicted
        Term of every cell, shape (n,).
    parents
        Direct parents of each term.

    References
    ----------
    Rada et al. (1989), doi:10.1109/21.24528.
    """

    def steps(above: dict[str, int], other: dict[str, int], *_: str) -> float:
        return min((above[term] + other[term] for term in above.keys() & other.keys()), default=float("nan"))

    return float(_paired(truth, predicted, parents, steps).mean())


def ontology_f1(truth: np.ndarray, predicted: np.ndarray, parents: Parents) -> float:
    """Hierarchical F1: of precision and recall over all cells of the terms above true and predicted label.

    From 0 to 1. High is good. The roots count too, and every label has them.

    Parameters
    ----------
    truth, predicted
        Term of every cell, shape (n,).
    parents
        Direct parents of each term.

    References
    ----------
    Kiritchenko et al. (2006), doi:10.1007/11766247_34.
    """
    shared = _paired(truth, predicted, parents, lambda a, b, *_: len(a.keys() & b.keys())).sum()
    both = _paired(truth, predicted, parents, lambda a, b, *_: len(a) + len(b)).sum()
    return float(2 * shared / both)


def ontology_relations(truth: np.ndarray, predicted: np.ndarray, parents: Parents) -> dict[str, float]:
    """Return the share of cells whose predicted term is the true one, a parent, a child or a sibling of it, or other.

    Parents and children at any distance; siblings share a direct parent.

    Parameters
    ----------
    truth, predicted
        Term of every cell, shape (n,).
    parents
        Direct parents of each term.

    References
    ----------
    Ergen et al. (2024), doi:10.1038/s41588-024-01993-3.
    """

    def relation(above: dict[str, int], other: dict[str, int], term: str, told: str) -> int:
        if term == told:
            return 0
        if told in above:
            return 1
        if term in other:
            return 2
        return 3 if set(parents.get(term, ())) & set(parents.get(told, ())) else 4

    found = _paired(truth, predicted, parents, relation).astype(int)
    return dict(zip(RELATIONS, (np.bincount(found, minlength=5) / len(found)).tolist(), strict=True))
