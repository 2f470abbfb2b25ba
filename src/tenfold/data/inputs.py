"""What a method may read of an AnnData: checked once, computed when first asked for, never written back."""

from __future__ import annotations

import hashlib
import warnings
from functools import cached_property
from typing import Any

import numpy as np
from anndata import AnnData
from scipy import sparse

from tenfold.data import batches, check, preprocess, streamed
from tenfold.data.counts import stored_layer
from tenfold.errors import DataError, RoleError
from tenfold.types import Codes, RunOptions


def digest_of(adata: AnnData) -> str:
    """Return a short digest of the cells and their order, to tell whether results belong to this AnnData."""
    names = "\n".join(map(str, adata.obs_names))
    return hashlib.sha256(names.encode()).hexdigest()[:16]


class Inputs:
    """Checked, lazy view of the data for one ``fit``.

    Parameters
    ----------
    adata
        Cells × genes; never changed.
    roles
        Data roles by keyword (``{"batch": "donor", "layer": "counts"}``).
    run
        Progress and checkpoint options.
    needed
        Roles that the method cannot do without: a needed batch must have two levels.

    Raises
    ------
    DataError
        Duplicate names, or no cells or genes.
    """

    def __init__(
        self, adata: AnnData, roles: dict[str, Any], run: RunOptions | None = None, needed: tuple[str, ...] = ()
    ) -> None:
        if not isinstance(adata, AnnData):
            raise DataError(
                f"An AnnData is needed, not {type(adata).__name__}. Read a file with tenfold.data.read(path); "
                "of a MuData, give one modality, e.g. mdata['rna']."
            )
        check.check_names(adata)
        self.adata = adata
        self.run = run or RunOptions()
        self._needed = needed
        self._warned = False
        #: The labelled cells to learn from, where they are given apart from those to label.
        self.reference: Inputs | None = None
        if "reference" in roles:
            roles = dict(roles)
            self.reference = Inputs(roles.pop("reference"), roles, run, needed)
            # The cells to label have no labels; a batch they may have.
            absent = {"labels"} if roles.get("batch") in adata.obs else {"labels", "batch"}
            roles = {role: key for role, key in roles.items() if role not in absent}
        self.roles = roles
        for role in ("batch", "labels", "sample", "size_factor"):
            if role in roles and not isinstance(roles[role], str):
                raise RoleError(f"{role}= takes the name of an obs column, not {type(roles[role]).__name__}.")
        _ = self.batch, self.labels  # a misspelt key is worth an error before any work starts

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.adata.n_obs

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.adata.n_vars

    @property
    def gene_names(self) -> np.ndarray:
        """Names of all genes, shape (n_genes,)."""
        return np.asarray(self.adata.var_names, dtype=object)

    @property
    def cell_names(self) -> np.ndarray:
        """Names of all cells, shape (n_cells,)."""
        return np.asarray(self.adata.obs_names, dtype=object)

    @property
    def digest(self) -> str:
        """Digest of the cells and their order."""
        return digest_of(self.adata)

    @cached_property
    def counts(self) -> sparse.csr_matrix:
        """Raw counts of all genes in memory: CSR, float32, whole numbers, no empty cell."""
        if not self.adata.is_view:
            streamed.refuse_to_load(stored_layer(self.adata, self.roles.get("layer")))
        return check.counts_of(self.adata, self.roles.get("layer"))

    @cached_property
    def counts_on_disk(self) -> streamed.StreamedCounts | None:
        """Raw counts of all genes, checked like `counts`, where they are in a file and too large to load; else None."""
        layer = self.roles.get("layer")
        if self.adata.is_view or not streamed.stays_on_disk(stored_layer(self.adata, layer)):
            return None
        return streamed.open_counts(self.adata, layer, self.run.progress)

    def counts_of(self, columns: np.ndarray) -> sparse.csr_matrix | streamed.StreamedCounts:
        """Return the raw counts of some genes: in memory, or on disk where they are too large to load."""
        found = self.counts_on_disk
        return self.counts[:, columns] if found is None else found.select(columns)

    @cached_property
    def lognorm(self) -> sparse.csr_matrix:
        """Counts per 10,000, log(1 + x): CSR, float32."""
        return preprocess.normalize_log1p(self.counts)

    @cached_property
    def batch(self) -> Codes | None:
        """Batch of each cell, or None where no batch was given."""
        return self._codes("batch", 2 if "batch" in self._needed else 1)

    @cached_property
    def labels(self) -> Codes | None:
        """Label of each cell, or None where no labels were given."""
        return self._codes("labels", 2 if "labels" in self._needed else 1)

    @cached_property
    def batch_or_one(self) -> Codes:
        """Batch of each cell; a single level where no batch was given."""
        return self.batch or Codes(np.zeros(self.n_cells, dtype=np.int32), ["all"])

    def _codes(self, role: str, min_levels: int) -> Codes | None:
        if role not in self.roles:
            return None
        return check.categories(self.adata, self.roles[role], role, min_levels=min_levels)

    def categorical(self, role: str) -> list[Codes]:
        """Return the categorical obs columns that `role` names, an empty list where it was not given."""
        return [check.categories(self.adata, key, role) for key in self._keys(role)]

    def numeric(self, role: str) -> np.ndarray:
        """Return the numeric obs columns that `role` names, shape (n_cells, n_columns), float32."""
        columns = [check.numeric_column(self.adata, key, role) for key in self._keys(role)]
        return np.stack(columns, axis=1) if columns else np.zeros((self.n_cells, 0), dtype=np.float32)

    def _keys(self, role: str) -> list[str]:
        value = self.roles.get(role, [])
        return [value] if isinstance(value, str) else list(value)

    def variable_genes(self, n_top_genes: int | None) -> np.ndarray:
        """Return the columns of the most variable genes, chosen batch by batch; all genes for None.

        Returns
        -------
        Sorted integer columns, shape (min(n_top_genes, n_genes),).
        """
        self._warn_of_absent_genes()
        if n_top_genes is None or n_top_genes >= self.n_genes:
            return np.arange(self.n_genes)
        found = self.counts_on_disk
        return preprocess.highly_variable_genes(self.counts if found is None else found, n_top_genes, self.batch)

    def _warn_of_absent_genes(self) -> None:
        """Warn, once, of genes that one batch lacks; data on disk are not read for it."""
        if self._warned or self.batch is None or len(self.batch.names) < 2 or self.counts_on_disk is not None:
            return
        self._warned = True
        for sentence in batches.absent_genes(self.counts, self.batch, self.gene_names):
            warnings.warn(sentence, stacklevel=3)

    def pca(self, n_components: int, n_top_genes: int | None, seed: int = 0) -> preprocess.PCAResult:
        """Return the PCA of log-normalised variable genes."""
        genes = self.variable_genes(n_top_genes)
        result = preprocess.pca(self.lognorm[:, genes], n_components, seed)
        return result._replace(genes=genes)

    def embedding(self, n_components: int, n_top_genes: int | None, seed: int = 0) -> np.ndarray:
        """Return the coordinates to start from: ``obsm[use_rep]`` where given, else the PCA.

        Returns
        -------
        Float32 array, shape (n_cells, n_components or the width of ``obsm[use_rep]``).
        """
        if "use_rep" in self.roles:
            return check.representation(self.adata, self.roles["use_rep"])
        return self.pca(n_components, n_top_genes, seed).embedding
