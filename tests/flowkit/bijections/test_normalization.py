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
import os
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
torch.distributed.barrier()
os._exit(0)  # at an ordinary end gloo aborts some processes, after all is done
"""


@pytest.mark.slow
def test_statistics_are_those_of_all_processes(tmp_path):
    store = tmp_path / "store"
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(store)]) for rank in (0, 1)]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    whole = norm_of(torch.linspace(-1, 5, 30).square().view(10, 3)).state_dict()
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(f"{store}.{rank}"), whole)


@pytest.mark.parametrize(("shape", "theirs"), [((3,), torch.nn.BatchNorm1d), ((2, 3, 4), torch.nn.BatchNorm2d)])
def test_batch_norm_is_torchs_in_both_modes(shape, theirs):
    ours, norm = fk.BatchNorm(shape, eps=0.01, momentum=0.3), theirs(shape[0], eps=0.01, momentum=0.3)
    with torch.no_grad():
        ours.log_scale.normal_()
        norm.weight.copy_(ours.log_scale.exp().flatten())
        norm.bias.copy_(ours.shift.normal_().flatten())
    for _ in range(3):
        x = 2 * torch.randn(6, *shape, requires_grad=True) + 1
        got, wanted = ours(x)[0], norm(x)
        torch.testing.assert_close(got, wanted)
        weights = torch.randn_like(got)
        torch.testing.assert_close(torch.autograd.grad(got, x, weights), torch.autograd.grad(wanted, x, weights))
        torch.testing.assert_close(ours.running_mean.flatten(), norm.running_mean)
        torch.testing.assert_close(ours.running_var.flatten(), norm.running_var)
    torch.testing.assert_close(ours.eval()(x)[0], norm.eval()(x))


def test_batch_norms_log_det_in_training_holds_the_statistics():
    norm, x = fk.BatchNorm((2, 3), eps=0.1), 3 * torch.randn(5, 2, 3)
    with torch.no_grad():
        norm.log_scale.normal_()
    _, log_det = norm(x)
    variance = x.var((0, 2), unbiased=False)
    wanted = 3 * (norm.log_scale.flatten() - 0.5 * (variance + 0.1).log()).sum()
    torch.testing.assert_close(log_det, wanted.expand(5))


def test_batch_norm_is_nflows_in_eval_mode():
    from nflows.transforms import BatchNorm

    theirs, ours = BatchNorm(3), fk.BatchNorm((3,)).eval()
    theirs.eval()
    with torch.no_grad():
        theirs.running_mean.normal_()
        theirs.running_var.uniform_(0.5, 2)
        ours.running_mean.copy_(theirs.running_mean)
        ours.running_var.copy_(theirs.running_var)
        ours.log_scale.copy_(theirs.weight.log())
        ours.shift.copy_(theirs.bias)
    x = torch.randn(4, 3)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(ours.inverse(x), theirs.inverse(x), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("backprop", ["checkpoint", "reverse"])
def test_batch_norm_moves_once_in_frugal_gradients(backprop):
    graph = fk.Graph()
    x = graph.input("x", (4,))
    for _ in range(2):
        x = graph.add(fk.AffineCoupling, graph.add(fk.BatchNorm, x), subnet=fk.MLP(hidden=4, zero_last=False))
    graph.output("z", x)
    plain, data = fk.Flow(graph), 2 * torch.randn(6, 4)
    frugal = fk.Flow(graph, backprop=backprop)
    frugal.load_state_dict(plain.state_dict())
    for flow in (plain, frugal):
        flow.train()
        flow.log_prob(data).mean().backward()
    for (name, a), b in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), b in zip(plain.named_buffers(), frugal.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


def test_batch_norm_refuses_what_it_cannot_do():
    norm = fk.BatchNorm((2,))
    with pytest.raises(fk.InputError, match=r"BatchNorm has no inverse in training mode.*call eval\(\) first"):
        norm.inverse(torch.zeros(3, 2))
    with pytest.raises(fk.InputError, match=r"BatchNorm needs more than one value for each channel in training mode"):
        norm(torch.zeros(1, 2))
    assert norm(torch.zeros(0, 2))[1].shape == (0,)
    assert not norm.running_mean.any()
    for eps in (0.0, -1.0, float("inf")):
        with pytest.raises(fk.ConfigError, match="BatchNorm: eps must be positive and finite, got"):
            fk.BatchNorm((2,), eps=eps)
    for momentum in (0.0, 1.5):
        with pytest.raises(fk.ConfigError, match="BatchNorm: momentum must be above 0 and at most 1, got"):
            fk.BatchNorm((2,), momentum=momentum)


def test_learned_scale_is_freias_forward():
    from FrEIA.modules import LearnedElementwiseScaling

    theirs, ours = LearnedElementwiseScaling([(2, 3)]), fk.LearnedScale((2, 3))
    with torch.no_grad():
        theirs.s.copy_(ours.log_scale.normal_())
    x = torch.randn(4, 2, 3)
    (y,), log_det = theirs([x])
    torch.testing.assert_close(ours(x), (y, log_det.expand(4)), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(ours.inverse(y), (x, -log_det.expand(4)), atol=1e-10, rtol=1e-10)
    (back,), wrong = theirs([y], rev=True)
    torch.testing.assert_close(back, x, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(wrong, log_det, atol=1e-10, rtol=1e-10)  # should be minus that


@pytest.mark.parametrize("shape", [(3,), (3, 2, 4)])
@pytest.mark.parametrize("peer", ["nflows", "normflows", "FrEIA"])
def test_act_norm_is_that_of_the_peers_once_initialized(peer, shape):
    """Their first standard deviation is the unbiased one, by which their output has a little less than 1."""
    from FrEIA.modules import ActNorm as FreiaNorm
    from nflows.transforms import ActNorm as NflowsNorm
    from normflows.flows import ActNorm as NormflowsNorm

    first, x = 2 * torch.randn(7, *shape) + 1, torch.randn(5, *shape)
    count = first.numel() // 3
    ours = norm_of(first)
    with torch.no_grad():
        if peer == "nflows":
            theirs = NflowsNorm(3)
            forward, inverse = theirs, theirs.inverse
        elif peer == "normflows":
            theirs = NormflowsNorm((3,) + (1,) * len(shape[1:]))
            forward, inverse = theirs, theirs.inverse
        else:
            theirs = FreiaNorm([shape])
            forward, inverse = ((lambda x, rev=rev: ((y := theirs([x], rev=rev))[0][0], y[1])) for rev in (False, True))
        y, _ = forward(first)
        by = ((count - 1) / count) ** 0.5
        torch.testing.assert_close(y, by * ours(first)[0], atol=1e-5, rtol=1e-5)  # normflows adds 1e-6
        scale = {"nflows": "log_scale", "normflows": "s", "FrEIA": "scale"}[peer]
        shift = {"nflows": "shift", "normflows": "t", "FrEIA": "bias"}[peer]
        log_scale = getattr(theirs, scale).normal_().reshape(ours.log_scale.shape)
        ours.log_scale.copy_(log_scale)
        ours.location.copy_(-getattr(theirs, shift).normal_().reshape(log_scale.shape) * (-log_scale).exp())
        for mine, run in ((ours, forward), (ours.inverse, inverse)):
            y, log_det = run(x)
            torch.testing.assert_close(mine(x), (y, log_det.expand(5)), atol=1e-10, rtol=1e-10)


def test_batch_norm_of_a_batch_is_normflows_but_for_the_unbiased_variance():
    """And but for its log-det, the logarithm of a product, which underflows."""
    from normflows.flows import BatchNorm

    x = torch.randn(6, 4)
    y, log_det = BatchNorm(eps=1e-5)(x)
    ours = fk.BatchNorm((4,), eps=1e-5 * 5 / 6, affine=False)
    by = (6 / 5) ** 0.5
    found, found_log_det = ours(x)
    torch.testing.assert_close(found, by * y, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(found_log_det, log_det + 4 * torch.tensor(by).log(), atol=1e-7, rtol=1e-7)
    wide = 0.1 * torch.randn(6, 400)
    assert BatchNorm(eps=1e-5)(wide)[1].isinf().all()
    assert fk.BatchNorm((400,))(wide)[1].isfinite().all()


def test_standardize_takes_its_numbers_from_the_first_data_and_learns_none(tmp_path):
    x = 3 * torch.randn(50, 2, 4) + 100
    graph = fk.Graph()
    graph.output("z", graph.add(fk.Standardize, graph.input("x", (2, 4))))
    flow = fk.Flow(graph)
    flow.initialize(x)
    y = flow.network(x)[0]
    torch.testing.assert_close(y.mean((0, 2)), torch.zeros(2), rtol=0, atol=1e-12)
    torch.testing.assert_close(y.std((0, 2), correction=0), torch.ones(2))
    assert not list(flow.parameters())
    fk.save(flow, tmp_path / "flow.safetensors")
    assert torch.equal(fk.load(tmp_path / "flow.safetensors").log_prob(x), flow.eval().log_prob(x))


def test_given_numbers_are_kept_when_a_flow_is_initialized():
    norm = fk.Standardize((3,), loc=[0.5, -2.0, 3.0], scale=4.0)
    graph = fk.Graph()
    graph.output("z", graph.add(norm, graph.input("x", (3,))))
    flow, x = fk.Flow(graph), torch.randn(5, 3)
    expected = (x - torch.tensor([0.5, -2.0, 3.0])) / 4
    flow.initialize(100 * x, again=True)
    torch.testing.assert_close(norm(x)[0], expected)
    torch.testing.assert_close(norm(x)[1], torch.full((5,), -3 * torch.tensor(4.0).log().item()))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"scale": float("inf")}, "scale must be positive and finite, got inf"),
        ({"scale": 0.0}, "scale must be positive and finite, got 0.0"),
        ({"scale": [1.0, -1.0]}, r"scale must be positive and finite, got \[1.0, -1.0\]"),
        ({"loc": float("nan")}, "loc must be finite, got nan"),
        ({"loc": [1.0, 2.0, 3.0]}, r"loc must be a number or 2 of them, got \[1.0, 2.0, 3.0\]"),
    ],
)
def test_standardize_refuses_numbers(numbers, message):
    with pytest.raises(fk.ConfigError, match=f"^Standardize: {message}$"):
        fk.Standardize((2, 3), **numbers)


STATISTICS = """
import os
import sys
import torch
import flowkit as fk

rank, cut = int(sys.argv[1]), int(sys.argv[3])
torch.set_default_dtype(torch.float64)
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
rows = torch.linspace(-1, 5, 60).square().view(10, 3, 2)
norm, apart = fk.BatchNorm((3, 2), eps=0.1, synchronized=True), fk.BatchNorm((3, 2))
x = (rows[:cut] if rank == 0 else rows[cut:]).clone().requires_grad_()
y, log_det = norm(x)
(y.square().sum() + (x * y).sin().sum() + log_det.sum()).backward()
apart(rows[:6] if rank == 0 else rows[6:])
gradients = {name: p.grad for name, p in norm.named_parameters()}
found = y.detach(), log_det.detach(), x.grad, gradients, norm.state_dict(), apart.running_mean
torch.save(found, f"{sys.argv[2]}.{rank}")
torch.distributed.barrier()
os._exit(0)  # at an ordinary end gloo aborts some processes, after all is done
"""


@pytest.mark.slow
@pytest.mark.parametrize("cut", [7, 10])  # rows of the first process; the other one has the rest, or none
def test_batch_norm_of_two_processes_is_that_of_one_with_all_rows(tmp_path, cut):
    store = tmp_path / "store"
    arguments = [sys.executable, "-c", STATISTICS]
    workers = [subprocess.Popen([*arguments, str(rank), str(store), str(cut)]) for rank in (0, 1)]
    assert [worker.wait(120) for worker in workers] == [0, 0]
    found = [torch.load(f"{store}.{rank}") for rank in (0, 1)]
    x = torch.linspace(-1, 5, 60).square().view(10, 3, 2).requires_grad_()
    norm = fk.BatchNorm((3, 2), eps=0.1, synchronized=True)
    y, log_det = norm(x)
    (y.square().sum() + (x * y).sin().sum() + log_det.sum()).backward()
    for part, wanted in enumerate((y, log_det, x.grad)):
        torch.testing.assert_close(torch.cat([each[part] for each in found]), wanted.detach())
    for name, parameter in norm.named_parameters():
        torch.testing.assert_close(found[0][3][name] + found[1][3][name], parameter.grad)
    assert all(torch.equal(found[0][4][name], found[1][4][name]) for name in found[0][4])
    torch.testing.assert_close(found[0][4], norm.state_dict())
    assert not torch.allclose(found[0][5], found[1][5])  # without `synchronized` they part
