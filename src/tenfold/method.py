"""The base of every method: data roles, fit, results in documented slots, save and load.

A method is a class whose annotated attributes are its hyper-parameters, which implements ``_fit`` and one or more
capabilities (`Embedder`, `Grapher`, ...). Attributes whose names end in an underscore are its fitted state: `save`
stores them all. See CONTRIBUTING for the ten lines on adding one.
"""

from __future__ import annotations

import json
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tenfold.capabilities import (
    TASKS,
    Annotator,
    Clusterer,
    Corrector,
    Denoiser,
    Embedder,
    FixedEmbedder,
    Generator,
    Grapher,
)
from tenfold.errors import DataError, NotFittedError, RoleError, closest
from tenfold.parameters import Parametrised, param
from tenfold.types import Readiness, RunOptions

if TYPE_CHECKING:
    from anndata import AnnData

    from tenfold.data.inputs import Inputs

__all__ = [
    "ROLES", "TASKS", "Annotator", "Clusterer", "Corrector", "Denoiser", "Embedder", "FixedEmbedder", "Generator",
    "Grapher", "Method", "MethodInfo", "param",
]  # fmt: skip

#: Every data role: a keyword of ``fit``, ``run`` and ``compare`` that names a column, a key or an object.
ROLES: dict[str, str] = {
    "layer": "layer with raw counts (default: X)",
    "batch": "obs column with the batch of each cell",
    "labels": "obs column with cell types",
    "reference": "AnnData with labels to learn from, where the fitted cells are to be labelled",
    "clusters": "obs column with clusters whose cells vote for one label",
    "sample": "obs column with the sample or slice",
    "spatial": "obsm key with coordinates",
    "markers": "marker genes of each label: a dict of gene lists, a table with label and gene, or the path of one",
    "pathways": "gene sets: path of a .gmt file, or a dict of gene lists",
    "ontology": "path of an .obo file with cell types, such as the Cell Ontology",
    "pseudotime": "obs column with a reference pseudotime, NaN where a cell has none; compare scores by it",
    "spliced": "layer with spliced counts, for velocity (default: 'spliced')",
    "unspliced": "layer with unspliced counts, for velocity (default: 'unspliced')",
    "transitions": "known directions between labels, 'A > B, B > C', by which compare scores velocities",
    "use_rep": "obsm key of an embedding to start from, instead of the default preprocessing",
    "key_added": "name to write results under, instead of the method's",
    "size_factor": "obs column with a size factor for each cell",
    "categorical_covariates": "obs columns with further categorical covariates",
    "continuous_covariates": "obs columns with continuous covariates",
}
_ALWAYS_ACCEPTED = ("layer", "key_added")


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """What the catalog, the docs and `compare` know of a method."""

    #: The field's spelling of the name.
    title: str
    #: Tasks that it serves; the first is the folder it lives in.
    tasks: tuple[str, ...]
    #: Kind of model, e.g. ``"classical"`` or ``"deep"``.
    family: str
    #: Of the publication.
    year: int
    doi: str
    #: What it produces, in words of the catalog (``"embedding"``, ``"graph"``, ``"expression"``, ...).
    gives: tuple[str, ...]
    #: The review's verdict, overridden only by our own measurements; by task where it differs between them.
    readiness: Readiness | dict[str, Readiness]
    #: When to use it, in one sentence.
    advice: str
    #: Data roles that must, or may, be given (beside ``layer`` and ``key_added``).
    needs: tuple[str, ...] = ()
    accepts: tuple[str, ...] = ()
    #: Whether the seed changes the result.
    stochastic: bool = True
    #: Whether it is shown the labels it may be scored on; such methods are ranked apart.
    sees_labels: bool = False

    def readiness_for(self, task: str) -> Readiness:
        """Return the readiness for one of the tasks."""
        return self.readiness[task] if isinstance(self.readiness, dict) else self.readiness


class Method(Parametrised):
    """Base class: hyper-parameters in the constructor, data in `fit`, results by `write`."""

    info: ClassVar[MethodInfo]
    #: The task whose slots `write` fills; the catalog sets it when a method is created by task and name.
    task: ClassVar[str] = ""

    @classmethod
    def name(cls) -> str:
        """Return the catalog name, which is the name of the method's file."""
        return cls.__module__.rpartition(".")[2]

    # ---- fit -------------------------------------------------------------------------------------------------------

    def fit(self, adata: AnnData, *, progress: bool = True, checkpoint: str | Path | None = None, **roles: Any):
        """Fit to `adata`, which is not changed.

        Parameters
        ----------
        adata
            Cells × genes, raw counts in X or in the layer named by ``layer``.
        progress
            Show a progress bar on work that takes over a second.
        checkpoint
            Folder for training state; an interrupted training resumes from it.
        **roles
            Data roles (``batch="batch"``, ``labels="cell_type"``, ...); see ``tenfold.method.ROLES``.

        Returns
        -------
        The fitted method itself.

        Raises
        ------
        RoleError
            A role is missing, unknown, or not taken by this method.
        DataError
            The data cannot be used as given; the message says why and what to do.
        """
        from tenfold.data.inputs import Inputs

        roles = self._checked_roles(roles)
        options = RunOptions(progress, None if checkpoint is None else str(checkpoint))
        for name in self._state():
            delattr(self, name)  # a fit that fails must not leave results of two fits mixed
        with self._measured():
            data = Inputs(adata, roles, options, needed=self.info.needs)
            self._fit(data)
            self._remember(data.digest, roles)
        return self

    def _remember(self, digest: str, roles: dict[str, Any]) -> None:
        """Note which cells were fitted, and the roles they were given with."""
        self.roles_ = {role: value for role, value in roles.items() if isinstance(value, (str, list, tuple))}
        self.cells_ = digest

    @contextmanager
    def _measured(self) -> Iterator[None]:
        """Note time, memory and warnings of the block as those of the run."""
        from tenfold.engine.meter import Meter

        messages: list[str] = []
        with _noted(messages), Meter() as meter:
            yield
        self.run_ = {"seconds": meter.seconds, "peak_memory_mb": meter.peak_memory_mb, "warnings": messages}

    @abstractmethod
    def _fit(self, data: Inputs) -> None:
        """Compute the fitted state from checked inputs."""

    def _checked_roles(self, given: dict[str, Any], needs: tuple[str, ...] | None = None) -> dict[str, Any]:
        taken = dict.fromkeys((*self.info.needs, *self.info.accepts, *_ALWAYS_ACCEPTED))
        roles = {role: value for role, value in given.items() if value is not None}
        for role in roles:
            if role not in ROLES:
                raise RoleError(f"'{role}' is not a data role.{closest(role, ROLES)} Roles are: {', '.join(ROLES)}.")
            if role not in taken:
                raise RoleError(f"{self.info.title} does not use '{role}', only {', '.join(taken)}. Leave {role}= out.")
            if role in _ALWAYS_ACCEPTED and not isinstance(roles[role], str):
                raise RoleError(f"{role}= takes a name, not {type(roles[role]).__name__}: the {ROLES[role]}.")
        for role in self.info.needs if needs is None else needs:
            if role not in roles:
                raise RoleError(f"{self.info.title} needs {role}=...: the {ROLES[role]}.")
        return roles

    # ---- results ---------------------------------------------------------------------------------------------------

    def write(self, adata: AnnData, task: str | None = None) -> None:
        """Write the results for `task` into the documented slots of `adata`, with their provenance.

        Parameters
        ----------
        adata
            The AnnData (same cells, same order) that the method was fitted on; for annotation, any cells to label.
        task
            Which of the method's tasks; default the one it was created for.

        Raises
        ------
        NotFittedError
            Before `fit`.
        DataError
            If `adata` does not hold the fitted cells.
        """
        from tenfold.data.inputs import digest_of

        self._check_fitted()
        task = task or self.task or self.info.tasks[0]
        if task not in self.info.tasks:
            raise RoleError(f"{self.info.title} does not serve '{task}'; it serves {', '.join(self.info.tasks)}.")
        if not TASKS[task].new_cells and digest_of(adata) != self.cells_:
            raise DataError(
                f"This {self.info.title} was fitted on other cells than the {adata.n_obs} given here. "
                "Write into the AnnData that was given to fit, with the same cells in the same order."
            )
        key = str(self.roles_.get("key_added", self.name()))
        for capability in TASKS[task].capabilities:
            if isinstance(self, capability):
                capability._write(self, adata, key)
        runs = dict(adata.uns.get("tenfold", {}))
        runs[key] = self.provenance(task)
        adata.uns["tenfold"] = runs

    def provenance(self, task: str) -> dict[str, Any]:
        """Return what is stored of a run in ``uns["tenfold"]``: plain values that every h5ad file can hold."""
        from tenfold import __version__

        return {
            "method": self.name(),
            "task": task,
            "parameters": json.dumps(self.parameters),
            "roles": json.dumps(self.roles_),
            "seed": getattr(self, "seed", -1),
            "version": __version__,
            "doi": self.info.doi,
            **self.run_,
            "warnings": json.dumps(self.run_["warnings"]),
        }

    def _check_fitted(self) -> None:
        if not hasattr(self, "run_"):
            raise NotFittedError(f"This {self.info.title} has not been fitted: call .fit(adata, ...) first.")

    def _require_fitted_cells(self, adata: AnnData | None) -> None:
        """Refuse cells that were not in the fit; for methods that cannot project new ones."""
        from tenfold.data.inputs import digest_of

        self._check_fitted()
        if adata is not None and digest_of(adata) != self.cells_:
            raise DataError(
                f"{self.info.title} cannot place cells that it was not fitted on. "
                "Fit it on all cells together, or use a method that projects new cells (e.g. scvi, pca)."
            )

    # ---- save and load ---------------------------------------------------------------------------------------------

    def _build(self) -> Any:
        """Return an untrained ``net_`` of the fitted shape; methods that have a network override this."""
        raise DataError(f"{self.info.title} has no network to rebuild; the saved folder is damaged.")

    def save(self, folder: str | Path) -> Path:
        """Save to `folder` as safetensors and JSON. An earlier tenfold model there is replaced, nothing else is.

        Raises
        ------
        NotFittedError
            Before `fit`.
        FileFormatError
            If `folder` exists and holds something else.
        """
        from tenfold import __version__
        from tenfold.data.store import write_folder

        self._check_fitted()
        head = {"method": self.name(), "task": self.task, "version": __version__, "parameters": self.parameters}
        return write_folder(Path(folder), head, self._state())

    def _state(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name.endswith("_") and not name.startswith("_")}

    def _restore(self, state: dict[str, Any]) -> None:
        weights = state.pop("net_", None)
        vars(self).update(state)
        if weights is not None:
            self.net_ = self._build()
            self.net_.load_state_dict(weights)
            self.net_.eval()


@contextmanager
def _noted(messages: list[str]) -> Iterator[None]:
    """Add the text of every UserWarning in the block to `messages`; all warnings reach the caller afterwards, once."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield
    finally:
        distinct = {(str(record.message), record.category): record for record in caught}
        messages += [text for text, category in distinct if issubclass(category, UserWarning)]
        for record in distinct.values():
            warnings.warn_explicit(record.message, record.category, record.filename, record.lineno)
