"""FrEIA's modules: those that are refused, why, and the others as plain data that a file can hold."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.errors import ConfigError, MissingDependencyError
from flowkit.interop.layers import build_layers, describe_layers
from flowkit.registry import name_of

REFUSED = {  # modules of FrEIA 0.2 that are no bijection with a right log-det
    "LearnedElementwiseScaling": "the log-det of its inverse has the wrong sign",
    "InvAutoFC": "it is no bijection, and its log-det is always zero",
    "InvAutoConv2D": "it is no bijection, and its log-det is always zero",
    "IResNetLayer": "its log-det is a truncated random estimate, and its call changes the caller's tensor",
    "GaussianMixtureModel": "it takes component indices among its conditions, and maps to several latents at once",
}
ORTHOGONAL = 1e-4
UPSAMPLING = ("IRevNetUpsampling", "HaarUpsampling")


def freia_modules() -> Any:
    """`FrEIA.modules`.

    Raises:
        MissingDependencyError: FrEIA is not installed.
    """
    try:
        import FrEIA.modules as fm
    except ImportError as error:
        raise MissingDependencyError("this needs FrEIA: python -m pip install FrEIA") from error
    return fm


def refuse(module: Any) -> None:
    """Refuse a module of FrEIA 0.2 that is wrong, by name."""
    for cls in type(module).__mro__:
        if not cls.__module__.startswith("FrEIA."):
            continue
        name = cls.__name__
        reason = REFUSED.get(name)
        if name == "InvertibleSigmoid" and len(module.dims_in[0]) > 1:
            reason = "its log-det is summed over channels alone"
        elif name == "HouseholderPerm" and module.conditional:
            reason = "its product with a condition's reflections fails"
        elif name == "ActNorm" and module.init_on_next_batch:
            reason = "it has seen no data, and its first call, in either direction, changes its weights"
        elif name == "OrthogonalTransform" and not module.weights.is_meta:
            w = module.weights.detach()
            if (w @ w.T - torch.eye(len(w), dtype=w.dtype, device=w.device)).abs().max() > ORTHOGONAL:
                reason = "its matrix has drifted from orthogonality, so its inverse and log-det are wrong"
        if reason:
            raise ConfigError(f"FrEIA's {name} cannot be converted: {reason}")


# ---------------------------------------------------------------------- functions that FrEIA keeps as lambdas


def atan_clamp(u: Tensor) -> Tensor:
    """FrEIA's `"ATAN"`."""
    return 0.636 * torch.atan(u)


def sigmoid_clamp(u: Tensor) -> Tensor:
    """FrEIA's `"SIGMOID"`."""
    return 2.0 * (torch.sigmoid(u) - 0.5)


def unchanged(u: Tensor) -> Tensor:
    """What FrEIA's NICECouplingBlock passes for a clamp, and never calls."""
    return u


def sigmoid_scale(a: Tensor) -> Tensor:
    """AllInOneBlock's `"SIGMOID"`."""
    return 10 * torch.sigmoid(a - 2.0)


def softplus_scale(a: Tensor) -> Tensor:
    """AllInOneBlock's `"SOFTPLUS"`."""
    return 0.1 * nn.functional.softplus(a, beta=0.5)


CLAMPS: dict[str, Callable[[Tensor], Tensor]] = {"ATAN": atan_clamp, "TANH": torch.tanh, "SIGMOID": sigmoid_clamp}
SCALES: dict[str, Callable[[Tensor], Tensor]] = {
    "SIGMOID": sigmoid_scale,
    "SOFTPLUS": softplus_scale,
    "EXP": torch.exp,
}


def settle(module: Any) -> None:
    """Make a module fit to be copied, pickled and written; what it computes stays the same.

    FrEIA's own lambdas are replaced by the same functions with names. OrthogonalTransform's matrix, which a hook of
    FrEIA's rewrites now and then in the backward pass, is kept as it is instead, and not trained.
    """
    for attribute, known in (("f_clamp", [*CLAMPS.values(), unchanged]), ("global_scale_activation", SCALES.values())):
        function = getattr(module, attribute, None)
        if not inspect.isfunction(function) or not function.__module__.startswith("FrEIA."):
            continue
        probe = torch.linspace(-3, 3, 7, dtype=torch.float64, device="cpu")
        for candidate in known:
            if torch.equal(candidate(probe), function(probe)):
                setattr(module, attribute, candidate)
                break
    if hasattr(module, "init_on_next_batch"):
        # ActNorm's hook is a local function; all it does is to clear this flag, which `refuse` has seen cleared.
        module._load_state_dict_pre_hooks.clear()
    if any(cls.__name__ == "OrthogonalTransform" for cls in type(module).__mro__):
        module._backward_hooks.clear()
        module.weights.requires_grad_(False)
    if getattr(module, "weight", None) is not None and getattr(module, "W", None) is module.weight:
        del module.weight  # HouseholderPerm's second name of the same parameter


# ---------------------------------------------------------------------- modules as plain data

COUPLING: dict[str, Callable[[Any], Any]] = {
    "clamp": lambda m: m.clamp,
    "clamp_activation": lambda m: _named(m.f_clamp, CLAMPS),
    "split_len": lambda m: m.split_len1,
}
WRITABLE: dict[str, dict[str, Callable[[Any], Any]]] = {  # each constructor's arguments, read from the built module
    "AllInOneBlock": {
        "affine_clamping": lambda m: m.clamp,
        "gin_block": lambda m: m.GIN,
        "global_affine_type": lambda m: _named(m.global_scale_activation, SCALES),
        "learned_householder_permutation": lambda m: m.householder,
        "reverse_permutation": lambda m: m.reverse_pre_permute,
    },
    "NICECouplingBlock": {"split_len": COUPLING["split_len"]},
    "RNVPCouplingBlock": COUPLING,
    "GLOWCouplingBlock": COUPLING,
    "GINCouplingBlock": COUPLING,
    "AffineCouplingOneSided": COUPLING,
    "ConditionalAffineTransform": COUPLING,
    "ActNorm": {},
    "InvAutoAct": {"learnable": lambda m: m.alpha.requires_grad},
    "InvAutoActTwoSided": {"learnable": lambda m: m.alpha_pos.requires_grad},
    "OrthogonalTransform": {
        "correction_interval": lambda m: m.correction_interval,
        "clamp": lambda m: m.clamp,
    },
    "HouseholderPerm": {"n_reflections": lambda m: m.n_reflections, "fixed": lambda m: m.fixed},
    "PermuteRandom": {},
    "FixedLinearTransform": {"offset": lambda m: isinstance(m.b, Tensor)},
    "Fixed1x1Conv": {},
    "InvertibleSigmoid": {},
    "Split": {"section_sizes": lambda m: m.split_size_or_sections, "dim": lambda m: m.dim},
    "Concat": {"dim": lambda m: m.dim},
    "IRevNetDownsampling": {"legacy_backend": lambda m: m.legacy_backend},
    "IRevNetUpsampling": {"legacy_backend": lambda m: m.legacy_backend},
    "HaarDownsampling": {"order_by_wavelet": lambda m: m.permute, "rebalance": lambda m: 2 * m.fac_fwd},
    "HaarUpsampling": {"order_by_wavelet": lambda m: m.permute, "rebalance": lambda m: 2 * m.fac_fwd},
    "Flatten": {},
    "Reshape": {"output_dims": lambda m: tuple(m.target_dim)},
}
SUBNETS = {
    "AllInOneBlock": ("subnet",),
    "NICECouplingBlock": ("F", "G"),
    "RNVPCouplingBlock": ("subnet_s1", "subnet_t1", "subnet_s2", "subnet_t2"),
    "GLOWCouplingBlock": ("subnet1", "subnet2"),
    "GINCouplingBlock": ("subnet1", "subnet2"),
    "AffineCouplingOneSided": ("subnet",),
    "ConditionalAffineTransform": ("subnet",),
}


def dims_in_of(module: Any) -> list[tuple[int, ...]]:
    """The shapes of a module's inputs."""
    if type(module).__name__ == "ActNorm":
        return [tuple(int(n) for n in module.dims_in)]  # it keeps its one shape alone
    # The upsampling modules initialise their parents with the output's shape, and so report that one.
    if any(cls.__name__ in UPSAMPLING for cls in type(module).__mro__):
        return [(4 * c, h // 2, w // 2) for c, h, w in module.dims_in]
    return [tuple(int(n) for n in shape) for shape in module.dims_in]


def _named(function: Any, known: Mapping[str, Any]) -> Any:
    for name, candidate in known.items():
        if function is candidate:
            return name
    if name_of(function) is not None:
        return function
    raise ConfigError(f"the function {function!r} has no written form: register it with fk.register")


def describe_module(module: Any) -> dict[str, Any]:
    """A module of FrEIA as plain data: its class's name, shapes, arguments and subnets.

    Raises:
        ConfigError: it has no written form: a class that is not FrEIA's, a subnet that cannot be described.
    """
    cls = type(module)
    if cls.__name__ == "deprecated_class" and cls.__module__.startswith("FrEIA."):
        cls = cls.__mro__[1]
    name = cls.__name__
    if name not in WRITABLE or getattr(freia_modules(), name, None) is not cls:
        raise ConfigError(f"FrEIA's module {name} has no written form")
    described: dict[str, Any] = {
        "module": name,
        "dims_in": dims_in_of(module),
        "options": {option: read(module) for option, read in WRITABLE[name].items()},
    }
    if module.dims_c:
        described["dims_c"] = [tuple(int(n) for n in shape) for shape in module.dims_c]
    if name in SUBNETS:
        described["subnets"] = {subnet: describe_layers(getattr(module, subnet)) for subnet in SUBNETS[name]}
    return described


def build_module(described: Mapping[str, Any]) -> Any:
    """The module that `describe_module` described, with new weights; its name is looked up in this list alone.

    Raises:
        MissingDependencyError: FrEIA is not installed.
        ConfigError: it is no such description.
    """
    fm = freia_modules()
    name = described.get("module")
    if name not in WRITABLE:
        raise ConfigError(f"FrEIA's module must be one of {', '.join(WRITABLE)}, got {name!r}")
    arguments = dict(described.get("options", {}))
    if not set(arguments) <= set(WRITABLE[name]):
        raise ConfigError(f"FrEIA's {name} is described by {', '.join(WRITABLE[name]) or 'nothing'}, got {arguments}")
    dims_in = [tuple(shape) for shape in described.get("dims_in", ())]
    if name in SUBNETS:
        arguments["subnet_constructor"] = _no_subnet
    if name in ("FixedLinearTransform", "Fixed1x1Conv"):
        channels = dims_in[0][0]
        arguments["M"] = torch.eye(channels)  # the file's weights have the matrix, its inverse and its determinant
        if arguments.pop("offset", False):
            arguments["b"] = torch.zeros(channels)
    if "dims_c" in described:
        arguments["dims_c"] = [tuple(shape) for shape in described["dims_c"]]
    subnets = described.get("subnets", {})
    if set(subnets) != set(SUBNETS.get(name, ())):
        raise ConfigError(f"FrEIA's {name} has the subnets {', '.join(SUBNETS.get(name, ())) or 'none'}, got {subnets}")
    try:
        with numpy_seeded_by_torch():
            module = getattr(fm, name)(dims_in, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError, LookupError) as error:
        raise ConfigError(f"FrEIA's {name} cannot be built from {described}: {error}") from error
    for subnet, layers in subnets.items():
        setattr(module, subnet, build_layers(layers))
    if name == "ActNorm":
        module.init_on_next_batch = False
    return module


def _no_subnet(c_in: int, c_out: int) -> nn.Module:
    return nn.Identity()  # replaced at once


@contextmanager
def numpy_seeded_by_torch() -> Iterator[None]:
    """numpy's global generator, which FrEIA draws from, seeded by torch's for a while; then the user's is restored."""
    import numpy as np

    before = np.random.get_state()  # noqa: NPY002
    seed = torch.randint(2**31, ())
    np.random.seed(0 if seed.is_meta else int(seed.item()))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
