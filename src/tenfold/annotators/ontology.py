"""Cell types as terms of an ontology: an .obo file read, ancestors, depths, and probabilities summed upwards."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tenfold.errors import DataError, FileFormatError, closest

#: Term that all cell types descend from.
ROOT = "cell"


@dataclass(frozen=True)
class Ontology:
    """Names of cell types and what each is a kind of.

    Attributes
    ----------
    parents
        Names of the terms that each term is directly a kind of.
    synonyms
        Term of each other name: exact synonyms and identifiers (``"CL:0000084"``), lower case.
    """

    parents: dict[str, tuple[str, ...]]
    synonyms: dict[str, str]

    def find(self, label: str) -> str | None:
        """Return the term of a label, by name, exact synonym or identifier in any case; None if there is none."""
        return label if label in self.parents else self.synonyms.get(label.strip().lower())

    def ancestors(self, term: str) -> set[str]:
        """Return all terms that a term is a kind of, without itself."""
        found: set[str] = set()
        waiting = list(self.parents.get(term, ()))
        while waiting:
            above = waiting.pop()
            if above not in found:
                found.add(above)
                waiting += self.parents.get(above, ())
        return found

    def common_ancestor(self, labels: list[str]) -> str | None:
        """Return the deepest term that all of these are, or are a kind of; None if there is none."""
        terms = [self.find(label) for label in labels]
        above = [{term, *self.ancestors(term)} for term in terms if term is not None]
        shared = set.intersection(*above) if len(above) == len(labels) else set()
        return max(sorted(shared), key=self.depth, default=None)

    def under_labels(self, labels: list[str]) -> dict[str, tuple[str, ...]]:
        """Return ``parents`` with these labels in place of the terms that they name, for ``tf.metrics.ontology_f1``.

        Raises
        ------
        DataError
            A label is no term.
        """
        own: dict[str, str] = {}
        for label in labels:
            term = self.find(label)
            if term is None:
                raise DataError(f"The ontology has no term '{label}'.{closest(label, self.parents)}")
            own[term] = label
        return {
            own.get(term, term): tuple(own.get(each, each) for each in above) for term, above in self.parents.items()
        }

    def depth(self, term: str) -> int:
        """Return the fewest steps from a term up to ``"cell"`` (or to any term without parents)."""
        waiting = deque([(term, 0)])
        seen = {term}
        while waiting:
            name, steps = waiting.popleft()
            above = self.parents.get(name, ())
            if name == ROOT or not above:
                return steps
            waiting.extend((each, steps + 1) for each in above if each not in seen)
            seen.update(above)
        return 0

    def around(self, labels: list[str]) -> Lineages:
        """Return the part of the ontology that labels and their ancestors make up.

        Raises
        ------
        DataError
            No label is a term.
        """
        term_of = {label: self.find(label) for label in labels}
        if not any(term_of.values()):
            raise DataError(
                f"None of the {len(labels)} labels is a term of the ontology (e.g. '{labels[0]}'). Rename them to "
                "names, exact synonyms or identifiers of its terms, or leave ontology= out."
            )
        # A label outside the ontology stands for itself, without ancestors.
        own = {label: term or label for label, term in term_of.items()}
        above = {label: sorted(self.ancestors(term)) for label, term in own.items()}
        terms = sorted({*own.values(), *(name for names in above.values() for name in names)})
        place = {name: number for number, name in enumerate(terms)}
        covers = np.zeros((len(terms), len(labels)), dtype=bool)
        for column, label in enumerate(labels):
            covers[[place[own[label]], *(place[name] for name in above[label])], column] = True
        home = np.array([place[own[label]] for label in labels], dtype=np.int64)
        # Terms outside are not known to be a kind of cell; they count as shallow.
        depths = np.array([self.depth(name) if name in self.parents else 0 for name in terms], dtype=np.int64)
        upper = np.zeros((len(terms), len(terms)), dtype=bool)
        for name in terms:
            upper[place[name], [place[other] for other in self.ancestors(name)]] = True
        return Lineages(np.array(terms, dtype=object), home, covers, depths, upper)


@dataclass(frozen=True)
class Lineages:
    """Labels and their ancestors as arrays.

    Attributes
    ----------
    terms
        Names, sorted, shape (n_terms,).
    home
        Term of each label, shape (n_labels,).
    covers
        Whether a term is the label's or one of its ancestors, shape (n_terms, n_labels).
    depths
        Steps to the root, shape (n_terms,).
    upper
        Whether the second term is an ancestor of the first, shape (n_terms, n_terms).
    """

    terms: np.ndarray
    home: np.ndarray
    covers: np.ndarray
    depths: np.ndarray
    upper: np.ndarray

    def smoothed(self, probabilities: np.ndarray, least: float) -> np.ndarray:
        """Return the deepest term whose probability, summed over the labels below it, is at least `least`.

        Parameters
        ----------
        probabilities
            Of each label, shape (n_cells, n_labels).
        least
            Share that is enough, above 0 to 1.

        Returns
        -------
        Term of each cell, shape (n_cells,); of equally deep ones the most probable. Where no term reaches `least`, the
        term of the most probable label.
        """
        mass = probabilities @ self.covers.T
        rank = np.where(mass >= least - 1e-6, self.depths + np.minimum(mass, 1) / 2, -1.0)
        best = rank.argmax(axis=1)
        return np.where(rank.max(axis=1) >= 0, best, self.home[probabilities.argmax(axis=1)])


def read_obo(path: str | Path) -> Ontology:
    """Read an ontology from an .obo file, such as the Cell Ontology's ``cl-basic.obo``.

    Of each term its name, identifier, exact synonyms and ``is_a`` lines are read; obsolete terms are left out.

    Raises
    ------
    FileFormatError
        There is no such file, or it holds no terms.
    """
    path = Path(path)
    if not path.is_file():
        raise FileFormatError(f"'{path}' is not a file. ontology= takes the path of an .obo file.")
    stanzas: list[dict[str, list[str]]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        line = line.strip()
        if line.startswith("["):
            stanzas.append({"kind": [line]})
        elif stanzas and ": " in line:
            key, _, value = line.partition(": ")
            stanzas[-1].setdefault(key, []).append(value)
    terms = [s for s in stanzas if s["kind"] == ["[Term]"] and {"id", "name"} <= set(s) and "is_obsolete" not in s]
    if not terms:
        raise FileFormatError(f"'{path}' holds no [Term] with id and name; is it an .obo file?")
    names = {term["id"][0]: term["name"][0] for term in terms}
    parents, synonyms = {}, {}
    for term in terms:
        name = term["name"][0]
        above = [value.split("!")[0].split("{")[0].strip() for value in term.get("is_a", [])]
        parents[name] = tuple(names[identifier] for identifier in above if identifier in names)
        exact = [value.split('"')[1] for value in term.get("synonym", []) if value.count('"') > 1 and "EXACT" in value]
        for other in (name, term["id"][0], *exact):
            synonyms.setdefault(other.lower(), name)
    # A name goes before a synonym of another term.
    synonyms |= {name.lower(): name for name in parents}
    return Ontology(parents, synonyms)
