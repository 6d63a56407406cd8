"""Shapes without computing: on meta, else on zeros, and nothing is left behind."""

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.dry_run import evaluating, output_shapes


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, c):
        self.steps += 1
        return self.b(self.a(c))


def test_state_is_left_alone():
    net = Tied()
    assert output_shapes(net, [((3,), None)]) == {None: (3,)}
    assert int(net.steps) == 0
    assert net.b.weight is net.a.weight
    assert not net.a.weight.is_meta


def test_inputs_have_their_dtypes():
    seen = []

    class Net(nn.Module):
        def forward(self, a, b):
            seen.extend([a.dtype, b.dtype])
            return a

    assert output_shapes(Net(), [((3,), None), ((), torch.int64)]) == {None: (3,)}
    assert seen == [torch.float64, torch.int64]


def test_a_net_of_another_dtype_is_run_in_its_own():
    assert output_shapes(nn.Linear(3, 2).float(), [((3,), None)]) == {None: (2,)}


def test_a_net_on_meta_is_run_there_only():
    with torch.device("meta"):
        net = nn.Linear(3, 2)
    assert output_shapes(net, [((3,), None)]) == {None: (2,)}
    with pytest.raises(fk.GraphError, match=r"its dry run failed with RuntimeError"):
        output_shapes(net, [((4,), None)])


def test_the_modes_are_restored_after_a_failure_too():
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).train()
    net[1].eval()
    with pytest.raises(fk.GraphError):
        output_shapes(net, [((4,), None)])
    assert [m.training for m in net.modules()] == [True, True, False]
    with pytest.raises(KeyError), evaluating(net):  # noqa: PT012
        assert not net.training
        raise KeyError
    assert [m.training for m in net.modules()] == [True, True, False]
