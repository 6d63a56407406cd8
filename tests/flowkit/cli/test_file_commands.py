"""`inspect`, `draw`, `check` and `plugins`, on a small flow in a file."""

import json

import pytest
import torch

import flowkit as fk
from flowkit.cli.app import run


@pytest.fixture
def saved(tmp_path):
    graph = fk.Graph()
    label, x = graph.condition("label", (3,)), graph.input("x", (4,))
    x = graph.add(fk.AffineCoupling, x, given=label, subnet=fk.MLP(hidden=8, zero_last=False))
    x, detail = graph.add(fk.Split, graph.add(fk.Permute, x))
    graph.output("detail", detail)
    graph.output("rest", x)
    path = tmp_path / "small.safetensors"
    fk.save(fk.Flow(graph, base=fk.DiagonalNormal), path)
    return path


def test_inspect(saved, capsys):
    assert run(["inspect", str(saved)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    flow = fk.load(saved)
    parameters = f"{sum(p.numel() for p in flow.parameters()):,}"
    for expected in (
        "input x (4,)",
        "condition label (3,)",
        "latent detail (2,) at z[0:2]",
        "latent rest (2,) at z[2:4]",
        "base DiagonalNormal",
        f"parameters {parameters} in",
        "float64",
        "affine_coupling_1 AffineCoupling (4,) (4,) (3,)",
        "split_1 Split (4,) (2,) (2,)",
    ):
        assert expected in shown


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], "affine_coupling_1"), (["--format", "mermaid"], "flowchart"), (["--format", "svg"], "<svg")],
)
def test_draw_to_standard_output(saved, capsys, words, expected):
    assert run(["draw", str(saved), *words]) == 0
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "expected"), [("g.svg", "<svg"), ("g.mmd", "flowchart"), ("g.txt", "affine_coupling_1")]
)
def test_draw_to_a_file_by_its_ending(saved, tmp_path, capsys, name, expected):
    assert run(["draw", str(saved), "-o", str(tmp_path / name)]) == 0
    assert capsys.readouterr().out == ""
    assert expected in (tmp_path / name).read_text()


def test_draw_overwrites_nothing_without_force(saved, tmp_path, capsys):
    mine = tmp_path / "g.svg"
    mine.write_text("mine")
    assert run(["draw", str(saved), "-o", str(mine)]) == 2
    assert capsys.readouterr().err == f"flowkit: {mine} is there already, and only --force overwrites it\n"
    assert mine.read_text() == "mine"
    assert run(["draw", str(saved), "-o", str(mine), "--force"]) == 0
    assert "<svg" in mine.read_text()
    leads_nowhere = tmp_path / "link.svg"
    leads_nowhere.symlink_to(tmp_path / "elsewhere.svg")
    assert run(["draw", str(saved), "-o", str(leads_nowhere)]) == 2
    assert leads_nowhere.is_symlink()
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == "."] == []


def test_draw_refuses_an_ending_that_says_nothing(saved, tmp_path, capsys):
    for name in ("g.png", "g"):
        assert run(["draw", str(saved), "-o", str(tmp_path / name)]) == 2
        assert f"{name} has to end in .txt, .md, .mmd or .svg" in capsys.readouterr().err
        assert not (tmp_path / name).exists()
    assert run(["draw", str(saved), "-o", str(tmp_path / "g.graph"), "--format", "svg"]) == 0
    assert "<svg" in (tmp_path / "g.graph").read_text()


def test_draw_where_nothing_can_be_written(saved, tmp_path, capsys):
    assert run(["draw", str(saved), "-o", str(tmp_path / "missing" / "g.svg")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "draw", "check"])
def test_files_that_hold_no_flow(tmp_path, capsys, command):
    assert run([command, str(tmp_path / "none.safetensors")]) == 2
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"no flow")
    assert run([command, str(bad)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 2
    assert "none.safetensors" in told.err


def test_a_folder_is_no_file(tmp_path, capsys):
    assert run(["inspect", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err


def test_check_a_file(saved, capsys):
    assert run(["check", str(saved)]) == 0
    shown = capsys.readouterr().out
    assert "round_trip_float64" in shown
    assert "affine_coupling_1" in shown


def test_check_says_no_with_its_exit_code(saved, capsys):
    flow = fk.load(saved)
    with torch.no_grad():
        flow.network.nodes["affine_coupling_1"].univariates[0].gamma.fill_(80.0)
        for parameter in flow.network.nodes["affine_coupling_1"].subnets.parameters():
            parameter.mul_(50)
    fk.save(flow, saved)
    assert run(["check", str(saved)]) == 1
    assert "affine_coupling_1" in capsys.readouterr().out


def test_check_a_name(capsys, monkeypatch):
    """Which laws there are is the kit's own business, so it is told to stop here."""
    from flowkit.testing import command

    class Found:
        ok = True

        def __str__(self):
            return json.dumps(asked)

    asked = []
    monkeypatch.setattr(command, "check", lambda *words: asked.append(words) or Found())
    assert run(["check", "acme.scale", "--import", "a", "--import", "b"]) == 0
    assert json.loads(capsys.readouterr().out) == [["acme.scale", ["a", "b"]]]


@pytest.mark.parametrize(
    "words", [["flowkit.no_such"], ["acme.scale"], ["flowkit.permute", "--import", "no_such_module"]]
)
def test_check_refuses_unknown_names(words, capsys):
    assert run(["check", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_plugins(capsys, monkeypatch):
    from flowkit import registry

    monkeypatch.setattr(registry, "plugins", lambda: {"acme": "acme_flows", "broken": "broken_flows"})
    monkeypatch.setattr(registry, "plugin_problem", lambda p: "ImportError: no x" if p == "broken" else None)
    monkeypatch.setattr(registry, "registered", lambda p: {f"{p}.a": 0, f"{p}.b": 0})
    assert run(["plugins"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["flowkit", "flowkit", "loaded", "2"] in lines
    assert ["acme", "acme_flows", "loaded", "2"] in lines
    assert ["broken", "broken_flows", "ImportError:", "no", "x"] in lines
