"""Flows from and for other toolkits; each friend is imported only when it is used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flowkit.interop.export import FlowFunction, export
from flowkit.interop.exported import Exported, load_exported
from flowkit.interop.freia import FreiaBijection, as_freia, from_freia
from flowkit.interop.nflows import NflowsBase, NflowsTransform, from_nflows
from flowkit.interop.pyro import as_pyro
from flowkit.interop.sbi import sbi_density_estimator
from flowkit.interop.transforms import BijectionTransform
from flowkit.interop.zuko import ZukoBase, ZukoTransform, as_zuko, from_zuko

if TYPE_CHECKING:
    from flowkit.interop.density import FlowDensity

__all__ = [
    "BijectionTransform",
    "Exported",
    "FlowDensity",
    "FlowFunction",
    "FreiaBijection",
    "NflowsBase",
    "NflowsTransform",
    "ZukoBase",
    "ZukoTransform",
    "as_freia",
    "as_pyro",
    "as_zuko",
    "export",
    "from_freia",
    "from_nflows",
    "from_zuko",
    "load_exported",
    "sbi_density_estimator",
]

# Classes whose ancestors are a friend's: its name, and the extra that installs it.
_SUBCLASSES = {"FlowDensity": ("flowkit.interop.density", "sklearn", "scikit-learn")}


def __getattr__(name: str) -> Any:
    if name not in _SUBCLASSES:
        raise AttributeError(f"module 'flowkit.interop' has no attribute '{name}'")
    module, package, install = _SUBCLASSES[name]
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        from flowkit.errors import MissingDependencyError

        raise MissingDependencyError(
            f"flowkit.interop.{name} needs {install}, which is not installed: python -m pip install {install}"
        ) from error
