"""An ontology of cell types (or of anything) from an OBO file: terms, their names, and what stands above them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from tenfold.errors import DataError, FileFormatError, closest

_SYNONYM = re.compile(r'^"(.*?)(?<!\\)"\s+(EXACT|RELATED|NARROW|BROAD)')


@dataclass(frozen=True)
class Ontology:
    """Terms and what stands directly above each.

    Attributes
    ----------
    names
        Name of each term, by id; terms that are obsolete are left out.
    parents
        Ids of the direct parents (``is_a``) of each term, by id.
    synonyms
        Id by name or exact synonym, lower case.
    """

    names: dict[str, str]
    parents: dict[str, list[str]]
    synonyms: dict[str, str] = field(default_factory=dict)

    def find(self, label: str) -> str:
        """Return the id of a term by id, name or exact synonym, whatever the case.

        Raises
        ------
        DataError
            No term is called so.
        """
        if label in self.names:
            return label
        found = self.synonyms.get(str(label).strip().lower())
        if found is None:
            raise DataError(f"The ontology has no term '{label}'.{closest(label, self.names.values())}")
        return found

    def ancestors(self, term: str) -> dict[str, int]:
        """Return a term and all above it by id, each with the fewest steps to it."""
        found, level, distance = {term: 0}, [term], 0
        while level:
            distance += 1
            level = [above for each in level for above in self.parents.get(each, ()) if above not in found]
            found.update(dict.fromkeys(level, distance))
        return found

    def common_ancestor(self, terms: list[str]) -> str | None:
        """Return the nearest term above all of these (or one of them); ``None`` where nothing is."""
        above = [self.ancestors(term) for term in terms]
        shared = set.intersection(*(set(each) for each in above))
        return min(shared, key=lambda term: (sum(each[term] for each in above), term), default=None)

    def parents_by_label(self, labels: list[str]) -> dict[str, list[str]]:
        """Return the parents of terms under the user's own labels, for the metrics of ontologies.

        Each label stands for the term that it names; terms without a label keep their ids.

        Raises
        ------
        DataError
            The ontology does not have a label.
        """
        own = {self.find(label): label for label in labels}
        return {own.get(term, term): [own.get(each, each) for each in above] for term, above in self.parents.items()}


def read_ontology(path: str | Path) -> Ontology:
    """Read an OBO file, such as the Cell Ontology's ``cl-basic.obo``.

    Parameters
    ----------
    path
        File in OBO 1.2 or 1.4. Nothing is downloaded; the Cell Ontology is CC BY 4.0.

    Raises
    ------
    FileFormatError
        The file holds no terms.
    """
    names: dict[str, str] = {}
    parents: dict[str, list[str]] = {}
    synonyms: dict[str, str] = {}
    for stanza in Path(path).read_text(encoding="utf-8").split("\n[")[1:]:
        kind, _, body = stanza.partition("]")
        pairs = [line.partition(": ")[::2] for line in body.splitlines() if ": " in line]
        entry = {key: value.strip() for key, value in reversed(pairs)}
        if kind != "Term" or "id" not in entry or entry.get("is_obsolete") == "true":
            continue
        term = entry["id"]
        names[term] = entry.get("name", term)
        parents[term] = [value.split(" ")[0] for key, value in pairs if key == "is_a"]
        exact = [m[1] for key, value in pairs if key == "synonym" and (m := _SYNONYM.match(value)) and m[2] == "EXACT"]
        for name in exact:
            synonyms.setdefault(name.lower(), term)
    synonyms.update({name.lower(): term for term, name in names.items()})
    if not names:
        raise FileFormatError(
            f"'{path}' holds no terms of an ontology; an OBO file has stanzas that begin with [Term]."
        )
    return Ontology(names, parents, synonyms)
