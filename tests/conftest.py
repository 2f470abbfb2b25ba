"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

# Before torch is loaded: the tests run side by side on few cores, and networks this small lose by a second thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


class FilesAndMethods(LoadFileScheduling):
    """Keeps a file's tests in one process, as they share fixtures; of the contract, half of all, those of a method."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        return f"{file}[{test.rpartition('[')[2]}" if file.endswith("test_contract.py") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesAndMethods | None:
    return FilesAndMethods(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Path of a real data set beside the checkout; the test is skipped where there is none."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"{name} is not beside this checkout")
        return path

    return find
