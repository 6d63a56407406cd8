"""Graphs: declared (`graph`), checked and scheduled (`schedule`), run (`network`), drawn (`draw`), kept (`files`)."""

from flowkit.graph.graph import Graph
from flowkit.graph.network import InvertibleNetwork
from flowkit.graph.parts import Node, Wire

__all__ = ["Graph", "InvertibleNetwork", "Node", "Wire"]
