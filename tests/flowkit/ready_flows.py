"""Every ready flow, small, with weights that are not those at the start: for tests that go through all of them."""

import inspect
import zlib

import torch

import flowkit as fk

SMALL = {"layers": 1, "hidden": (8,), "bins": 3, "levels": 2, "components": 2}
IMAGES = {"glow"}  # what needs maps
OWN = {
    "ffjord": {"solver": "rk4", "steps": 3},  # the default solver is adaptive
    "glow": {"hidden": 4},
    "nsf": {"layers": 2},  # one layer of splines has no linear map before it
}
ROOTS = ("gaussianization", "naf", "sylvester")  # inverted step by step in one program: two features are enough
NAMES = tuple(fk.flows.__all__)


def ready(name, condition=None, dtype=torch.float64):
    """A small flow of this family on a few features, or on images where it needs them, in eval mode."""
    family = getattr(fk.flows, name)
    known = inspect.signature(family).parameters
    config = {key: value for key, value in SMALL.items() if key in known} | OWN.get(name, {})
    torch.manual_seed(zlib.crc32(name.encode()))
    flow = family((2, 4, 4) if name in IMAGES else 2 if name in ROOTS else 3, condition=condition, **config).to(dtype)
    x, given = data(flow, 16)
    flow.initialize(x, given=given)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow.eval()


def data(flow, rows):
    """Data and conditions for so many rows, in the middle of where every family is defined."""
    like = flow.network.reference
    x = {name: 0.3 + 0.2 * torch.randn(rows, *shape).to(like) for name, shape in flow.input_shapes.items()}
    given = {name: torch.randn(rows, *shape).to(like) for name, shape in flow.condition_shapes.items()}
    return (x if len(x) > 1 else next(iter(x.values()))), given or None


def parts(flow):
    """Every bijection of a flow, nested ones too."""
    return [part for part in flow.modules() if isinstance(part, fk.Bijection)]


def adaptive(flow):
    """Whether the number of steps of any part depends on the data."""
    return any(part.adaptive for part in parts(flow))
