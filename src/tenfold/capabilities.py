"""What a method can give, as small abstract classes that know the slots it goes to, and the tasks they serve."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from scipy import sparse


class Capability(ABC):
    """Something that a fitted method can give."""

    @abstractmethod
    def _write(self, adata: AnnData, key: str) -> None:
        """Write it into `adata` under `key`, the ``<m>`` of the documented slots."""


class Embedder(Capability):
    """Gives low-dimensional coordinates of cells: ``obsm["X_<m>"]``."""

    @abstractmethod
    def embed(self, adata: AnnData | None = None) -> np.ndarray:
        """Return coordinates, shape (n_cells, n_latent), float32; ``None`` means the fitted cells."""

    def _write(self, adata: AnnData, key: str) -> None:
        adata.obsm[f"X_{key}"] = self.embed()


class FixedEmbedder(Embedder):
    """An `Embedder` of the fitted cells only, whose coordinates are ``embedding_``: it does not place new ones."""

    def embed(self, adata: AnnData | None = None) -> np.ndarray:
        """Return the coordinates of the fitted cells, shape (n_cells, n_components), float32.

        Raises
        ------
        DataError
            If `adata` holds other cells.
        """
        self._require_fitted_cells(adata)  # type: ignore[attr-defined]  # of Method
        return self.embedding_  # type: ignore[attr-defined]  # fitted state, not a hyper-parameter: no annotation


class Clusterer(Capability):
    """Gives clusters: ``obs["<m>"]``."""

    @abstractmethod
    def cluster(self) -> np.ndarray:
        """Return the cluster of each fitted cell, integers from 0 (largest), shape (n_cells,)."""

    def _write(self, adata: AnnData, key: str) -> None:
        import pandas as pd

        labels = self.cluster()
        levels = [str(level) for level in range(int(labels.max()) + 1)]
        adata.obs[key] = pd.Categorical.from_codes(labels, categories=levels)


class Grapher(Capability):
    """Gives a neighbour graph: ``obsp["<m>_distances"]``, ``obsp["<m>_connectivities"]``."""

    @abstractmethod
    def graph(self) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """Return distances and connectivities, each sparse (n_cells, n_cells)."""

    def _write(self, adata: AnnData, key: str) -> None:
        distances, connectivities = self.graph()
        adata.obsp[f"{key}_distances"] = distances
        adata.obsp[f"{key}_connectivities"] = connectivities
        # The entry by which Scanpy's tools find a graph: sc.tl.umap(adata, neighbors_key="<m>"). Its n_neighbors counts
        # the cell itself.
        adata.uns[key] = {
            "distances_key": f"{key}_distances",
            "connectivities_key": f"{key}_connectivities",
            "params": {"method": "umap", "n_neighbors": int(distances.getnnz(axis=1).max()) + 1},
        }


class Corrector(Capability):
    """Gives batch-corrected expression: ``layers["<m>"]``. Genes of the fitted data are ``genes_``."""

    def correct(self, genes: list[str] | None = None) -> np.ndarray:
        """Return corrected log-expression of the fitted cells, dense, float32.

        Parameters
        ----------
        genes
            Names of the genes to expand; ``None`` for all, in the order of the data.

        Returns
        -------
        Shape (n_cells, n_genes).

        Raises
        ------
        KeyMissingError
            A gene is not in the data.
        """
        from tenfold.data.check import named_columns

        self._check_fitted()  # type: ignore[attr-defined]  # of Method
        return self._corrected(named_columns(genes, self.genes_))  # type: ignore[attr-defined]

    @abstractmethod
    def _corrected(self, columns: np.ndarray) -> np.ndarray:
        """Return corrected expression of these genes."""

    def _write(self, adata: AnnData, key: str) -> None:
        adata.layers[key] = self.correct()


class Denoiser(Capability):
    """Gives denoised expression: ``layers["<m>"]``."""

    @abstractmethod
    def denoise(self, adata: AnnData | None = None) -> np.ndarray:
        """Return denoised expression, (n_cells, n_genes), float32, genes that the model left out as NaN."""

    def denoised(self) -> Iterator[np.ndarray]:
        """Iterate over the rows of ``denoise()`` in consecutive pieces: large results need never be whole in memory."""
        yield self.denoise()

    def _write(self, adata: AnnData, key: str) -> None:
        from tenfold.data.backed import write_layer

        write_layer(adata, key, self.denoised())


class Generator(Capability):
    """Gives synthetic cells: a new AnnData, marked in ``obs["synthetic"]``."""

    @abstractmethod
    def sample(self, n: int) -> AnnData:
        """Return `n` synthetic cells with integer counts."""

    def _write(self, adata: AnnData, key: str) -> None:
        """Synthetic cells are never mixed into the user's data; ask for them with ``sample``."""


class Annotator(Capability):
    """Gives labels of cells: ``obs["<m>_label"]``, ``obs["<m>_confidence"]`` and ``obsm["<m>_probabilities"]``.

    It labels cells that it was not fitted on, so results can be written into any AnnData with the fitted genes.
    """

    #: What a cell is called whose label the method does not dare to tell.
    UNKNOWN: ClassVar[str] = "Unknown"

    @abstractmethod
    def probabilities(self, adata: AnnData | None = None) -> pd.DataFrame:
        """Return the probability of each label for each cell; ``None`` means the fitted cells.

        Returns
        -------
        One row a cell, one column a label, float32.
        """

    def predict(self, adata: AnnData | None = None) -> np.ndarray:
        """Return the label of each cell, shape (n_cells,); ``"Unknown"`` where the method rejects a cell."""
        return self._annotated(adata)[1]

    def confidence(self, adata: AnnData | None = None) -> np.ndarray:
        """Return the highest probability of each cell, shape (n_cells,), float32."""
        return self.probabilities(adata).to_numpy().max(axis=1)

    def _annotated(self, adata: AnnData | None) -> tuple[pd.DataFrame, np.ndarray]:
        """Return the probabilities and the label of each cell; methods whose labels need more override this."""
        found = self.probabilities(adata)
        return found, self._decide(found)

    def _decide(self, probabilities: pd.DataFrame) -> np.ndarray:
        """Choose a label from the probabilities; methods that reject cells override this."""
        import numpy as np

        return np.asarray(probabilities.columns, dtype=object)[probabilities.to_numpy().argmax(axis=1)]

    def _knows(self, adata: AnnData) -> bool:
        """Whether these are the fitted cells, so that their labels are known already."""
        from tenfold.data.inputs import digest_of

        return digest_of(adata) == self.cells_  # type: ignore[attr-defined]  # of Method

    def _write(self, adata: AnnData, key: str) -> None:
        import pandas as pd

        found, labels = self._annotated(None if self._knows(adata) else adata)
        found = found.set_axis(adata.obs_names, axis=0)
        adata.obs[f"{key}_label"] = pd.Categorical(labels)
        adata.obs[f"{key}_confidence"] = found.to_numpy().max(axis=1)
        adata.obsm[f"{key}_probabilities"] = found


class VelocityModel(Capability):
    """Gives the change of expression: ``layers["<m>_velocity"]``, ``obs["<m>_time"]``, ``obs["<m>_confidence"]``."""

    @abstractmethod
    def velocity(self) -> np.ndarray:
        """Return ds/dt of the fitted cells, (n_cells, n_genes), float32, genes without a trusted velocity as NaN."""

    @abstractmethod
    def time(self) -> np.ndarray:
        """Return how far along each fitted cell is, shape (n_cells,), float32, from 0 to 1."""

    @abstractmethod
    def confidence(self) -> np.ndarray:
        """Return how much the velocity of each cell agrees with those around it, shape (n_cells,), float32."""

    def _write(self, adata: AnnData, key: str) -> None:
        adata.layers[f"{key}_velocity"] = self.velocity()
        adata.obs[f"{key}_time"] = self.time()
        adata.obs[f"{key}_confidence"] = self.confidence()


@dataclass(frozen=True)
class TaskInfo:
    """A task of the catalog: its title and the capabilities whose results `write` stores."""

    title: str
    capabilities: tuple[type[Capability], ...]
    #: Whether `write` takes cells that the method was not fitted on.
    new_cells: bool = False


TASKS: dict[str, TaskInfo] = {
    "embed": TaskInfo("Embedding and clustering of cells", (Embedder, Clusterer)),
    "domains": TaskInfo("Spatial domains", (Embedder, Clusterer)),
    "annotate": TaskInfo("Annotation of cell types", (Annotator,), new_cells=True),
    "integrate": TaskInfo("Integration of batches", (Embedder, Grapher, Corrector)),
    "denoise": TaskInfo("Denoising of expression", (Denoiser,)),
    "generate": TaskInfo("Generation of synthetic cells", (Generator,)),
    "velocity": TaskInfo("RNA velocity", (VelocityModel,)),
}
