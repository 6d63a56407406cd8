"""Whitening: the covariance it leaves, its symmetry, constant directions, FrEIA's map with the same matrix, a file."""

import pytest
import torch

import flowkit as fk


def correlated(rows, *shape):
    channels = shape[0]
    mixed = torch.randn(channels, channels).tril() + 2 * torch.eye(channels)
    return torch.einsum("ij,bj...->bi...", mixed, torch.randn(rows, *shape)) + 7


@pytest.mark.parametrize("shape", [(1,), (3,), (3, 4), (2, 3, 4)])
def test_the_channels_are_white_after_it(shape):
    x = correlated(200, *shape)
    whiten = fk.Whiten(shape)
    whiten.initialize(x)
    y = whiten(x)[0].movedim(1, 0).flatten(1)
    torch.testing.assert_close(y.mean(1), torch.zeros(shape[0]), rtol=0, atol=1e-12)
    torch.testing.assert_close(y @ y.T / y.shape[1], torch.eye(shape[0]))
    torch.testing.assert_close(whiten.matrix, whiten.matrix.T)  # of all whitenings the one that changes data least


def test_before_it_has_seen_data_it_is_the_identity():
    whiten, x = fk.Whiten((3, 2)), torch.randn(4, 3, 2)
    assert torch.equal(whiten(x)[0], x)
    assert torch.equal(whiten.inverse(x)[0], x)
    assert not whiten.initialized
    whiten.initialize(x[:0])  # an empty batch changes nothing
    assert not whiten.initialized


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_direction_without_variation_keeps_its_scale(dtype):
    x = torch.randn(100, 1).to(dtype) * torch.tensor([3.0, 4.0]).to(dtype)  # on a line, of standard deviation 5
    whiten = fk.Whiten((2,)).to(dtype)
    whiten.initialize(x)
    across = torch.tensor([[4.0, -3.0]], dtype=dtype)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(whiten.matrix @ across[0], across[0], rtol=0, atol=tolerance)
    torch.testing.assert_close(whiten(x)[0].square().sum(1).mean(), torch.ones((), dtype=dtype))
    constant = fk.Whiten((2,)).to(dtype)
    constant.initialize(torch.full((5, 2), 0.1, dtype=dtype))
    torch.testing.assert_close(constant.matrix, torch.eye(2, dtype=dtype))


def test_freia_with_its_numbers():
    modules = pytest.importorskip("FrEIA.modules")
    x = correlated(50, 3)
    whiten = fk.Whiten((3,))
    whiten.initialize(x)
    theirs = modules.FixedLinearTransform([(3,)], M=whiten.matrix.T, b=-whiten.matrix @ whiten.location)
    (z,), log_det = theirs([x])
    y, found = whiten(x)
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(found, log_det.expand(50), check_dtype=False)


def test_it_is_saved_with_its_numbers_and_learns_none(tmp_path):
    graph = fk.Graph()
    graph.output("z", graph.add(fk.Whiten, graph.input("x", (3,))))
    flow, x = fk.Flow(graph), correlated(50, 3)
    flow.initialize(x)
    assert not list(flow.parameters())
    normal = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov(correction=0))
    torch.testing.assert_close(flow.log_prob(x), normal.log_prob(x))  # a fit of a normal, in one call
    fk.save(flow, tmp_path / "flow.safetensors")
    assert torch.equal(fk.load(tmp_path / "flow.safetensors").log_prob(x), flow.eval().log_prob(x))
