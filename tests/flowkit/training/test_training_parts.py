import math

import numpy as np
import pytest
import torch

import flowkit as fk
from flowkit.errors import ConfigError, InputError
from flowkit.training import NextItems, Schedule, by_name, keyed_noise
from flowkit.training.checkpoint import random_state, set_random_state
from flowkit.training.guard import NormStatistics, bad_data, first_bad, node_of
from flowkit.training.layout import bare, named
from flowkit.training.progress import duration
from flowkit.training.run import trainer_device

from .training_helpers import make_flow


class Run:
    items_seen = 0


def test_layouts():
    flow, x, label = make_flow(), torch.randn(2, 4), torch.eye(3)[:2]
    for batch in ({"x": x, "label": label, "name": ["a", "b"]}, (x, label), [x, label, "surplus"]):
        data, given = by_name(batch, flow)
        assert data.keys() == {"x"}
        assert given.keys() == {"label"}
        assert data["x"] is x
        assert given["label"] is label
    graph = fk.Graph()
    graph.output("z", graph.add(fk.AffineCoupling, graph.input("x", (4,))))
    assert by_name(x, fk.Flow(graph)) == ({"x": x}, {})


def test_layouts_that_lack_something():
    flow, x = make_flow(), torch.randn(2, 4)
    with pytest.raises(InputError, match=r"no 'label': it has 'x'.*needs the data 'x' and the conditions 'label'"):
        by_name({"x": x}, flow)
    with pytest.raises(InputError, match="has 1 entries, and the flow needs 2"):
        by_name(x, flow)
    with pytest.raises(InputError, match="return a dictionary"):
        named(x, {"a": (4,), "b": (4,)}, "data")


def test_names():
    x = torch.zeros(1)
    assert named(None, {}, "conditions") == {}
    assert named(x, {"a": (1,)}, "data") == {"a": x}
    assert bare({}) is None
    assert bare({"a": x}) is x
    assert bare({"a": x, "b": x}) == {"a": x, "b": x}


def test_noise_belongs_to_the_number():
    a = keyed_noise(torch.zeros(3, 2, 2), 0, "ab", [4, 5, 6])
    assert torch.equal(keyed_noise(torch.zeros(1, 2, 2), 0, "ab", [6])[0], a[2])
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(keyed_noise(torch.zeros(1, 2, 2), 1, "ab", [4])[0], a[0])
    assert not torch.equal(keyed_noise(torch.zeros(1, 2, 2), 0, "x", [4])[0], a[0])
    many = keyed_noise(torch.zeros(200, 50), 0, "ab", range(200))
    assert abs(many.mean()) < 0.05
    assert abs(many.std() - 1) < 0.05
    assert keyed_noise(torch.zeros(0, 2), 0, "ab", []).shape == (0, 2)


def test_schedules():
    assert [Schedule()(step, 10) for step in (0, 5, 100)] == [1, 1, 1]
    cosine = Schedule("cosine", floor=0.1)
    assert cosine(0, 10) == 1
    assert cosine(10, 10) == pytest.approx(0.1)
    assert cosine(25, 10) == pytest.approx(0.1)
    assert Schedule(warmup=4)(1, 10) == 0.5
    assert Schedule("milestones", milestones=(100_000, 200_000))(200_000, 250_000) == pytest.approx(0.01)
    for wrong in ({"kind": "linear"}, {"warmup": -1}, {"floor": 2.0}, {"factor": 0.0}):
        with pytest.raises(ConfigError):
            Schedule(**wrong)


def test_items_in_order_and_from_where_the_run_is():
    run = Run()
    plain = NextItems(run, 12, batch_size=4, steps=3, shuffle=False)
    assert list(plain) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    run.items_seen = 8
    assert list(plain) == [[8, 9, 10, 11]]


def test_shuffled_items_are_each_there_once_a_pass():
    run = Run()
    items = [i for batch in NextItems(run, 10, batch_size=4, steps=5, seed=3) for i in batch]
    assert sorted(items[:10]) == sorted(items[10:]) == list(range(10))
    assert items[:10] != items[10:]
    run.items_seen = 8
    assert [i for batch in NextItems(run, 10, batch_size=4, steps=5, seed=3) for i in batch] == items[8:]
    assert [i for batch in NextItems(Run(), 10, batch_size=4, steps=5, seed=4) for i in batch] != items


def test_processes_share_a_batch(monkeypatch):
    whole = list(NextItems(Run(), 10, batch_size=4, steps=5))
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr("flowkit.training.loading.process_place", lambda rank=rank: (rank, 2))
        shares.append(list(NextItems(Run(), 10, batch_size=4, steps=5)))
    for batch, first, second in zip(whole, *shares, strict=True):
        assert batch == [first[0], second[0], first[1], second[1]]
    with pytest.raises(ConfigError, match="evenly over 2 processes"):
        list(NextItems(Run(), 10, batch_size=3, steps=5))


def test_items_refused():
    with pytest.raises(ConfigError, match="3 steps of 4 need 12 items, the data set has 11"):
        NextItems(Run(), 11, batch_size=4, steps=3, shuffle=False)
    with pytest.raises(ConfigError, match="batch size of 0"):
        NextItems(Run(), 11, batch_size=0, steps=3)


def test_bad_values_are_found():
    x = torch.zeros(2, 3)
    assert first_bad(x) is None
    assert first_bad(torch.zeros(2, dtype=torch.int64)) is None
    x[1, 2] = -math.inf
    assert first_bad(x) == ("infinity", (1, 2))
    assert bad_data({"a": torch.zeros(1)}, {"c": x}) == "the condition 'c' has infinity at index (1, 2) of the batch"


def test_nodes_of_parameters():
    assert node_of("network.nodes.affine_coupling_1.subnet.weight") == "affine_coupling_1"
    assert node_of("network.nodes.block.nodes.permute_1.w") == "block.permute_1"
    assert node_of("base.loc") is None


def test_running_statistics_are_put_back():
    norm = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    kept = NormStatistics(norm)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    kept.keep()
    norm(torch.full((3, 2), math.nan))
    assert norm[0].running_mean.isnan().all()
    kept.restore()
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_random_state_comes_back():
    import random

    state = random_state()
    drawn = [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()]  # noqa: NPY002
    set_random_state(state)
    assert [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()] == drawn  # noqa: NPY002


def test_devices():
    assert trainer_device("cpu") == ("cpu", 1)
    for wrong in ("tpu", "cuda:x", ""):
        with pytest.raises(ConfigError, match="must be auto, cpu, cuda or cuda:N"):
            trainer_device(wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_that_is_not_there():
    with pytest.raises(ConfigError, match="'cuda' is not there"):
        trainer_device("cuda")


def test_durations():
    assert [duration(s) for s in (0, 59.6, 3599, 7322)] == ["0:00", "1:00", "59:59", "2:02:02"]
