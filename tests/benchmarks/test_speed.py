"""The benchmark of speed: rows and targets; and a toolkit that computes something else is never timed."""

import importlib.util
import json

import pytest
import torch
from flowkit.cli._benchmarks._common import published, ratio, stacks
from flowkit.cli._benchmarks._common.agreement import MismatchError, agree
from flowkit.cli._benchmarks._common.limit import LIMIT_NAME, Bare, above_bare, bare_step, judged, measured

import flowkit as fk
from flowkit.cli.app import run

TOOLKITS = {"FrEIA": "FrEIA", "nflows": "nflows", "normflows": "normflows", "zuko": "zuko"}


@pytest.fixture(autouse=True)
def float32():
    torch.set_default_dtype(torch.float32)


def sections(tmp_path, *words):
    path, plot = tmp_path / "a.json", tmp_path / "a.png"
    assert run(["bench", "speed", "--quick", "--json", str(path), "--plot", str(plot), *words]) == 0
    assert plot.exists()
    return json.loads(path.read_text())["sections"]


def installed():
    return [name for name, module in TOOLKITS.items() if importlib.util.find_spec(module)]


def test_vectors_and_small_problems(tmp_path, capsys):
    vectors, small = sections(tmp_path, "--only", "vectors", "--only", "small")
    shown = capsys.readouterr().out
    assert "bare subnets: the same nets on equal tensors" in shown
    rows = {(row["pass"], row["implementation"]): row for row in vectors["rows"]}
    for name in ("flowkit", *installed()):
        assert rows["training step", name]["ratio"]["value"] > 0
        assert rows["inverse", name]["ratio"]["value"] > 0
    assert [rows[p, "flowkit"]["at most"] for p in ("training step", "inverse")] == [1.3, 1.5]
    assert "ratio" not in rows["training step", "bare subnets"]
    assert {"flowkit, checkpoint", "flowkit, reverse"} < {name for _, name in rows}
    assert all(row["ms"] > 0 for row in rows.values())
    assert {row["sides"] for row in small["rows"]} == {"one", "both"}
    ours = [row for row in small["rows"] if row["implementation"] == "flowkit"]
    assert [row["pass"] for row in ours] == ["forward", "training step"] * 2
    if "FrEIA" in installed():
        assert all(row["target"].startswith("<= 0.5: ") for row in ours)


def test_convolutions(tmp_path):
    (found,) = sections(tmp_path, "--only", "convolutions")
    rows = {(row["pass"], row["implementation"]): row for row in found["rows"]}
    assert rows["training step", "flowkit, reverse"]["at most"] == 1.1
    assert ("training step", "zuko") not in rows  # it knows vectors only
    limits = [rows["training step", name]["ms"] for name in ("bare subnets", "bare subnets + one more forward")]
    assert all(ms > 0 for ms in limits)


def test_colorization(tmp_path):
    pytest.importorskip("skimage")
    steps, split, stacked = sections(tmp_path, "--only", "colorization")
    assert all(row["ratio"]["value"] > 0 and row["blocks"] > 0 for row in stacked["rows"])
    assert {row["kernel"] for row in stacked["rows"]} >= {"3 x 3", "-"}
    rows = {row["implementation"]: row for row in steps["rows"]}
    assert rows["flowkit"]["at most"] == 1.02
    (reduced,) = (row for name, row in rows.items() if name.startswith("flowkit, channels_last, bfloat16"))
    assert reduced["at most"] == 0.4  # timed on two rows where the processor has no bfloat16
    assert all(row["ms"] > 0 for name, row in rows.items() if "two rows" not in name)
    concatenated, ours = split["rows"]
    assert (concatenated["subnets"], ours["subnets"]) == ("concatenated", "split")
    assert ours["at most"] == 0.97
    assert ours["saved ratio"] == pytest.approx(ours["saved"] / concatenated["saved"])
    assert ours["saved ratio"] < 1
    assert ours["saved target"].startswith("<= 0.6: ")


# ---------------------------------------------------------------------- what is compared


SPECS = [
    stacks.Spec(4, (6,), (2,), (5,)),
    stacks.Spec(4, (2,), None, (5, 4), "second"),
    stacks.Spec(4, (6,), (2,), (5,), "both"),
    stacks.Spec(2, (4, 6, 6), (3, 6, 6), (5,)),
]


@pytest.mark.parametrize("cls", stacks.PEERS, ids=lambda cls: cls.name)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_wrong_weight_of_a_peer_is_found(cls, spec, part, monkeypatch):
    if cls.name not in installed() or spec.sides not in cls.sides or (len(spec.shape) > 1 and not cls.maps):
        pytest.skip("not installed, or it has no such stack")
    flow = stacks.build(spec)
    assert cls.name in stacks.stacks(spec, flow)  # it agrees
    take = cls.take

    def wrong(self, source):
        take(self, source)
        with torch.no_grad():
            getattr(self.nets[-2][-1], part)[-1] += 1e-3
        return self

    monkeypatch.setattr(cls, "take", wrong)
    with pytest.raises(MismatchError, match=f"{cls.name}'s (z|log-det) is off by"):
        stacks.stacks(spec, flow)


def test_a_mismatch_ends_the_command(monkeypatch, capsys):
    if "nflows" not in installed():
        pytest.skip("nflows is not installed")
    monkeypatch.setattr(stacks.Nflows, "log_scale", staticmethod(lambda r: r))
    assert run(["bench", "speed", "--quick", "--only", "vectors"]) != 0
    captured = capsys.readouterr()
    assert "nflows's z is off by" in captured.err
    assert "FrEIA" not in captured.out  # no table


def test_a_flow_that_is_wrong_is_found_too(monkeypatch):
    flow = stacks.build(SPECS[0])
    forward = fk.AffineCoupling.forward

    def wrong(self, x, *given):
        y, log_det = forward(self, x, *given)
        return y, log_det * 1.001

    monkeypatch.setattr(fk.AffineCoupling, "forward", wrong)
    with pytest.raises(MismatchError, match="flowkit's log-det is off"):
        stacks.stacks(SPECS[0], flow)


def test_shapes_and_nan_are_mismatches():
    with pytest.raises(MismatchError, match="of shape"):
        agree("a", "z", torch.zeros(2), torch.zeros(3))
    with pytest.raises(MismatchError, match="off by nan"):
        agree("a", "z", torch.full((2,), torch.nan), torch.ones(2))


def test_published_forms_agree_and_wrong_ones_are_found():
    pytest.importorskip("flowkit_cinn")
    flow, size = published.small_network(quick=True)
    ab, photo = torch.randn(2, 2, size, size), torch.randn(2, 1, size, size)
    forms = {"concatenated": published.concatenated(flow)}
    if "FrEIA" in installed():
        forms["FrEIA"] = published.FreiaTwin(flow)
    published.check_forms(flow, forms, ab, photo)
    for name, form in forms.items():
        parameter = [p for p in form.parameters() if p.requires_grad and p.dim() == 4][-1]
        with torch.no_grad():
            parameter.view(-1)[0] += 1e-2
        with pytest.raises(MismatchError, match=name):
            published.check_forms(flow, {name: form}, ab, photo)


def test_the_concatenated_form_concatenates():
    flow, _ = published.small_network(quick=True)
    kinds = {type(net).__name__ for net in stacks.subnets(published.concatenated(flow))}
    assert kinds == {"Concatenated"}
    assert {type(net).__name__ for net in stacks.subnets(flow)} == {"Subnet"}


# ---------------------------------------------------------------------- the limit


def test_bare_subnets_see_what_they_see_in_the_flow():
    spec = stacks.Spec(3, (6,), (2,), (5,))
    flow, (x, c) = stacks.build(spec), spec.data(7)
    seen = []
    hooks = [net.register_forward_hook(lambda _, __, out: seen.append(out)) for net in stacks.subnets(flow)]
    bare = Bare(flow, x, c)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(list(bare.outputs()), seen)
    assert bare().item() == pytest.approx(sum(out.square().sum().item() for out in seen), rel=1e-5)
    assert [passive.requires_grad for passive, _ in bare.calls] == [False, True, True]  # as in the flow
    bare_step(bare)()
    assert all(leaf.grad is not None for leaf in bare.leaves)
    assert all(p.grad is not None for net in stacks.subnets(flow) for p in net.parameters())


@pytest.mark.parametrize("features", [True, False])
def test_bare_subnets_run_the_feature_net_once(features):
    flow, size = published.small_network(quick=True)
    ab, photo = torch.randn(2, 2, size, size), torch.randn(2, 1, size, size)
    bare = Bare(flow, ab, photo, features=features)
    ran = []
    pyramid = flow.network.nodes["pyramid"]
    hook = pyramid.register_forward_hook(lambda *_: ran.append(1))
    bare_step(bare)()
    hook.remove()
    assert len(ran) == features
    assert len(bare.calls) == 8
    assert {isinstance(c, int) for _, c in bare.calls} == {features}
    assert any(p.grad is not None for p in pyramid.parameters()) == features


def test_targets_are_met_by_the_lower_end_of_the_interval():
    found = ratio([1.0, 1.2, 1.4, 1.6], [1.0, 1.0, 1.0, 1.0])
    assert found.value > 1.1 >= found.low
    assert judged(found, 1.1) == {"target": "<= 1.1: met", "at most": 1.1, "met": True}
    assert judged(ratio([2.0, 2.0], [1.0, 1.0]), 1.1)["target"] == "<= 1.1: missed"
    assert judged(found, None) == {}


def timed(monkeypatch, series):
    module = importlib.import_module("flowkit.cli._benchmarks._common.limit")
    monkeypatch.setattr(module, "timings", lambda steps, rounds: series)
    return dict.fromkeys(series)


def test_each_is_compared_with_its_own_limit(monkeypatch):
    steps = timed(monkeypatch, {"bare": [1.0, 1.0], "more": [2.0, 2.0], "a": [3.0, 3.0], "b": [3.0, 3.0]})
    rows = {r["implementation"]: r for r in measured(steps, 2, limits={"b": "more"}, targets={"a": 2.0, "b": 2.0})}
    assert (rows["a"]["ratio"].value, rows["b"]["ratio"].value) == (3.0, 1.5)
    assert (rows["a"]["met"], rows["b"]["met"]) == (False, True)
    assert "ratio" not in rows["bare"]
    assert "ratio" not in rows["more"]


def test_microseconds_above_the_bare_subnets(monkeypatch):
    series = {
        LIMIT_NAME: [1.0, 2.0],
        "flowkit": [1.5, 2.5],
        "FrEIA": [3.0, 4.0],
        "nflows": [2.0, 3.0],
        "zuko": [1.1, 2.1],
    }
    rows = {r["implementation"]: r for r in above_bare(timed(monkeypatch, series), 2, 2)}
    assert rows["flowkit"]["above"] == pytest.approx(0.25e6)
    assert rows["flowkit"]["bare"] == pytest.approx(0.75e6)
    assert rows["flowkit"]["ratio"].value == pytest.approx(0.5)  # nflows is the better of the two that count
    assert rows["flowkit"]["met"]
    assert "ratio" not in rows["zuko"]


def test_differences_lost_in_noise_meet_nothing(monkeypatch):
    series = {LIMIT_NAME: [1.0, 1.0, 1.0], "flowkit": [0.5, 1.1, 1.1], "FrEIA": [2.0, 2.0, 2.0]}
    rows = {r["implementation"]: r for r in above_bare(timed(monkeypatch, series), 2, 3)}
    assert rows["flowkit"]["target"] == "<= 0.5: noise"
    assert "met" not in rows["flowkit"]
    series = {LIMIT_NAME: [1.0, 1.0], "flowkit": [1.1, 1.1], "FrEIA": [0.9, 0.9]}  # a peer below the limit
    rows = {r["implementation"]: r for r in above_bare(timed(monkeypatch, series), 2, 2)}
    assert rows["flowkit"]["target"] == "<= 0.5: noise"
    assert "ratio" not in rows["flowkit"]
