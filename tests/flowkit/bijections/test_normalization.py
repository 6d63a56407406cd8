import subprocess
import sys

import pytest
import torch

import flowkit as fk


def norm_of(x):
    norm = fk.ActNorm(tuple(x.shape[1:]))
    norm.initialize(x)
    return norm


@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (2, 3, 4), (1, 2, 2, 2)])
def test_initialization_normalizes_every_channel(shape):
    x = 3 * torch.randn(50, *shape) + torch.arange(1.0, 51).view(50, *[1] * len(shape))
    norm = norm_of(x)
    y = norm(x)[0]
    dims = (0, *range(2, y.dim()))
    torch.testing.assert_close(y.mean(dims), torch.zeros(shape[:1]), rtol=0, atol=1e-12)
    torch.testing.assert_close(y.square().mean(dims), torch.ones(shape[:1]))
    assert norm.initialized


def test_before_initialization_it_is_the_identity_inverse_first():
    norm, y = fk.ActNorm((3, 2)), torch.randn(4, 3, 2)
    assert torch.equal(norm.inverse(y)[0], y)
    assert torch.equal(norm(y)[0], y)
    assert not norm.initialized
    assert norm.initialized.dtype == torch.bool


def test_forward_and_inverse_never_initialize():
    norm = fk.ActNorm((3,)).train()
    norm(torch.randn(5, 3) * 7)
    norm.inverse(torch.randn(5, 3) * 7)
    assert not norm.initialized
    assert not norm.log_scale.any()


def test_a_batch_of_one_vector_is_centred():
    x = torch.tensor([[2.0, -3e4, 1e-9]])
    norm = norm_of(x)
    assert torch.equal(norm(x)[0], torch.zeros(1, 3))
    assert torch.equal(norm.log_scale, torch.zeros(3))
    assert norm.initialized


@pytest.mark.parametrize("value", [0.0, 0.1, 1e3, -1e20])
def test_a_constant_channel_keeps_scale_one(value):
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(64, 2, 5, dtype=dtype)
        x[:, 1] = value
        norm = fk.ActNorm((2, 5)).to(dtype)
        norm.initialize(x)
        assert norm.log_scale[1] == 0
        assert norm.log_scale[0] != 0
        assert not norm(x)[0][:, 1].any()


def test_a_channel_that_varies_little_is_still_scaled():
    x = 1e-6 * torch.randn(1000, 1)
    assert 0.9 < norm_of(x)(x)[0].std() < 1.1


def test_an_empty_batch_changes_nothing():
    norm = norm_of(torch.empty(0, 3, 4))
    assert not norm.initialized
    assert not norm.location.any()


def test_float32_data_far_from_zero():
    x = (1000 + 0.1 * torch.randn(4000, 1)).float()
    norm = fk.ActNorm((1,)).float()
    norm.initialize(x)
    y = norm(x)[0]
    assert abs(y.mean()) < 1e-3
    assert abs(y.std() - 1) < 1e-3


def test_the_flag_is_saved_and_training_goes_on_from_there():
    first = norm_of(torch.randn(20, 3) * 5 + 2)
    second = fk.ActNorm((3,))
    second.load_state_dict(first.state_dict())
    assert second.initialized
    assert torch.equal(second.log_scale, first.log_scale)


def test_initialize_needs_no_gradient_and_leaves_the_data_alone():
    x = torch.randn(5, 3, requires_grad=True)
    kept = x.detach().clone()
    norm = norm_of(x)
    assert torch.equal(x, kept)
    assert norm.location.requires_grad
    assert norm.location.grad_fn is None


def test_initialize_follows_the_data_of_now_when_called_again():
    norm = norm_of(torch.randn(20, 3))
    x = 9 * torch.randn(20, 3) - 4
    norm.initialize(x)
    torch.testing.assert_close(norm(x)[0].std(0, correction=0), torch.ones(3))


WORKER = """
import sys
import torch
import flowkit as fk

rank = int(sys.argv[1])
torch.set_default_dtype(torch.float64)
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
x = torch.linspace(-1, 5, 30).square().view(10, 3)
norm = fk.ActNorm((3,))
norm.initialize(x[:7] if rank == 0 else x[7:])
torch.save(norm.state_dict(), f"{sys.argv[2]}.{rank}")
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_statistics_are_those_of_all_processes(tmp_path):
    store = tmp_path / "store"
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(store)]) for rank in (0, 1)]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    whole = norm_of(torch.linspace(-1, 5, 30).square().view(10, 3)).state_dict()
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(f"{store}.{rank}"), whole)
