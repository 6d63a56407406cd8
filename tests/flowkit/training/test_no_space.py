"""No space left while saving, for real: a file may not grow beyond a limit. What was there before survives."""

import resource
from contextlib import contextmanager

import pytest
import torch

import flowkit as fk
from flowkit.cli.output import OutputError, write_file
from flowkit.errors import StorageError
from flowkit.training import FlowModule, batches, fit, read_checkpoint

from .training_helpers import Points, make_flow


@contextmanager
def no_file_beyond(size):
    """Within it a write beyond so many bytes fails: EFBIG, as ENOSPC on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def trained(checkpoint, steps, **options):
    module = FlowModule(make_flow(), lr=1e-2)
    loader = batches(Points(), module, batch_size=8, steps=6)
    return module, fit(module, loader, steps=steps, checkpoint=checkpoint, device="cpu", **options)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_the_checkpoint(tmp_path, share):
    file = tmp_path / "c.ckpt"
    trained(file, 2)
    before = file.read_bytes()
    sentence = rf"^the checkpoint '{file}' cannot be written \(File too large\); the one written before is kept$"
    with no_file_beyond(int(share * len(before))), pytest.raises(StorageError, match=sentence):
        trained(file, 4, resume=True)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c.ckpt"]
    assert len(read_checkpoint(file)["flowkit_training"]["losses"]) == 2
    resumed, result = trained(file, 6, resume=True)
    whole, in_one_piece = trained(None, 6)
    assert result.losses == in_one_piece.losses
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_the_model(tmp_path):
    file = tmp_path / "model.safetensors"
    fk.save(make_flow(0), file)
    before = file.read_bytes()
    with no_file_beyond(len(before) // 2), pytest.raises(StorageError, match="cannot be written: File too large"):
        fk.save(make_flow(1), file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_report(tmp_path):
    file = tmp_path / "report.html"
    write_file(file, "before")
    with no_file_beyond(100), pytest.raises(OutputError, match=r"report\.html cannot be written: File too large"):
        write_file(file, "after " * 1000)
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_picture(tmp_path):
    images = pytest.importorskip("flowkit_cinn.translation.images")
    noise = images.to_image(torch.rand(3, 64, 64))
    for name in ("a.png", "a.jpg"):
        images.save_image(noise, tmp_path / name)
        before = (tmp_path / name).read_bytes()
        with no_file_beyond(1000), pytest.raises(images.PhotographError, match="cannot be written: File too large"):
            images.save_image(images.to_image(torch.rand(3, 64, 64)), tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "a.png"]
