"""Options that several examples and benchmarks take."""

from __future__ import annotations

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


device_option = click.option("--device", type=Device(), default="cpu", show_default=True, help="Where to compute.")
seed_option = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The same seed gives the same numbers."
)
