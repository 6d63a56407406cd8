"""Shapes as they are written, read and said."""

import pytest
import torch

import flowkit as fk
from flowkit.shapes import adaptor_hint, as_shape, as_shapes, listing, numel


@pytest.mark.parametrize(
    ("value", "shape"), [(3, (3,)), ((), ()), ([2, 4], (2, 4)), (torch.Size([2, 3]), (2, 3)), ((1,), (1,))]
)
def test_as_shape(value, shape):
    assert as_shape(value) == shape
    assert type(as_shape(value)) is tuple


@pytest.mark.parametrize("value", [0, -1, (2, 0), True, (True,), "ab", "", 2.0, (2.0,), None, {2}, ((2,),)])
def test_what_is_no_shape(value):
    with pytest.raises(fk.ShapeError, match=r"a shape is"):
        as_shape(value)


@pytest.mark.parametrize(
    ("value", "shapes"),
    [
        ((), ()),
        ([], ()),
        (10, ((10,),)),
        ((3, 8, 8), ((3, 8, 8),)),
        (((10,), (3, 8, 8)), ((10,), (3, 8, 8))),
        ([[10]], ((10,),)),
        (((),), ((),)),
        ((5, (2, 2)), ((5,), (2, 2))),
    ],
)
def test_as_shapes(value, shapes):
    assert as_shapes(value) == shapes


@pytest.mark.parametrize("value", [2.5, None, "ab", (2.5,), True, ((0,),), object()])
def test_what_are_no_shapes(value):
    with pytest.raises(fk.ShapeError, match=r"shape"):
        as_shapes(value)


def test_numel_and_listing():
    assert (numel(()), numel((2, 3))) == (1, 6)
    assert [listing(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "none",
        "'a'",
        "'a' and 'b'",
        "'a', 'b' and 'c'",
    ]


@pytest.mark.parametrize(
    ("condition", "data", "hint"),
    [
        ((3, 8, 8), (2,), "fk.ToVector()"),
        ((3,), (2, 8, 4), "fk.ToMap((8, 4))"),
        ((3,), (2, 8), "fk.ToMap((8,))"),
        ((3, 4, 4), (2, 8, 8), "fk.Resize((8, 8))"),
        ((3, 4), (2, 8, 8), "it must be a map (channels, 8, 8)"),
    ],
)
def test_the_adaptor_that_mends_a_condition_does(condition, data, hint):
    said = adaptor_hint(condition, data)
    assert hint in said
    if "graph.features" in said:
        adaptor = eval(said.split("graph.features(")[1].split(", condition)")[0], {"fk": fk})
        assert tuple(adaptor(torch.zeros(5, *condition)).shape[2:]) == data[1:]
