"""Graphs that nobody thought of: invertible, exact, written and read, split and traced."""

import collections
import random

import pytest
import torch
from hypothesis import given, settings

import flowkit as fk
from flowkit.bijection import as_tuple
from flowkit.testing import strategies
from flowkit.testing.findings import Findings
from flowkit.testing.laws.exactness import jacobian
from flowkit.testing.random_graph import GraphBuilder
from flowkit.testing.strategies import GraphCase
from flowkit.testing.subject import Subject

# Exactness is tried on every example of the profile; what follows from how graphs are built, on some.
some = settings(max_examples=max(10, settings().max_examples // 5))


def as_dict(case, x):
    return x if isinstance(x, dict) else {next(iter(case.inputs)): x}


def assert_close(got, want, text, tolerance=1e-9):
    expect = Findings(tolerance)
    expect.close(got, want, text)
    assert not expect.broken, expect.broken


@given(strategies.graphs())
def test_inverse_and_log_det_are_exact(case):
    subject = Subject("graph", instance=case.flow().network)
    network, conditions = subject.original, tuple(case.conditions.values())
    before = [value.clone() for value in (*case.inputs.values(), *conditions)]
    matrix, log_det = jacobian(subject, network, "forward", (*case.inputs.values(), *conditions))
    with torch.no_grad():
        outputs = as_tuple(network(*case.inputs.values(), *conditions)[0])
    inverse_matrix, inverse_log_det = jacobian(subject, network, "inverse", (*outputs, *conditions))
    assert log_det.shape == inverse_log_det.shape == (3,)
    assert_close(log_det, torch.linalg.slogdet(matrix).logabsdet, "forward's log-det")
    assert_close(inverse_log_det, torch.linalg.slogdet(inverse_matrix).logabsdet, "the inverse's log-det")
    assert_close(inverse_log_det, -log_det, "the log-dets cancel")
    with torch.no_grad():
        back = as_tuple(network.inverse(*outputs, *conditions)[0])
        again = as_tuple(network(*back, *conditions)[0])
    for got, want in zip((*back, *again), (*case.inputs.values(), *outputs), strict=True):
        assert_close(got, want, "round trip")
    assert all(torch.equal(a, b) for a, b in zip((*case.inputs.values(), *conditions), before, strict=True))


@some
@given(strategies.graphs())
def test_flow_inverts_and_its_latents_split_and_join(case):
    flow = case.flow()
    with torch.no_grad():
        z, log_det = flow(case.x, given=case.given)
        back, inverse_log_det = flow.inverse(z, given=case.given)
    assert z.shape == (3, flow.dim)
    for name, x in as_dict(case, back).items():
        assert_close(x, case.inputs[name], f"{name} comes back")
    assert_close(inverse_log_det, -log_det, "log-dets cancel")
    parts = flow.split(z)
    assert list(parts) == list(case.graph.outputs) == list(flow.latents)
    for name, (where, shape) in flow.latents.items():
        assert parts[name].shape == (3, *shape)
        assert shape == case.graph.outputs[name].shape
        assert torch.equal(parts[name].reshape(3, -1), z[:, where])
    assert torch.equal(flow.join(parts), z)


@some
@given(strategies.graphs(max_nodes=5))
def test_file_and_dictionary_round_trip(tmp_path_factory, case):
    flow = case.flow()
    path = tmp_path_factory.mktemp("graphs") / "flow.safetensors"
    fk.save(flow, path)
    loaded = fk.load(path)
    assert list(loaded.state_dict()) == list(flow.state_dict())
    with torch.no_grad():
        z, log_det = flow(case.x, given=case.given)
        got, got_log_det = loaded(case.x, given=case.given)
    assert_close(got, z, "z", 1e-12)
    assert_close(got_log_det, log_det, "log-det", 1e-12)
    written = case.graph.to_dict()
    assert fk.Graph.from_dict(written).to_dict() == written


@some
@given(strategies.graphs(max_nodes=5))
def test_trace_records_every_node_and_its_log_dets_add_up(case):
    flow = case.flow()
    trace = flow.trace(case.x, given=case.given)
    with torch.no_grad():
        _, log_det = flow(case.x, given=case.given)
    total = sum((record.log_det for record in trace), torch.zeros(3))
    assert_close(total, log_det, "log-det", 1e-12)
    assert trace.first_bad(1e-9) is None
    names = [record.name for record in trace]
    assert len(set(names)) == len(names)
    assert {name.split(".")[0] for name in names} == {n.name for n in case.graph.nodes if n.kind == "bijection"}


@some
@given(strategies.graphs(max_nodes=4))
def test_leading_dimensions_and_drawing(case):
    flow = case.flow()
    conditions = {name: c.expand(2, *c.shape) for name, c in case.conditions.items()} or None
    x = {name: x.expand(2, *x.shape) for name, x in case.inputs.items()}
    with torch.no_grad():
        z, _ = flow(case.x, given=case.given)
        got, log_det = flow(x if len(x) > 1 else next(iter(x.values())), given=conditions)
    assert log_det.shape == (2, 3)
    assert_close(got[1], z, "z")
    text = case.graph.draw("text")
    assert all(node.name in text for node in case.graph.nodes)


def random_case(seed):
    generator = random.Random(seed)
    torch.manual_seed(seed)
    builder = GraphBuilder(lambda choices: generator.choice(list(choices)))
    builder.declare(generator.choice((1, 2)), generator.choice((0, 1, 2, 3)))
    builder.grow(generator.randint(0, 8))
    return GraphCase(builder.finish(), builder.calls, seed, rows=2)


@pytest.fixture(scope="module")
def what_they_have():
    counts = collections.Counter()
    for seed in range(80):
        graph = random_case(seed).graph
        nodes = graph.nodes
        counts["several inputs"] += len(graph.inputs) > 1
        counts["several outputs"] += len(graph.outputs) > 1
        counts["several conditions"] += len(graph.conditions) > 1
        counts["splits"] += any(len(node.outputs) > 1 for node in nodes)
        counts["merges"] += any(node.cls is fk.Concat for node in nodes)
        counts["nesting"] += any(node.cls is fk.InvertibleNetwork for node in nodes)
        counts["feature nets"] += any(node.kind == "features" for node in nodes)
        counts["data wires as conditions"] += any(wire.kind == "data" for node in nodes for wire in node.given)
        counts["features of data wires"] += any(
            node.kind == "features" and any(w.kind == "data" for w in node.inputs) for node in nodes
        )
        instances = [id(node.module) for node in nodes if node.kind == "bijection" and node.module is not None]
        counts["shared instances"] += len(set(instances)) < len(instances)
    return counts


@pytest.mark.parametrize(
    "what",
    [
        "several inputs",
        "several outputs",
        "several conditions",
        "splits",
        "merges",
        "nesting",
        "feature nets",
        "data wires as conditions",
        "features of data wires",
        "shared instances",
    ],
)
def test_random_graphs_have_everything_that_graphs_may_have(what, what_they_have):
    assert what_they_have[what] >= 3
