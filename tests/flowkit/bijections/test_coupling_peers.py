"""Couplings against normflows, nflows, zuko and FrEIA, each running the very same subnets.

The peers lay out what a subnet predicts in another way: an adapter between turns one into the other.
"""

import math

import pytest
import torch
from FrEIA.modules import GINCouplingBlock, RNVPCouplingBlock
from nflows.transforms import (
    AdditiveCouplingTransform,
    PiecewiseCubicCouplingTransform,
    PiecewiseLinearCouplingTransform,
    PiecewiseRationalQuadraticCouplingTransform,
)
from normflows.flows import AffineCouplingBlock, MaskedAffineFlow
from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling
from torch import nn
from zuko.flows.coupling import GeneralCouplingTransform

import flowkit as fk

MASK, BINS, BOUND = (0, 1, 0, 1, 1), 4, 2.0
CHANGED = (1, 3, 4)


def net(c_in, c_out):
    return nn.Sequential(nn.Linear(c_in, 6), nn.SiLU(), nn.Linear(6, c_out))


class Regrouped(nn.Module):
    """A peer's net, whose numbers come element by element, with ours: all first numbers, then all second ones."""

    def __init__(self, peer, numbers, order=None, added=0.0):
        super().__init__()
        self.peer, self.numbers, self.added = peer, numbers, added
        self.order = list(range(numbers)) if order is None else order

    def forward(self, x):
        by_element = self.peer(x).unflatten(1, (-1, self.numbers))
        return (by_element[..., self.order] + self.added).transpose(1, 2).flatten(1)


class WithContext(nn.Module):
    """A net as nflows and normflows call it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, context=None):
        return self.inner(x)


def equals(ours, forward, inverse, features=5, within=1e-10, inverse_within=None):
    for mine, theirs, each in ((ours, forward, within), (ours.inverse, inverse, inverse_within or within)):
        x = 1.5 * torch.randn(8, features)
        torch.testing.assert_close(mine(x), tuple(theirs(x)), atol=each, rtol=each)


@pytest.mark.parametrize("scale_map", ["exp", "sigmoid_inv"])
def test_affine_couplings_are_normflows(scale_map):
    """Its halves: of five channels, three are kept. It interleaves shifts with scales."""
    peer = net(3, 4)
    theirs = AffineCouplingBlock(peer, scale_map=scale_map)
    cls, config = (fk.AffineCoupling, {"clamp": None}) if scale_map == "exp" else (fk.GlowCoupling, {"min_scale": 0.0})
    ours = cls((5,), split=(3, 4), subnet=lambda *_: Regrouped(peer, 2, order=[1, 0]), **config)
    equals(ours, theirs, theirs.inverse)


def test_additive_couplings_are_normflows_and_nflows():
    peer = net(2, 2)
    ours = fk.AdditiveCoupling((4,), subnet=lambda *_: peer)
    theirs = AffineCouplingBlock(peer, scale=False)
    equals(ours, theirs, theirs.inverse, 4)
    theirs = AdditiveCouplingTransform([0, 0, 1, 1], lambda *_: WithContext(peer))
    equals(ours, theirs, theirs.inverse, 4)


class Spread(nn.Module):
    """A net of some channels as a net of all: it reads those that a mask keeps, and predicts those that it does not."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, z):
        return torch.zeros_like(z).index_copy(1, torch.tensor(CHANGED), self.inner(z[:, [0, 2]]))


class Joined(nn.Module):
    """Scales of one net and shifts of another."""

    def __init__(self, *nets):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x):
        return torch.cat([each(x) for each in self.nets], 1)


def test_masked_couplings_are_normflows_real_nvp():
    scale, shift = net(2, 3), net(2, 3)
    theirs = MaskedAffineFlow(1 - torch.tensor(MASK, dtype=torch.float64), t=Spread(shift), s=Spread(scale))
    ours = fk.AffineCoupling((5,), split=CHANGED, clamp=None, subnet=lambda *_: Joined(scale, shift))
    equals(ours, theirs, theirs.inverse)


@pytest.mark.parametrize("given", [(), (2,)])
def test_real_nvp_is_freias_with_nets_of_its_own_for_scale_and_shift(given):
    theirs = RNVPCouplingBlock([(5,)], [given] if given else [], net, clamp=1.5, clamp_activation="TANH")
    nets = iter(
        [Joined(theirs.subnet_s2, theirs.subnet_t2), Joined(theirs.subnet_s1, theirs.subnet_t1)]
    )  # it transforms the first half by the nets that it calls the second
    ours = fk.AffineCoupling(
        (5,), given=[given] if given else (), limit=1.5, two_sided=True, subnet=lambda *_: next(nets)
    )
    x, c = torch.randn(8, 5), [torch.randn(8, *given)] if given else []
    for mine, rev in ((ours, False), (ours.inverse, True)):
        (y,), log_det = theirs([x], c, rev=rev)
        torch.testing.assert_close(mine(x, *c), (y, log_det), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("activation", ["TANH", "ATAN"])
def test_gin_is_freias(activation):
    theirs = GINCouplingBlock([(6,)], [(2,)], net, clamp=1.0, clamp_activation=activation)
    nets = iter([theirs.subnet2, theirs.subnet1])
    ours = fk.GINCoupling(
        (6,), given=((2,),), clamp=activation.lower(), limit=1.0, two_sided=True, subnet=lambda *_: next(nets)
    )
    x, c = 2 * torch.randn(8, 6), torch.randn(8, 2)
    for mine, rev in ((ours, False), (ours.inverse, True)):
        (y,), log_det = theirs([x], [c], rev=rev)
        found, found_log_det = mine(x, c)
        torch.testing.assert_close(found, y, atol=1e-10, rtol=1e-10)
        assert not found_log_det.any()
        assert log_det == 0


SPLINES = {
    "rational-quadratic, nflows": (PiecewiseRationalQuadraticCouplingTransform, fk.RationalQuadraticSpline, 1e-10),
    "rational-quadratic, normflows": (PiecewiseRationalQuadraticCoupling, fk.RationalQuadraticSpline, 1e-10),
    "linear": (PiecewiseLinearCouplingTransform, fk.LinearSpline, 1e-4),  # see test_polynomial_splines.py
}


@pytest.mark.filterwarnings("ignore:Inputs to the softmax are not scaled down")
@pytest.mark.parametrize("name", SPLINES)
def test_spline_couplings_are_those_of_the_peers(name):
    cls, univariate, inverse_within = SPLINES[name]
    config = {"min_bin": 1e-12} if univariate is fk.LinearSpline else {}  # nflows' has no minimum
    recipe = univariate.recipe(bins=BINS, bound=BOUND, **config)
    numbers = recipe((3,)).numbers_per_element
    peer = net(2, 3 * numbers)
    with torch.no_grad():
        peer[-1].bias.normal_()
    theirs = cls(torch.tensor(MASK), lambda *_: WithContext(peer), num_bins=BINS, tails="linear", tail_bound=BOUND)
    added = torch.zeros(numbers)
    added[2 * BINS :] = -getattr(recipe((3,)), "offset", 0.0)  # zero is slope one here, and softplus(0) there
    ours = fk.Coupling((5,), split=CHANGED, univariate=recipe, subnet=lambda *_: Regrouped(peer, numbers, added=added))
    equals(ours, theirs, theirs.inverse, within=1e-9, inverse_within=max(1e-9, inverse_within))


def test_cubic_couplings_are_nflows():
    numbers = 2 * BINS + 2
    peer = net(2, 3 * numbers)
    theirs = PiecewiseCubicCouplingTransform(
        MASK, lambda *_: WithContext(peer), num_bins=BINS, tails="linear", tail_bound=BOUND
    )
    offset = fk.CubicSpline((3,), bins=BINS).offset

    class Ends(nn.Module):
        """Its end slopes are sigmoids, as ours, which have a floor and zero for slope one."""

        def forward(self, x):
            values = peer(x).unflatten(1, (3, numbers))
            share = (torch.sigmoid(values[..., 2 * BINS :]) - 1e-3) / 0.998
            ends = share.logit() - offset
            return torch.cat((values[..., : 2 * BINS], ends), -1).transpose(1, 2).flatten(1)

    ours = fk.Coupling(
        (5,), split=CHANGED, univariate=fk.CubicSpline.recipe(bins=BINS, bound=BOUND), subnet=lambda *_: Ends()
    )
    x = 1.5 * torch.randn(8, 5)
    torch.testing.assert_close(ours(x), tuple(theirs(x)), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("context", [0, 2])
def test_affine_couplings_are_zukos(context):
    """Its mask marks what is kept, its net predicts shifts first, and its log-scales stay below log(1000)."""
    theirs = GeneralCouplingTransform(5, context, mask=[m == 0 for m in MASK], hidden_features=(6,))
    ours = fk.AffineCoupling(
        (5,),
        given=context or (),
        split=CHANGED,
        clamp="softsign",
        limit=math.log(1000),
        subnet=lambda *_: Regrouped(theirs.hyper, 2, order=[1, 0]),
    )
    c = torch.randn(8, context) if context else None
    x, given = 2 * torch.randn(8, 5), [c] if context else []
    for mine, peer in ((ours, theirs(c)), (ours.inverse, theirs(c).inv)):
        torch.testing.assert_close(mine(x, *given), peer.call_and_ladj(x), atol=1e-10, rtol=1e-10)
