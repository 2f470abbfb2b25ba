"""Sets of genes that the user gives (pathways), and which genes of the data belong to each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tenfold.data.genes import kind_of_names
from tenfold.errors import DataError, FileFormatError, RoleError

#: A set with fewer genes in the data says little of its name.
FEWEST_GENES = 5


class Memberships(NamedTuple):
    """Which genes belong to which set.

    Attributes
    ----------
    names
        Names of the sets, shape (n_sets,), object.
    starts, sets
        The sets of gene g are ``sets[starts[g]:starts[g + 1]]``; int64, shapes (n_genes + 1,) and (n_pairs,).
    """

    names: np.ndarray
    starts: np.ndarray
    sets: np.ndarray

    @classmethod
    def of_mask(cls, mask: np.ndarray, names: Iterable[str]) -> Memberships:
        """Take memberships from a mask, shape (n_genes, n_sets)."""
        genes, sets = np.nonzero(mask)
        starts = np.concatenate([[0], np.cumsum(np.bincount(genes, minlength=len(mask)))])
        return cls(np.array(list(names), dtype=object), starts.astype(np.int64), sets.astype(np.int64))


def read_gene_sets(pathways: Any) -> dict[str, list[str]]:
    """Return sets of genes by name.

    Parameters
    ----------
    pathways
        Path of a .gmt file (one set a line: name, description, genes, between tabs), or a mapping from names to genes.

    Raises
    ------
    FileFormatError
        There is no such file, or it is not of this form.
    RoleError
        Neither a path nor a mapping.
    """
    if isinstance(pathways, Mapping):
        return {str(name): [str(gene) for gene in genes] for name, genes in pathways.items()}
    if not isinstance(pathways, (str, Path)):
        raise RoleError(
            f"pathways= takes the path of a .gmt file or a dict of gene lists, not {type(pathways).__name__}."
        )
    path = Path(pathways)
    if not path.is_file():
        raise FileFormatError(f"'{path}' is not a file. pathways= takes the path of a .gmt file, or a dict.")
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        fields = [field.strip() for field in line.split("\t")]
        if not line.strip():
            continue
        if len(fields) < 3:
            raise FileFormatError(
                f"'{path}', line {number}: a .gmt file has name, description and genes, between tabs; this line has "
                f"{len(fields)} of them."
            )
        found[fields[0]] = [gene for gene in fields[2:] if gene]
    if not found:
        raise FileFormatError(f"'{path}' holds no sets.")
    return found


def memberships(
    sets: dict[str, list[str]], genes: np.ndarray, largest: int, most: int, fewest: int = FEWEST_GENES
) -> Memberships:
    """Find the genes of the data in each set.

    Parameters
    ----------
    sets
        Genes by name of the set.
    genes
        Names of the genes of the data, shape (n_genes,).
    largest
        Sets of more genes are left out: they are too general.
    most
        As many sets are kept, those with most genes in the data.
    fewest
        Sets with fewer genes in the data are left out.

    Raises
    ------
    DataError
        No set has enough genes in the data.
    """
    place = {str(gene): column for column, gene in enumerate(genes)}
    columns = {
        name: sorted({place[gene] for gene in members if gene in place})
        for name, members in sets.items()
        if len(members) <= largest
    }
    kept = [name for name, found in columns.items() if len(found) >= fewest]
    if not kept:
        example = next((gene for members in sets.values() for gene in members), "")
        raise DataError(
            f"None of the {len(sets):,} pathways has {fewest} genes among those of the data (they have "
            f"{kind_of_names(genes)}, e.g. '{genes[0]}'; the pathways e.g. '{example}'). Give pathways of the same "
            "organism and kind of names, or raise n_top_genes."
        )
    order = sorted(kept, key=lambda name: -len(columns[name]))[:most]
    chosen = [name for name in kept if name in set(order)]
    mask = np.zeros((len(genes), len(chosen)), dtype=bool)
    for number, name in enumerate(chosen):
        mask[columns[name], number] = True
    return Memberships.of_mask(mask, chosen)


class Programs(NamedTuple):
    """Programmes of genes, those that are bound to a set first.

    Attributes
    ----------
    names
        Of the programmes.
    mask
        Which genes each may use, shape (n_programs, n_genes), bool.
    free
        Which of them may use any gene, shape (n_programs,), bool.
    """

    names: list[str]
    mask: np.ndarray
    free: np.ndarray


def read_programs(given: Any, genes: np.ndarray, fewest: int, largest: int) -> Programs:
    """Return the programmes that sets of genes ask for.

    Parameters
    ----------
    given
        As `read_gene_sets` takes it; in a mapping, a name with ``None`` is a programme that may use any gene.
    genes, fewest, largest
        As in `memberships`.

    Raises
    ------
    DataError, FileFormatError, RoleError
        As `read_gene_sets` and `memberships`.
    """
    unbound = [str(name) for name, of in given.items() if of is None] if isinstance(given, Mapping) else []
    sets = given if not unbound else {str(name): of for name, of in given.items() if of is not None}
    names, rows = [], [np.zeros((0, len(genes)), dtype=bool)]
    if len(sets):
        found = memberships(read_gene_sets(sets), genes, largest, len(sets), fewest)
        names = [str(name) for name in found.names]
        bound = np.zeros((len(names), len(genes)), dtype=bool)
        bound[found.sets, np.repeat(np.arange(len(genes)), np.diff(found.starts))] = True
        rows.append(bound)
    rows.append(np.ones((len(unbound), len(genes)), dtype=bool))
    free = np.arange(len(names) + len(unbound)) >= len(names)
    return Programs(names + unbound, np.concatenate(rows), free)
