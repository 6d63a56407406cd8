"""Flows from and for other toolkits; each friend is imported only when it is used."""

from flowkit.interop.freia import FreiaBijection, as_freia, from_freia
from flowkit.interop.transforms import BijectionTransform

__all__ = ["BijectionTransform", "FreiaBijection", "as_freia", "from_freia"]
