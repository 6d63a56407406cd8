"""Graphs drawn: the nested text that is their repr, a table, Mermaid, and SVG."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from flowkit.errors import ConfigError
from flowkit.graph.construct import probe
from flowkit.graph.graph import Graph
from flowkit.graph.parts import Node, Wire

FORMS = ("text", "mermaid", "svg")


def draw(graph: Graph, form: str = "text", parts: Any = None) -> str:
    """The graph in one of the forms; `parts` are the built ones, where there are any.

    Raises:
        ConfigError: an unknown form.
    """
    if form == "text":
        return table(graph, parts)
    if form == "mermaid":
        return mermaid(graph, parts)
    if form == "svg":
        from flowkit.graph.svg import svg

        return svg(graph, parts)
    raise ConfigError(f"a graph is drawn as {', '.join(FORMS)}, got {form!r}")


def inner_graph(node: Node) -> Graph | None:
    """The graph of a nested network."""
    found = getattr(node.module, "graph", None) if node.module is not None else node.config.get("graph")
    return found if isinstance(found, Graph) else None


def parameter_count(node: Node, parts: Any = None) -> int:
    """The parameters of a node's part; of a class node that is not built, counted on the meta device."""
    part: nn.Module | None = parts[node.name] if parts is not None else node.module
    if part is None:
        part = probe(node.cls, node.name, node.inputs, node.given, node.config)
    return sum(p.numel() for p in part.parameters())


def total_parameters(graph: Graph, parts: Any = None) -> int:
    """All parameters, those of a shared part once."""
    seen: set[int] = set()
    total = 0
    for node in graph.nodes:
        if node.module is not None and id(node.module) in seen:
            continue
        seen.add(id(node.module))
        total += parameter_count(node, parts)
    return total


def first_with(node: Node, graph: Graph) -> Node | None:
    """The earlier node whose part this one shares."""
    for other in graph.nodes:
        if other is node:
            return None
        if node.module is not None and other.module is node.module:
            return other
    return None


def summary(graph: Graph, title: str, parts: Any = None) -> str:
    """A line a node, nested graphs indented: what `repr` shows."""
    lines = [f"{title}("]
    lines += [f"  input {_wire(wire)}" for wire in graph.inputs]
    lines += [f"  condition {_wire(wire)}" for wire in graph.conditions]
    for node in graph.nodes:
        count = parameter_count(node, parts)
        line = f"  {node.name}: {node.cls.__name__}({_arguments(node)}) -> {_shapes(node)}"
        shared = first_with(node, graph)
        line += f", shares {shared.name}" if shared else f", {count:,} parameters" if count else ""
        inner = inner_graph(node)
        if inner is not None:
            inside = getattr(parts[node.name], "nodes", None) if parts is not None else None
            nested = summary(inner, "", inside).splitlines()
            lines += [f"{line} (", *[f"  {text}" for text in nested[1:]]]
        else:
            lines.append(line)
    lines += [f"  output {name} {wire.shape} = {wire.name}" for name, wire in graph.outputs.items()]
    return "\n".join([*lines, ")"])


def table(graph: Graph, parts: Any = None) -> str:
    """Inputs and conditions, a row a node with shapes, conditions and parameter counts, outputs, and the total."""
    rows = [("node", "op", "takes", "gives", "given", "parameters")]
    for node in graph.nodes:
        shared = first_with(node, graph)
        count = f"as {shared.name}" if shared else f"{parameter_count(node, parts):,}"
        given = ", ".join(wire.name for wire in node.given)
        rows.append((node.name, node.cls.__name__, ", ".join(w.name for w in node.inputs), _shapes(node), given, count))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    body = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row[:-1], widths[:-1], strict=True)), row[-1].rjust(widths[-1])])
        for row in rows
    ]
    head = [f"input      {_wire(wire)}" for wire in graph.inputs]
    head += [f"condition  {_wire(wire)}" for wire in graph.conditions]
    tail = [f"output     {name} {wire.shape} = {wire.name}" for name, wire in graph.outputs.items()]
    tail += [f"{total_parameters(graph, parts):,} parameters"]
    return "\n".join([*head, "", body[0], "-" * len(body[0]), *body[1:], "", *tail])


def mermaid(graph: Graph, parts: Any = None) -> str:
    """A Mermaid flowchart: data by solid arrows with their shapes, conditions by dotted ones."""
    lines = ["flowchart TD"]
    _mermaid(graph, parts, "", lines, "  ")
    return "\n".join(lines)


def _mermaid(graph: Graph, parts: Any, prefix: str, lines: list[str], indent: str) -> None:
    made: dict[int, str] = {}
    for wire in graph.inputs:
        made[wire.index] = f"{prefix}in_{wire.name}"
        lines.append(f'{indent}{made[wire.index]}(["{wire.name} {_size(wire)}"])')
    for wire in graph.conditions:
        made[wire.index] = f"{prefix}given_{wire.name}"
        lines.append(f'{indent}{made[wire.index]}[/"{wire.name} {_size(wire)}"/]')
    for node in graph.nodes:
        identifier = f"{prefix}node_{node.name}"
        count = parameter_count(node, parts)
        label = f"<b>{node.name}</b><br/>{node.cls.__name__}" + (f"<br/>{count:,} parameters" if count else "")
        inner = inner_graph(node)
        if inner is not None:
            lines.append(f'{indent}subgraph {identifier}["{node.name}: {count:,} parameters"]')
            inside = getattr(parts[node.name], "nodes", None) if parts is not None else None
            _mermaid(inner, inside, f"{identifier}_", lines, indent + "  ")
            lines.append(f"{indent}end")
        else:
            shape = f'{{{{"{label}"}}}}' if node.kind == "features" else f'["{label}"]'
            lines.append(f"{indent}{identifier}{shape}")
        solid = "-." if node.kind == "features" else "--"
        arrow = ".->" if node.kind == "features" else "-->"
        lines += [f'{indent}{made[w.index]} {solid} "{_size(w)}" {arrow} {identifier}' for w in node.inputs]
        lines += [f'{indent}{made[w.index]} -. "{_size(w)}" .-> {identifier}' for w in node.given]
        made.update((wire.index, identifier) for wire in node.outputs)
    for name, wire in graph.outputs.items():
        lines.append(f'{indent}{made[wire.index]} -- "{_size(wire)}" --> {prefix}out_{name}(["{name}"])')


def _wire(wire: Wire) -> str:
    dtype = f" {str(wire.dtype).removeprefix('torch.')}" if wire.dtype is not None else ""
    return f"{wire.name} {wire.shape}{dtype}"


def _size(wire: Wire) -> str:
    return "x".join(map(str, wire.shape)) or "scalar"


def _shapes(node: Node) -> str:
    return ", ".join(str(wire.shape) for wire in node.outputs)


def _arguments(node: Node) -> str:
    names = [wire.name for wire in node.inputs]
    if node.given:
        given = ", ".join(wire.name for wire in node.given)
        names.append(f"given={given}" if len(node.given) == 1 else f"given=[{given}]")
    names += [f"{key}={_short(value)}" for key, value in node.config.items() if not isinstance(value, Graph)]
    return ", ".join(names)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{...}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
