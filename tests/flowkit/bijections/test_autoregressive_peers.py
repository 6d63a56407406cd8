"""Masked autoregressive maps against nflows, normflows and zuko, whose masked nets get the same weights.

The hidden units of two nets come in another order: they are matched by what each of them sees.
"""

import math

import pytest
import torch
from nflows.transforms import MaskedAffineAutoregressiveTransform
from nflows.transforms import MaskedPiecewiseRationalQuadraticAutoregressiveTransform as NflowsSpline
from normflows.flows import MaskedAffineAutoregressive
from zuko.flows.autoregressive import MaskedAutoregressiveTransform

import flowkit as fk

SIZE, HIDDEN = 4, 12


def order_of_units(masks, size):
    """For every layer, its units sorted by the inputs that they see, of which only the first `size` are data."""
    seen, orders = torch.eye(masks[0].shape[1])[:, :size], []
    for mask in masks:
        seen = ((mask.double() @ seen) > 0).double()
        keys = [tuple(row) for row in seen.tolist()]
        orders.append(sorted(range(len(keys)), key=keys.__getitem__))
    return orders


@torch.no_grad()
def copy_net(ours, weights, biases, masks, numbers, added=0.0):
    """A peer's effective weights in our net: hidden units matched, outputs regrouped from elements to numbers."""
    size = ours.layers[0].in_features
    found = order_of_units([layer.mask for layer in ours.layers[:-1]], size)
    theirs = order_of_units(masks[:-1], size)
    regrouped = torch.arange(len(biases[-1])).unflatten(0, (-1, len(numbers)))[:, numbers].T.flatten().tolist()
    outputs = list(range(len(regrouped)))
    below, their_below = list(range(size)), list(range(size))
    for layer, weight, bias, to, of in zip(
        ours.layers, weights, biases, [*found, outputs], [*theirs, regrouped], strict=True
    ):
        layer.weight[torch.tensor(to)[:, None], torch.tensor(below)] = weight[of][:, their_below]
        layer.bias[to] = bias[of]
        below, their_below = to, of
    ours.layers[-1].bias += added
    if ours.condition is not None:
        ours.condition.weight[found[0]] = weights[0][theirs[0], size:]


def redrawn(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.5)
    return module


def copy_made(ours, made, numbers, added=0.0):
    """A MADE of nflows, or of normflows, whose first layer has no activation: there it is one with the second."""
    layers = [made.initial_layer, *[block.linear for block in made.blocks], made.final_layer]
    weights, biases = [layer.weight * layer.mask for layer in layers], [layer.bias for layer in layers]
    masks = [layer.mask for layer in layers]
    if len(layers) > len(ours.layers):
        biases[:2] = [biases[1] + weights[1] @ biases[0]]
        weights[:2], masks[:2] = [weights[1] @ weights[0]], [masks[1] @ masks[0] > 0]
    copy_net(ours, weights, biases, masks, numbers, added)


def equals(ours, forward, inverse):
    for mine, theirs in ((ours, forward), (ours.inverse, inverse)):
        x = torch.randn(8, SIZE)
        torch.testing.assert_close(mine(x), tuple(theirs(x)), atol=1e-9, rtol=1e-9)


class SoftplusAffine(fk.Univariate):
    """The scale of nflows, which flowkit has no map for."""

    parameters_per_element = 2

    def forward(self, x, raw, shift):
        scale = torch.nn.functional.softplus(raw) + 1e-3
        return x * scale + shift, scale.log()

    def inverse(self, y, raw, shift):
        scale = torch.nn.functional.softplus(raw) + 1e-3
        return (y - shift) / scale, -scale.log()


AFFINE = {
    "nflows": (MaskedAffineAutoregressiveTransform, 1, SoftplusAffine),
    "normflows": (MaskedAffineAutoregressive, 0, fk.SigmoidAffine.recipe(min_scale=1e-3)),
}


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("peer", AFFINE)
def test_maf_and_iaf_are_nflows_and_normflows(peer, blocks, inverted):
    cls, more, univariate = AFFINE[peer]
    theirs = redrawn(cls(SIZE, HIDDEN, num_blocks=blocks, use_residual_blocks=False))
    hidden = (HIDDEN,) * (blocks + more)
    ours = fk.MaskedAutoregressive((SIZE,), univariate=univariate, hidden=hidden, inverted=inverted)
    copy_made(ours.subnet, theirs.autoregressive_net, [0, 1])
    equals(ours, *((theirs.inverse, theirs) if inverted else (theirs, theirs.inverse)))


def test_autoregressive_splines_are_nflows():
    bins, tails = 5, {"tails": "linear", "tail_bound": 2.0}
    theirs = redrawn(NflowsSpline(SIZE, HIDDEN, num_bins=bins, num_blocks=0, use_residual_blocks=False, **tails))
    spline = fk.RationalQuadraticSpline.recipe(bins=bins, bound=2.0)
    ours = fk.MaskedAutoregressive((SIZE,), univariate=spline, hidden=HIDDEN)
    numbers = ours.univariate.numbers_per_element
    added = torch.zeros(numbers * SIZE)
    added[2 * bins * SIZE :] = -ours.univariate.offset  # zero is slope one here, and softplus(0) there
    copy_made(ours.subnet, theirs.autoregressive_net, list(range(numbers)), added)
    equals(ours, theirs, theirs.inverse)


SEEN = ((1, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (0, 1, 0, 1))
ORDERS = {
    "in order": ({}, {}),
    "given": ({"order": [2, 0, 3, 1]}, {"order": (1, 3, 0, 2)}),  # ranks there, the elements one by one here
    "two passes": ({"passes": 2}, {"passes": 2}),
    "a graph": ({"adjacency": SEEN}, {"adjacency": torch.tensor(SEEN) - torch.eye(SIZE).long()}),
}


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("name", ORDERS)
def test_maf_is_zukos(name, context):
    there, here = ORDERS[name]
    theirs = redrawn(MaskedAutoregressiveTransform(SIZE, context, hidden_features=(HIDDEN, HIDDEN), **there))
    ours = fk.MaskedAutoregressive(
        (SIZE,),
        given=context or (),
        univariate=fk.Affine.recipe(clamp="softsign", limit=math.log(1000)),
        hidden=(HIDDEN, HIDDEN),
        **here,
    )
    layers = list(theirs.hyper)[::2]
    weights, masks = [layer.weight * layer.mask for layer in layers], [layer.mask for layer in layers]
    copy_net(ours.subnet, weights, [layer.bias for layer in layers], masks, [1, 0])  # it predicts the shift first
    assert ours.passes == theirs.passes
    c = torch.randn(8, context) if context else None
    given, transform = [c] if context else [], theirs(c)
    x = torch.randn(8, SIZE)
    torch.testing.assert_close(ours(x, *given), transform.call_and_ladj(x), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(ours.inverse(x, *given), transform.inv.call_and_ladj(x), atol=1e-9, rtol=1e-9)
