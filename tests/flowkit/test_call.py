"""What is passed to a flow is checked: wrong names, shapes, dtypes, devices, batches, each with its own sentence."""

import pytest
import torch

import flowkit as fk


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    graph = fk.Graph()
    c, d = graph.condition("c", (3,)), graph.condition("digit", (), dtype=torch.int64)
    hot = graph.features(fk.OneHot(4), d)
    a, b = graph.input("a", (2,)), graph.input("b", (3, 2))
    graph.output("u", graph.add(fk.AffineCoupling, a, given=[c, hot], subnet=fk.MLP(4)))
    graph.output("v", graph.add(fk.Permute, b))
    return fk.Flow(graph).double()


def x(**changes):
    return {"a": torch.zeros(5, 2), "b": torch.zeros(5, 3, 2), **changes}


def y(**changes):
    return {"c": torch.zeros(5, 3), "digit": torch.zeros(5, dtype=torch.int64), **changes}


def without(d, name):
    return {k: v for k, v in d.items() if k != name}


def refused(message, error=fk.InputError):
    return pytest.raises(error, match=message)


ENTRIES = (
    lambda f, x, y: f.log_prob(x, given=y),
    lambda f, x, y: f(x, given=y),
    lambda f, x, y: f.trace(x, given=y),
    lambda f, x, y: f.initialize(x, given=y),
)


@pytest.mark.parametrize("entry", ENTRIES)
def test_inputs_by_the_wrong_names(flow, entry):
    with refused(r"the flow needs the inputs 'a' \(2,\), 'b' \(3, 2\): missing 'b', not known 'w' and 'q'"):
        entry(flow, {"a": torch.zeros(5, 2), "w": 0, "q": 1}, y())
    with refused("missing 'a'$"):
        entry(flow, without(x(), "a"), y())
    with refused("not known 'w'$"):
        entry(flow, x(w=torch.zeros(1)), y())


def test_one_tensor_where_several_are_needed(flow):
    with refused(r"the flow needs the inputs 'a' \(2,\), 'b' \(3, 2\): pass a dictionary by name, got Tensor"):
        flow.log_prob(torch.zeros(5, 2), given=y())
    with refused(r"the flow needs the conditions 'c' .*: pass a dictionary by name, got Tensor", fk.ConditionError):
        flow.log_prob(x(), given=torch.zeros(5, 3))


def test_nothing_where_something_is_needed(flow):
    with refused(r"the conditions 'c' \(3,\), 'digit' \(\) are needed, none was given", fk.ConditionError):
        flow.log_prob(x())
    with refused("the inputs .* are needed, none was given"):
        flow.log_prob(None, given=y())


def test_conditions_by_the_wrong_names(flow):
    for entry in (lambda g: flow.log_prob(x(), given=g), lambda g: flow.sample((2,), given=g), lambda g: flow.given(g)):
        with refused(r"the flow needs the conditions .*: missing 'digit', not known 'label'", fk.ConditionError):
            entry({"c": torch.zeros(5, 3), "label": torch.zeros(5)})


def test_conditions_for_a_flow_that_takes_none():
    flow = fk.Flow(fk.Permute((2,)))
    with refused("the flow takes no conditions, got Tensor", fk.ConditionError):
        flow.log_prob(torch.zeros(5, 2), given=torch.zeros(5, 2))
    with refused("needs the conditions none: not known 'c'", fk.ConditionError):
        flow.log_prob(torch.zeros(5, 2), given={"c": torch.zeros(5, 2)})
    assert flow.log_prob(torch.zeros(5, 2), given={}).shape == (5,)
    assert flow.log_prob({"x": torch.zeros(5, 2)}).shape == (5,)


@pytest.mark.parametrize("shape", [(5, 3), (2, 5), (), (5, 2, 1)])
def test_inputs_of_the_wrong_shape(flow, shape):
    with refused(rf"input 'a' must be of shape \(..., 2\), got \({', '.join(map(str, shape))}\)"):
        flow.log_prob(x(a=torch.zeros(shape)), given=y())


def test_conditions_of_the_wrong_shape(flow):
    with refused(r"condition 'c' must be of shape \(..., 3\), got \(5, 4\)", fk.ConditionError):
        flow.log_prob(x(), given=y(c=torch.zeros(5, 4)))
    with refused(r"the flow needs|must be of shape \(..., 3, 2\), got \(2,\)"):
        flow.log_prob(x(b=torch.zeros(2)), given=y())


def test_what_is_no_tensor(flow):
    with refused("input 'a' must be a tensor, got list"):
        flow.log_prob(x(a=[0.0, 1.0]), given=y())
    with refused("condition 'c' must be a tensor, got ndarray", fk.ConditionError):
        flow.log_prob(x(), given=y(c=torch.zeros(5, 3).numpy()))
    with refused("z must be of shape .*, got list"):
        flow.inverse([0.0], given=y())


def test_inputs_of_the_wrong_dtype(flow):
    with refused(r"input 'a' must be torch.float64 as the flow is, got torch.float32: convert one of the two"):
        flow.log_prob(x(a=torch.zeros(5, 2, dtype=torch.float32)), given=y())
    with refused(r"input 'a' must be torch.float64, got torch.int64: convert it first$"):
        flow.log_prob(x(a=torch.zeros(5, 2, dtype=torch.int64)), given=y())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_data_is_refused_with_the_hint(flow, dtype):
    hint = "pass it as torch.float64 and leave half precision to torch.autocast"
    with refused(f"input 'a' must be torch.float64, got {dtype}: {hint}"):
        flow.log_prob(x(a=torch.zeros(5, 2, dtype=dtype)), given=y())
    with torch.autocast("cpu", torch.bfloat16), refused("input 'a' must be torch.float64"):
        flow.log_prob(x(a=torch.zeros(5, 2, dtype=dtype)), given=y())
    low = fk.Flow(fk.Permute((2,))).to(dtype)
    with refused(f"input 'x' must be torch.float32, got {dtype}: pass it as torch.float32"):  # though the flow is, too
        low.log_prob(torch.zeros(5, 2, dtype=dtype))


def test_half_precision_conditions_only_under_autocast(flow):
    half = y(c=torch.zeros(5, 3, dtype=torch.bfloat16))
    with refused("condition 'c' must be torch.float64, got torch.bfloat16", fk.ConditionError):
        flow.log_prob(x(), given=half)
    low = fk.Flow(fk.AffineCoupling((2,), given=(3,), subnet=fk.MLP(4))).float()
    data, c = torch.zeros(5, 2, dtype=torch.float32), torch.zeros(5, 3, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        log_prob = low.log_prob(data, given=c)
    assert log_prob.dtype == torch.float32


def test_labels_of_the_wrong_dtype(flow):
    with refused(r"condition 'digit' must be of integers \(torch.int64\), got torch.float64", fk.ConditionError):
        flow.log_prob(x(), given=y(digit=torch.zeros(5)))
    with refused(r"condition 'digit' must be of integers \(torch.int64\), got torch.bool", fk.ConditionError):
        flow.log_prob(x(), given=y(digit=torch.zeros(5, dtype=torch.bool)))
    with refused(
        r"condition 'c' must be .*labels are declared by graph.condition\('c', ..., dtype=torch.int64\)",
        fk.ConditionError,
    ):
        flow.log_prob(x(), given=y(c=torch.zeros(5, 3, dtype=torch.int64)))
    assert flow.log_prob(x(), given=y(digit=torch.zeros(5, dtype=torch.int32))).shape == (5,)


def test_labels_out_of_range_name_the_label(flow):
    with refused("OneHot needs labels from 0 to 3, got 4", fk.ConditionError):
        flow.log_prob(x(), given=y(digit=torch.full((5,), 4)))


def test_another_device(flow):
    with refused("input 'a' is on meta, the flow is on cpu"):
        flow.log_prob(x(a=torch.zeros(5, 2, device="meta")), given=y())
    with refused("condition 'c' is on meta, the flow is on cpu", fk.ConditionError):
        flow.sample((2,), given=y(c=torch.zeros(5, 3, device="meta")))
    with refused("z must be torch.float64 on cpu as the flow is, got torch.float64 on meta"):
        flow.inverse(torch.zeros(5, 8, device="meta"), given=y())


def test_a_whole_flow_on_meta():
    flow = fk.Flow(fk.AffineCoupling((2,), given=(3,), subnet=fk.MLP(4))).to("meta")
    c = torch.zeros(5, 3, device="meta")
    assert flow.log_prob(torch.zeros(5, 2, device="meta"), given=c).shape == (5,)
    assert flow.given(c).sample((7,)).shape == (7, 5, 2)


def test_batches_that_do_not_agree(flow):
    with refused(r"the inputs do not agree on the batch: 'a' has \(4,\), 'b' has \(5,\)"):
        flow.log_prob(x(a=torch.zeros(4, 2)), given=y())
    with refused(r"the conditions do not agree on the batch: 'c' has \(4,\), 'digit' has \(5,\)", fk.ConditionError):
        flow.given(y(c=torch.zeros(4, 3)))
    message = r"the batch of the inputs 'a' and 'b' is \(5,\), that of the conditions 'c' and 'digit' is \(4,\): they do not broadcast"  # noqa: E501
    with refused(message, fk.ConditionError):
        flow.log_prob(x(), given=y(c=torch.zeros(4, 3), digit=torch.zeros(4, dtype=torch.int64)))
    with refused(r"the batch of the latents .* is \(4,\), that of the conditions .* is \(5,\)", fk.ConditionError):
        flow.inverse(torch.zeros(4, 8), given=y())
    with refused(r"they do not broadcast", fk.ConditionError):
        flow.given(y()).log_prob({"a": torch.zeros(4, 2), "b": torch.zeros(4, 3, 2)})


def test_latents_of_the_wrong_size(flow):
    for z in (torch.zeros(5, 7), torch.zeros(()), torch.zeros(8, 5)):
        with refused(r"z must be of shape \(..., 8\), got"):
            flow.inverse(z, given=y())
        with refused(r"z must be of shape \(..., 8\), got"):
            flow.split(z)
    with refused("the flow needs the latents 'u' .*: missing 'v'"):
        flow.join({"u": torch.zeros(5, 2)})
    with refused(r"latent 'u' must be of shape \(..., 2\), got \(5, 3\)"):
        flow.join({"u": torch.zeros(5, 3), "v": torch.zeros(5, 3, 2)})


@pytest.mark.parametrize("shape", [(-1,), (2.0,), "ab", (True,), None, 2.5])
def test_sample_shapes_that_are_none(flow, shape):
    for sample in (flow.sample, flow.given(y()).sample, flow.given(y()).sample_and_log_prob):
        with refused("a sample shape is made of sizes of 0 or more, got"):
            sample(shape, **({"given": y()} if sample == flow.sample else {}))


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf")])
def test_temperatures_that_are_none(flow, temperature):
    with refused("temperature must be 0 or more and finite, got"):
        flow.sample((2,), given=y(), temperature=temperature)
    with refused("temperature must be 0 or more and finite, got"):
        flow.given(y()).rsample((2,), temperature=temperature)


def test_booleans_are_declared_as_such():
    graph = fk.Graph()
    mask = graph.condition("mask", (3,), dtype=torch.bool)

    class Real(torch.nn.Module):
        def forward(self, m):
            return m.double()

    h = graph.features(Real(), mask)
    graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (2,)), given=h, subnet=fk.MLP(4)))
    flow = fk.Flow(graph)
    assert flow.log_prob(torch.zeros(5, 2), given=torch.ones(5, 3, dtype=torch.bool)).shape == (5,)
    with refused(r"condition 'mask' must be of booleans \(torch.bool\), got torch.int64", fk.ConditionError):
        flow.log_prob(torch.zeros(5, 2), given=torch.ones(5, 3, dtype=torch.int64))
