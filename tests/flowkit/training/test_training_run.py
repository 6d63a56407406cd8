import io
import os
import signal
import warnings

import pytest
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from flowkit.errors import ConfigError, InputError, NonFiniteError, StorageError
from flowkit.training import FlowModule, KeepLastState, Progress, Schedule, batches, fit, read_checkpoint
from flowkit.training._lightning import pl, quiet

from .training_helpers import Points, make_flow

SIGNAL_AFTER = 4


@pytest.fixture
def points():
    return Points()


def trained(points, steps, *, until=None, checkpoint=None, resume=False, seed=0, dropout=0.3, callbacks=(), **options):
    """A run of `steps`, or its first `until` steps with the same schedule."""
    options = {"lr": 1e-2, "noise": 0.1, "schedule": Schedule("cosine", warmup=2), "clip": 1.0, "seed": seed, **options}
    module = FlowModule(make_flow(seed, dropout=dropout), **options)
    loader = batches(points, module, batch_size=8, steps=steps, seed=seed)
    stop = [StopAfter(until)] if until else []
    result = fit(
        module, loader, steps=steps, checkpoint=checkpoint, resume=resume, device="cpu", callbacks=[*callbacks, *stop]
    )
    return module, result


class StopAfter(pl.Callback):
    def __init__(self, steps, how="signal"):
        self.steps, self.how = steps, how

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.steps:
            if self.how == "error":
                raise RuntimeError("killed")
            os.kill(os.getpid(), signal.SIGINT)


def state(module):
    return {name: value.clone() for name, value in module.flow.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_loss_falls(points):
    module, result = trained(points, 60, dropout=0.0)
    assert result.steps == 60
    assert len(result.losses) == 60
    assert not result.interrupted
    assert sum(result.losses[-10:]) < sum(result.losses[:10]) - 3
    assert not module.flow.training


def test_the_same_seed_gives_the_same_numbers(points):
    one, two = trained(points, 5), trained(points, 5)
    assert one[1].losses == two[1].losses
    assert same(state(one[0]), state(two[0]))
    assert trained(points, 5, seed=1)[1].losses != one[1].losses


def test_a_resumed_run_equals_one_in_one_piece(points, tmp_path):
    whole, result = trained(points, 12)
    file = tmp_path / "checkpoint.ckpt"
    _, first = trained(points, 12, until=5, checkpoint=file)
    assert first.interrupted
    assert first.steps == 5
    torch.manual_seed(123)  # another process's random state
    torch.rand(7)
    resumed, second = trained(points, 12, checkpoint=file, resume=True)
    assert second.losses == result.losses
    assert same(state(resumed), state(whole))
    assert not second.interrupted


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(points, tmp_path):
    file = tmp_path / "checkpoint.ckpt"
    whole, result = trained(points, 12)
    module = FlowModule(make_flow(dropout=0.3), lr=1e-2, noise=0.1, schedule=Schedule("cosine", warmup=2), clip=1.0)
    with pytest.raises(RuntimeError, match="killed"):
        fit(
            module,
            batches(points, module, batch_size=8, steps=12),
            steps=12,
            checkpoint=file,
            save_every=0.0,  # before each step
            device="cpu",
            callbacks=[StopAfter(7, "error")],
        )
    assert len(read_checkpoint(file)["flowkit_training"]["losses"]) == 6
    resumed, second = trained(points, 12, checkpoint=file, resume=True)
    assert second.losses == result.losses
    assert same(state(resumed), state(whole))


def test_a_finished_run_goes_on_to_more_steps(points, tmp_path):
    file, constant = tmp_path / "checkpoint.ckpt", {"schedule": Schedule()}
    whole, _ = trained(points, 9, **constant)
    trained(points, 4, checkpoint=file, **constant)
    resumed, result = trained(points, 9, checkpoint=file, resume=True, **constant)
    assert result.steps == 9
    assert same(state(resumed), state(whole))


def test_ctrl_c_ends_after_the_step_and_is_given_back(points, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    _, result = trained(points, 12, until=SIGNAL_AFTER, checkpoint=tmp_path / "c.ckpt")
    assert result.interrupted
    assert result.steps == SIGNAL_AFTER
    assert signal.getsignal(signal.SIGINT) is before
    assert [path.name for path in tmp_path.iterdir()] == ["c.ckpt"]


def test_a_second_ctrl_c_ends_at_once(points):
    class Twice(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trained(points, 12, callbacks=[Twice()])
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_before_the_first_step(points, tmp_path):
    class Early(pl.Callback):
        def on_fit_start(self, trainer, pl_module):
            os.kill(os.getpid(), signal.SIGINT)

    _, result = trained(points, 12, checkpoint=tmp_path / "c.ckpt", callbacks=[Early()])
    assert result.interrupted
    assert result.steps == 0


def test_a_finished_run_has_nothing_to_resume(points, tmp_path):
    module, result = trained(points, 4, checkpoint=tmp_path / "c.ckpt")
    again, nothing = trained(points, 4, checkpoint=tmp_path / "c.ckpt", resume=True)
    assert nothing.losses == result.losses
    assert same(state(again), state(module))


def test_nan_in_the_data_is_named_and_nothing_is_applied(tmp_path):
    module = FlowModule(make_flow(norm=True), lr=1e-2)
    loader = batches(Points(24, bad=(13, 2)), module, batch_size=8, steps=3, shuffle=False)
    kept, handler = {}, signal.getsignal(signal.SIGINT)

    class Remember(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            kept.update(state(pl_module))

    message = (
        r"step 2 was not applied.*the data 'x' has nan at index \(5, 2\) of the batch; the flow is as step 1 left it"
    )
    with pytest.raises(NonFiniteError, match=message):
        fit(module, loader, steps=3, checkpoint=tmp_path / "c.ckpt", device="cpu", callbacks=[Remember()])
    assert same(state(module), kept)
    assert signal.getsignal(signal.SIGINT) is handler
    saved = read_checkpoint(tmp_path / "c.ckpt")
    assert len(saved["flowkit_training"]["losses"]) == 1
    assert all(torch.equal(saved["state_dict"][f"likelihood.flow.{name}"], value) for name, value in kept.items())


def test_the_node_at_fault_is_named(points):
    flow = make_flow()
    with torch.no_grad():
        flow.network.nodes["affine_coupling_2"].subnets[0].rest[-1].bias.fill_(1e200)
    module = FlowModule(flow)
    with pytest.raises(NonFiniteError, match=r"step 1 was not applied.*node 'affine_coupling_2'"):
        fit(module, batches(points, module, batch_size=8, steps=3), steps=3, device="cpu")


def test_a_bad_gradient_is_caught_before_the_step(points):
    flow = make_flow()
    name, weight = next((n, p) for n, p in flow.named_parameters() if "affine_coupling_2" in n)
    weight.register_hook(lambda gradient: gradient * float("inf"))
    before = {n: p.clone() for n, p in flow.named_parameters()}
    module = FlowModule(flow)
    with pytest.raises(NonFiniteError, match=f"the gradient of '{name}' of node 'affine_coupling_2' is not finite"):
        fit(module, batches(points, module, batch_size=8, steps=3), steps=3, device="cpu")
    assert same(before, dict(flow.named_parameters()))


def test_under_ones_own_trainer(points, tmp_path):
    module = FlowModule(make_flow(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e-3))
    loader = DataLoader(points, batch_size=16)
    logged = {}

    class Look(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            logged.update(trainer.callback_metrics)

    with quiet():
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[Look()], default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(module, loader, loader)
    assert len(module.losses) == 8
    assert {"loss", "bits_per_dimension", "val_loss", "val_bits_per_dimension"} <= logged.keys()
    assert not list(tmp_path.iterdir())


def test_a_layout_of_ones_own(points):
    module = FlowModule(make_flow(), layout=lambda batch: (batch["x"], {"label": batch["label"]}))
    assert fit(module, batches(points, module, batch_size=8, steps=2), steps=2, device="cpu").steps == 2
    module = FlowModule(make_flow(), layout=lambda batch: (batch["x"], None))
    with pytest.raises(InputError):
        fit(module, batches(points, module, batch_size=8, steps=2), steps=2, device="cpu")


def test_data_dependent_initialisation_comes_first(points):
    import flowkit as fk

    graph = fk.Graph()
    graph.output("z", graph.add(fk.ActNorm, graph.input("x", (4,))))
    flow = fk.Flow(graph)
    module = FlowModule(flow, lr=1e-9)
    fit(module, batches(points, module, batch_size=64, steps=1), steps=1, device="cpu")
    z, _ = flow(points.x)
    assert z.mean(0).abs().max() < 1e-6
    assert (z.std(0, correction=0) - 1).abs().max() < 1e-3


def test_progress_in_plain_lines(points):
    text = io.StringIO()
    trained(points, 20, callbacks=[Progress(Console(file=text, width=200))])
    lines = text.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("training 20/20: loss ")
    for word in ("bits/dim", "steps/s", "left"):
        assert word in lines[0]


def test_progress_on_a_terminal(points):
    text = io.StringIO()
    trained(points, 3, callbacks=[Progress(Console(file=text, width=120, force_terminal=True))])
    assert "3/3" in text.getvalue()
    assert "bits/dim" in text.getvalue()


def test_nothing_else_is_printed_or_written(points, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(points, 3)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
    assert not caught
    assert not list(tmp_path.iterdir())


def test_checkpoints_that_are_refused(points, tmp_path):
    file = tmp_path / "c.ckpt"
    with pytest.raises(StorageError, match="does not exist"):
        trained(points, 3, checkpoint=file, resume=True)
    file.write_bytes(b"nonsense")
    with pytest.raises(StorageError, match="is damaged, or is no checkpoint"):
        trained(points, 3, checkpoint=file, resume=True)
    torch.save({"weights": torch.zeros(1)}, file)
    with pytest.raises(StorageError, match="is no checkpoint of flowkit's training"):
        trained(points, 3, checkpoint=file, resume=True)
    torch.save({"flowkit_training": {"losses": torch.zeros(1), "items_seen": 1}, "state_dict": {}}, file)
    with pytest.raises(StorageError, match=r"is of another version of flowkit: it lacks \['random_states'\]"):
        trained(points, 3, checkpoint=file, resume=True)
    trained(points, 1, checkpoint=file)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(StorageError, match="is damaged"):
        read_checkpoint(file)
    file.write_bytes(content)
    module = FlowModule(make_flow(norm=True))
    with pytest.raises(StorageError, match=r"is of another flow: '.*norm.*' is missing there"):
        fit(module, batches(points, module, batch_size=8, steps=3), steps=3, checkpoint=file, resume=True, device="cpu")


def test_a_checkpoint_that_is_about_something_else(points, tmp_path):
    file = tmp_path / "c.ckpt"
    trained(points, 1, checkpoint=file, about={"preset": "small", "data": "points"})
    assert trained(points, 2, checkpoint=file, resume=True, about={"preset": "small", "more": "x"})[1].steps == 2
    sentence = f"'{file}' is of the preset 'small', and the run that is to go on from it has the preset 'demo'"
    module = FlowModule(make_flow(norm=True), about={"preset": "demo"})  # another flow too, which says less
    with pytest.raises(StorageError, match=sentence):
        fit(module, batches(points, module, batch_size=8, steps=3), steps=3, checkpoint=file, resume=True, device="cpu")


def test_a_checkpoint_of_a_newer_version(points, tmp_path):
    file = tmp_path / "c.ckpt"
    trained(points, 1, checkpoint=file)
    content = torch.load(file, weights_only=True)
    content["flowkit_training"] |= {"format": 2, "flowkit": "9.9"}
    torch.save(content, file)
    with pytest.raises(StorageError, match=r"was written by flowkit 9\.9 in format 2; this is .* format 1: update"):
        trained(points, 3, checkpoint=file, resume=True)


def test_validation_changes_nothing_and_is_the_same_at_every_call(points):
    class Look(pl.Callback):
        def __init__(self):
            self.found = []

        def on_validation_end(self, trainer, pl_module):
            self.found.append((trainer.global_step, float(trainer.callback_metrics["val_loss"])))

    want, result = trained(points, 6)
    schedule, look = Schedule("cosine", warmup=2), Look()
    module = FlowModule(make_flow(dropout=0.3), lr=1e-2, noise=0.1, schedule=schedule, clip=1.0)
    loader = batches(points, module, batch_size=8, steps=6)
    held_out = DataLoader(points, batch_size=24)  # 24, 24 and 16 rows
    again = fit(module, loader, steps=6, device="cpu", callbacks=[look], validation=held_out, validate_every=3)
    assert again.losses == result.losses
    assert same(state(want), state(module))
    assert [step for step, _ in look.found] == [3, 6]
    module.eval()
    with torch.no_grad():
        x = module.with_noise({"x": points.x}, "validation", 0)["x"]
        by_hand = -module.flow.log_prob(x, given=points.label).mean() / 4
    assert look.found[1][1] == pytest.approx(float(by_hand), rel=1e-10)
    with pytest.raises(ConfigError, match="validate_every=0"):
        fit(module, loader, steps=6, device="cpu", validation=held_out, validate_every=0)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(points, tmp_path, monkeypatch):
    file = tmp_path / "c.ckpt"
    trained(points, 2, checkpoint=file)
    content = file.read_bytes()

    def full(self, path, *rest, **options):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", full)
    with pytest.raises(
        StorageError, match=r"cannot be written.*No space left on device.*the one written before is kept"
    ):
        trained(points, 4, checkpoint=file, resume=True)
    assert file.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["c.ckpt"]


class Unreadable(Points):
    """One item cannot be read; as a batch at once, or one by one."""

    def __getitem__(self, index):
        if index == 13:
            raise InputError(f"item {index} cannot be read")
        return super().__getitem__(index)


class UnreadableAtOnce(Unreadable):
    def __getitems__(self, indices):
        return [self[index] for index in indices]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [Unreadable, UnreadableAtOnce])
def test_bad_data_is_one_sentence_whoever_reads_it(workers, kind):
    module = FlowModule(make_flow())
    loader = batches(kind(), module, batch_size=8, steps=4, shuffle=False, workers=workers)
    with pytest.raises(InputError) as caught:
        fit(module, loader, steps=4, device="cpu")
    assert str(caught.value) == "item 13 cannot be read"
    assert len(module.losses) <= 1


def test_settings_that_are_refused(points):
    flow = make_flow()
    for wrong in ({"lr": 0.0}, {"lr": float("nan")}, {"clip": 0.0}, {"weight_decay": -1.0}, {"noise": -0.1}):
        with pytest.raises(ConfigError):
            FlowModule(flow, **wrong)
    with pytest.raises(ConfigError, match="noise for 'y': the flow's inputs are 'x'"):
        FlowModule(flow, noise={"y": 0.1})
    module = FlowModule(flow)
    loader = batches(points, module, batch_size=8, steps=1)
    with pytest.raises(ConfigError, match="at least one step"):
        fit(module, loader, steps=0)
    with pytest.raises(ConfigError, match="resume needs the checkpoint"):
        fit(module, loader, steps=1, resume=True, device="cpu")
    assert KeepLastState(None).interrupted is False
