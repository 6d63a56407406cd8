"""Flows from and for other toolkits; each friend is imported only when it is used."""

from flowkit.interop.export import FlowFunction, export
from flowkit.interop.exported import Exported, load_exported
from flowkit.interop.freia import FreiaBijection, as_freia, from_freia
from flowkit.interop.nflows import NflowsBase, NflowsTransform, from_nflows
from flowkit.interop.pyro import as_pyro
from flowkit.interop.transforms import BijectionTransform
from flowkit.interop.zuko import ZukoBase, ZukoTransform, as_zuko, from_zuko

__all__ = [
    "BijectionTransform",
    "Exported",
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
]
