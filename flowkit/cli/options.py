"""Options that several examples and benchmarks take."""

from __future__ import annotations

import math
from typing import Any

import click


class Device(click.ParamType):
    """The name of a device that torch has here: cpu, cuda, cuda:1, mps."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, once a tensor was put there."""
        import torch

        try:
            torch.empty(0, device=value)
        except Exception as error:  # torch raises AssertionError, RuntimeError or NotImplementedError, by backend
            reason = str(error).partition("\n")[0].rstrip(".")
            self.fail(f"torch has no device '{value}' here ({reason}).", param, ctx)
        return value


class Temperature(click.FloatRange):
    """A number of at least 0; NaN and infinity, which `click.FloatRange` lets pass, are refused."""

    name = "temperature"

    def __init__(self) -> None:
        super().__init__(min=0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"a temperature is a finite number of at least 0, got {number}.", param, ctx)
        return number


device_option = click.option("--device", type=Device(), default="cpu", show_default=True, help="Where to compute.")
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The same seed gives the same numbers."
)
