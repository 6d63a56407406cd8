"""Every ready flow through torch.export; ONNX and AOTInductor on some; files, names, and what is refused."""

import builtins
import importlib.util
import json
import subprocess
import sys

import pytest
import torch

import flowkit as fk
from flowkit.interop import FlowFunction, export, load_exported
from flowkit.interop._normal_quantile import normal_quantile
from flowkit.interop._onnx import in_elementary_operations, solve_by_halves

from ..ready_flows import NAMES, adaptive, ready


def arguments(function, rows):
    """Random tensors for a function, the temperature 0.7."""
    return [torch.randn_like(t) if t.dim() else 0.7 * t for t in function.example(rows)]


def agree(program, function, sizes=(1, 2, 5), tolerance=1e-9):
    for rows in sizes:
        values = arguments(function, rows)
        torch.testing.assert_close(program(*values), function(*values), atol=tolerance, rtol=tolerance)


EXPORTS = [("log_prob", 2), ("forward", None), ("inverse", None), ("sample", 2)]
# Tracing a root finder or a solver takes seconds: there log_prob and sample, which run the same steps, stand for all;
# planar is inverted by a root finder too.
DEAR = [(name, "inverse") for name in ("gaussianization", "sylvester", "naf", "residual_flow", "ffjord")]
DEAR.append(("ffjord", "forward"))


@pytest.mark.parametrize(
    ("name", "what", "condition"), [(n, w, c) for n in NAMES for w, c in EXPORTS if (n, w) not in DEAR]
)
def test_every_ready_flow_through_torch_export(name, what, condition):
    flow = ready(name, condition)
    if adaptive(flow):
        with pytest.raises(fk.ExportError, match="depends on the data"):
            export(flow, what)
        return
    program, function = export(flow, what).module(), FlowFunction(flow, what)
    agree(program, function, sizes=(0, 1, 2, 5))
    x = arguments(function, 4)
    if what == "sample":
        # The same numbers as the flow's own samples of the same noise.
        torch.manual_seed(1)
        want = flow.sample((), given=x[1], temperature=0.7)
        torch.manual_seed(1)
        got = program(flow.base.noise((4,)), x[1], torch.tensor(0.7))
        torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-9)
    elif what == "log_prob":
        torch.testing.assert_close(program(*x), flow.log_prob(x[0], given=x[1]), atol=1e-9, rtol=1e-9)


def test_an_adaptive_solver_is_refused_by_name():
    """In a process of its own: the first use of the solver's package is while a graph is built on the meta device."""
    code = (
        "import torch, flowkit as fk\n"
        "flow = fk.flows.ffjord(2, hidden=4)\n"
        "print(flow.log_prob(torch.zeros(3, 2)).shape)\n"
        "from flowkit.interop import export\n"
        "try: export(flow)\n"
        "except fk.ExportError as error: print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert told.stdout.startswith("torch.Size([3])\na program has a fixed number of steps, and that of '"), told.stderr


ONNX = [("realnvp", "log_prob", 2), ("nsf", "forward", 2), ("nsf", "sample", 2), ("maf", "inverse", None)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "what", "condition"), ONNX)
def test_onnx_in_onnxruntime(name, what, condition, tmp_path):
    flow = ready(name, condition, torch.float32)
    export(flow, what, "onnx", tmp_path / "flow.onnx")
    program = load_exported(tmp_path / "flow.onnx")
    agree(program, FlowFunction(flow, what), tolerance=1e-4)
    assert program.kind == "onnx"


@pytest.mark.slow
def test_onnx_has_the_names_and_a_dynamic_batch(tmp_path):
    import onnx

    export(ready("realnvp", {"temperature": 1, "y": (2,)}, torch.float32), "sample", "onnx", tmp_path / "a.onnx")
    graph = onnx.load(tmp_path / "a.onnx").graph
    assert [v.name for v in graph.input] == ["noise", "temperature", "y", "temperature_"]
    assert [v.name for v in graph.output] == ["x"]
    first = [v.type.tensor_type.shape.dim[0].dim_param for v in (*graph.input[:3], *graph.output)]
    assert len(set(first)) == 1
    assert first[0]


@pytest.mark.slow
def test_aoti_package(tmp_path):
    flow = ready("realnvp", 2, torch.float32)
    assert export(flow, "log_prob", "aoti", tmp_path / "flow.pt2") == tmp_path / "flow.pt2"
    program = load_exported(tmp_path / "flow.pt2")
    agree(program, FlowFunction(flow, "log_prob"), tolerance=1e-5)
    assert (program.kind, program.inputs, program.outputs) == ("aoti", ("x", "y"), ("log_prob",))
    assert [f.name for f in tmp_path.iterdir()] == ["flow.pt2"]


BASES = {
    "DiagonalNormal": lambda: (fk.DiagonalNormal, True),
    "FullNormal": lambda: (fk.FullNormal, True),
    "LowRankNormal": lambda: (fk.LowRankNormal, True),
    "Laplace": lambda: (fk.Laplace, False),
    "Logistic": lambda: (fk.Logistic, False),
    "GeneralizedNormal": lambda: (fk.GeneralizedNormal, False),
    "StudentT": lambda: (fk.StudentT, False),
    "Uniform": lambda: (fk.Uniform(3, low=-9.0, high=9.0), False),
    "GaussianMixture": lambda: (fk.GaussianMixture, True),
    "ClassConditional": lambda: (fk.ClassConditional, True),
}


def with_base(name):
    base, conditional = BASES[name]()
    graph = fk.Graph()
    y = graph.condition("y", (2,)) if conditional else None
    x = graph.input("x", (3,))
    graph.output("z", graph.add(fk.AffineCoupling, x, given=y) if conditional else graph.add(fk.AffineCoupling, x))
    flow = fk.Flow(graph, base=base, base_given=y)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return flow


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("what", ["log_prob", "sample"])
def test_every_base(name, what):
    flow = with_base(name)
    agree(export(flow, what).module(), FlowFunction(flow, what))
    if what == "sample":
        more = {"GaussianMixture": 8, "LowRankNormal": 4}  # numbers that decide the component, or common causes
        assert flow.base.noise((2,)).shape[-1] == 3 + more.get(name, 0)


@pytest.mark.slow
def test_a_system_that_depends_on_the_data_in_onnx(tmp_path):
    flow = with_base("FullNormal").float()
    export(flow, "log_prob", "onnx", tmp_path / "flow.onnx")
    agree(load_exported(tmp_path / "flow.onnx"), FlowFunction(flow, "log_prob"), tolerance=1e-4)


@pytest.mark.parametrize(
    ("part", "lacks"),
    [(fk.AffineCoupling((3,)), False), (fk.FixedRotation((3,)), False), (fk.LULinear((3,)), True),
     (fk.OrthogonalLinear((3,)), True), (fk.Quantile((3,), distribution="normal"), True)],
)  # fmt: skip
def test_only_what_onnx_may_lack_is_decomposed_beforehand(part, lacks):
    function = FlowFunction(fk.Flow(part), "inverse" if isinstance(part, fk.LULinear) else "forward")
    program = function.program()
    assert (in_elementary_operations(program, function.example(3)) is program) == (not lacks)


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("unitriangular", [True, False])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_triangular_systems_by_halves(upper, left, unitriangular, size):
    a = torch.randn(2, size, size) + 3 * torch.eye(size)
    b = torch.randn(2, size, 3) if left else torch.randn(2, 3, size)
    options = {"upper": upper, "left": left, "unitriangular": unitriangular}
    torch.testing.assert_close(solve_by_halves(a, b, **options), torch.linalg.solve_triangular(a, b, **options))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_the_normal_quantile(dtype, tolerance):
    middle, tail = torch.linspace(0, 1, 2001, dtype=dtype), 10 ** torch.linspace(-30, -1, 100, dtype=dtype)
    p = torch.cat((middle, tail, torch.tensor([-0.1, 1.1, float("nan"), 0.1353352, 0.8646648], dtype=dtype)))
    want = torch.special.ndtri(p)
    torch.testing.assert_close(normal_quantile(p), want, atol=tolerance, rtol=tolerance, equal_nan=True)


@pytest.mark.slow
def test_the_normal_quantile_in_onnx(tmp_path):
    flow = fk.Flow(fk.Quantile((3,), distribution="normal")).float()
    export(flow, "forward", "onnx", tmp_path / "flow.onnx")
    p = torch.rand(5, 3).float()
    torch.testing.assert_close(load_exported(tmp_path / "flow.onnx")(p), flow(p), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_what_onnx_lacks_is_named(tmp_path):
    """The documented list of what is not possible."""
    flow = fk.Flow(fk.PeriodicConvolution((2, 3, 3))).float()
    with pytest.raises(fk.ExportError, match=r"ONNX cannot hold this flow: it lacks aten\.\w+; 'torch' and 'aoti' can"):
        export(flow, "inverse", "onnx", tmp_path / "flow.onnx")
    assert not list(tmp_path.iterdir())
    agree(export(flow, "inverse").module(), FlowFunction(flow, "inverse"), tolerance=1e-5)


def two_inputs():
    graph = fk.Graph()
    a, b = graph.input("a", (2,)), graph.input("z", (3,))
    label = graph.condition("label", (), dtype=torch.int64)
    y = graph.features(fk.OneHot(4), label)
    graph.output("first", graph.add(fk.AffineCoupling, a, given=y))
    graph.output("second", graph.add(fk.AffineCoupling, b, given=[y]))
    return fk.Flow(graph)


@pytest.mark.parametrize(
    ("what", "inputs", "outputs"),
    [
        ("log_prob", ("a", "z", "label"), ("log_prob",)),
        ("forward", ("a", "z", "label"), ("z_", "log_det")),
        ("inverse", ("z", "label"), ("a", "z_", "log_det")),
        ("sample", ("noise", "label", "temperature"), ("a", "z")),
    ],
)
def test_several_inputs_and_integer_conditions(what, inputs, outputs, tmp_path):
    flow = two_inputs()
    function = FlowFunction(flow, what)
    assert (function.inputs, function.outputs) == (inputs, outputs)
    export(flow, what, path=tmp_path / "flow.pt2")
    program = load_exported(tmp_path / "flow.pt2")
    assert (program.what, program.inputs, program.outputs) == (what, inputs, outputs)
    values = [v.long() % 4 if name == "label" else v for name, v in zip(inputs, example(function), strict=True)]
    want = function(*values)
    torch.testing.assert_close(program(*values), want)
    torch.testing.assert_close(program(**dict(zip(inputs, values, strict=True))), want)


def example(function):
    return [
        torch.randn_like(t) if t.is_floating_point() and t.dim() else t + torch.arange(6)[: t.numel()].view(t.shape)
        for t in function.example(6)
    ]


def test_the_flow_is_left_as_it_was():
    flow = ready("realnvp").train()
    flow.backprop = "reverse"
    before = torch.get_rng_state()
    program = export(flow, "sample")
    assert torch.equal(before, torch.get_rng_state())
    assert flow.training
    assert flow.backprop == "reverse"
    assert all(p.requires_grad for p in flow.parameters())
    assert not any(p.requires_grad for p in program.module().parameters())


class Searching(fk.Bijection):
    """Takes as many steps as the data needs."""

    adaptive = True

    def forward(self, x):
        while x.abs().max() > 1:
            x = x / 2
        return x, x.new_zeros(x.shape[0])

    inverse = forward


class Wandering(Searching):
    """The same, not declared."""

    adaptive = False


class Own(torch.nn.Module):
    """A base with no noise."""

    def log_prob(self, z):
        return z.sum(-1)

    def sample(self, shape, temperature=1.0):
        return torch.randn(*shape, 3) * temperature


def nested():
    inner, outer = fk.Graph(), fk.Graph()
    inner.output("z", inner.add(Searching, inner.input("x", (3,)), name="search"))
    outer.output("z", outer.add(fk.InvertibleNetwork, outer.input("x", (3,)), graph=inner, name="inside"))
    return fk.Flow(outer)


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda f: export(nested()), fk.ExportError, r"that of 'inside\.search' \(Searching\) depends on the data"),
        (lambda f: export(fk.Flow(Wandering((3,)))), fk.ExportError, "torch.export cannot take this flow: "),
        (lambda f: export(fk.Flow(fk.Permute((3,)), base=Own()), "sample"), fk.ExportError, "Own has no from_noise"),
        (lambda f: export(fk.Permute((3,))), fk.ConfigError, "a Flow can be exported, got Permute"),
        (lambda f: export(f, "prob"), fk.ConfigError, "'forward', 'inverse' and 'sample', got 'prob'"),
        (lambda f: export(f, to="tflite"), fk.ConfigError, "to 'torch', 'onnx' and 'aoti', got 'tflite'"),
        (lambda f: export(f, to="aoti"), fk.ConfigError, "a file: pass path="),
        (
            lambda f: export(f, path="flow.onnx"),
            fk.ConfigError,
            "export to torch has to end in .pt2",
        ),
        (lambda f: export(f, path="nowhere/flow.pt2"), fk.StorageError, "there is no folder nowhere"),
    ],
)
def test_refusals(run, error, message):
    with pytest.raises(error, match=message):
        run(ready("realnvp"))


def test_a_file_is_kept_unless_asked(tmp_path):
    flow, path = ready("realnvp"), tmp_path / "flow.pt2"
    export(flow, path=path)
    held = path.read_bytes()
    with pytest.raises(fk.StorageError, match=r"flow.pt2' is there already, and only overwrite=True replaces it"):
        export(flow, "sample", path=path)
    assert path.read_bytes() == held
    export(flow, "sample", path=path, overwrite=True)
    assert load_exported(path).what == "sample"
    assert [f.name for f in tmp_path.iterdir()] == ["flow.pt2"]


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "flow.pt2"
    path.write_text("old")

    def full(program, file, **options):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(fk.StorageError, match="No space left"):
        export(ready("realnvp"), path=path, overwrite=True)
    assert path.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["flow.pt2"]


def test_missing_packages(tmp_path, monkeypatch):
    find, real = importlib.util.find_spec, builtins.__import__

    def without(name, *rest):
        return None if name in ("onnx", "onnxscript") else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(fk.MissingDependencyError, match=r"onnx and onnxscript: python -m pip install onnx onnxscript$"):
        export(ready("realnvp"), to="onnx")

    def no_runtime(name, *rest, **keywords):
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *rest, **keywords)

    monkeypatch.setattr(builtins, "__import__", no_runtime)
    (tmp_path / "flow.onnx").write_bytes(b"")
    with pytest.raises(fk.MissingDependencyError, match="python -m pip install onnxruntime"):
        load_exported(tmp_path / "flow.onnx")


def test_files_that_are_no_exports(tmp_path):
    (tmp_path / "text.pt2").write_text("hello")
    (tmp_path / "text.onnx").write_text("hello")
    for name, message in (
        ("text.pt2", "is not a file that flowkit exported"),
        ("text.onnx", "cannot be read as an exported flow"),
        ("none.pt2", "there is no file"),
    ):
        with pytest.raises(fk.StorageError, match=message):
            load_exported(tmp_path / name)
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(3, 2),))
    torch.export.save(program, tmp_path / "other.pt2")
    with pytest.raises(fk.StorageError, match="is not a file that flowkit exported"):
        load_exported(tmp_path / "other.pt2")


def test_a_call_with_wrong_names(tmp_path):
    export(ready("realnvp", 2), path=tmp_path / "flow.pt2")
    program = load_exported(tmp_path / "flow.pt2")
    assert repr(program) == "Exported(torch: log_prob(x, y) -> log_prob)"
    for positional, named in (((), {}), ((torch.zeros(1, 3),), {"x": torch.zeros(1, 3)}), ((), {"a": torch.zeros(1)})):
        with pytest.raises(fk.InputError, match="log_prob takes 'x' and 'y', got"):
            program(*positional, **named)
    with pytest.raises(fk.ConfigError, match="takes 2 tensors"):
        FlowFunction(ready("realnvp", 2), "log_prob")(torch.zeros(1, 3))
    assert json.loads(FlowFunction(ready("realnvp"), "forward").description())["outputs"] == ["z", "log_det"]
