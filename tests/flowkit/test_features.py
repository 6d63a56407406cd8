import pickle

import pytest
import torch
from torch.nn import functional as F

import flowkit as fk
from flowkit.errors import ConditionError, ConfigError, ShapeError


@pytest.mark.parametrize("size", [5, (5,), (3, 4), (2, 3, 4)])
def test_to_map_repeats_the_vector_everywhere(size):
    c = torch.randn(2, 3)
    out = fk.ToMap(size)(c)
    spatial = (size,) if isinstance(size, int) else size
    assert out.shape == (2, 3, *spatial)
    assert torch.equal(out.flatten(2).movedim(2, 0), c.expand(out[0, 0].numel(), 2, 3))
    assert out.untyped_storage().nbytes() == c.untyped_storage().nbytes()
    assert torch.equal(fk.ToVector()(out).round(decimals=12), c.round(decimals=12))


def test_to_vector_is_the_mean_over_space():
    for shape in ((3, 4), (3, 4, 5), (3, 2, 3, 4)):
        c = torch.randn(2, *shape)
        torch.testing.assert_close(fk.ToVector()(c), c.flatten(2).mean(2))


@pytest.mark.parametrize("size", [(4, 4), (16, 12), (4, 12), (8, 9)])
def test_resize_of_an_image_is_torchs(size):
    c = torch.randn(2, 3, 8, 9)
    wanted = F.interpolate(c, size, mode="bilinear", antialias=True) if size != (8, 9) else c
    torch.testing.assert_close(fk.Resize(size)(c), wanted)


def test_resize_enlarges_as_torch_does_for_every_rank():
    for mode, shape, size in (
        ("linear", (5,), (9,)),
        ("bilinear", (3, 5), (4, 9)),
        ("trilinear", (3, 5, 2), (4, 9, 5)),
    ):
        c = torch.randn(2, 3, *shape)
        torch.testing.assert_close(fk.Resize(size)(c), F.interpolate(c, size, mode=mode))


def test_resize_shrinks_without_aliasing():
    stripes = torch.tensor([0.0, 1.0]).repeat(16).expand(1, 1, 32)
    small = fk.Resize(8)(stripes)
    assert (
        small - 0.5
    ).abs().max() < 0.1  # sampled without a filter, stripes would stay 0, 1 or 0.5 by chance of phase
    along_each = fk.Resize((4, 4, 8))(stripes.view(1, 1, 1, 1, 32).expand(1, 1, 4, 4, 32))
    torch.testing.assert_close(along_each, small.view(1, 1, 1, 1, 8).expand(1, 1, 4, 4, 8))
    turned = fk.Resize((8, 4, 4))(stripes.view(1, 1, 32, 1, 1).expand(1, 1, 32, 4, 4))
    torch.testing.assert_close(turned, along_each.movedim(4, 2))


def test_resize_shrinks_to_the_mean_of_a_constant_and_keeps_equal_size():
    assert torch.allclose(fk.Resize((3, 5, 2))(torch.full((1, 2, 7, 9, 8), 0.3)), torch.tensor(0.3))
    c = torch.randn(1, 2, 4, 4)
    assert fk.Resize((4, 4))(c) is c


def test_resize_shrinking_one_axis_and_enlarging_another():
    c = torch.randn(1, 1, 8, 1).expand(1, 1, 8, 3)
    out = fk.Resize((4, 6))(c)
    torch.testing.assert_close(out, fk.Resize(4)(c[..., 0]).unsqueeze(3).expand(1, 1, 4, 6))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_one_hot(dtype):
    labels = torch.tensor([2, 0, 1, 2]).to(dtype)
    assert torch.equal(fk.OneHot(3)(labels), torch.eye(3)[labels.long()])


def test_one_hot_has_the_modules_dtype():
    net = fk.OneHot(3)
    labels = torch.tensor([0])
    assert net(labels).dtype == torch.float64
    assert net.float()(labels).dtype == torch.float32
    assert net.half()(labels).dtype == torch.float16
    assert not net.state_dict()
    assert net(torch.empty(0, dtype=torch.int64)).shape == (0, 3)


def test_one_hot_under_vmap():
    labels = torch.tensor([[0, 2], [1, 1]])
    assert torch.equal(torch.func.vmap(fk.OneHot(3))(labels), torch.eye(3)[labels])


def test_one_hot_refusals():
    net = fk.OneHot(3)
    for labels, message in (
        (torch.tensor([0, 3]), "OneHot needs labels from 0 to 2, got 3"),
        (torch.tensor([0, -1]), "OneHot needs labels from 0 to 2, got -1"),
        (torch.tensor([0.0]), "OneHot needs integer labels, got torch.float64"),
        (torch.tensor([True]), "OneHot needs integer labels, got torch.bool"),
        (torch.tensor([[0]]), r"OneHot needs labels of shape \(\), one a row, got shape \(1,\)"),
    ):
        with pytest.raises(ConditionError, match=message):
            net(labels)
    for n in (0, True, 2.0):
        with pytest.raises(ConfigError, match="OneHot: n must be a positive int, got"):
            fk.OneHot(n)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"ToMap needs a vector \(C,\), got shape \(3, 4, 4\)"):
        fk.ToMap(4)(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ShapeError, match=r"ToVector needs a map \(C, ...\), got shape \(3,\)"):
        fk.ToVector()(torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"Resize to \(4, 4\) needs a map with 2 spatial dimensions, got shape \(3,\)"):
        fk.Resize((4, 4))(torch.zeros(2, 3))
    for cls in (fk.ToMap, fk.Resize):
        for size in ((), (1, 2, 3, 4)):
            with pytest.raises(ConfigError, match=f"{cls.__name__}: size must be one, two or three spatial sizes, got"):
                cls(size)


NETS = [
    (fk.ToMap((2, 3)), torch.ones(2, 3)),
    (fk.ToVector(), torch.ones(2, 3, 4)),
    (fk.Resize((2, 3)), torch.rand(2, 3, 4, 4)),
    (fk.Resize((2, 3, 2)), torch.rand(2, 3, 4, 4, 4)),
    (fk.OneHot(4), torch.tensor([1, 3])),
]


@pytest.mark.parametrize(("net", "c"), NETS)
def test_runs_on_meta_compiles_pickles_and_is_registered(net, c):
    assert net(c.to("meta")).is_meta if not isinstance(net, fk.OneHot) else True
    wanted = net(c)
    torch._dynamo.reset()
    for twin in (torch.compile(net, fullgraph=True, backend="aot_eager"), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(twin(c), wanted)
    torch.testing.assert_close(torch.export.export(net, (c,)).module()(c), wanted)
    assert fk.lookup(net.registered_name) is type(net)


def test_the_repr_is_how_it_is_written():
    assert [repr(net) for net, _ in NETS] == [
        "ToMap((2, 3))",
        "ToVector()",
        "Resize((2, 3))",
        "Resize((2, 3, 2))",
        "OneHot(4)",
    ]


def test_equal_ones_are_still_two_modules():
    both = torch.nn.ModuleList([fk.OneHot(3), fk.OneHot(3)]).half()
    assert [net.like.dtype for net in both] == [torch.float16] * 2
    assert len(list(both.children())) == 2
