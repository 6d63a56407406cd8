"""Masked autoregressive maps: what sees what, both directions, gradients, refusals."""

import pytest
import torch

import flowkit as fk
from flowkit.masked import MaskedMLP
from flowkit.univariate import VolumePreservingAffine


def random_weights(module):
    torch.manual_seed(3)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def jacobian(function, x):
    return torch.autograd.functional.jacobian(lambda row: function(row[None])[0], x)


@pytest.mark.parametrize("hidden", [(12,), (9, 7), 2])
@pytest.mark.parametrize("conditions", [0, 2])
def test_an_output_of_the_net_sees_exactly_what_it_may_and_every_condition(hidden, conditions):
    visible = [{1}, set(), {0, 1, 3}, {1}, {0}]  # 2 sees 0 and 3 but the sets of 0 and 4 do not nest
    net = random_weights(MaskedMLP(visible, 5, conditions, numbers=2, hidden=hidden, activation="tanh"))
    c = torch.randn(1, conditions) if conditions else None
    seen = jacobian(lambda x: net(x, c), torch.randn(5)) != 0
    want = torch.tensor([[j in row for j in range(5)] for row in visible * 2])
    assert torch.equal(seen, want)
    if c is not None:
        assert (jacobian(lambda c: net(torch.randn(1, 5), c), c[0]) != 0).all()


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("order", [None, "reversed", "random", (2, 0, 3, 1)])
def test_the_jacobian_is_triangular_in_the_order(order, inverted):
    flow = random_weights(fk.MaskedAutoregressive((4,), order=order, inverted=inverted, activation="tanh"))
    x = torch.randn(4)
    matrix = jacobian(lambda x: flow(x)[0], x)
    sequence = flow.level.argsort()
    if isinstance(order, tuple):
        assert tuple(sequence.tolist()) == order
    sorted_matrix = matrix[sequence][:, sequence]
    assert torch.equal(sorted_matrix, sorted_matrix.tril())
    assert (sorted_matrix.tril() != 0).sum() == 10
    torch.testing.assert_close(flow(x[None])[1][0], torch.linalg.slogdet(matrix)[1])


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("univariate", [fk.Affine, fk.RationalQuadraticSpline.recipe(bins=3)])
def test_round_trip_and_the_gradients_of_the_slow_direction(univariate, inverted):
    flow = fk.MaskedAutoregressive((3,), given=2, univariate=univariate, hidden=8, inverted=inverted, activation="tanh")
    x, c = torch.randn(4, 3, requires_grad=True), torch.randn(4, 2)
    torch.testing.assert_close(flow(x, c)[0], x)  # the identity at the start
    random_weights(flow)
    y, log_det = flow(x, c)
    back, log_det_back = flow.inverse(y, c)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(log_det_back, -log_det)
    assert torch.autograd.gradcheck(lambda x: flow(x, c), x)
    assert torch.autograd.gradcheck(lambda y: flow.inverse(y, c), x)
    assert flow.slow_inverse is not inverted


def test_inverted_exchanges_the_directions():
    plain = random_weights(fk.MaskedAutoregressive((3,), hidden=8))
    swapped = fk.MaskedAutoregressive((3,), hidden=8, inverted=True)
    swapped.load_state_dict(plain.state_dict())
    x = torch.randn(5, 3)
    for got, want in zip((*plain(x), *plain.inverse(x)), (*swapped.inverse(x), *swapped(x)), strict=True):
        torch.testing.assert_close(got, want)


def test_passes_are_groups_and_the_depth_of_an_adjacency():
    assert fk.MaskedAutoregressive((5,)).passes == 5
    two = fk.MaskedAutoregressive((5,), passes=2)
    assert (two.passes, two.level.tolist()) == (2, [0, 0, 0, 1, 1])
    assert not fk.MaskedAutoregressive((5,), passes=1).slow_inverse
    adjacency = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]], dtype=torch.bool)
    flow = random_weights(fk.MaskedAutoregressive((4,), adjacency=adjacency, activation="tanh"))
    assert (flow.passes, flow.level.tolist()) == (3, [1, 2, 0, 1])
    x = torch.randn(4)
    seen = jacobian(lambda x: flow(x)[0], x) != 0
    assert torch.equal(seen, adjacency | torch.eye(4, dtype=torch.bool))
    torch.testing.assert_close(flow.inverse(flow(x[None])[0])[0], x[None])


def test_what_is_not_final_yet_does_not_spoil_the_rest():
    flow = random_weights(fk.MaskedAutoregressive((3,), univariate=fk.Affine.recipe(clamp=None)))
    with torch.no_grad():
        flow.subnet.layers[-1].weight.zero_()
        flow.subnet.layers[-1].bias.copy_(torch.tensor([0.0, 0.0, -800.0, 0.0, 0.0, 0.0]))
    x = flow.inverse(torch.ones(1, 3))[0]
    assert x[0, :2].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"shape": (2, 3)}, fk.ShapeError, r"needs vectors \(D,\), got shape \(2, 3\)"),
        ({"order": (0, 0, 1)}, fk.ConfigError, r"a permutation of 0 to 2, got \(0, 0, 1\)"),
        ({"order": (0, 1)}, fk.ConfigError, "permutation"),
        ({"order": "sorted"}, fk.ConfigError, "permutation of 0 to 2, got 'sorted'"),
        ({"passes": 4}, fk.ConfigError, "passes must be an int from 1 to D = 3, got 4"),
        ({"adjacency": ((0, 0, 0), (1, 0, 0))}, fk.ShapeError, r"3 rows of 3 booleans, got rows of lengths \[3, 3\]"),
        ({"adjacency": 3}, fk.ShapeError, "3 rows of 3 booleans"),
        ({"adjacency": ((0, 1, 0), (1, 0, 0), (0, 0, 0))}, fk.ConfigError, r"acyclic, got a cycle .* \[0, 1\]"),
        ({"adjacency": ((1, 0, 0), (0, 0, 0), (0, 0, 0))}, fk.ConfigError, "acyclic"),
        ({"adjacency": ((0,) * 3,) * 3, "passes": 1}, fk.ConfigError, "an adjacency decides the order and the passes"),
        ({"hidden": 0}, fk.ConfigError, "hidden must be a positive int"),
        ({"univariate": 3}, fk.ConfigError, "univariate must be"),
        ({"univariate": VolumePreservingAffine}, fk.ConfigError, "a univariate map of each element alone"),
        ({"given": ((2, 2),)}, fk.ShapeError, "needs conditions that are vectors"),
    ],
)
def test_refusals(config, error, message):
    config = {"shape": (3,), **config}
    with pytest.raises(error, match=message):
        fk.MaskedAutoregressive(**config)
