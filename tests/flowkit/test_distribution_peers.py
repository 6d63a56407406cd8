"""Bases against normflows, zuko and FrEIA with the same numbers, and where these differ.

torch.distributions is in test_distributions.py and test_more_distributions.py.
"""

import math

import pytest
import torch
from FrEIA.modules import GaussianMixtureModel
from normflows.distributions import base as nd
from zuko.distributions import BoxUniform, DiagNormal, Mixture

import flowkit as fk

DIM, COMPONENTS = 3, 4


def drawn(base):
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return base


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)


def test_a_diagonal_normal_is_normflows_and_zukos():
    ours, theirs = drawn(fk.DiagonalNormal(DIM)), nd.DiagGaussian(DIM)
    loc, log_scale = ours.loc.detach(), ours.log_scale.detach()
    theirs.loc.data[0], theirs.log_scale.data[0] = loc, log_scale
    z = torch.randn(9, DIM)
    close(ours.log_prob(z), theirs.log_prob(z))
    close(ours.log_prob(z), DiagNormal(loc, log_scale.exp()).log_prob(z))


def mixture_and_parts():
    ours = drawn(fk.GaussianMixture(DIM, components=COMPONENTS))
    return ours, [part.detach() for part in ours._parts(())]


def test_a_mixture_is_normflows_and_zukos():
    ours, (log_weights, means, log_scales) = mixture_and_parts()
    numbers = [each.tolist() for each in (means, log_scales.exp(), log_weights.exp())]
    theirs = nd.GaussianMixture(COMPONENTS, DIM, *numbers)
    z = 2 * torch.randn(9, DIM)
    close(ours.log_prob(z), theirs.log_prob(z))
    close(ours.log_prob(z), Mixture(DiagNormal(means, log_scales.exp()), log_weights).log_prob(z))


def test_a_mixture_is_freias_whose_loss_lacks_the_normals_constant():
    ours, (log_weights, means, log_scales) = mixture_and_parts()
    z = 2 * torch.randn(9, DIM)
    triangle = torch.zeros(COMPONENTS, DIM * (DIM + 1) // 2)
    triangle[:, :DIM] = -log_scales  # the diagonal of the precision's root comes first
    conditions = [each.expand(9, *each.shape) for each in (log_weights.exp(), means, triangle)]
    theirs = GaussianMixtureModel([(DIM,)], [(COMPONENTS,)])
    (whitened,), log_dets = theirs([z], [*conditions, None])
    loss = theirs.nll_loss(conditions[0], whitened, log_dets)
    close(-ours.log_prob(z), loss + DIM / 2 * math.log(2 * math.pi))


@pytest.mark.parametrize("labels", [False, True])
def test_classes_are_normflows(labels):
    ours = drawn(fk.ClassConditional(DIM, given=((),) if labels else 5, classes=5))
    theirs = nd.ClassCondDiagGaussian(DIM, 5)
    theirs.loc.data, theirs.log_scale.data = ours.means.detach().T, ours.log_scales.detach().T
    z, label = torch.randn(9, DIM), torch.randint(5, (9,))
    given = label if labels else torch.nn.functional.one_hot(label, 5).double()
    close(ours.log_prob(z, given), theirs.log_prob(z, given))


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # normflows takes numpy's logarithm of a tensor
def test_a_box_is_normflows_and_zukos():
    z = 4 * torch.rand(20, DIM) - 1.5
    ours = fk.Uniform(DIM, low=-1.0, high=2.0).log_prob(z)
    inside = ours.isfinite()
    assert 0 < inside.sum() < 20
    close(ours, nd.Uniform(DIM, -1.0, 2.0).log_prob(z))
    box = BoxUniform(torch.full((DIM,), -1.0), torch.full((DIM,), 2.0))
    close(ours[inside], box.log_prob(z[inside]))  # outside, torch raises where its arguments are checked


def test_the_principal_components_of_normflows_are_no_density():
    """W^T W + sigma^2 I is a normal's covariance: theirs has the determinant, not its log, and adds 2 pi's."""
    theirs = nd.GaussianPCA(DIM, latent_dim=2, sigma=0.7)
    weights, loc = theirs.W.detach(), theirs.loc[0].detach()
    covariance = weights.T @ weights + 0.49 * torch.eye(DIM)
    factor = torch.linalg.cholesky(covariance)
    full, low_rank = fk.FullNormal(DIM), fk.LowRankNormal(DIM, rank=2)
    with torch.no_grad():
        full.numbers.copy_(torch.cat((loc, factor.diagonal().log(), factor.flatten()[full.places])))
        low_rank.numbers.copy_(torch.cat((loc, torch.full((DIM,), math.log(0.7)), weights.T.flatten())))
    z = torch.randn(9, DIM)
    close(low_rank.log_prob(z), full.log_prob(z))
    determinant = torch.linalg.det(covariance)
    error = DIM * math.log(2 * math.pi) - 0.5 * (determinant - determinant.log())
    assert error.abs() > 1
    close(theirs.log_prob(z), full.log_prob(z) + error)
