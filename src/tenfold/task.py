"""What `compare` asks of a task: how to score a fitted method, which controls to run, how to rank."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from anndata import AnnData

    from tenfold.method import Method

Verdict = Literal["pass", "warn", "fail", "info", "not run"]


@dataclass(frozen=True)
class Score:
    """One value of one metric.

    Attributes
    ----------
    group
        ``"bio"``, ``"batch"``, ``"control"`` or ``"resources"``; ``"label:<name>"`` and ``"batch:<name>"`` for the
        value of a metric on one label or one batch.
    metric
        Name of the metric.
    value
        Its value; NaN where it is not defined on these data.
    """

    group: str
    metric: str
    value: float


@dataclass(frozen=True)
class Control:
    """Outcome of a control: a verdict, the sentence that a biologist reads, and the rule that decided it."""

    name: str
    title: str
    verdict: Verdict
    sentence: str
    rule: str
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Assessment:
    """Whether the task should be done on these data at all."""

    verdict: str
    sentence: str
    rule: str
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recommendation:
    """What to run, and why. `method` is None where nothing can be recommended."""

    method: str | None
    sentence: str
    reasons: list[str]


class ComparedTask(ABC):
    """A task that `compare` can judge. Each task folder has one, in ``_task.py``, named ``TASK``."""

    name: ClassVar[str]
    #: The method that does as little as possible; in every comparison.
    baseline: ClassVar[str]
    #: Further methods that are in every comparison.
    companions: ClassVar[tuple[str, ...]] = ()
    #: Methods that ``methods="recommended"`` stands for.
    recommended: ClassVar[tuple[str, ...]]
    #: Roles that a comparison needs, and those it can use.
    needs: ClassVar[tuple[str, ...]]
    accepts: ClassVar[tuple[str, ...]]

    @abstractmethod
    def assess(self, adata: AnnData, roles: dict[str, str], seed: int) -> Assessment:
        """Say whether the data call for the task at all."""

    @abstractmethod
    def evaluate(self, method: Method, adata: AnnData, roles: dict[str, str], seed: int) -> list[Score]:
        """Score a fitted method."""

    @abstractmethod
    def controls(
        self,
        make: Callable[[int], Method],
        fitted: Method,
        adata: AnnData,
        roles: dict[str, str],
        seed: int,
        thorough: bool = False,
    ) -> list[tuple[Control, list[Score]]]:
        """Run the controls of the task on a method; `make` gives an unfitted one for a seed.

        `thorough`: all of them, whatever they cost; otherwise those that train a model many times are left out.
        """

    @abstractmethod
    def display(self, method: Method, shown: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return a 2-d layout of the cells `shown`, and the embedding of all cells where there is one."""

    def pictures(
        self, method: Method, adata: AnnData, roles: dict[str, str], shown: np.ndarray, layout: np.ndarray, seed: int
    ) -> dict[str, np.ndarray]:
        """Return what the report draws of the cells `shown` besides their layout, by name; most tasks have nothing."""
        return {}

    def control_pictures(
        self, make: Callable[[int], Method], method: Method, adata: AnnData, roles: dict[str, str], shown: np.ndarray,
        layout: np.ndarray, seed: int,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Return pictures that need another fit, by name; they are made with the controls."""
        return {}

    @abstractmethod
    def metrics(self) -> dict[str, dict[str, Any]]:
        """Return title, group, range, what is good and known criticism of every metric."""

    @abstractmethod
    def rank(
        self, scores: pd.DataFrame, controls: dict[str, list[Control]], assessment: Assessment, sees_labels: set[str]
    ) -> tuple[list[dict[str, Any]], Recommendation]:
        """Return methods from best to worst with reasons, and the recommendation."""
