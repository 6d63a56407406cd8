"""What a bijection's own reverse step writes to: it runs subnets, and collects the gradients of all but the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowkit.bijection import join

PullBack = Callable[[Tensor], Tensor]


class Tape:
    """The gradients of a block's conditions and parameters, collected while the block is undone; see `Bijection.undo`.

    Gradients are taken by `torch.autograd.grad`, and by `torch.func.vjp` while compiling, which cannot trace the other.

    Args:
        part: the bijection that is undone.
        conditions: its conditions.
        need: which of them need gradients.
        parameters: the values of those parameters that require gradients, in the order of `part.parameters()`.
    """

    def __init__(
        self, part: nn.Module, conditions: Sequence[Tensor], need: Sequence[bool], parameters: Sequence[Tensor]
    ):
        self.part, self.conditions, self.parameters = part, tuple(conditions), tuple(parameters)
        self.needed = [i for i, needed in enumerate(need) if needed]
        self.found: list[Tensor | None] = [None] * (len(conditions) + len(parameters))
        # By identity, which is quick, and gives a parameter that two nets share one place. While compiling, tensors
        # have no identity, and names serve.
        self.compiling = torch.compiler.is_compiling()
        trained = [(name, p) for name, p in part.named_parameters() if p.requires_grad]
        keys: list[Any] = [name if self.compiling else id(p) for name, p in trained]
        self.places = {key: len(conditions) + i for i, key in enumerate(keys)}

    def run(self, net: nn.Module, x: Tensor) -> tuple[Tensor, PullBack]:
        """`net(x, c)`, c the conditions joined on channels or None: its output, and what pulls a gradient back to x.

        `net` is a submodule of the bijection. Pulling back also collects the gradients of the conditions and of
        the net's parameters.
        """
        return self._run_functionally(net, x) if self.compiling else self._run(net, x)

    def add(self, module: nn.Module, name: str, grad: Tensor) -> None:
        """Collect a gradient found in closed form, of the parameter `name` of the submodule `module`."""
        place = self.places.get(self._path_of(module) + name if self.compiling else id(getattr(module, name)))
        if place is not None:
            self._add(place, grad)

    def gradients(self) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Those of all conditions, and of all parameters that require them, None where nothing came."""
        count = len(self.conditions)
        return self.found[:count], self.found[count:]

    def _run(self, net: nn.Module, x: Tensor) -> tuple[Tensor, PullBack]:
        x = x.detach().requires_grad_()
        leaves = [c.detach().requires_grad_(i in self.needed) for i, c in enumerate(self.conditions)]
        mine = {self.places[id(p)]: p for p in net.parameters() if id(p) in self.places}
        with torch.enable_grad():
            out = net(x, join(leaves))

        def pull_back(grad: Tensor) -> Tensor:
            wanted = [x, *[leaves[i] for i in self.needed], *mine.values()]
            grad_x, *rest = torch.autograd.grad(out, wanted, grad, allow_unused=True)
            for place, found in zip((*self.needed, *mine), rest, strict=True):
                self._add(place, found)
            return torch.zeros_like(x) if grad_x is None else grad_x

        return out.detach(), pull_back

    def _run_functionally(self, net: nn.Module, x: Tensor) -> tuple[Tensor, PullBack]:
        path, count = self._path_of(net), len(self.conditions)
        mine = {name: place for name, place in self.places.items() if name.startswith(path)}
        local = [name.removeprefix(path) for name in mine]
        weights = [self.parameters[place - count] for place in mine.values()]

        def run(x: Tensor, *rest: Tensor) -> Tensor:
            by_name = dict(zip(local, rest[count:], strict=True))
            return torch.func.functional_call(net, by_name, (x, join(rest[:count])))

        found: Any = torch.func.vjp(run, x, *self.conditions, *weights)
        out, vjp = found

        def pull_back(grad: Tensor) -> Tensor:
            grad_x, *rest = vjp(grad)
            for i in self.needed:
                self._add(i, rest[i])
            for place, grad_of in zip(mine.values(), rest[count:], strict=True):
                self._add(place, grad_of)
            return grad_x

        return out, pull_back

    def _add(self, place: int, grad: Tensor | None) -> None:
        if grad is not None:
            earlier = self.found[place]
            self.found[place] = grad if earlier is None else earlier + grad

    def _path_of(self, module: nn.Module) -> str:
        return next(name and f"{name}." for name, found in self.part.named_modules() if found is module)


def shares_parameters(part: nn.Module) -> bool:
    """Whether a parameter of the part has two names: its gradient then comes from two places."""
    return len(list(part.named_parameters())) < len(list(part.named_parameters(remove_duplicate=False)))
