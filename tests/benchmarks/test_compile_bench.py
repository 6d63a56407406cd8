"""The benchmark of compiled flows: with a backend that compiles nothing, so that it is quick."""

import json

import pytest
import torch
from flowkit.cli._benchmarks._common import breaks, stacks

import flowkit as fk
from flowkit.cli.app import run
from flowkit.cli.catalog import BENCHMARKS

bench = BENCHMARKS.module("compile")
# torch.compile looks at the gradient of every tensor that it meets.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(autouse=True)
def float32():
    torch.set_default_dtype(torch.float32)
    yield
    torch._dynamo.reset()


def sections(tmp_path, *only):
    path, plot = tmp_path / "a.json", tmp_path / "a.png"
    words = [word for name in only for word in ("--only", name)]
    assert run(["bench", "compile", "--quick", "--json", str(path), "--plot", str(plot), *words]) == 0
    assert plot.exists()
    return json.loads(path.read_text())["sections"]


def test_compile_time_by_depth(tmp_path, monkeypatch):
    asked = []

    def instead(depth, **arguments):
        asked.append((depth, arguments["backend"]))
        return {"training": 1.0 * depth, "inverse": 2.0 * depth}

    monkeypatch.setattr(bench, "_in_new_process", instead)
    (found,) = sections(tmp_path, "cold")
    assert asked == [(1, "eager"), (2, "eager")]
    first, second = found["rows"]
    assert "ratio" not in first
    assert second["ratio"]["value"] == 2.0
    assert second["target"] == "<= 1.3: missed"


def test_a_new_process_is_timed():
    found = bench._in_new_process(depth=1, hidden=[4], backend="eager")
    assert found["training"] > 0
    assert set(found) == {"training", "inverse"}
    with pytest.raises(fk.FlowkitError, match="in a new process failed"):
        bench._in_new_process(depth=1, hidden=[4], backend="no such backend")


def test_vectors(tmp_path):
    (found,) = sections(tmp_path, "vectors")
    rows = {(row["pass"], row["implementation"]): row for row in found["rows"]}
    assert rows["training step", "flowkit"]["at most"] == 1.08
    assert rows["training step", "flowkit, reverse"]["at most"] == 1.15
    assert rows["inverse", "flowkit"]["ratio"]["value"] > 0
    assert "at most" not in rows["inverse", "flowkit"]
    for (_, name), row in rows.items():
        assert row.get("ms", 0) > 0 or "raises" in row["remark"], name


def test_small_problems(tmp_path):
    (found,) = sections(tmp_path, "small")
    assert {row["implementation"] for row in found["rows"]} >= {"flowkit", "flowkit, as a whole"}
    assert {row["pass"] for row in found["rows"]} == {"forward", "training step"}
    assert all(row["bare"] > 0 for row in found["rows"])


def test_saved_bytes(tmp_path):
    (found,) = sections(tmp_path, "memory")
    rows = {row["implementation"]: row for row in found["rows"]}
    assert rows["flowkit, reverse, no snapshots"]["met"]
    assert rows["flowkit"]["depth 2"] > 1.5 * rows["flowkit"]["depth 1"]


class Breaks(fk.Identity):
    """Asks for a value in the middle of its forward."""

    def forward(self, x):
        if x.sum().item() > 0:
            return x + 1, x.new_zeros(len(x))
        return x * 1, x.new_zeros(len(x))


class Specialises(fk.Identity):
    """Takes another path for large batches, which torch.compile has to compile anew."""

    def forward(self, x):
        return (x + 1 if len(x) > 20 else x * 1), x.new_zeros(len(x))


@pytest.mark.parametrize("call", ["forward", "inverse", "reverse"])
def test_a_flow_without_breaks(call):
    row = breaks.break_row("a", stacks.build(stacks.Spec(2, (4,), (2,), (5,))), call)
    assert (row["graph breaks"], row["as a whole"], row["recompilations"]) == ("none", "none", 0)
    assert row["compilations"] > 0
    assert row["met"]


def test_breaks_and_recompilations_are_found():
    row = breaks.break_row("a", fk.Flow(Breaks((4,))), "forward")
    assert "Error: " in row["graph breaks"] or row["graph breaks"].startswith("Unsupported: ")
    assert row["as a whole"] != "none"
    assert row["target"] == "missed"
    row = breaks.break_row("a", fk.Flow(Specialises((4,))), "forward")
    assert (row["graph breaks"], row["recompilations"], row["target"]) == ("none", 1, "missed")


def test_every_preset_is_looked_at(tmp_path):
    pytest.importorskip("skimage")
    assert {f"colorization, {name}" for name in ("demo", "small", "paper")} < set(dict(breaks.flows(quick=False)))
    assert not any("colorization" in name for name, _ in breaks.flows(quick=True))


def test_the_table_of_breaks(tmp_path):
    (found,) = sections(tmp_path, "breaks")
    assert [row["call"] for row in found["rows"]] == ["forward", "inverse", "reverse"]
    assert all(row["graph breaks"] == "none" for row in found["rows"])
