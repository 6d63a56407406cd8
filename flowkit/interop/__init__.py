"""Flows from and for other toolkits; each friend is imported only when it is used."""

from flowkit.interop.export import FlowFunction, export
from flowkit.interop.exported import Exported, load_exported
from flowkit.interop.freia import FreiaBijection, as_freia, from_freia
from flowkit.interop.transforms import BijectionTransform

__all__ = [
    "BijectionTransform",
    "Exported",
    "FlowFunction",
    "FreiaBijection",
    "as_freia",
    "export",
    "from_freia",
    "load_exported",
]
