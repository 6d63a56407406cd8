import pytest
import torch

import flowkit as fk
from flowkit.errors import ConfigError, ShapeError


def test_halves_by_default_the_smaller_first():
    assert fk.Split((5, 2)).out_shapes == ((2, 2), (3, 2))
    assert fk.Split((1, 6), dim=-1).out_shapes == ((1, 3), (1, 3))


def test_parts_are_views_in_order():
    x = torch.randn(2, 6, 3)
    parts, _ = fk.Split((6, 3), sizes=(1, 2, 3))(x)
    assert torch.equal(torch.cat(parts, 1), x)
    assert all(part.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for part in parts)


def test_concat_is_the_inverse_of_split():
    split, concat = fk.Split((2, 5), sizes=(1, 4), dim=1), fk.Concat((2, 1), (2, 4), dim=1)
    x = torch.randn(3, 2, 5)
    parts, _ = split(x)
    assert torch.equal(concat(*parts)[0], x)
    assert all(torch.equal(a, b) for a, b in zip(concat.inverse(x)[0], parts, strict=True))
    assert concat.in_shapes == split.out_shapes
    assert concat.out_shapes == split.in_shapes


@pytest.mark.parametrize("sizes", [(4,), (1, 2), (2, 3), (1, 1, 1, 2)])
def test_sizes_must_sum_to_the_dimension(sizes):
    with pytest.raises(ConfigError, match="Split: sizes must be two or more that sum to 4, got"):
        fk.Split((4,), sizes=sizes)


@pytest.mark.parametrize("sizes", [2, (0, 4), (-1, 5), (2.0, 2.0), "22"])
def test_sizes_must_be_positive_ints(sizes):
    with pytest.raises(ConfigError, match="Split: sizes must be positive ints, one for each part, got"):
        fk.Split((4,), sizes=sizes)


def test_refusals():
    with pytest.raises(ShapeError, match=r"Split needs at least two to halve, dimension 0 of \(1, 4\) has one"):
        fk.Split((1, 4))
    with pytest.raises(ShapeError, match=r"Split needs at least one event dimension, got shape \(\)"):
        fk.Split(())
    with pytest.raises(ConfigError, match=r"Split: dim must be an event dimension of \(2, 4\), 0 to 1, got 5"):
        fk.Split((2, 4), dim=5)
    with pytest.raises(ShapeError, match="Concat needs two or more shapes, got 1"):
        fk.Concat((3,))
    for other in ((3, 5), (3, 4, 1)):
        with pytest.raises(ShapeError, match=r"Concat needs shapes equal but in dimension 0, got \(2, 4\) and"):
            fk.Concat((2, 4), other)
