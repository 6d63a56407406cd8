import pytest
import torch

import flowkit as fk
from flowkit.errors import ConfigError, ShapeError


def test_is_never_the_identity_but_for_one_channel():
    for size in (2, 3, 4):
        seen = {tuple(fk.Permute((size,)).order.tolist()) for _ in range(200)}
        assert tuple(range(size)) not in seen
        assert len(seen) == {2: 1, 3: 5, 4: 23}[size]
    assert fk.Permute((1,)).order.tolist() == [0]


def test_two_channels_are_swapped():
    assert fk.Permute((2,))(torch.tensor([[1.0, 2.0]]))[0].tolist() == [[2.0, 1.0]]


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -3])
def test_dim_counts_event_dimensions(dim):
    shape = (3, 3, 3)
    x, order = torch.randn(2, *shape), (1, 2, 0)
    y = fk.Permute(shape, order=order, dim=dim)(x)[0]
    axis = dim + 1 if dim >= 0 else dim
    for i, j in enumerate(order):
        assert torch.equal(y.select(axis, i), x.select(axis, j))


def test_is_exact_in_every_dtype_and_under_autocast():
    b = fk.Permute((5, 4))
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64):
        x = (torch.randn(2, 5, 4) * 1000).to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, log_det = b(x)
            assert torch.equal(b.inverse(y)[0], x)
        assert y.dtype == dtype
        assert torch.equal(y, x[:, b.order])
        assert log_det.dtype in (torch.float32, torch.float64)


def test_both_orders_are_saved():
    first, second = fk.Permute((7,)), fk.Permute((7,))
    assert set(first.state_dict()) == {"order", "inverse_order"}
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 7)
    assert torch.equal(second(x)[0], first(x)[0])
    assert torch.equal(second.inverse(x)[0], first.inverse(x)[0])


@pytest.mark.parametrize("order", [(0, 1), (0, 1, 1), (0, 1, 3), (1, 2, 3), (0, 1, 2, 3)])
def test_an_order_that_is_no_permutation_is_refused(order):
    with pytest.raises(ConfigError, match=r"Permute: order must hold each of 0 to 2 once, got"):
        fk.Permute((3,), order=order)


def test_refusals():
    with pytest.raises(ConfigError, match=r"Permute: dim must be an event dimension of \(3, 4\), 0 to 1, got 2"):
        fk.Permute((3, 4), dim=2)
    with pytest.raises(ShapeError, match=r"Permute needs at least one event dimension, got shape \(\)"):
        fk.Permute(())


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_reverse_and_roll_are_permute_with_that_order(dim):
    x = torch.randn(2, 3, 3)
    pairs = [
        (fk.Reverse((3, 3), dim=dim), (2, 1, 0)),
        (fk.Roll((3, 3), dim=dim), (2, 0, 1)),
        (fk.Roll((3, 3), shift=-4, dim=dim), (1, 2, 0)),
    ]
    for bijection, order in pairs:
        assert torch.equal(bijection(x)[0], fk.Permute((3, 3), order=order, dim=dim)(x)[0])
        assert torch.equal(bijection.inverse(bijection(x)[0])[0], x)


def test_reverse_and_roll_refuse_what_does_not_fit():
    with pytest.raises(ConfigError, match="Roll: shift must be an integer, got"):
        fk.Roll((3,), shift=1.5)
    with pytest.raises(ConfigError, match="Reverse: dim must be an event dimension"):
        fk.Reverse((3,), dim=1)
    with pytest.raises(ShapeError, match="Roll needs at least one event dimension"):
        fk.Roll(())
