"""Drawings: every node, shape, condition and parameter count is in each form; the repr is nested."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.graph import svg


@pytest.fixture
def graph():
    inner = fk.Graph()
    p = inner.condition("p", (3,))
    inner.output("out", inner.add(fk.AffineCoupling, inner.input("u", (2,)), given=p, subnet=fk.MLP(hidden=4)))
    graph = fk.Graph()
    label = graph.condition("label", (), dtype=torch.int64)
    hot = graph.features(fk.OneHot(3), label)
    shared = fk.ActNorm((4,))
    x = graph.add(shared, graph.input("x", (4,)), name="first")
    x = graph.add(shared, x, name="second")
    a, b = graph.add(fk.Split, x)
    graph.output("left", graph.add(inner, a, given=hot, name="nested"))
    graph.output("right", b)
    return graph


def test_text_is_a_table_with_the_true_counts(graph):
    flow = fk.Flow(graph)
    total = sum(p.numel() for p in flow.parameters())
    for text in (graph.draw(), flow.network.graph.draw("text")):
        lines = text.splitlines()
        assert lines[0] == "input      x (4,)"
        assert lines[1] == "condition  label () int64"
        row = next(line for line in lines if line.startswith("nested"))
        count = sum(p.numel() for p in flow.network.nodes["nested"].parameters())
        assert row.split() == ["nested", "InvertibleNetwork", "split_1.0", "(2,)", "one_hot_1", str(count)]
        assert next(line for line in lines if line.startswith("second")).endswith("as first")
        assert "output     left (2,) = nested" in lines
        assert lines[-1] == f"{total} parameters"
        assert len({len(line) for line in lines if line.startswith(("node ", "----", "first", "nested"))}) == 1


def test_repr_is_nested(graph):
    text = repr(graph)
    assert text.startswith("Graph(\n  input x (4,)\n  condition label () int64\n  one_hot_1: OneHot(label) -> (3,)\n")
    assert "  second: ActNorm(first) -> (4,), shares first\n" in text
    assert "    affine_coupling_1: AffineCoupling(u, given=p, subnet=MLP(hidden=4)) -> (2,), " in text
    assert text.endswith("  output right (2,) = split_1.1\n)")
    flow = repr(fk.Flow(graph))
    assert flow.splitlines()[1:-2] == text.splitlines()[1:-1]
    assert flow.endswith("\n  base: StandardNormal(4)\n)")


def test_mermaid(graph):
    lines = graph.draw("mermaid").splitlines()
    assert lines[0] == "flowchart TD"
    assert '  in_x(["x 4"])' in lines
    assert '  in_x -- "4" --> node_first' in lines
    assert '  given_label[/"label scalar"/]' in lines
    assert '  given_label -. "scalar" .-> node_one_hot_1' in lines
    assert '  node_one_hot_1 -. "3" .-> node_nested' in lines
    assert '  node_nested -- "2" --> out_left(["left"])' in lines
    assert (
        sum(line.strip().startswith("subgraph") for line in lines) == sum(line.strip() == "end" for line in lines) == 1
    )
    assert any(line.startswith("    node_nested_node_affine_coupling_1[") for line in lines)
    declared = {
        re.match(r"\s*(?:subgraph )?(\w+)[\[({]", line).group(1)
        for line in lines
        if re.match(r"\s*(?:subgraph )?\w+[\[({]", line)
    }
    used = {name for line in lines if "->" in line for name in (line.split()[0], re.search(r"-> (\w+)", line).group(1))}
    assert used <= declared | {"out_left", "out_right", "node_nested_out_out"}


@pytest.mark.parametrize("parts", [False, True])
def test_svg_is_a_whole_document_that_names_everything(graph, parts, monkeypatch):
    monkeypatch.setattr(svg.shutil, "which", lambda name: None)  # the layout that needs nothing
    text = svg.svg(graph, fk.Flow(graph).network.nodes if parts else None)
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    said = " ".join(root.itertext())
    for name in ("x", "label", "first", "second", "split_1", "nested", "one_hot_1", "left", "right"):
        assert re.search(rf"\b{name}\b", said), name


def test_dot_names_everything(graph):
    text = svg.dot(graph)
    assert text.count("{") == text.count("}")
    for name in ("first", "second", "split_1", "nested", "one_hot_1", "left", "right"):
        assert name in text


def test_forms():
    with pytest.raises(fk.ConfigError, match=r"a graph is drawn as text, mermaid, svg, got 'png'"):
        fk.Graph().draw("png")


def test_unfinished_and_empty_graphs_are_drawn_too():
    graph = fk.Graph()
    assert repr(graph) == "Graph(\n)"
    x = graph.add(fk.Permute, graph.input("x", (4,)))
    graph.features(nn.Linear(2, 3), graph.condition("c", (2,)))
    for form in ("text", "mermaid", "svg"):
        assert "permute_1" in graph.draw(form)
    assert repr(x) == "<data wire 'permute_1' (4,)>"
    assert repr(graph.condition("n", (), dtype=torch.int64)) == "<condition wire 'n' () torch.int64>"


def test_long_options_are_cut():
    graph = fk.Graph()
    graph.add(fk.Permute, graph.input("x", (40,)), order=list(range(40)))
    assert max(len(line) for line in repr(graph).splitlines()) < 140


def test_a_recipe_without_a_name_of_its_own_is_shown():
    class Mine(fk.MLP):
        def __init__(self):
            super().__init__(hidden=4)

    graph = fk.Graph()
    graph.add(fk.AffineCoupling, graph.input("x", (4,)), subnet=Mine())
    assert "subnet=Mine(" in repr(graph)
    assert Mine() == Mine()
    assert Mine() != fk.MLP(hidden=4)
