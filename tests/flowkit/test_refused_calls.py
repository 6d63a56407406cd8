"""Flows of every registered bijection, and every base, called with what does not fit: refused, or no finite numbers."""

import copy
import math

import pytest
import torch

import flowkit as fk
from flowkit.testing import cases

from .test_more_distributions import BASES, drawn

CASES = {}
for case in cases():  # of each bijection the first example with conditions, and the first without
    CASES.setdefault((case.name, "given" in case.example.config), case)
every = pytest.mark.parametrize("case", CASES.values(), ids=str)
UNUSED = {"generator"}  # a skew matrix of which one triangle counts


def refused(call):
    """What is wrong with how a call is refused; "" where nothing is."""
    try:
        with torch.no_grad():
            call()
    except fk.InputError as error:
        return "" if str(error) and "\n" not in str(error) else f"no sentence: {error!s}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def flow_and_data(case):
    subject = case.subject
    flow = fk.Flow(subject.bijection).eval()
    x = dict(zip(flow.input_shapes, subject.inputs(), strict=True))
    given = dict(zip(flow.condition_shapes, subject.conditions(), strict=True))
    return flow, x, given


def misfits(good, numbers):
    """Tensors and others that are not what `good` is."""
    yield from (None, "x", 1.0, good.tolist(), good.numpy(), good.to(torch.complex128), good.to("meta"))
    yield from (good.to_sparse(), good.double().half(), good.double().float(), {"nobody": good})
    yield good.long() if numbers else good.double()
    if good.dim() > 1:
        yield torch.cat((good, good), -1)


@every
def test_data_and_conditions_that_do_not_fit(case):
    flow, x, given = flow_and_data(case)
    name, values = next(iter(x)), given or None
    wrong = []
    for misfit in misfits(x[name], True):
        data = misfit if len(x) == 1 or isinstance(misfit, dict) else {**x, name: misfit}
        for method in (flow.log_prob, flow):
            wrong.append((f"x = {misfit!r}", refused(lambda d=data, m=method: m(d, given=values))))
    if not given:
        for surplus in (torch.zeros(3, 1), {"y": torch.zeros(3, 1)}, "x"):
            for call in (lambda s: flow.log_prob(x, given=s), lambda s: flow.sample((2,), given=s), flow.given):
                wrong.append((f"given = {surplus!r}", refused(lambda c=call, s=surplus: c(s))))
    for key, good in given.items():
        for misfit in misfits(good, good.is_floating_point()):
            some = misfit if isinstance(misfit, dict) else {**given, key: misfit}
            for call in (lambda s: flow.log_prob(x, given=s), lambda s: flow.sample((2,), given=s), flow.given):
                wrong.append((f"given = {misfit!r}", refused(lambda c=call, s=some: c(s))))
        wrong.append(("none given", refused(lambda: flow.log_prob(x))))
        longer = {**given, key: torch.cat((good, good[:1]))}
        wrong.append(("rows", refused(lambda g=longer: flow.log_prob(x, given=g))))
    z = torch.zeros(3, flow.dim)
    for misfit in (None, "x", z.numpy(), z.long(), z.half(), z.to("meta"), z.to_sparse(), torch.zeros(3, flow.dim + 1)):
        wrong.append((f"z = {misfit!r}", refused(lambda m=misfit: flow.inverse(m, given=values))))
    assert not [each for each in wrong if each[1]]


@pytest.mark.parametrize("shape", [-1, 2.5, "3", (2, -1), None, (2.5,), True, torch.tensor(2), [[1]], 2**70])
def test_sample_shapes_that_are_none(shape):
    assert not refused(lambda: fk.Flow(fk.Identity((2,))).sample(shape))


@pytest.mark.parametrize("value", [math.nan, -1.0, math.inf, "1", None, torch.tensor([1.0, 2.0]), True, 1j, 10**400])
def test_temperatures_that_are_none(value):
    assert not refused(lambda: fk.Flow(fk.Identity((2,))).sample((2,), temperature=value))


@every
def test_numbers_that_are_none_give_none(case):
    """NaN in data, conditions, latents and weights, infinity in data: what comes of it is not finite, or refused."""
    flow, x, given = flow_and_data(case)
    values, name = given or None, next(iter(x))

    def spoiled(good, number):
        bad = good.clone()
        bad.view(-1)[0] = number
        return bad

    def is_finite(call):
        try:
            with torch.no_grad():
                return all(bool(each.isfinite().all()) for each in call())
        except fk.FlowkitError:
            return False

    finite = []
    for number in (math.nan, math.inf, -math.inf):
        data = {**x, name: spoiled(x[name], number)}
        if is_finite(lambda d=data: [flow.log_prob(d, given=values)]):
            finite.append(f"x with {number}")
    for key, good in given.items():
        if good.is_floating_point() and is_finite(
            lambda k=key, g=good: [flow.log_prob(x, given={**given, k: spoiled(g, math.nan)})]
        ):
            finite.append(f"condition {key}")
    if not (flow.network.stochastic or flow.network.dimension_changing):
        z = spoiled(torch.randn(3, flow.dim), math.nan)

        def back():
            found, log_det = flow.inverse(z, given=values)
            return [log_det, *(found.values() if isinstance(found, dict) else [found])]

        if is_finite(back):
            finite.append("z")
    for key, parameter in flow.named_parameters():
        if parameter.numel() and key.split(".")[-1] not in UNUSED:
            other = copy.deepcopy(flow)
            with torch.no_grad():
                other.get_parameter(key).view(-1)[0] = math.nan
            if is_finite(lambda f=other: [f.log_prob(x, given=values)]):
                finite.append(key)
    assert not finite


@pytest.mark.parametrize("name", BASES)
def test_a_base_called_by_itself(name):
    base, conditions = drawn(name, 3)
    z = torch.randn(5, 3)
    rows = [c.expand(5, *c.shape[c.dim() - len(s) :]) for c, s in zip(conditions, base.condition_shapes, strict=True)]
    assert base.log_prob(z, *rows).shape == (5,)
    wrong = [
        (repr(misfit), refused(lambda m=misfit: base.log_prob(m, *rows)))
        for misfit in (z[:, :1], torch.zeros(5, 4), torch.tensor(1.0), z.long(), z.to(torch.complex128), "x", z.numpy())
    ]
    others = [[*rows, torch.zeros(5, 2)]]
    if rows:
        wider = torch.zeros(5, 7) if base.condition_shapes[0] else "x"
        others += [rows[:-1], [wider, *rows[1:]], [torch.cat((rows[0], rows[0][:1])), *rows[1:]]]
    for some in others:
        wrong.append((repr(some), refused(lambda s=some: base.log_prob(z, *s))))
    for some in others[:-1]:
        wrong.append((repr(some), refused(lambda s=some: base.sample((5,), *s))))
    assert not [each for each in wrong if each[1]]
