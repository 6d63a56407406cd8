import pytest
import torch

import flowkit as fk
from flowkit.errors import ConfigError


def test_shapes_and_conditions_are_turned_round():
    b = fk.Inverse(fk.Split((4, 2), sizes=(1, 3)))
    assert b.in_shapes == ((1, 2), (3, 2))
    assert b.out_shapes == ((4, 2),)
    assert fk.Inverse(fk.AffineCoupling((3,), given=(2,))).condition_shapes == ((2,),)


def test_directions_are_exchanged(redraw):
    f = redraw(fk.AffineCoupling((3,), given=2, subnet=fk.MLP(hidden=4)))
    b, x, c = fk.Inverse(f), torch.randn(5, 3), torch.randn(5, 2)
    for got, wanted in ((b(x, c), f.inverse(x, c)), (b.inverse(x, c), f(x, c)), (fk.Inverse(b)(x, c), f(x, c))):
        assert torch.equal(got[0], wanted[0])
        assert torch.equal(got[1], wanted[1])
    assert torch.equal(b.inverse_only(x, c), f(x, c)[0])
    assert torch.equal(b.prepare(c)[0], f.prepare(c)[0])


def test_log_scales_are_those_of_the_map_that_is_applied(redraw):
    f = redraw(fk.AffineCoupling((3,), given=2, subnet=fk.MLP(hidden=4)))
    b, x, c = fk.Inverse(f), torch.randn(5, 3), torch.randn(5, 2)
    torch.testing.assert_close(b.log_scales(x, c).sum(1), b(x, c)[1])
    assert fk.Inverse(fk.Permute((3,))).log_scales(x) is None


@pytest.mark.parametrize(
    "promise", ["constant_log_det", "volume_preserving", "views", "adaptive", "iterative", "stochastic"]
)
def test_promises_are_those_of_the_inner_bijection(promise):
    for f in (fk.Permute((3,)), fk.LULinear((3,)), fk.AffineCoupling((3,)), fk.ElementwiseAffine((3,))):
        assert getattr(fk.Inverse(f), promise) == getattr(f, promise)

    class Promising(fk.Identity):
        pass

    setattr(Promising, promise, True)
    assert getattr(fk.Inverse(Promising((3,))), promise)


def test_it_is_not_initialized_from_what_is_not_its_input():
    assert not fk.Inverse(fk.ActNorm((3,))).needs_initialization


def test_parameters_are_shared():
    f = fk.LULinear((3,))
    assert [p is q for p, q in zip(fk.Inverse(f).parameters(), f.parameters(), strict=True)] == [True]


@pytest.mark.parametrize("thing", [fk.Permute, torch.nn.Linear(2, 2), (3,)])
def test_anything_but_an_instance_is_refused(thing):
    with pytest.raises(ConfigError, match=r"Inverse needs an instance of a bijection.*got (Permute|Linear|tuple)"):
        fk.Inverse(thing)
