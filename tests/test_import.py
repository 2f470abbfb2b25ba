"""What loads when, and how fast."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "scanpy", "pandas", "anndata", "numba", "sklearn", "scipy", "matplotlib", "plotly")


def seconds(*command: str) -> float:
    """Shortest of three runs: other work on the machine only ever adds to it."""
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - started)
    return min(taken)


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_import_takes_less_than_a_second():
    assert seconds(sys.executable, "-c", "import tenfold") < 1.0


def test_help_takes_less_than_a_second_and_a_half():
    assert (
        seconds(sys.executable, "-c", "import sys; sys.argv[1:] = ['--help']; from tenfold.cli import main; main()")
        < 1.5
    )


@pytest.mark.parametrize("statement", ["import tenfold", "import tenfold.cli", "import tenfold; dir(tenfold)"])
def test_nothing_heavy_is_imported(statement):
    assert not loaded_after(statement) & set(HEAVY)


def test_verbs_are_the_functions_even_after_their_modules_are_imported():
    import tenfold
    import tenfold.catalog
    import tenfold.compare
    import tenfold.method

    assert tenfold.method is tenfold.catalog.method
    assert callable(tenfold.compare)
    with pytest.raises(AttributeError, match="Did you mean 'methods'"):
        _ = tenfold.metods
