"""Hyper-parameters: declared as annotated class attributes, checked once when a method is created."""

from __future__ import annotations

import dataclasses
import numbers
import types
import typing
from abc import ABCMeta
from collections.abc import Mapping
from typing import Any, dataclass_transform

from tenfold.errors import ParameterError, closest


def param(default: Any, *, low: float | None = None, high: float | None = None, help: str = "") -> Any:
    """Declare a hyper-parameter with a range.

    Parameters
    ----------
    default
        Value used when the user gives none.
    low, high
        Smallest and largest accepted value, inclusive; ``None`` leaves the side open.
    help
        One line for the command line and the docs.
    """
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "help": help})


@dataclass_transform(kw_only_default=True, field_specifiers=(param,))
class Configured(ABCMeta):
    """Metaclass that turns annotated class attributes into keyword-only, checked constructor arguments."""

    def __new__(mcls, name: str, bases: tuple, namespace: dict, **kwargs: Any):
        """Create the class and give it a dataclass constructor."""
        cls = super().__new__(mcls, name, bases, namespace, **kwargs)
        return dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)  # type: ignore[arg-type]

    def __call__(cls, *args: Any, **given: Any):
        """Refuse unknown and positional arguments in plain words, then construct."""
        if args:
            raise ParameterError(
                f"{cls.__name__} takes hyper-parameters by name, e.g. {cls.__name__}({_example(cls)}); "
                "the data go to .fit(adata, ...)."
            )
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for name in given:
            if name not in known:
                raise ParameterError(
                    f"{cls.__name__} has no hyper-parameter '{name}'.{closest(name, known)} "
                    f"It takes: {', '.join(known) or 'none'}."
                )
        checked = {name: check_value(cls, name, value) for name, value in given.items()}
        return super().__call__(**checked)


class Parametrised(metaclass=Configured):
    """Base of a class with hyper-parameters, which can name and show them."""

    @classmethod
    def parameter_names(cls) -> list[str]:
        """Return the names of the hyper-parameters."""
        return [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]

    @property
    def parameters(self) -> dict[str, Any]:
        """Hyper-parameters by name."""
        return {name: getattr(self, name) for name in self.parameter_names()}

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.parameters.items())
        return f"{type(self).__name__}({shown})"


def _example(cls: type) -> str:
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    return f"{fields[0].name}={fields[0].default!r}" if fields else ""


def check_value(cls: type, name: str, value: Any) -> Any:
    """Return `value` as the type that hyper-parameter `name` of `cls` declares, or raise ParameterError."""
    field = {f.name: f for f in dataclasses.fields(cls)}[name]  # type: ignore[arg-type]
    options = _alternatives(typing.get_type_hints(cls)[name])
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()  # NumPy scalars
    for option in options:
        accepted, converted = _accept(option, value)
        if accepted:
            _check_range(cls, field, converted)
            return converted
    choices = [choice for option in options if typing.get_origin(option) is typing.Literal
               for choice in typing.get_args(option)]  # fmt: skip
    hint = closest(value, choices) if isinstance(value, str) else ""
    expected = " or ".join(_describe(option) for option in options)
    raise ParameterError(f"{cls.__name__}: {name}={value!r} is not valid; expected {expected}.{hint}")


def _alternatives(hint: Any) -> tuple:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _accept(option: Any, value: Any) -> tuple[bool, Any]:
    origin = typing.get_origin(option)
    if option is type(None):
        return value is None, None
    if origin is typing.Literal:
        return value in typing.get_args(option) and not isinstance(value, bool), value
    if option is bool:
        return isinstance(value, bool), value
    if option is int:
        whole = isinstance(value, numbers.Integral) or (isinstance(value, float) and value.is_integer())
        return whole and not isinstance(value, bool), int(value) if whole else value
    if option is float:
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return real and value == value, float(value) if real else value
    if origin in (tuple, list):
        item = typing.get_args(option)[0]
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            return False, value
        pairs = [_accept(item, entry) for entry in value]
        return all(ok for ok, _ in pairs), origin(entry for _, entry in pairs)
    if origin is dict:
        return isinstance(value, Mapping), dict(value) if isinstance(value, Mapping) else value
    return isinstance(value, option), value


def _check_range(cls: type, field: dataclasses.Field, value: Any) -> None:
    low, high = field.metadata.get("low"), field.metadata.get("high")
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return
    if (low is not None and value < low) or (high is not None and value > high):
        span = f"at least {low}" if high is None else f"at most {high}" if low is None else f"between {low} and {high}"
        raise ParameterError(f"{cls.__name__}: {field.name}={value!r} is out of range; it must be {span}.")


def _describe(option: Any) -> str:
    if option is type(None):
        return "None"
    if typing.get_origin(option) is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(option))
    if typing.get_origin(option) in (tuple, list):
        return f"a list, each entry {_describe(typing.get_args(option)[0])}"
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "text", dict: "a dict"}
    return names.get(option, str(option))
