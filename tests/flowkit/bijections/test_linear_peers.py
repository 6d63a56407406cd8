"""Linear maps against normflows, nflows, zuko and FrEIA with the same matrices, and where these differ.

nflows' LU, QR, SVD and Householder maps of vectors are in the files of each class.
"""

import pytest
import torch
from FrEIA.modules import Fixed1x1Conv, FixedLinearTransform, HouseholderPerm, OrthogonalTransform, PermuteRandom
from nflows.transforms import OneByOneConvolution, RandomPermutation
from normflows.flows import Invertible1x1Conv, InvertibleAffine, LULinearPermute
from normflows.flows import Permute as NormflowsPermute
from zuko.transforms import LULinearTransform, RotationTransform

import flowkit as fk

MAP, BATCH = (3, 2, 4), 4


def close(found, wanted):
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)


def both_ways(ours, forward, inverse, shape):
    """Both of ours against a peer's, each `(values, log_det)`; a peer may have one log-det for all rows."""
    for mine, theirs in ((ours, forward), (ours.inverse, inverse)):
        x = torch.randn(BATCH, *shape)
        y, log_det = theirs(x)
        close(mine(x), (y, torch.as_tensor(log_det, dtype=y.dtype).expand(BATCH)))


def lu_with(matrix, shape):
    """An `fk.LULinear` of this matrix."""
    ours = fk.LULinear(shape)
    permutation, lower, upper = torch.linalg.lu(matrix)
    with torch.no_grad():
        ours.packed.copy_(lower.tril(-1) + upper.triu(1) + upper.diagonal().abs().log().diag())
        ours.sign.copy_(upper.diagonal().sign())
        ours.order.copy_(permutation.argmax(1))
    return ours


@torch.no_grad()
def normflows_factors(theirs, ours):
    """The numbers of one of normflows' P L U in an LU map of ours."""
    for each in (theirs.L, theirs.U, theirs.log_S):
        each.add_(0.5 * torch.randn_like(each))
    ours.packed.copy_(theirs.L.tril(-1) + theirs.U.triu(1) + theirs.log_S.diag())
    ours.sign.copy_(theirs.sign_S)
    ours.order.copy_(theirs.P.argmax(1))


deprecated = pytest.mark.filterwarnings("ignore:torch.lu is deprecated")  # normflows calls it to start


@deprecated
def test_the_convolution_is_normflows_whose_inverse_applies_the_matrix():
    theirs, ours = Invertible1x1Conv(3, use_lu=True), fk.InvertibleConv1x1(MAP)
    normflows_factors(theirs, ours.linear)
    close(ours.weight(), theirs._assemble_W())
    both_ways(ours, theirs.inverse, theirs, MAP)


@deprecated
@pytest.mark.parametrize("use_lu", [True, False])
def test_vectors_are_normflows_whose_matrix_is_the_transpose(use_lu):
    theirs = InvertibleAffine(4, use_lu=use_lu)
    if use_lu:
        normflows_factors(theirs, fk.LULinear((4,)))
    matrix = theirs._assemble_W() if use_lu else theirs.W + 0.3 * torch.randn(4, 4)
    if not use_lu:
        theirs.W.data.copy_(matrix)
    both_ways(lu_with(matrix.detach().T, (4,)), theirs.inverse, theirs, (4,))


def test_a_permutation_and_lu_are_normflows():
    theirs = LULinearPermute(4, identity_init=False)
    lower, upper = theirs.linear._create_lower_upper()
    both_ways(
        lu_with((lower @ upper).detach()[:, theirs.permutation._permutation.argsort()], (4,)),
        theirs.inverse,
        theirs,
        (4,),
    )


def test_the_convolution_is_nflows_with_its_permutation():
    theirs, ours = OneByOneConvolution(3, identity_init=False), fk.InvertibleConv1x1(MAP)
    lower, upper = theirs._create_lower_upper()
    matrix = (lower @ upper).detach()[:, theirs.permutation._permutation.argsort()]
    ours.linear.load_state_dict(lu_with(matrix, MAP).state_dict())
    x = torch.randn(BATCH, *MAP)
    y, log_det = theirs(x)
    close(ours(x), (y, log_det))
    close(ours.inverse(y), (x, -log_det))  # their inverse calls a solver that torch has deprecated


def test_lu_is_zukos_whose_lower_triangle_has_the_diagonal():
    packed = torch.randn(4, 4)
    theirs, ours = LULinearTransform(packed), fk.LULinear((4,), init="identity")
    diagonal = packed.diagonal()
    upper = diagonal[:, None] * theirs.U
    with torch.no_grad():
        ours.packed.copy_((packed / diagonal).tril(-1) + upper.triu(1) + diagonal.abs().log().diag())
        ours.sign.copy_(diagonal.sign())
    both_ways(ours, theirs.call_and_ladj, theirs.inv.call_and_ladj, (4,))


def test_the_matrix_exponential_is_zukos_rotation():
    generator = torch.randn(5, 5)
    theirs, ours = RotationTransform(generator), fk.OrthogonalLinear((5,), form="matrix_exp")
    with torch.no_grad():
        ours.generator.copy_(generator - generator.T)
    both_ways(ours, theirs.call_and_ladj, theirs.inv.call_and_ladj, (5,))


def freia(module):
    """FrEIA's forward and inverse as functions of one tensor."""

    @torch.no_grad()  # its orthogonal transform has a hook on gradients that torch warns of
    def run(x, rev):
        (y,), log_det = module([x], rev=rev)
        return y, log_det

    return lambda x: run(x, False), lambda x: run(x, True)


@pytest.mark.parametrize("reflections", [2, 3, 4, 5])
def test_reflections_are_freias_in_the_other_order(reflections):
    theirs, ours = (
        HouseholderPerm([(5,)], n_reflections=reflections),
        fk.OrthogonalLinear((5,), reflections=reflections),
    )
    with torch.no_grad():
        theirs.Vs.normal_()
        ours.vectors.copy_(theirs.Vs.flip(0))
    both_ways(ours, *freia(theirs), (5,))


def test_a_fixed_matrix_is_freias():
    matrix = torch.randn(4, 4)
    both_ways(lu_with(matrix, (4,)), *freia(FixedLinearTransform([(4,)], M=matrix)), (4,))


def test_freias_fixed_convolution_applies_the_transpose_of_its_matrix():
    """Though its documentation says `M` itself, as its fixed linear transform does; and its log-det has no batch."""
    matrix = torch.randn(3, 3)
    theirs = Fixed1x1Conv([MAP], M=matrix)
    assert theirs([torch.randn(BATCH, *MAP)])[1].shape == ()
    both_ways(lu_with(matrix.T, MAP), *freia(theirs), MAP)


def test_freias_orthogonal_transform_is_a_rotation_and_a_scale():
    theirs = OrthogonalTransform([(4,)])
    with torch.no_grad():
        theirs.weights.copy_(torch.linalg.qr(torch.randn(4, 4))[0])  # it starts at float32's precision
    rotation, affine = fk.FixedRotation((4,)), fk.ElementwiseAffine((4,))
    rotation.rotation.copy_(theirs.weights.detach().T)
    with torch.no_grad():
        scale = theirs._log_e(theirs.scaling)[0]
        start = torch.stack((scale, theirs.bias[0] * scale.exp()))
        for parameter, value in zip(affine.parameters(), start, strict=True):
            parameter.copy_(value)
    flow = fk.Graph()
    flow.output("z", flow.add(affine, flow.add(rotation, flow.input("x", (4,)))))
    network = fk.Flow(flow).network
    both_ways(network, *freia(theirs), (4,))


@pytest.mark.parametrize("shape", [(5,), (5, 2, 3)])
def test_permutations_are_those_of_the_peers(shape):
    nflows, normflows, their_freia = RandomPermutation(5), NormflowsPermute(5), PermuteRandom([shape])
    for order, (forward, inverse) in (
        (nflows._permutation, (nflows, nflows.inverse)),
        (normflows.perm, (normflows, normflows.inverse)),
        (their_freia.perm, freia(their_freia)),
    ):
        both_ways(fk.Permute(shape, order=order.tolist()), forward, inverse, shape)
