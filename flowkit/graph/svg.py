"""A graph as one SVG picture: by graphviz where it is installed, else by the layout below, which needs nothing.

The data flow from top to bottom, a row for each node. Each data wire has a lane of its own that runs straight down;
feature nets stand in lanes to the left of the rows that use them, conditions to the left of those.
"""

from __future__ import annotations

import html
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

from flowkit.graph.draw import first_with, inner_graph, parameter_count, total_parameters
from flowkit.graph.graph import Graph
from flowkit.graph.parts import Node, Wire

ROW, BOX_HEIGHT, GAP, MARGIN = 66, 46, 56, 16
CHARACTER = 6.4  # width of a character of the small type, in pixels
GRAPHVIZ_SECONDS = 20
STYLE = """
text { font: 11px ui-sans-serif, system-ui, sans-serif; fill: #1d2733; }
.name { font-weight: 600; font-size: 12px; }
.quiet { fill: #5b6875; }
.edge { fill: none; stroke: #51606f; stroke-width: 1.4; }
.given { fill: none; stroke: #b5651d; stroke-width: 1.2; stroke-dasharray: 4 3; }
.bijection { fill: #e8f0fa; stroke: #5b86b8; }
.features { fill: #fdf1e3; stroke: #cf8a3f; }
.condition { fill: #fff8ef; stroke: #cf8a3f; }
.data { fill: #eef7ee; stroke: #5f9a62; }
""".strip()


@dataclass
class Box:
    """A thing in the picture: where it stands and what it says."""

    kind: str
    lines: list[str]
    lane: int
    row: float
    x: float = 0.0

    @property
    def width(self) -> float:
        """In pixels: wide enough for its longest line."""
        return max(90.0, max(len(line) for line in self.lines) * CHARACTER + 20)

    @property
    def y(self) -> float:
        """Its top, in pixels."""
        return MARGIN + self.row * ROW


def svg(graph: Graph, parts: Any = None) -> str:
    """The picture, as a whole SVG document."""
    drawn = _by_graphviz(graph, parts)
    return drawn if drawn is not None else _by_own_layout(graph, parts)


# ---------------------------------------------------------------------- graphviz


def _by_graphviz(graph: Graph, parts: Any) -> str | None:
    if shutil.which("dot") is None:
        return None
    try:
        done = subprocess.run(
            ["dot", "-Tsvg"], input=dot(graph, parts), capture_output=True, text=True, timeout=GRAPHVIZ_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout[done.stdout.index("<svg") :] if done.returncode == 0 and "<svg" in done.stdout else None


def dot(graph: Graph, parts: Any = None) -> str:
    """The graph in graphviz's language."""
    lines = ["digraph {", '  node [shape=box style="rounded,filled" fontname="sans-serif" fontsize=11];']
    lines.append('  edge [fontname="sans-serif" fontsize=9];')
    colours = {"bijection": "#e8f0fa", "features": "#fdf1e3", "condition": "#fff8ef", "data": "#eef7ee"}
    made: dict[int, str] = {}
    for wire in (*graph.inputs, *graph.conditions):
        made[wire.index] = f"in_{wire.name}"
        kind = "data" if wire.kind == "data" else "condition"
        lines.append(f'  in_{wire.name} [label="{wire.name}\\n{_size(wire)}" fillcolor="{colours[kind]}"];')
    for node in graph.nodes:
        label = "\\n".join(_label(graph, node, parts))
        lines.append(f'  node_{node.name} [label="{label}" fillcolor="{colours[node.kind]}"];')
        for wire in node.inputs:
            style = "" if wire.kind == "data" else " style=dashed"
            lines.append(f'  {made[wire.index]} -> node_{node.name} [label="{_size(wire)}"{style}];')
        lines += [f'  {made[w.index]} -> node_{node.name} [label="{_size(w)}" style=dashed];' for w in node.given]
        made.update((wire.index, f"node_{node.name}") for wire in node.outputs)
    for name, wire in graph.outputs.items():
        lines.append(f'  out_{name} [label="{name}" fillcolor="{colours["data"]}"];')
        lines.append(f'  {made[wire.index]} -> out_{name} [label="{_size(wire)}"];')
    return "\n".join([*lines, "}"])


# ---------------------------------------------------------------------- the layout of our own


def _by_own_layout(graph: Graph, parts: Any) -> str:
    boxes, makers = _place(graph, parts)
    _set_columns(list(boxes.values()))
    shapes = [_draw_edges(graph, boxes, makers)]
    shapes += [_draw_box(box) for box in boxes.values()]
    width = max(box.x + box.width for box in boxes.values()) + MARGIN
    height = max(box.y for box in boxes.values()) + BOX_HEIGHT + MARGIN + 18
    total = f"{total_parameters(graph, parts):,} parameters"
    shapes.append(f'<text class="quiet" x="{MARGIN}" y="{height - 8:.0f}">{total}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="the graph of the flow">\n<style>{STYLE}</style>\n'
        f'<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="#51606f"/></marker></defs>\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(shapes) + "\n</svg>"
    )


def _place(graph: Graph, parts: Any) -> tuple[dict[str, Box], dict[int, str]]:
    """Rows and lanes: lane 0 and up for data, -1 and down for feature nets and conditions."""
    boxes: dict[str, Box] = {}
    makers: dict[int, str] = {}
    lanes: dict[int, int] = {}
    next_lane = 0
    for wire in graph.inputs:
        makers[wire.index], lanes[wire.index] = f"in {wire.name}", next_lane
        boxes[f"in {wire.name}"] = Box("data", [wire.name, _size(wire)], next_lane, 0)
        next_lane += 1
    row = 1
    for node in graph.nodes:
        key = f"node {node.name}"
        makers.update((wire.index, key) for wire in node.outputs)
        if node.kind == "features":
            boxes[key] = Box("features", _label(graph, node, parts), -1, 0)
            continue
        lane = lanes[node.inputs[0].index]
        boxes[key] = Box("bijection", _label(graph, node, parts), lane, row)
        row += 1
        for i, wire in enumerate(node.outputs):
            if i:
                lanes[wire.index], next_lane = next_lane, next_lane + 1
            else:
                lanes[wire.index] = lane
    taken: set[int] = set()
    for name, wire in graph.outputs.items():
        maker, lane = boxes[makers[wire.index]], lanes[wire.index]
        boxes[f"out {name}"] = Box("data", [name, _size(wire)], lane, row if lane == maker.lane else maker.row + 1)
        taken.add(lane)
    _place_conditions(graph, boxes, makers)
    return boxes, makers


def _place_conditions(graph: Graph, boxes: dict[str, Box], makers: dict[int, str]) -> None:
    """Each feature net and condition at the height of what uses it, in lanes that keep them apart."""
    users: dict[str, list[str]] = {}
    for wire in graph.conditions:
        makers[wire.index] = f"given {wire.name}"
    for node in graph.nodes:
        for wire in (*node.given, *(node.inputs if node.kind == "features" else ())):
            users.setdefault(makers[wire.index], []).append(f"node {node.name}")
    nets = [f"node {node.name}" for node in graph.nodes if node.kind == "features"]
    depth = 0
    for key in reversed(nets):  # users first
        below = [boxes[user] for user in users.get(key, [])]
        boxes[key].row = min([box.row for box in below], default=0.0)
        boxes[key].lane = min([-1, *(box.lane - 1 for box in below if box.kind == "features")])
        depth = min(depth, boxes[key].lane)
    for wire in graph.conditions:
        below = [boxes[user] for user in users.get(f"given {wire.name}", [])]
        boxes[f"given {wire.name}"] = Box(
            "condition", [wire.name, _size(wire)], depth - 1, min([box.row for box in below], default=0.0)
        )
    for lane in {box.lane for box in boxes.values() if box.lane < 0}:
        row = -1.0
        for box in sorted((b for b in boxes.values() if b.lane == lane), key=lambda b: b.row):
            box.row = row = max(box.row, row + 1)


def _set_columns(boxes: list[Box]) -> None:
    x = float(MARGIN)
    for lane in sorted({box.lane for box in boxes}):
        here = [box for box in boxes if box.lane == lane]
        width = max(box.width for box in here)
        for box in here:
            box.x = x + (width - box.width) / 2
        x += width + GAP


def _draw_box(box: Box) -> str:
    rounded = BOX_HEIGHT / 2 if box.kind in ("data", "condition") else 6
    height = BOX_HEIGHT if len(box.lines) > 2 else BOX_HEIGHT - 10
    parts = [
        f'<rect class="{box.kind}" x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{height}" '
        f'rx="{rounded:.0f}"/>'
    ]
    for i, line in enumerate(box.lines):
        style = "name" if i == 0 else "quiet"
        middle = box.x + box.width / 2
        parts.append(
            f'<text class="{style}" text-anchor="middle" x="{middle:.1f}" '
            f'y="{box.y + 15 + 13 * i:.1f}">{html.escape(line)}</text>'
        )
    return "".join(parts)


def _draw_edges(graph: Graph, boxes: dict[str, Box], makers: dict[int, str]) -> str:
    lines: list[str] = []
    for node in graph.nodes:
        target = boxes[f"node {node.name}"]
        for wire in node.inputs:
            source = boxes[makers[wire.index]]
            lines.append(_sideways(source, target) if node.kind == "features" else _down(source, target, wire))
        lines += [_sideways(boxes[makers[wire.index]], target) for wire in node.given]
    for name, wire in graph.outputs.items():
        lines.append(_down(boxes[makers[wire.index]], boxes[f"out {name}"], wire))
    return "\n".join(lines)


def _down(source: Box, target: Box, wire: Wire) -> str:
    height = BOX_HEIGHT if len(source.lines) > 2 else BOX_HEIGHT - 10
    x1, y1 = source.x + source.width / 2, source.y + height
    x2, y2 = target.x + target.width / 2, target.y - 1
    label = f'<text class="quiet" x="{x2 + 5:.1f}" y="{y2 - 6:.1f}">{_size(wire)}</text>'
    if abs(x1 - x2) < 1:
        return f'<path class="edge" marker-end="url(#tip)" d="M{x1:.1f} {y1:.1f}V{y2:.1f}"/>{label}'
    if source.lane < target.lane:  # leaves to the right, then runs down its own lane
        x1, y1 = source.x + source.width, source.y + height / 2
        bend = f"H{x2 - 8:.1f}Q{x2:.1f} {y1:.1f} {x2:.1f} {y1 + 8:.1f}V{y2:.1f}"
        return f'<path class="edge" marker-end="url(#tip)" d="M{x1:.1f} {y1:.1f}{bend}"/>{label}'
    side = target.x + target.width
    turn = target.y + 18
    bend = f"V{turn - 8:.1f}Q{x1:.1f} {turn:.1f} {x1 - 8:.1f} {turn:.1f}H{side + 1:.1f}"
    return f'<path class="edge" marker-end="url(#tip)" d="M{x1:.1f} {y1:.1f}{bend}"/>'


def _sideways(source: Box, target: Box) -> str:
    """A condition on its way to what it conditions: dashed, from the left; from the right where it is a data wire."""
    left = source.x + source.width <= target.x
    x1 = source.x + source.width if left else source.x
    x2 = target.x if left else target.x + target.width
    y1, y2 = source.y + BOX_HEIGHT / 2 - 4, target.y + BOX_HEIGHT / 2 - 4
    bend = (x2 - x1) / 2 if left else max(30.0, abs(x2 - x1) / 2)
    curve = f"C{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
    return f'<path class="given" d="M{x1:.1f} {y1:.1f}{curve}"/>'


def _label(graph: Graph, node: Node, parts: Any) -> list[str]:
    shared = first_with(node, graph)
    count = parameter_count(node, parts)
    inner = inner_graph(node)
    what = node.cls.__name__ + (f" of {len(inner.nodes)} nodes" if inner is not None else "")
    lines = [node.name, what]
    if shared:
        lines.append(f"shares {shared.name}")
    elif count:
        lines.append(f"{count:,} parameters")
    return lines


def _size(wire: Wire) -> str:
    return "×".join(map(str, wire.shape)) or "scalar"
