"""Memory-frugal gradients on graphs that nobody thought of: those of plain autograd, whatever the loss looks at."""

import collections
import random
import warnings
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flowkit as fk
from flowkit.bijection import as_tuple
from flowkit.memory import peak_bytes
from flowkit.testing import strategies
from flowkit.testing.random_graph import GraphBuilder
from flowkit.testing.strategies import GraphCase

# An example runs eight passes, a third of a second; the profiles differ as for the other laws on random graphs.
some = settings(max_examples=max(10, settings().max_examples // 4))
ROWS = 12  # enough for activations to outweigh parameters, so that budgets cut graphs in the middle
TOLERANCE = 1e-12  # of max |a - b| over 1 + max |b|, tensor by tensor
SENSITIVITY = 100  # of the gradients to where they are taken: up to 20 were seen, with weights that invert badly
PLAIN = {"backprop": "plain"}
FRUGAL = [
    {"backprop": "reverse", "snapshots": 0},
    {"backprop": "reverse", "snapshots": 2},
    {"backprop": "reverse", "snapshots": 8},
    {"backprop": "reverse", "snapshots": 2, "chunk": 5},  # the last piece of the rows is smaller
    {"backprop": "checkpoint"},
    {"backprop": "checkpoint", "chunk": 6},
    {"backprop": "auto"},
]


@dataclass(frozen=True)
class Choices:
    """What needs gradients and what the loss looks at, both from the seed.

    Args:
        seed: of what follows.
        share: what part of the way from the least memory to the most is mode auto's budget.
        once: one row of conditions serves all rows of the data, so that they enter as prepared parts.
    """

    seed: int
    share: float
    once: bool

    def gradients(self, case, flow, backprop, snapshots=8, chunk=None):
        """Of every leaf that needs one, by name; None where the loss does not depend on it."""
        pick, weights = random.Random(self.seed), torch.Generator().manual_seed(self.seed)
        network = flow.network
        network.snapshots, network.chunk = snapshots, chunk
        network.budget = self.budget(case, network) if backprop == "auto" else None
        flow.backprop = backprop
        for parameter in flow.parameters():
            parameter.requires_grad_(pick.random() < 0.75)
        x = {name: value.clone().requires_grad_(pick.random() < 0.75) for name, value in case.inputs.items()}
        c = {name: value[0] if self.once else value for name, value in case.conditions.items()}
        c = {name: value.clone().requires_grad_(pick.random() < 0.75) for name, value in c.items()}
        wanted = {n: t for n, t in (*x.items(), *c.items(), *flow.named_parameters()) if t.requires_grad}
        if self.once:
            z, log_det = flow(x if len(x) > 1 else next(iter(x.values())), given=c or None)
            values = [*flow.split(z).values(), log_det]
        else:
            out, log_det = network(*x.values(), *c.values())  # what the loss ignores has no gradient, not a zero
            values = [*as_tuple(out), log_det]
        seen = [value for value in values if pick.random() < 0.7] or [log_det]
        loss = torch.zeros(())
        for value in seen:
            weight = torch.randn(value.shape, generator=weights)
            loss = loss + (weight * value).sum() + value.square().sum() / 2
        if not wanted or not loss.requires_grad:  # a constant log-det, which only the recomputing modes attach to x
            return dict.fromkeys(wanted)
        return dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values()), allow_unused=True), strict=True))

    def budget(self, case, network):
        """Bytes between those of a plain pass and those of a reverse one."""
        inputs = [value.clone().requires_grad_() for value in case.inputs.values()]
        values = network.condition_values(*case.conditions.values()) | dict(zip(network._inputs, inputs, strict=True))
        ends = sorted(peak_bytes(network, values, cut) for cut in (0, len(network._schedule.forward)))
        return int(ends[0] + self.share * (ends[1] - ends[0]))


def worst_error(got, want):
    """The largest relative error of a tensor, by `TOLERANCE`'s measure, and its name."""
    assert list(got) == list(want)
    errors = {"none": 0.0}
    for name, w in want.items():
        g = torch.zeros(()) if got[name] is None else got[name]
        w = torch.zeros(()) if w is None else w
        errors[name] = ((g - w).abs().max() / (1 + w.abs().max())).item() if w.numel() or g.numel() else 0.0
    name = max(errors, key=errors.get)
    return errors[name], name


def inversion_error(case, flow):
    """How far rounding moves the inputs when the graph is inverted, or a node's when it alone is.

    Reverse mode takes its gradients there. Mostly it is 1e-15; but some random graphs shrink the data by e^10, and the
    inverse enlarges the last digit as much.
    """
    with torch.no_grad():
        z, _ = flow(case.x, given=case.given)
        back, _ = flow.inverse(z, given=case.given)
    back = back if isinstance(back, dict) else {next(iter(case.inputs)): back}
    moved = [((back[name] - x).abs() / (1 + x.abs())).max().item() for name, x in case.inputs.items()]
    return max(*moved, *(record.round_trip for record in flow.trace(case.x, given=case.given)))


choices = st.builds(Choices, st.integers(0, 2**16), st.floats(0, 1), st.booleans())


@pytest.mark.filterwarnings("ignore:backprop='auto'. even in reverse mode")  # some of the random budgets are too small
@some
@given(strategies.graphs(rows=ROWS), choices)
def test_gradients_of_every_input_condition_and_parameter_are_plain_autograds(case, choice):
    flow = case.flow()
    want = choice.gradients(case, flow, **PLAIN)
    for mode in FRUGAL:
        error, name = worst_error(choice.gradients(case, flow, **mode), want)
        allowed = TOLERANCE
        if error > allowed and mode["backprop"] != "checkpoint":
            allowed = SENSITIVITY * inversion_error(case, flow)
        assert error <= allowed, f"{mode}: the gradient of {name} is off by {error:.1e}, {allowed:.1e} is allowed"


def test_the_law_compares_all_that_it_speaks_of():
    """Counted over some random graphs, grown as hypothesis grows them."""
    counts = collections.Counter()
    for seed in range(30):
        pick = random.Random(seed)
        torch.manual_seed(seed)
        builder = GraphBuilder(lambda options, pick=pick: pick.choice(list(options)))
        builder.declare(pick.choice((1, 2)), pick.choice((0, 1, 2, 3)))
        builder.grow(pick.randint(0, 8))
        case = GraphCase(builder.finish(), builder.calls, seed, rows=ROWS)
        flow, choice = case.flow(), Choices(seed, pick.random(), once=seed % 2 == 0)
        found = choice.gradients(case, flow, **PLAIN)
        moved = {name for name, g in found.items() if g is not None and g.any()}
        counts["inputs"] += not moved.isdisjoint(case.inputs)
        counts["conditions"] += not moved.isdisjoint(case.conditions)
        counts["conditions given once"] += choice.once and not moved.isdisjoint(case.conditions)
        counts["parameters"] += any("." in name for name in moved)
        counts["frozen parameters"] += len(moved) > 0 and not all(p.requires_grad for p in flow.parameters())
        counts["leaves that the loss ignores"] += any(g is None for g in found.values())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fk.BudgetWarning)
            choice.gradients(case, flow, "auto")
        steps = len(flow.network._schedule.forward)
        counts["budgets that cut in the middle"] += any(0 < cut < steps for cut in flow.network._cuts.values())
    assert len(counts) == 7
    assert min(counts.values()) >= 3, counts
