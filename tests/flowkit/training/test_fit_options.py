"""What `fit` passes on, writes and says besides training: curves, mixed precision, a lack of memory."""

import sys

import pytest
import torch

import flowkit as fk
from flowkit.errors import MissingDependencyError, OutOfMemoryError
from flowkit.training import FlowModule, batches, fit

from .training_helpers import Points, make_flow


def run(steps=4, batch_size=8, **options):
    module = FlowModule(make_flow(), lr=1e-2)
    loader = batches(Points(), module, batch_size=batch_size, steps=steps)
    fit(module, loader, steps=steps, device="cpu", **options)
    return module


def test_tensorboard_has_every_step(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    module = run(tensorboard=tmp_path / "curves", log_every_n_steps=1)
    events = EventAccumulator(str(tmp_path / "curves"))
    events.Reload()
    curve = events.Scalars("loss")
    assert [event.value for event in curve] == pytest.approx(module.losses, rel=1e-6)
    assert "bits_per_dimension" in events.Tags()["scalars"]


def test_tensorboard_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingDependencyError, match="curves need TensorBoard: python -m pip install"):
        run(tensorboard=tmp_path / "curves")
    assert not (tmp_path / "curves").exists()


def test_mixed_precision_keeps_the_log_det_wide():
    seen = []

    class Wide(fk.AffineCoupling):
        def forward(self, x, *given):
            y, log_det = super().forward(x, *given)
            seen.append((torch.is_autocast_enabled("cpu"), log_det.dtype))
            return y, log_det

    torch.set_default_dtype(torch.float32)
    graph = fk.Graph()
    graph.output("z", graph.add(Wide, graph.input("x", (4,)), subnet=fk.MLP(hidden=8)))
    module = FlowModule(fk.Flow(graph), layout=lambda batch: (batch["x"].float(), None))
    loader = batches(Points(), module, batch_size=8, steps=2)
    fit(module, loader, steps=2, device="cpu", precision="bf16-mixed")
    assert set(seen) == {(True, torch.float32)}
    assert all(p.dtype == torch.float32 for p in module.flow.parameters())


@pytest.mark.parametrize(
    ("mode", "rows", "advice"),
    [
        ("plain", 8, "flow.backprop = 'reverse' keeps no values of the layers; or use a batch size of 4"),
        ("reverse", 8, "memory: use a batch size of 4"),
        ("reverse", 1, "memory: use a smaller flow"),
    ],
)
def test_a_lack_of_memory_says_what_takes_less(mode, rows, advice, monkeypatch):
    module = FlowModule(make_flow())
    module.flow.backprop = mode
    loader = batches(Points(), module, batch_size=rows, steps=3)
    backward, calls = torch.Tensor.backward, []

    def fails(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")
        return backward(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", fails)
    with pytest.raises(OutOfMemoryError) as caught:
        fit(module, loader, steps=3, device="cpu")
    assert str(caught.value).startswith(f"step 2, of {rows} rows with backprop '{mode}', does not fit into memory: ")
    assert advice in str(caught.value)
    assert len(module.losses) == 1


def test_other_errors_pass(monkeypatch):
    def fails(self, *args, **kwargs):
        raise RuntimeError("something else")

    monkeypatch.setattr(torch.Tensor, "backward", fails)
    with pytest.raises(RuntimeError, match="something else"):
        run()
