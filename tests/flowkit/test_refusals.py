"""Every argument of every registered class and ready flow is thrown garbage: it is refused in a sentence, or it works.

A new class is covered at no cost: by its signature, and by its examples where it is a bijection.
"""

import inspect
import math
import re

import numpy as np
import pytest
import torch

import flowkit as fk
from flowkit.arguments import Contract, checked, kinds_of
from flowkit.bijection import as_tuple
from flowkit.registry import registered
from flowkit.testing.subject import Subject

from .ready_flows import OWN, SMALL

NUMBERS, COUNTS, TEXTS = ("int", "float"), ("Sequence[int]", "tuple[int, ...]", "Sequence", "Sequence[float]"), ("str",)
SHAPES = (*COUNTS, "Shape", "Condition")

EXTREME = 2**70  # a number, too large for results to be finite

# Each value with the annotations that may accept it; what is accepted must work.
VALUES = [
    ("3", TEXTS),
    ("", TEXTS),
    (b"x", ()),
    (math.nan, ()),
    (math.inf, ()),
    (True, ("bool",)),
    (None, ("None", "Any", "Condition", "Callable | None")),
    (np.int64(2), ()),
    (np.array([1, 2]), ()),
    (torch.tensor(2.0), ()),
    (torch.ones(2, 2), ()),
    (object(), ()),
    (object, ("Any", "Callable", "Factory")),
    (torch.nn.Linear(2, 2), ("Any", "Callable", "Factory")),
    ({"a": 1}, ("Condition",)),
    ({1, 2}, ()),
    (1j, ()),
    (EXTREME, ("float",)),
    (10**400, ()),
    (1e-50, ()),
    (2.5, ("float",)),
    (-2.5, ("float",)),
    (0.5, ("float",)),
    (0, (*NUMBERS, "Condition")),
    (-1, (*NUMBERS, "Condition")),
    (1, (*NUMBERS, "Condition")),
    (3, (*NUMBERS, "Condition")),
    ((), SHAPES),
    ((0,), SHAPES),
    ((-1,), SHAPES),
    ((1, 1), SHAPES),
    ((2, 1, 0), SHAPES),
    ((0, 1, 1), SHAPES),
    ((7, 8, 9), SHAPES),
    ((2.5,), ("Sequence", "Sequence[float]")),
    (("a",), ("Sequence", "Sequence[str]")),
    ((None,), ("Sequence",)),
    (((2,), (2,)), ("Sequence", "Condition")),
    (((0,),), ("Sequence", "Condition")),
]

# What is needed to build those that have no examples; by default a shape of three elements, or three dimensions.
ARGUMENTS = {
    "cinn.block_condition": (2, 4),
    "cinn.image_pyramid": ((2, 4),),
    "flowkit.class_conditional": (3, 4),
    "flowkit.friends_net": ({"layer": "Linear", "in_features": 3, "out_features": 3},),
    "flowkit.friends_subnet": ({"layer": "Linear", "in_features": 3, "out_features": 3},),
    "flowkit.joint_base": ({"a": fk.StandardNormal(2)},),
    "flowkit.one_hot": (3,),
    "flowkit.resize": ((4, 4),),
    "flowkit.to_map": ((4, 4),),
    "flowkit.torch_distribution": (3, "Laplace"),
    "flowkit.univariate_recipe": (fk.Affine,),
}
# What a file describes of a converted flow: that a net, its levels and its layout belong together is the file's word.
DESCRIBED = ("flowkit.friends_autoregressive", "flowkit.friends_made_mixture", "flowkit.friends_subnet")
CLASSES = {
    name: cls
    for name, cls in registered().items()
    if inspect.isclass(cls)
    and name.split(".")[0] in ("flowkit", "cinn")
    and name not in ("flowkit.network", "flowkit.friends_made_mixture")
}


def examples(name, cls):
    """Up to two examples of a class, with and without settings."""
    found = fk.examples_of(name)
    if found:
        longest = max(found, key=lambda each: len(each.config))
        return [found[0], longest] if longest is not found[0] else found[:1]
    first = next(iter(inspect.signature(cls).parameters), "")
    return [fk.Example(*ARGUMENTS.get(name, {"shape": ((3,),), "dim": (3,)}.get(first, ())))]


def may_accept(annotation, allowed):
    """Whether an argument of this annotation may accept a value that the `allowed` ones may."""
    kinds = str(annotation).split(" | ")
    return any(kind in allowed or kind.split("[")[0] in allowed for kind in kinds)


def throw(owner, build, parameter, signature, example, run):
    """Every value at one argument; the calls that neither refuse in a sentence nor work."""
    wrong = []
    for value, allowed in VALUES:
        bound = signature.bind(*example.in_shapes, **example.config)
        bound.arguments[parameter.name] = (value,) if parameter.kind is parameter.VAR_POSITIONAL else value
        case = f"{owner}: {parameter.name}={value!r} ({parameter.annotation}), {example}"
        try:
            made = build(*bound.args, **bound.kwargs)
        except fk.FlowkitError as error:
            message = str(error)
            if not re.search(rf"\b{owner}\b", message):
                wrong.append(f"{case}: not named in {message!r}")
            if "\n" in message or re.search(r"[^.][.!?]\s+[A-Z]", message) or re.search(r"[^.]\.$", message):
                wrong.append(f"{case}: no single sentence: {message!r}")
        except Exception as error:
            wrong.append(f"{case}: {type(error).__name__}: {error}")
        else:
            if not may_accept(parameter.annotation, allowed):
                wrong.append(f"{case}: accepted")
            elif value is not EXTREME and (problem := run(made, lambda b=bound: build(*b.args, **b.kwargs))):
                wrong.append(f"{case}: accepted, and then {problem}")
    return wrong


def thrown(owner, build, examples, run):
    """Every value at every argument."""
    signature = inspect.signature(build)
    return [
        each
        for example in examples
        for parameter in signature.parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD and parameter.name != "args"
        for each in throw(owner, build, parameter, signature, example, run)
    ]


def run(made, build):
    """What goes wrong when it is used, "" where nothing does; a refusal at the call is one, too."""
    try:
        with torch.no_grad():
            values = list(used(made, build))
    except fk.FlowkitError:
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "" if all(bool(value.isfinite().all()) for value in values) else "values that are not finite"


def used(made, build):
    """What comes of forward and inverse, of samples and their density, or of a subnet."""
    torch.manual_seed(0)
    if isinstance(made, fk.Bijection):
        subject = Subject("", build=build)
        arguments = subject.arguments()
        output, log_det = subject.call(subject.bijection, "forward", *arguments)
        back, log_det_back = subject.call(subject.bijection, "inverse", *output, *arguments[len(made.in_shapes) :])
        if not made.dimension_changing:
            assert all(torch.allclose(x, y, rtol=1e-4, atol=1e-4) for x, y in zip(back, arguments, strict=False))
        yield from (*output, log_det, *back, log_det_back)
    elif isinstance(made, fk.Univariate):
        low, high = made.domain or (-1.0, 1.0)
        x = low + (high - low) * (0.01 + 0.98 * torch.rand(3, *made.shape))
        channels = made.shape[0] if made.shape else 1
        parameters = made.split(torch.randn(3, made.numbers_per_element * channels, *made.shape[1:]))
        yield from (*made(x, *parameters), *made.inverse(x, *parameters))
    elif isinstance(made, fk.Base):
        labels = getattr(made, "labels", False)
        given = [torch.zeros(3, *shape, dtype=torch.int64 if labels else None) for shape in made.condition_shapes]
        z = made.sample((3,), *given)
        yield from (z, made.log_prob(z, *given))
    elif hasattr(made, "build"):
        shape = (2,) if getattr(made, "kernels", getattr(made, "kernel", None)) is None else (2, 4, 4)
        yield made.build(shape, (), 3)(torch.randn(3, *shape))


@pytest.mark.parametrize("name", CLASSES)
def test_no_argument_of_a_class_accepts_garbage(name):
    cls = CLASSES[name]
    wrong = thrown(cls.__name__, cls, examples(name, cls), (lambda made, build: "") if name in DESCRIBED else run)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", fk.flows.__all__)
def test_no_argument_of_a_ready_flow_accepts_garbage(name):
    family = getattr(fk.flows, name)
    known = inspect.signature(family).parameters
    config = {key: value for key, value in (SMALL | OWN.get(name, {})).items() if key in known}
    example = fk.Example((2, 4, 4) if name == "glow" else 3, **config)

    def run_flow(flow, build):
        given = {name: torch.randn(2, *shape) for name, shape in flow.condition_shapes.items()} or None
        return run_quietly(lambda: as_tuple(flow.log_prob(0.5 * torch.rand(2, *flow.input_shapes["x"]), given=given)))

    wrong = thrown(name, family, [example], run_flow)
    assert not wrong, "\n".join(wrong)


def run_quietly(call):
    try:
        with torch.no_grad():
            values = call()
    except fk.FlowkitError:
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "" if all(bool(value.isfinite().all()) for value in values) else "values that are not finite"


# ---------------------------------------------------------------------- the mechanism


def test_the_class_speaks_first_for_its_sentence_knows_the_range():
    with pytest.raises(fk.ConfigError, match=r"^Permute: dim must be"):
        fk.Permute((3,), dim="0")


def test_a_flag_that_is_no_bool_is_refused_although_python_would_take_it():
    with pytest.raises(fk.ConfigError, match=r"^AffineCoupling: two_sided must be True or False, got 'no'$"):
        fk.AffineCoupling((4,), two_sided="no")


@pytest.mark.parametrize("cls", [fk.Permute, fk.ActNorm, fk.LULinear])
def test_conditions_where_none_are_taken(cls):
    with pytest.raises(fk.ConfigError, match=rf"^{cls.__name__} takes no conditions, got given=\(2,\)$"):
        cls((3,), given=(2,))


def test_a_plugin_s_class_is_checked_by_its_annotations():
    @fk.register("refusals.knob")
    class Knob(fk.Identity):
        def __init__(self, shape, turns: int = 1, label: str | None = None):
            super().__init__(shape)

    Knob((2,), turns=2, label="a")
    for wrong in ({"turns": 2.0}, {"turns": True}, {"label": 3}):
        with pytest.raises(fk.ConfigError, match=rf"^Knob: {next(iter(wrong))} must be "):
            Knob((2,), **wrong)


def test_a_default_is_accepted_where_it_is_given_too():
    """A subclass hands its own on, and so does a file: what the author chose is no fault of the caller's."""

    @checked
    def clipped(high: float = math.inf, name: str = None, least: float = 1e-45):  # noqa: RUF013
        return high

    assert clipped(high=math.inf, name=None, least=1e-45) == math.inf
    for wrong in ({"high": -math.inf}, {"name": 3}, {"least": 2e-45}):
        with pytest.raises(fk.ConfigError, match=f"clipped: {next(iter(wrong))} must be"):
            clipped(**wrong)


def test_annotations_that_are_not_known_are_left_to_the_class():
    assert kinds_of("Wire | int") == () == kinds_of(fk.Graph)
    assert kinds_of(int) == kinds_of("int") == ("int",)


def test_an_error_that_no_argument_explains_is_passed_on():
    @checked
    def broken(count: int) -> None:
        raise RuntimeError("within")

    with pytest.raises(RuntimeError, match="within"):
        broken(1)
    with pytest.raises(fk.ConfigError, match=r"^broken: count must be an int, got '1'$"):
        broken("1")
    with pytest.raises(TypeError):
        broken()


def test_a_contract_reads_the_arguments_that_it_knows():
    def function(x, count: int, *rest: int, scale: "float | None" = None, net: "Any" = None):  # noqa: F821
        return x

    assert Contract(function).kinds == {"count": ("int",), "scale": ("float", "None")}
