"""The forms of a flow as it is published: conditions concatenated in every coupling, in flowkit and in FrEIA."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import flowkit as fk

from .agreement import agree, float64
from .stacks import layers_of

FOLDED = 1e-7  # relative: FrEIA's weights are divided by a limit, and rounded to float32


class Concatenating:
    """A recipe without `build`: flowkit then concatenates the conditions, as it must for a user's own nets."""

    def __init__(self, recipe: Any):
        self.recipe = recipe

    def __call__(self, c_in: int, c_out: int) -> nn.Module:
        return self.recipe(c_in, c_out)


@torch.no_grad()
def concatenated(flow: fk.Flow) -> fk.Flow:
    """The same flow with the conditions concatenated to the data in every coupling, the weights copied over."""
    graph = copy.deepcopy(flow.network.graph)
    for node in graph.nodes:
        if "subnet" in node.config:
            node.config["subnet"] = Concatenating(node.config["subnet"])
    twin = fk.Flow(graph)
    pairs = [*zip(twin.parameters(), flow.parameters(), strict=True), *zip(twin.buffers(), flow.buffers(), strict=True)]
    for mine, theirs in pairs:
        mine.copy_(theirs)
    return twin


def small_network(quick: bool) -> tuple[fk.Flow, int]:
    """The paper's small colorization network and its size; `quick` has the same parts, each as small as can be."""
    from flowkit_cinn.models import Level, colorization_cinn

    if not quick:
        return colorization_cinn("small"), 64
    levels = (
        Level(couplings=1, hidden=4, limit=1.0, permute=False),
        Level(couplings=1, hidden=4, kernels=(1, 3), limit=1.0, keep=2),
        Level(couplings=1, hidden=4, kernels=(3,), limit=0.6, keep=4),
    )
    features = {"channels": (4, 4, 4), "vector": 8, "init": "torch"}
    dense = Level(couplings=1, hidden=8, limit=0.6)
    return colorization_cinn("small", levels=levels, dense=dense, features=features, size=16, photo_size=16), 16


class FreiaTwin(nn.Module):
    """FrEIA's build of a flow of two-sided couplings with the atan clamp, given features that are computed outside.

    Args:
        flow: whose subnets and feature net are copied.
    """

    def __init__(self, flow: fk.Flow):
        super().__init__()
        import FrEIA.framework as ff

        graph, parts = flow.network.graph, flow.network.nodes
        ends: dict[int, Any] = {w.index: ff.InputNode(*w.shape, name=w.name) for w in graph.inputs}
        nodes, conditions = list(ends.values()), []
        self.features = nn.ModuleList()
        for node in graph.nodes:
            part = parts[node.name]
            if node.kind == "features":
                self.features.append(copy.deepcopy(part))
                made = {w.index: ff.ConditionNode(*w.shape, name=w.name) for w in node.outputs}
                ends.update(made)
                conditions += list(made.values())
                continue
            cls, config = _freia_module(part)
            given = [ends[w.index] for w in node.given]
            made_node = ff.Node(ends[node.inputs[0].index], cls, config, conditions=given, name=node.name)
            _same_constants(made_node.module, part)
            nodes.append(made_node)
            ends.update((w.index, (made_node, i)) for i, w in enumerate(node.outputs))
        self.outputs = [w.shape for w in graph.outputs.values()]
        nodes += [ff.OutputNode(ends[w.index], name=name) for name, w in graph.outputs.items()]
        self.inn = ff.GraphINN(nodes + conditions)

    def feature_maps(self, photo: Tensor) -> tuple[Tensor, ...]:
        """What the conditioning net gives."""
        return self.features[0](photo)

    def forward(self, x: Tensor, photo: Tensor) -> tuple[Tensor, Tensor]:
        """`(z, log_det)`, z flat as flowkit's."""
        parts, log_det = self.inn(x, c=self.feature_maps(photo))
        return torch.cat([part.flatten(1) for part in parts], 1), log_det

    def nll(self, x: Tensor, photo: Tensor) -> Tensor:
        """The mean negative log-likelihood."""
        z, log_det = self(x, photo)
        return (0.5 * z.square().sum(1) - log_det).mean()

    def decode(self, z: Tensor, features: tuple[Tensor, ...]) -> Tensor:
        """x from the flat latent, each row with its own features."""
        sizes = [torch.Size(shape).numel() for shape in self.outputs]
        parts = [p.reshape(-1, *s) for p, s in zip(z.split(sizes, 1), self.outputs, strict=True)]
        return self.inn(parts, c=features, rev=True)[0]


def _freia_module(part: Any) -> tuple[type, dict[str, Any]]:
    import FrEIA.modules as fm

    if isinstance(part, fk.AffineCoupling) and part.clamp == "atan" and len(part.steps) == 2:
        ready = iter([_plain(part.subnets[1], part.limit), _plain(part.subnets[0], part.limit)])
        return fm.GLOWCouplingBlock, {"subnet_constructor": lambda *_: next(ready), "clamp": part.limit}
    if isinstance(part, fk.Permute):
        return fm.PermuteRandom, {}
    if isinstance(part, fk.Split):
        return fm.Split, {"section_sizes": list(part.sizes)}
    if isinstance(part, fk.Flatten):
        return fm.Flatten, {}
    if type(part).__name__ == "HaarDownsample":
        return fm.HaarDownsampling, {"rebalance": part.rebalance, "order_by_wavelet": part.group == "subband"}
    raise fk.ConfigError(f"FrEIA has no counterpart of {type(part).__name__} as it is configured here")


@torch.no_grad()
def _plain(subnet: nn.Module, limit: float) -> nn.Sequential:
    """The subnet as FrEIA calls it; it computes limit f(r) where flowkit has limit f(r / limit)."""
    first = layers_of(subnet)[0]
    weight, padding = first.weight, first.padding
    spatial = weight.dim() - 2
    made: Any = (
        nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[-1], padding=padding)
        if spatial
        else nn.Linear(weight.shape[1], weight.shape[0])
    )
    made.weight.copy_(weight)
    made.bias.copy_(first.bias)
    net = nn.Sequential(made, *copy.deepcopy(subnet.rest))
    last = layers_of(net)[-1]
    for parameter in (last.weight, last.bias):
        parameter[: len(parameter) // 2] /= limit
    return net


@torch.no_grad()
def _same_constants(module: nn.Module, part: Any) -> None:
    if isinstance(part, fk.Permute):
        module.perm.copy_(part.order)
        module.perm_inv.copy_(part.inverse_order)


def check_forms(flow: fk.Flow, forms: dict[str, Any], x: Tensor, photo: Tensor) -> None:
    """Compare z and log-det of other forms with the flow's, in float64.

    Raises:
        MismatchError: they differ.
    """
    x, photo = x.double(), photo.double()
    with torch.no_grad(), float64():
        z, log_det = copy.deepcopy(flow).double()(x, photo)
        for name, form in forms.items():
            found, found_log_det = copy.deepcopy(form).double()(x, photo)
            agree(name, "z", found, z, FOLDED)
            agree(name, "log-det", found_log_det, log_det, FOLDED)
