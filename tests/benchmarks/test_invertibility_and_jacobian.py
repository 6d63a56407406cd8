"""The two benchmarks, on single ops and small chains; what they say is checked against maps whose faults are known."""

import json
import math
from itertools import islice

import pytest
import torch
from flowkit.cli._benchmarks._common.cases import cases
from flowkit.cli._benchmarks._common.peers import counterparts

import flowkit as fk
from flowkit.cli.app import run
from flowkit.cli.catalog import BENCHMARKS

invertibility, jacobian = (BENCHMARKS.module(name) for name in ("invertibility", "jacobian"))


def test_invertibility_of_one_op(tmp_path, capsys):
    path, plot = tmp_path / "a.json", tmp_path / "a.png"
    words = [
        "bench",
        "invertibility",
        "--quick",
        "--only",
        "flowkit.affine_coupling",
        "--json",
        str(path),
        "--plot",
        str(plot),
    ]
    assert run(words) == 0
    shown = capsys.readouterr().out
    assert "flowkit.affine_coupling" in shown
    assert "float32: standard normal input: the largest absolute error" in shown
    (section,) = json.loads(path.read_text())["sections"]
    assert len(section["rows"]) == 2
    for row in section["rows"]:
        assert 0 < row["float64"] < 1e-12 < row["float32"] < 1e-5
        assert row["x 1000"] < 1e-3
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_jacobian_of_one_op(tmp_path, capsys):
    path, plot = tmp_path / "a.json", tmp_path / "a.svg"
    words = ["bench", "jacobian", "--quick", "--only", "flowkit.lu_linear", "--json", str(path), "--plot", str(plot)]
    assert run(words) == 0
    assert "singular value" in capsys.readouterr().out
    (section,) = json.loads(path.read_text())["sections"]
    for row in section["rows"]:
        assert max(row["forward"], row["inverse"]) < 1e-12
        assert row["float32"] < 1e-5
        assert row["condition"] >= 1
        assert row["cost"] > 0
    assert plot.exists()


@pytest.mark.slow
@pytest.mark.parametrize("bench", ["invertibility", "jacobian"])
def test_the_networks_and_peers_come_to_their_end(bench, tmp_path, monkeypatch):
    torch.set_default_dtype(torch.float32)
    module, path = BENCHMARKS.module(bench), tmp_path / "a.json"
    monkeypatch.setattr(module, "cases", lambda *_, **__: cases(("flowkit.exp",), 0, most=1))
    monkeypatch.setattr(module, "counterparts", lambda: list(counterparts())[:3])
    whole = module.colorization.small_colorization
    monkeypatch.setattr(module.colorization, "small_colorization", lambda *a, **k: islice(whole(*a, **k), 1))
    assert run(["bench", bench, "--quick", "--json", str(path), "--plot", str(tmp_path / "a.png")]) == 0
    sections = json.loads(path.read_text())["sections"]
    assert len(sections) >= 3
    assert all(section["rows"] for section in sections)


def test_jacobian_of_ops_with_a_domain_and_on_surfaces(tmp_path):
    path, plot = tmp_path / "a.json", tmp_path / "a.svg"
    ops = ("flowkit.log", "flowkit.stick_breaking", "flowkit.sphere_moebius", "flowkit.sphere_to_cylinder")
    only = [word for name in ops for word in ("--only", name)]
    assert run(["bench", "jacobian", "--quick", *only, "--json", str(path), "--plot", str(plot)]) == 0
    (section,) = json.loads(path.read_text())["sections"]
    measured = {row["bijection"] for row in section["rows"] if "forward" in row}
    assert {row["bijection"] for row in section["rows"]} == set(ops)
    assert measured == {"flowkit.log", "flowkit.stick_breaking"}  # the spheres' log-dets are of areas, not of volumes


@pytest.mark.parametrize("bench", ["invertibility", "jacobian"])
def test_wrong_names_are_refused(bench, capsys):
    assert run(["bench", bench, "--only", "flowkit.affine_coupling_"]) == 2
    assert "did you mean 'flowkit.affine_coupling'" in capsys.readouterr().err


def test_depth_rows():
    row = invertibility._depth_row(2, 8)
    assert row["float64"] < 1e-12 < row["float32"] < 1e-5
    assert row["weights doubled"].startswith("finite")


def test_the_first_bad_node_is_named():
    from flowkit.cli._benchmarks._common.chains import chain, redraw

    flow = redraw(chain(4, dim=4, hidden=(8,)))
    with torch.no_grad():
        list(flow.network.nodes.children())[2].univariates[0].gamma.fill_(math.inf)
    assert invertibility._first_bad(flow, torch.randn(4, 4)) == "first node not finite: affine_coupling_3"


def test_depth_at_float32_is_within_its_target():
    """A quarter of the depth of the target, and a quarter of its error."""
    from flowkit.cli._benchmarks._common.chains import chain, redraw

    from flowkit.diagnostics import round_trip

    flow = redraw(chain(64).float())
    assert round_trip(flow, torch.randn(64, 64, dtype=torch.float32)).error < invertibility.TARGET / 2


def test_network_rows():
    from flowkit.cli._benchmarks._common.networks import coupling_chain

    for network in coupling_chain(2, 1):
        row = invertibility._network_row(network, 4)
        assert row["float64"] < 1e-12
        assert row["x 1000"] >= 0
        row = jacobian._network_row(network, 1)
        assert max(row["forward"], row["inverse"]) < 1e-12
        assert row["D"] == 64
        assert row["smallest"] <= 1 + 1e-9 if network.state == "at start" else row["smallest"] < row["largest"]


def counterpart(build):
    from flowkit.cli._benchmarks._common.peers import Counterpart

    return Counterpart("op", "theirs", (3,), build)


class Halves(fk.Identity):
    """Halves what its inverse is given, as a released Haar transform does, and says that its log-det is 1."""

    def forward(self, x):
        return x.clone(), x.new_ones(len(x))

    def inverse(self, y):
        y *= 0.5
        return 2 * y, -y.new_ones(len(y))


def raising():
    raise RuntimeError("cannot be\nbuilt")


def test_what_peers_do_wrong_is_remarked():
    assert invertibility._peer_row(counterpart(lambda: Halves((3,))), 4)["remark"] == "changes its argument"
    assert jacobian._peer_row(counterpart(lambda: Halves((3,))), 1)["remark"] == "wrong log-det"
    for bench, amount in ((invertibility, 4), (jacobian, 1)):
        assert bench._peer_row(counterpart(raising), amount)["remark"] == "raises RuntimeError: cannot be built"
        assert not bench._peer_row(counterpart(lambda: fk.Permute((3,))), amount).get("remark")
