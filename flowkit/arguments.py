"""What a constructor's annotations promise, checked in one place: an int is an int, a flag True or False.

The classes that `fk.register` names and the ready flows are checked here, a plugin's too: their arguments are written
to files as plain data, and a value of another type would go wrong far from where it was given, or pass unseen. Ranges
are each class's own to check.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from flowkit.errors import ConfigError, FlowkitError, GraphError, ShapeError
from flowkit.strict_json import LARGEST, shown

SMALLEST_NORMAL, LARGEST_NUMBER = 2.0**-126, (2 - 2**-23) * 2.0**127  # of float32
SHAPES = ("shape", "shapes", "given", "to", "features", "condition")  # what is wrong with them is a `fk.ShapeError`


def is_int(value: Any) -> bool:
    """Whether it is an int that torch can count to, and no bool: numpy's are none, for files cannot hold them.

    >>> is_int(3), is_int(True), is_int(3.0), is_int(2**63)
    (True, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_huge(value: Any) -> bool:
    return isinstance(value, int) and abs(value) > LARGEST


def is_number(value: Any) -> bool:
    """Whether it is an int or a float that float32 holds with all its digits, and no bool, NaN or infinity.

    Modules are float32 by default, where 1e-50 is zero, and 1e50 infinite.

    >>> is_number(3), is_number(2.5), is_number(True), is_number(float("nan")), is_number(10**400), is_number(1e-50)
    (True, True, False, False, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == 0 or SMALLEST_NORMAL <= abs(value) <= LARGEST_NUMBER


def is_sequence(value: Any, of: Callable[[Any], bool] | None = None) -> bool:
    """Whether it is a list, a tuple or the like, of such items: text and bytes are none."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and (of is None or all(map(of, value)))


KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("an int", is_int),
    "float": ("a number that float32 holds", is_number),
    "bool": ("True or False", lambda value: isinstance(value, bool)),
    "str": ("a text", lambda value: isinstance(value, str)),
    "None": ("None", lambda value: value is None),
    "Callable": ("a callable", callable),
    "Sequence": ("a tuple", is_sequence),
    "Sequence[int]": ("a tuple of ints", lambda value: is_sequence(value, is_int)),
    "Sequence[float]": ("a tuple of numbers that float32 holds", lambda value: is_sequence(value, is_number)),
    "Sequence[str]": ("a tuple of texts", lambda value: is_sequence(value, lambda each: isinstance(each, str))),
    "tuple[str, ...]": ("a tuple of texts", lambda value: is_sequence(value, lambda each: isinstance(each, str))),
    "tuple[int, ...]": ("a tuple of ints", lambda value: is_sequence(value, is_int)),
    "Shape": (
        "a tuple of positive ints",
        lambda value: isinstance(value, tuple) and all(is_int(each) and each > 0 for each in value),
    ),
    "Mapping[str, Sequence[int]]": (
        "tuples of ints by name",
        lambda value: isinstance(value, Mapping) and all(is_sequence(each, is_int) for each in value.values()),
    ),
}


def kinds_of(annotation: Any) -> tuple[str, ...]:
    """The kinds that an annotation names, all of which are known here; none for any other annotation.

    >>> kinds_of("str | Sequence[int]"), kinds_of("bool"), kinds_of("Wire | None")
    (('str', 'Sequence[int]'), ('bool',), ())
    """
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    parts = tuple(re.sub(r"\b(collections\.abc|typing)\.", "", part.strip()) for part in text.split("|"))
    return parts if all(part in KINDS for part in parts) else ()


class Contract:
    """The kinds of a function's or constructor's arguments.

    Args:
        function: whose annotations are read.
    """

    def __init__(self, function: Callable):
        self.signature = inspect.signature(function)
        self.kinds = {
            name: kinds
            for name, parameter in self.signature.parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and (kinds := kinds_of(parameter.annotation))
        }

        several = any(each.kind is each.VAR_KEYWORD for each in self.signature.parameters.values())
        self.takes_no_conditions = "given" not in self.signature.parameters and not several

    def _is_default(self, name: str, value: Any) -> bool:
        """Whether it is what the author of the function chose: an infinity, say, which its own copies are given."""
        default = self.signature.parameters[name].default
        plain = default is None or isinstance(default, bool | int | float | str)
        return value is default or (plain and type(value) is type(default) and value == default)

    def broken(self, owner: str, args: tuple, kwargs: dict[str, Any]) -> tuple[FlowkitError | None, bool]:
        """The error of the first argument of a wrong kind, and whether the call is better not made; else None."""
        try:
            given = self.signature.bind(*args, **kwargs).arguments
        except TypeError:  # a name that is missing or not known, which Python itself refuses in a sentence
            return None, False
        for name, kinds in self.kinds.items():
            if name not in given or self._is_default(name, given[name]):
                continue
            if not any(KINDS[kind][1](given[name]) for kind in kinds):
                wanted = " or ".join(KINDS[kind][0] for kind in kinds)
                kind_of_error = ShapeError if name in SHAPES else ConfigError
                error = kind_of_error(f"{owner}: {name} must be {wanted}, got {shown(given[name])}")
                # A flag has no range to speak of, and a loop over more than 2^63 would not end.
                return error, kinds == ("bool",) or _is_huge(given[name])
        return None, False

    def run(self, owner: str, call: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The call's result; whatever it refuses is refused in the owner's name.

        The call speaks first, for its own sentence knows the range. What it lets pass, or what breaks it, is judged by
        the kinds.

        Raises:
            ConfigError, ShapeError: an argument of another kind than its annotation says, or conditions in vain.
        """
        if self.takes_no_conditions and "given" in kwargs:
            raise ConfigError(f"{owner} takes no conditions, got given={shown(kwargs['given'])}")
        problem, at_once = self.broken(owner, args, kwargs)
        if problem is not None and at_once:
            raise problem
        try:
            result = call(*args, **kwargs)
        except (ConfigError, GraphError) as error:
            message = " ".join(str(error).split())
            built_of_nodes = "self" in self.signature.parameters and message.startswith("node ")
            of_a_graph = "graph" in self.signature.parameters and isinstance(error, GraphError)
            named = built_of_nodes or of_a_graph or re.search(rf"\b{owner}\b", message)
            error.args = (message if named else f"{owner}: {message}",)
            raise
        except FlowkitError:
            raise
        except Exception as error:
            if problem is not None:
                raise problem from error
            raise
        if problem is not None:
            raise problem
        return result


F = TypeVar("F", bound=Callable)


def checked(thing: F) -> F:
    """A function, or a class, whose arguments are of the kinds that its annotations say, or are refused in its name.

    >>> @checked
    ... def repeated(text: str, times: int = 2) -> str:
    ...     return text * times
    >>> repeated("ab")
    'abab'
    """
    called: Any = thing.__init__ if inspect.isclass(thing) else thing
    contract = Contract(called)

    @functools.wraps(called)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return contract.run(thing.__name__, called, args, kwargs)

    if inspect.isclass(thing):
        thing.__init__ = wrapped  # type: ignore[method-assign]
        return thing
    return wrapped  # type: ignore[return-value]
