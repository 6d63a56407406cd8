"""Constants of a module that are exact in whatever dtype it is brought to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class WithConstants(nn.Module):
    """A module some of whose buffers are computed, not learned: a change of dtype computes them anew.

    Else those of a float32 module made float64 keep float32's rounding, and those of one that went through half
    precision keep that one's, where its parameters are loaded or trained anew: a quadrature's nodes with three digits
    give a value that does not belong to its derivative. They are not part of the state.

    >>> class Third(WithConstants):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.hold_constants()
    ...
    ...     def constants(self):
    ...         return {"third": torch.tensor(1 / 3, dtype=torch.float64)}
    >>> Third().bfloat16().double().third.item()
    0.3333333333333333
    """

    def constants(self) -> Mapping[str, Tensor]:
        """The constants by name, in float64."""
        raise NotImplementedError(f"{type(self).__name__} has no constants")

    def hold_constants(self) -> None:
        """Register them in the default dtype; called once by the constructor, when all that they need is set."""
        wanted: dict[str, Any] = {"device": torch.get_default_device(), "dtype": torch.get_default_dtype()}
        for name, values in self._constants_on_cpu().items():
            self.register_buffer(name, values.to(**wanted), persistent=False)

    def _constants_on_cpu(self) -> Mapping[str, Tensor]:
        with torch.device("cpu"):  # not every device has float64, and the meta device has no values
            return self.constants()

    def _apply(self, fn: Callable, recurse: bool = True) -> Any:
        names = list(self._non_persistent_buffers_set)
        before = {name: (self._buffers[name].dtype, self._buffers[name].is_meta) for name in names}  # type: ignore
        super()._apply(fn, recurse)
        after = {name: (self._buffers[name].dtype, self._buffers[name].is_meta) for name in names}  # type: ignore
        if after != before:
            for name, values in self._constants_on_cpu().items():
                buffer: Any = self._buffers[name]
                if not buffer.is_meta:
                    buffer.copy_(values.to(buffer.dtype))
        return self
