"""Flows from and for other toolkits; each friend is imported only when it is used."""

from flowkit.interop.export import FlowFunction, export
from flowkit.interop.exported import Exported, load_exported
from flowkit.interop.freia import FreiaBijection, as_freia, from_freia
from flowkit.interop.nflows import NflowsBase, NflowsTransform, from_nflows
from flowkit.interop.transforms import BijectionTransform

__all__ = [
    "BijectionTransform",
    "Exported",
    "FlowFunction",
    "FreiaBijection",
    "NflowsBase",
    "NflowsTransform",
    "as_freia",
    "export",
    "from_freia",
    "from_nflows",
    "load_exported",
]
