"""Run many methods on the user's own data, each in its own process, score them and say which to trust."""

from tenfold.compare.results import Comparison
from tenfold.compare.session import compare

__all__ = ["Comparison", "compare"]
