"""Laws that every example of every bijection obeys; the public kit in flowkit.testing has more of them."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch

import flowkit as fk
from flowkit import bijections
from flowkit.bijection import as_tuple

EVERY = [getattr(bijections, name) for name in bijections.__all__]
# Those that change the dimension or lie on a surface have no square Jacobian; the kit and their own tests try them.
CLASSES = [c for c in EVERY if c is not fk.Coupling and not c.dimension_changing and not c.embedded]
NAMES = [c.registered_name for c in CLASSES]


def coarse(bijection):
    return bijection.stochastic or bijection.tolerance > 1e-9


CASES = [
    (name, i)
    for name in NAMES
    for i, example in enumerate(fk.examples_of(name))
    if not coarse(example.build(fk.lookup(name)))  # the kit judges these as they declare
]
every_example = pytest.mark.parametrize(("name", "index"), CASES)
VECTORS_ONLY = ("flowkit.masked_autoregressive", "flowkit.planar", "flowkit.radial", "flowkit.sylvester")
# A leaky ReLU counts signs, batch normalisation is constant in eval mode alone: rows may agree, unpromised.
SAME_FOR_MANY = ("flowkit.leaky_relu", "flowkit.batch_norm")
MAPS_OF_TWO_RANKS = ("flowkit.emerging_convolution",)
every_class = pytest.mark.parametrize("name", NAMES)


def build(name, index=0):
    return fk.examples_of(name)[index].build(fk.lookup(name)).eval()  # batch normalisation has two modes


def global_states():
    """Of Python's and numpy's generators, which belong to the user."""
    return random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


def close(a, b):
    return ((a - b).abs() <= 1e-9 * (1 + b.abs())).all()


@every_class
def test_has_examples_of_several_ranks(name):
    ranks = {len(shape) for example in fk.examples_of(name) for shape in example.build(fk.lookup(name)).in_shapes}
    assert len(ranks) >= (1 if name in VECTORS_ONLY else 2 if name in MAPS_OF_TWO_RANKS else 3)


def test_names_are_snake_case():
    assert all(name == name.lower() and name.count(".") == 1 for name in NAMES)
    assert "flowkit.affine_coupling" in NAMES
    assert "flowkit.lu_linear" in NAMES


@every_example
def test_round_trip_log_det_and_jacobian(name, index, redraw, arguments, log_abs_det):
    b = redraw(build(name, index))
    inputs, conditions = arguments(b)
    before = [t.clone() for t in (*inputs, *conditions)]
    y, log_det = b(*inputs, *conditions)
    outputs = as_tuple(y)
    assert [tuple(t.shape[1:]) for t in outputs] == list(b.out_shapes)
    assert isinstance(y, tuple) == (len(b.out_shapes) > 1)
    kept = [t.clone() for t in outputs]
    x, back = b.inverse(*outputs, *conditions)
    assert log_det.shape == back.shape == (3,)
    for got, wanted in zip(as_tuple(x), inputs, strict=True):
        assert close(got, wanted)
    assert close(back, -log_det)
    assert close(log_det, log_abs_det(b, inputs, conditions))
    assert close(back, log_abs_det(b.inverse, outputs, conditions))
    for got, wanted in zip(as_tuple(b.inverse_only(*outputs, *conditions)), inputs, strict=True):
        assert close(got, wanted)
    for now, then in zip((*inputs, *conditions, *outputs), (*before, *kept), strict=True):
        assert torch.equal(now, then)


@every_example
def test_promises(name, index, redraw, arguments):
    b = redraw(build(name, index))
    inputs, conditions = arguments(b, batch=4)
    if b.needs_initialization:  # without parameters it is the identity before
        b.initialize(*inputs, *conditions)
    y, log_det = b(*inputs, *conditions)
    if b.constant_log_det:
        assert close(log_det, log_det[0].expand(4))
    elif inputs[0].numel() > 4:
        assert log_det.unique().numel() == 4 or name in SAME_FOR_MANY
    assert b.volume_preserving == (not log_det.any())
    if b.views:
        flat = [torch.cat([t.flatten() for t in as_tuple(ts)]).sort().values for ts in (inputs, y)]
        assert torch.equal(*flat)


@every_example
def test_a_prepared_condition_gives_the_same(name, index, redraw, arguments):
    b = redraw(build(name, index))
    (_, conditions), (inputs, _) = arguments(b, batch=2), arguments(b, batch=6)
    prepared = b.prepare(*conditions)
    if prepared is None:
        return
    expanded = [c.repeat(3, *[1] * (c.dim() - 1)) for c in conditions]
    for method in (b.forward, b.inverse):
        got, wanted = method(*inputs, fk.Prepared(prepared)), method(*inputs, *expanded)
        assert close(got[0], wanted[0])
        assert close(got[1], wanted[1])
    if b.log_scales(*inputs, *expanded) is not None:
        assert close(b.log_scales(*inputs, fk.Prepared(prepared)), b.log_scales(*inputs, *expanded))
    none = b(*(t[:0] for t in inputs), fk.Prepared(b.prepare(*(c[:0] for c in conditions))))
    assert none[1].shape == (0,)


@pytest.mark.parametrize("name", ["flowkit.affine_coupling", "flowkit.elementwise_affine", "flowkit.inverse"])
def test_every_example_with_conditions_can_prepare(name, arguments):
    built = [build(name, i) for i in range(len(fk.examples_of(name)))]
    assert any(b.condition_shapes for b in built)
    for b in built:
        assert (b.prepare(*arguments(b)[1]) is not None) == bool(b.condition_shapes)


@every_example
def test_log_scales_sum_to_the_log_det(name, index, redraw, arguments):
    b = redraw(build(name, index))
    inputs, conditions = arguments(b)
    scales = b.log_scales(*inputs, *conditions)
    if scales is not None:
        assert close(scales.flatten(1).sum(1) if scales.dim() > 1 else scales, b(*inputs, *conditions)[1])


@every_example
def test_empty_batch_and_non_contiguous_input(name, index, redraw, arguments):
    b = redraw(build(name, index))
    inputs, conditions = arguments(b)
    empty, log_det = b(*(t[:0] for t in (*inputs, *conditions)))
    assert log_det.shape == (0,)
    back, _ = b.inverse(*as_tuple(empty), *(c[:0] for c in conditions))
    assert [tuple(t.shape) for t in as_tuple(back)] == [(0, *shape) for shape in b.in_shapes]
    strided = [torch.stack((t, t), -1)[..., 0] for t in (*inputs, *conditions)]
    for got, wanted in zip(as_tuple(b(*strided)[0]), as_tuple(b(*inputs, *conditions)[0]), strict=True):
        assert close(got, wanted)


@every_example
def test_channels_last_input_gives_the_same(name, index, redraw, arguments):
    b = redraw(build(name, index))
    if any(len(shape) != 3 for shape in (*b.in_shapes, *b.condition_shapes)):
        return
    inputs, conditions = arguments(b)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (*inputs, *conditions)]
    y, wanted = b(*last)[0], b(*inputs, *conditions)[0]
    for got, expected in zip(as_tuple(y), as_tuple(wanted), strict=True):
        assert close(got, expected)
    for got, expected in zip(as_tuple(b.inverse(*as_tuple(y), *last[len(inputs) :])[0]), inputs, strict=True):
        assert close(got, expected)


@every_example
def test_state_pickle_and_copy_give_the_same_numbers(name, index, redraw, arguments):
    b = redraw(build(name, index))
    inputs, conditions = arguments(b)
    wanted = as_tuple(b(*inputs, *conditions)[0])
    torch.manual_seed(1)
    other = build(name, index)
    other.load_state_dict(b.state_dict())
    for twin in (other, copy.deepcopy(b), pickle.loads(pickle.dumps(b))):
        for got, expected in zip(as_tuple(twin(*inputs, *conditions)[0]), wanted, strict=True):
            assert torch.equal(got, expected)
        assert twin.constant_log_det == b.constant_log_det


@every_example
def test_one_seed_reproduces_construction(name, index):
    before = global_states()
    torch.manual_seed(5)
    first = build(name, index).state_dict()
    torch.manual_seed(5)
    second = build(name, index).state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert global_states() == before


@every_example
def test_constructing_on_meta_draws_nothing(name, index):
    example = fk.examples_of(name)[index]  # of Inverse, it holds an instance built for real
    state = torch.get_rng_state()
    with torch.device("meta"):
        on_meta = example.build(fk.lookup(name))
    assert torch.equal(torch.get_rng_state(), state)
    real = example.build(fk.lookup(name))
    assert on_meta.out_shapes == real.out_shapes
    wanted = {key: (t.shape, t.dtype) for key, t in real.state_dict().items()}
    assert {key: (t.shape, t.dtype) for key, t in on_meta.state_dict().items()} == wanted
    if name != "flowkit.inverse":
        assert all(t.is_meta for t in on_meta.state_dict().values())


@every_example
def test_bfloat16_autocast(name, index, redraw, arguments):
    torch.set_default_dtype(torch.float32)
    b = redraw(build(name, index), std=0.2)
    inputs, conditions = arguments(b)
    exact = as_tuple(b(*inputs, *conditions)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, log_det = b(*inputs, *conditions)
        x, back = b.inverse(*as_tuple(y), *conditions)
    assert log_det.dtype == back.dtype == torch.float32
    predicted = any("subnet" in key for key in b.state_dict())
    for got, wanted in zip(as_tuple(y), exact, strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, wanted) or predicted  # half precision stays inside subnets
        torch.testing.assert_close(got, wanted, rtol=0.05, atol=0.05)
    for got, wanted in zip(as_tuple(x), inputs, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted, rtol=0.05 if predicted else 1e-5, atol=0.05 if predicted else 1e-5)


SOME = [
    ("flowkit.affine_coupling", 3),
    ("flowkit.affine_coupling", 7),
    ("flowkit.act_norm", 4),
    ("flowkit.concat", 3),
    ("flowkit.elementwise_affine", 4),
    ("flowkit.elementwise_affine", 7),
    ("flowkit.fixed_rotation", 4),
    ("flowkit.inverse", 3),
    ("flowkit.lu_linear", 4),
    ("flowkit.permute", 6),
    ("flowkit.split", 3),
    ("flowkit.squeeze", 3),
]


class Method(torch.nn.Module):
    """One direction as a module, for export."""

    def __init__(self, bijection, method):
        super().__init__()
        self.bijection, self.method = bijection, method

    def forward(self, *args):
        return getattr(self.bijection, self.method)(*args)


@pytest.mark.parametrize("method", ["forward", "inverse"])
@pytest.mark.parametrize(("name", "index"), SOME)
def test_compiles_without_a_break_and_exports(name, index, method, redraw, arguments):
    b = redraw(build(name, index))
    inputs, conditions = arguments(b)
    data = inputs if method == "forward" else as_tuple(b(*inputs, *conditions)[0])
    args = tuple(t.detach() for t in (*data, *conditions))
    wanted = getattr(b, method)(*args)
    torch._dynamo.reset()
    compiled = torch.compile(getattr(b, method), fullgraph=True, backend="aot_eager")
    exported = torch.export.export(Method(b, method), args).module()
    for run in (compiled, exported):
        got = run(*args)
        for a, e in zip((*as_tuple(got[0]), got[1]), (*as_tuple(wanted[0]), wanted[1]), strict=True):
            assert close(a, e)


def test_compiles_with_a_prepared_condition(redraw, arguments):
    for name, index in (("flowkit.affine_coupling", 3), ("flowkit.elementwise_affine", 7)):
        b = redraw(build(name, index))
        (_, conditions), (inputs, _) = arguments(b, batch=2), arguments(b, batch=6)

        def run(x, *given, b=b):
            return b(x, fk.Prepared(b.prepare(*given)))

        torch._dynamo.reset()
        got = torch.compile(run, fullgraph=True, backend="aot_eager")(*inputs, *conditions)
        assert all(close(a, e) for a, e in zip(got, run(*inputs, *conditions), strict=True))


@every_example
def test_gradients_of_value_and_log_det(name, index, redraw, arguments):
    b = redraw(build(name, index))
    inputs, conditions = arguments(b, batch=2)
    parameters = dict(b.named_parameters())
    if not parameters:
        return

    def total(*values):
        state = dict(zip(parameters, values, strict=True))
        y, log_det = torch.func.functional_call(b, state, (*inputs, *conditions))
        return torch.cat([t.flatten() for t in (*as_tuple(y), log_det)])

    assert torch.autograd.gradcheck(total, tuple(p.detach().requires_grad_() for p in parameters.values()))
    loss = total(*parameters.values()).square().sum()
    for key, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
        assert gradient.abs().sum() > 0, key
