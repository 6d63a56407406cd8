"""Names for classes and functions, so that a graph can be written to a file and read back; plugins by entry point."""

from __future__ import annotations

import copy
import difflib
import functools
import importlib
import importlib.metadata
import inspect
import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from flowkit.arguments import Contract
from flowkit.errors import PluginWarning, RegistryError

PLUGIN_GROUP = "flowkit.plugins"
BUILTIN_MODULES = (
    "flowkit.bijections",
    "flowkit.univariate",
    "flowkit.subnets",
    "flowkit.periodic",
    "flowkit.features",
    "flowkit.distributions",
    "flowkit.graph.network",
    "flowkit.interop",
)

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)

T = TypeVar("T")
_objects: dict[str, Any] = {}
_examples: dict[str, Callable[[], list[Example]] | None] = {}
_loaded: dict[str, str | None] = {}  # plugin prefix -> None when loaded, else why it could not be


class Example:
    """Arguments with which a registered bijection is tested: `Example(*in_shapes, given=..., **config)`.

    >>> Example((2, 4, 4), given=(3,), clamp="atan")
    Example((2, 4, 4), given=(3,), clamp='atan')
    """

    def __init__(self, *in_shapes: Any, **config: Any):
        self.in_shapes, self.config = in_shapes, config

    def build(self, cls: Callable[..., T]) -> T:
        """A new instance of the class, with these arguments."""
        return cls(*self.in_shapes, **self.config)

    def __repr__(self) -> str:
        parts = [repr(s) for s in self.in_shapes] + [f"{k}={v!r}" for k, v in self.config.items()]
        return f"Example({', '.join(parts)})"


class Unwritable:
    """Stands, in a copy that went through a pickle, for an argument that has no written form (a lambda, say)."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


class Arguments:
    """The arguments that something was built with: kept so that it can be built again, from a file or at another size.

    A lambda among them must not make the module that holds them unpicklable, so a pickle keeps only its text.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self.args, self.kwargs = tuple(frozen(a) for a in args), {k: frozen(v) for k, v in kwargs.items()}

    def __deepcopy__(self, memo: dict) -> Arguments:
        return Arguments(*copy.deepcopy(self.args, memo), **copy.deepcopy(self.kwargs, memo))

    def __getstate__(self) -> tuple:
        return [picklable(a) for a in self.args], {k: picklable(v) for k, v in self.kwargs.items()}

    def __setstate__(self, state: tuple) -> None:
        self.args, self.kwargs = tuple(state[0]), state[1]


def frozen(value: Any) -> Any:
    """The value as it is now, for its owner may change it later: lists and dictionaries copied, a graph's snapshot."""
    if type(value) in (list, tuple):
        return type(value)(frozen(v) for v in value)
    if type(value) is dict:
        return {k: frozen(v) for k, v in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    from flowkit.graph.graph import Graph  # at the call: the graph stands on the registry

    return value.snapshot() if isinstance(value, Graph) else value


def picklable(value: Any) -> Any:
    """The value, or its repr where pickle refuses it."""
    try:
        pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError):
        return Unwritable(repr(value))
    return value


def register(name: str, *, examples: Callable[[], list[Example]] | None = None) -> Callable[[T], T]:
    """Give a bijection, feature net, subnet recipe, base distribution or function a name that files can hold.

    Instances of a registered class remember their arguments, and are thereby writable; a subclass does not inherit
    the name. An argument that is annotated as an int, a number, a bool, a text or a sequence of those and is none is
    refused, see `flowkit.arguments`. The prefix before the first dot is the plugin's own. Registering the same
    qualified name again (a notebook cell run twice) replaces it.

    Args:
        name: `"prefix.name"`, letters, digits and underscores.
        examples: for a bijection, a function that returns the `fk.Example`s it is tested with.

    Raises:
        RegistryError: the name is malformed, or something else holds it.
    """
    if not NAME.fullmatch(name):
        raise RegistryError(
            f"'{name}' is no name to register: it must be 'prefix.name', of letters, digits and underscores"
        )

    def decorate(thing: T) -> T:
        held = _objects.get(name)
        if held is not None and _qualified(held) != _qualified(thing):
            raise RegistryError(
                f"the name '{name}' is taken by {_qualified(held)}, so {_qualified(thing)} cannot have it"
            )
        if inspect.isclass(thing):
            _remember_arguments(thing)
        elif not inspect.isroutine(thing):
            raise RegistryError(f"'{name}': a class or a function can be registered, got {type(thing).__name__}")
        thing.registered_name = name  # type: ignore[attr-defined]
        _objects[name], _examples[name] = thing, examples
        return thing

    return decorate


def _qualified(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _remember_arguments(cls: type) -> None:
    init = cls.__init__  # type: ignore[misc]
    contract = Contract(init)

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        contract.run(type(self).__name__, init, (self, *args), kwargs)
        if type(self) is cls:
            object.__setattr__(self, "_built_with", Arguments(*args, **kwargs))

    cls.__init__ = __init__  # type: ignore[misc]


def name_of(thing: Any) -> str | None:
    """The registered name of a class, function or instance of a registered class; None when it has none.

    A subclass of a registered class has none of its own, and a class that was replaced keeps its name.
    """
    owner = thing if inspect.isclass(thing) or inspect.isroutine(thing) else type(thing)
    return owner.__dict__.get("registered_name") if hasattr(owner, "__dict__") else None


def arguments_of(instance: Any) -> Arguments | None:
    """What an instance of a registered class is built with again; None for any other object.

    That is what it was built with, or what its `written_arguments()` says where it has that method: a wrapper of
    somebody's object describes it in plain data.
    """
    if not name_of(instance):
        return None
    describe = getattr(instance, "written_arguments", None)
    return describe() if describe is not None else getattr(instance, "_built_with", None)


def lookup(name: str) -> Any:
    """The class or function of that name; the plugin that its prefix names is loaded at the first look-up.

    Raises:
        RegistryError: no such name; the message says which plugin would have it, or what may have been meant.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        meant = ""
        if isinstance(name, str) and re.fullmatch(r"[A-Za-z]\w{0,50}", name):
            _load("flowkit")
            meant = _meant(f"flowkit.{name}")
        raise RegistryError(
            f"{repr(name)[:60]} is not registered: no name is like this, a name is 'prefix.name'{meant}"
        )
    if name not in _objects:
        prefix = name.split(".")[0]
        _load(prefix)
        if name not in _objects:
            raise RegistryError(f"'{name}' is not registered: {_why_missing(prefix)}{_meant(name)}")
    return _objects[name]


def registered(prefix: str | None = None) -> dict[str, Any]:
    """Everything registered, by name, sorted; of one plugin, or of all that are installed."""
    for each in [prefix] if prefix else ["flowkit", *plugins()]:
        _load(each)
    return {name: _objects[name] for name in sorted(_objects) if prefix in (None, name.split(".")[0])}


def examples_of(name: str) -> list[Example]:
    """The examples that a registered bijection is tested with; empty when it was registered without."""
    lookup(name)
    make = _examples[name]
    return make() if make else []


def plugins() -> dict[str, str]:
    """The installed plugins: prefix and the module that the entry point names."""
    return {entry.name: entry.value for entry in importlib.metadata.entry_points(group=PLUGIN_GROUP)}


def plugin_problem(prefix: str) -> str | None:
    """Why an installed plugin could not be loaded; None when it could."""
    _load(prefix)
    return _loaded.get(prefix)


def _load(prefix: str) -> None:
    if prefix in _loaded:
        return
    _loaded[prefix] = None
    if prefix == "flowkit":
        for module in BUILTIN_MODULES:
            importlib.import_module(module)
        return
    for entry in importlib.metadata.entry_points(group=PLUGIN_GROUP, name=prefix):
        try:
            entry.load()
        except Exception as error:  # whatever a stranger's module raises, flowkit itself goes on
            _loaded[prefix] = f"{type(error).__name__}: {error}"
            warnings.warn(
                f"the plugin '{prefix}' ({entry.value}) could not be loaded: {_loaded[prefix]}",
                PluginWarning,
                stacklevel=4,
            )


def _meant(name: str) -> str:
    """The part of the same prefix that was probably meant: a class's name in place of the registered one, say."""
    prefix, _, part = name.partition(".")
    bare = {known: known.partition(".")[2].replace("_", "") for known in _objects if known.split(".")[0] == prefix}
    close = difflib.get_close_matches(part.replace("_", "").lower(), bare.values(), n=1, cutoff=0.75)
    return "".join(f"; did you mean '{known}'?" for known, text in bare.items() if text in close)


def _why_missing(prefix: str) -> str:
    if prefix == "flowkit":
        return "this version of flowkit has no such part"
    if _loaded.get(prefix):
        return f"the plugin '{prefix}' could not be loaded ({_loaded[prefix]})"
    if prefix in plugins():
        return f"the plugin '{prefix}' has no such part"
    return f"install or import the plugin '{prefix}' that registers it"
