"""What the benchmarks share: ratios, reports, chains, cases, peers."""

import json
import math
from types import SimpleNamespace

import click
import pytest
import torch
from flowkit.cli._benchmarks._common import Column, Options, Report, Section, bench_options, ratio
from flowkit.cli._benchmarks._common import cases as case_module
from flowkit.cli._benchmarks._common.cases import bijections, cases
from flowkit.cli._benchmarks._common.chains import chain, double_weights, redraw
from flowkit.cli._benchmarks._common.networks import coupling_chain, train
from flowkit.cli._benchmarks._common.peers import COUPLINGS, counterparts, installed, peer_chain, quiet, random_weights
from flowkit.cli._benchmarks._common.pictures import ratio_bars

import flowkit as fk
from flowkit import diagnostics
from flowkit.cli.app import run
from flowkit.cli.groups import Group


def test_ratio_of_medians_with_its_interval():
    found = ratio([2.0] * 14 + [100.0], [1.0] * 15)
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)  # one slow round moves no median
    noisy = ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 1.0, 1.0, 1.0, 1.0])
    assert noisy.low < noisy.value == 3.0 < noisy.high
    assert ratio([1.0, 2.0, 3.0], [1.0, 1.0, 2.0]) == ratio([1.0, 2.0, 3.0], [1.0, 1.0, 2.0])
    slow = ratio([2.0, 20.0, 2.0, 20.0], [1.0, 10.0, 1.0, 10.0])  # the machine slowed down for both
    assert (slow.low, slow.high) == (2.0, 2.0)


def report(tmp_path, **options):
    made = Report(
        "b", Options(**{"json": tmp_path / "b.json", "plot": None, "quick": True, "seed": 3, **options}), rows=2
    )
    columns = (Column("op", "", ""), Column("error", "what it says", ".1e"), Column("n", "", "d"))
    made.measure(
        Section("A table", columns, note="a note"),
        iter([{"op": "[a]", "error": 1e-7, "n": 3}, {"op": "b", "error": math.inf}]),
    )
    return made


def test_report_on_the_terminal(tmp_path, capsys):
    report(tmp_path)
    shown = capsys.readouterr().out
    for expected in ("A table", "[a]", "1.0e-07", "not finite", "  error: what it says", "a note"):
        assert expected in shown
    assert next(line for line in shown.splitlines() if line.startswith(" b ")).split() == ["b", "not", "finite", "-"]


@pytest.mark.parametrize(("quick", "shown"), [(True, "<= 2: not judged"), (False, "<= 2: missed")])
def test_targets_are_not_judged_at_the_sizes_of_quick(tmp_path, capsys, quick, shown):
    made = Report("b", Options(json=tmp_path / "b.json", plot=None, quick=quick, seed=0))
    made.measure(Section("A table", (Column("target", ""),)), iter([{"target": "<= 2: missed"}]))
    assert [line.strip() for line in capsys.readouterr().out.splitlines() if "<=" in line] == [shown]
    made.finish()
    assert json.loads((tmp_path / "b.json").read_text())["sections"][0]["rows"] == [{"target": "<= 2: missed"}]


def test_bars_of_ratios_are_named_and_have_their_numbers_beside_them(tmp_path):
    path = tmp_path / "b.svg"
    made = Report("b", Options(json=None, plot=path, quick=True, seed=0))
    columns = (Column("samples", "", "d"), Column("implementation", ""), Column("ratio", "to the limit; and so on"))
    rows = [{"samples": n, "implementation": f"flowkit {n}", "ratio": ratio([n], [2.0])} for n in range(1, 41)]
    made.measure(Section("Many", columns), iter([*rows, {"samples": 0, "implementation": "the limit"}]))
    made.measure(Section("Without", columns), iter([{"implementation": "no ratio"}]))
    figures = []
    made.finish(lambda figure, report: (figures.append(figure), ratio_bars(figure, report)))
    (axes,) = figures[0].axes
    assert figures[0].get_figheight() > 9  # room for forty names
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == [
        "samples 1, flowkit 1",
        "samples 2, flowkit 2",
    ]
    assert [text.get_text() for text in axes.texts][:2] == ["0.50 (0.50-0.50)", "1.00 (1.00-1.00)"]
    assert axes.get_xlabel() == "ratio to the limit; the line is 1"


def test_what_needs_a_package_is_left_out_and_said(capsys, monkeypatch):
    def needing(name, cls, example, seed):
        if name == "flowkit.exp":
            raise fk.MissingDependencyError('it needs a package: python -m pip install "flowkit[ode]"')
        return name

    monkeypatch.setattr(case_module, "make", needing)
    monkeypatch.setattr(case_module, "bijections", lambda only: {"flowkit.exp": fk.Exp, "flowkit.log": fk.Log})
    assert list(cases((), 0, most=1)) == ["flowkit.log"]
    expected = 'left out: flowkit.exp: it needs a package: python -m pip install "flowkit[ode]"\n'
    assert capsys.readouterr().err == expected
    with pytest.raises(fk.MissingDependencyError):
        list(cases(("flowkit.exp",), 0, most=1))


def test_report_as_json(tmp_path):
    report(tmp_path).finish()
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["benchmark"] == "b"
    assert found["settings"] == {"quick": True, "seed": 3, "rows": 2}
    assert found["environment"]["torch"] == torch.__version__
    assert found["sections"][0]["rows"] == [{"op": "[a]", "error": 1e-7, "n": 3}, {"op": "b", "error": "inf"}]
    assert found["sections"][0]["columns"]["error"] == "what it says"


def test_json_is_whole_or_as_it_was(tmp_path, monkeypatch):
    import os

    made = report(tmp_path)
    (tmp_path / "b.json").write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(fk.FlowkitError, match="cannot be written"):
        made.finish()
    assert (tmp_path / "b.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["b.json"]


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_plot(tmp_path, suffix, start):
    path = tmp_path / f"b.{suffix}"
    report(tmp_path, json=None, plot=path).finish(lambda figure, made: figure.subplots().plot([made.options.seed, 1]))
    assert path.read_bytes().startswith(start)


def test_options(tmp_path, capsys):
    seen = []

    @click.group(cls=Group)
    def group():
        pass

    @group.command("go")
    @bench_options
    def _(options):
        seen.append((options, torch.get_num_threads(), torch.rand(()).item()))

    threads = torch.get_num_threads()
    assert run(["go", "--json", str(tmp_path / "a.json"), "--threads", "1", "--quick", "--seed", "5"], group) == 0
    torch.manual_seed(5)
    assert seen == [(Options(tmp_path / "a.json", None, True, 5), 1, torch.rand(()).item())]
    assert torch.get_num_threads() == threads
    for words in (
        ["--json", str(tmp_path / "no" / "a.json")],
        ["--json", str(tmp_path)],
        ["--plot", str(tmp_path / "a.gif")],
    ):
        assert run(["go", *words], group) == 2  # before any work
        assert capsys.readouterr().err.count("\n") == 1
    assert len(seen) == 1


def test_a_benchmark_overwrites_nothing_without_force(tmp_path, capsys):
    runs = []

    @click.group()
    def group():
        pass

    @group.command("go")
    @bench_options
    def _(options):
        runs.append(options)

    for option, mine in (("--json", tmp_path / "a.json"), ("--plot", tmp_path / "a.png")):
        mine.write_text("mine")
        assert run(["go", option, str(mine)], group) == 2
        assert "is there already, and only --force overwrites it" in capsys.readouterr().err
        assert run(["go", option, str(mine), "--force"], group) == 0
    assert run(["go", "--json", str(tmp_path / "b.png"), "--plot", str(tmp_path / "b.png")], group) == 2
    assert "need a file each" in capsys.readouterr().err
    assert len(runs) == 2


def test_redrawn_chains_are_far_from_the_identity():
    flow = redraw(chain(6, dim=8, hidden=(16,)))
    trace = flow.trace(torch.randn(4000, 8))
    x = torch.randn(4000, 8)
    for coupling in flow.network.nodes.children():
        assert coupling.log_scales(x).std().item() == pytest.approx(0.1, rel=0.15)
        x = coupling(x)[0]
    assert [c.steps for c in flow.network.nodes.children()] == [(1,), (0,)] * 3
    assert trace.first_bad(1e-9) is None


def test_double_weights():
    flow = chain(2, dim=4, hidden=(8,))
    before = [p.clone() for p in flow.parameters()]
    double_weights(flow)
    torch.testing.assert_close(list(flow.parameters()), [2 * p for p in before])


def test_training_lowers_the_loss():
    flow, x = chain(2, dim=4, hidden=(8,)), 3 * torch.randn(256, 4)
    before = flow.log_prob(x).mean()
    assert train(flow, lambda: (x, None), 20, rate=1e-2).log_prob(x).mean() > before
    assert not flow.training


def test_the_chain_in_its_three_states():
    states = {n.state: n for n in coupling_chain(2, 2)}
    assert list(states) == ["at start", "redrawn", "trained, 2 steps"]
    x, given = states["redrawn"].batch(4)
    assert given is None
    assert [bool(n.flow(x)[1].abs().max() > 0) for n in states.values()] == [False, True, True]


def test_cases_cover_every_registered_bijection():
    names = set(bijections())
    assert {"flowkit.affine_coupling", "flowkit.permute", "cinn.haar_downsample"} <= names
    assert {c.name for c in cases((), 0, 1)} == names


def test_cases_are_random_and_repeatable():
    first, second = (next(iter(cases(["flowkit.affine_coupling"], 3, 1))) for _ in range(2))
    torch.testing.assert_close(first.bijection.state_dict(), second.bijection.state_dict())
    x, c = first.data(5, torch.float32, 10.0)
    assert x[0].dtype == torch.float32
    assert first.to(torch.float32)(*x, *c)[1].abs().min() > 0
    torch.testing.assert_close(x[0], 10 * first.data(5, torch.float32)[0][0])


def test_unknown_bijections_are_refused():
    with pytest.raises(click.UsageError, match=r"no bijection 'flowkit.permut'; did you mean 'flowkit.permute'"):
        bijections(["flowkit.permut"])


@pytest.mark.parametrize("peer", list(COUPLINGS))
def test_peer_chains_do_as_much_as_ours(peer):
    if peer not in installed():
        pytest.skip(f"{peer} is not installed")
    x = torch.randn(512, 64)
    with quiet():
        theirs = peer_chain(peer, 4)
        found = diagnostics.round_trip(theirs, x)
        log_det = theirs(x)[1]
    assert 0 < found.error < 1e-10
    # 4 couplings x 32 log-scales of standard deviation 0.1, about independent
    centred = log_det - log_det.mean()
    assert 0.3 < centred.std() < 4


def test_counterparts_that_are_wrong_are_found():
    known = {(c.op, c.implementation): c for c in counterparts()}
    assert known["affine coupling", "flowkit"]
    wrong = known.get(("elementwise scaling", "FrEIA"))
    if wrong is None:
        pytest.skip("FrEIA is not installed")
    with quiet():
        found = diagnostics.log_det_error(random_weights(wrong), torch.randn(3, *wrong.shape))
    assert found.forward < 1e-12 < 0.01 < found.inverse  # its inverse's log-det has the wrong sign


def test_random_weights_leave_constants_alone():
    constant = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    op = fk.Identity((2,))
    op.constant, op.weight = constant, torch.nn.Parameter(torch.ones(3, 3))
    random_weights(SimpleNamespace(build=lambda: op))
    assert torch.equal(op.constant, torch.ones(3))
    assert not torch.equal(op.weight, torch.ones(3, 3))
