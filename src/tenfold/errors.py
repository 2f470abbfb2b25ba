"""Named errors. Each message tells a biologist what is wrong and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TenfoldError(Exception):
    """Base of every error that the user can mend. The command line prints it without a traceback."""

    def __str__(self) -> str:
        # KeyError would print the message with quotes around it.
        return str(self.args[0]) if self.args else ""


class DataError(TenfoldError, ValueError):
    """The data cannot be used as given (negative values, empty cells, a single batch, ...)."""


class KeyMissingError(DataError, KeyError):
    """A column, layer or obsm key that the user named is not in the data."""


class NotCountsError(DataError):
    """Raw counts are needed and the matrix does not hold them."""


class FileFormatError(DataError):
    """A file is damaged, or of a kind that cannot be read."""


class ParameterError(TenfoldError, ValueError):
    """An unknown hyper-parameter, or a value outside its range."""


class RoleError(TenfoldError, TypeError):
    """A data role that the method needs is missing, or one was given that it does not take."""


class NotFittedError(TenfoldError):
    """A result was asked for before ``fit``."""


class MissingExtraError(TenfoldError, ImportError):
    """An optional dependency is not installed; the message names the pip command."""


class TrainingError(TenfoldError, RuntimeError):
    """Training broke down (NaN loss, exploding gradients)."""


class EndpointError(TenfoldError, RuntimeError):
    """The language model that the user named cannot be reached, refuses, or does not answer what was asked."""


class ResourceError(TenfoldError):
    """A run ended for want of time, memory or a device."""


def closest(name: str, options: Iterable[object]) -> str:
    """Return `` Did you mean 'x'?`` for the option most like `name`, or an empty string.

    Parameters
    ----------
    name
        What the user wrote.
    options
        What would have been accepted.
    """
    lowered = {str(option).lower(): str(option) for option in options}
    match = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.6)
    return f" Did you mean '{lowered[match[0]]}'?" if match else ""
