"""FlowDensity: scikit-learn's own checks, densities that are right, conditions, and random states left alone."""

import pickle
import random
import sys

import numpy as np
import pytest
import torch

import flowkit as fk

pytest.importorskip("sklearn")

from scipy import stats
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from flowkit import interop
from flowkit.interop import FlowDensity

QUICK = {"steps": 5, "batch_size": 32, "flow_options": {"layers": 1, "hidden": (8,)}}


@parametrize_with_checks([FlowDensity(**QUICK)])
def test_scikit_learn_s_own_checks(estimator, check):
    check(estimator)


def test_the_density_that_it_learns_is_close_and_integrates_to_one():
    draws = np.random.default_rng(0)
    X = np.where(draws.random(3000) < 0.4, draws.normal(50, 2, 3000), draws.normal(60, 3, 3000))[:, None]
    density = FlowDensity(steps=300, flow_options={"layers": 2, "hidden": 8}, random_state=1).fit(X)
    grid = np.linspace(0, 120, 6001)[:, None]
    p = np.exp(density.score_samples(grid))
    assert np.trapezoid(p, grid[:, 0]) == pytest.approx(1, abs=2e-3)
    true = 0.4 * stats.norm(50, 2).pdf(grid[:, 0]) + 0.6 * stats.norm(60, 3).pdf(grid[:, 0])
    assert np.abs(p - true).max() < 0.02  # the highest is 0.09
    assert density.score(X) == pytest.approx(density.score_samples(X).mean())
    assert density.sample(4000).mean() == pytest.approx(X.mean(), abs=0.3)


def test_the_standardisation_is_part_of_the_density():
    """Of a flow that is the identity, the density is the normal one that has the data's moments."""
    X = np.random.default_rng(0).normal(size=(50, 2)) * [3, 0.01] + [100, -5]

    def identity(features, condition):
        return fk.Flow(fk.Identity((features,)))

    density = FlowDensity(identity, steps=1).fit(X)
    want = stats.norm(X.mean(0), X.std(0)).logpdf(X).sum(1)
    assert density.score_samples(X) == pytest.approx(want, abs=1e-9)
    raw = FlowDensity(identity, standardize=False).fit(X)
    assert raw.score_samples(X) == pytest.approx(stats.norm(0, 1).logpdf(X).sum(1), abs=1e-9)
    assert density.loss_curve_ == []


def test_conditions():
    draws = np.random.default_rng(0)
    C = draws.uniform(-200, 200, size=(2000, 1))
    X = np.concatenate([C / 50 + 0.3 * draws.normal(size=C.shape), draws.normal(size=C.shape)], 1)
    density = FlowDensity(steps=250, flow_options={"layers": 2, "hidden": 32}, random_state=0).fit(X, condition=C)
    assert density.flow_.condition_shapes == {"y": (1,)}
    assert density.score(X, condition=C) > FlowDensity(steps=250, random_state=0).fit(X).score(X) + 0.5
    one = density.sample(300, condition=[100.0])
    many = density.sample(200, condition=[[100.0], [-100.0]])
    assert (one.shape, many.shape) == ((300, 2), (200, 2, 2))
    assert one[:, 0].mean() == pytest.approx(2, abs=0.15)
    assert many[:, 1, 0].mean() == pytest.approx(-2, abs=0.15)
    assert density.score_samples(X[:3], condition=C[:1]) == pytest.approx(
        density.score_samples(X[:3], condition=np.repeat(C[:1], 3, 0))
    )
    with pytest.raises(fk.ConditionError, match=r"condition \(n, 1\) is needed"):
        density.score_samples(X)
    with pytest.raises(fk.ConditionError, match="a row for each of X's 3, got 2"):
        density.score_samples(X[:3], condition=C[:2])
    with pytest.raises(fk.ConditionError, match="must have 1 columns, got 2"):
        density.sample(2, condition=[1.0, 2.0])
    with pytest.raises(fk.ConditionError, match="a row for each of X's 2000, got 5"):
        clone(density).fit(X, condition=C[:5])
    with pytest.raises(fk.ConditionError, match="fitted without conditions"):
        FlowDensity(**QUICK).fit(X).sample(2, condition=[1.0])


def test_random_state_is_honoured_and_no_global_one_is_touched():
    X = np.random.default_rng(0).normal(size=(60, 2))
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first, second, third = (FlowDensity(**QUICK, random_state=seed).fit(X) for seed in (3, 3, None))
    third.sample(2)
    assert np.array_equal(first.score_samples(X), second.score_samples(X))
    assert not np.array_equal(first.score_samples(X), third.score_samples(X))
    assert np.array_equal(first.sample(5), second.sample(5))
    assert np.array_equal(first.sample(5), first.sample(5))
    assert not np.array_equal(first.sample(5), first.sample(5, random_state=8))
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    assert states[2] == random.getstate()


def test_in_a_pipeline_a_search_and_a_pickle():
    X = np.random.default_rng(0).normal(size=(90, 2)) * 30
    pipeline = make_pipeline(StandardScaler(), FlowDensity(**QUICK, random_state=0)).fit(X)
    assert pipeline.score_samples(X).shape == (90,)
    again = pickle.loads(pickle.dumps(pipeline))
    assert np.array_equal(again.score_samples(X), pipeline.score_samples(X))
    conditional = make_pipeline(StandardScaler(), FlowDensity(**QUICK)).fit(X, flowdensity__condition=X[:, :1])
    assert conditional[-1].condition_mean_.shape == (1,)
    search = GridSearchCV(FlowDensity(**QUICK, random_state=0), {"learning_rate": [1e-9, 1e-2]}, cv=2).fit(X)
    assert search.best_params_ == {"learning_rate": 1e-2}


def test_other_flows_float32_and_constant_features():
    X = np.random.default_rng(0).normal(size=(40, 3))
    X[:, 1] = 1e6
    small = {"steps": 3, "flow_options": {"layers": 2}, "random_state": 0}
    for name in ("nsf", "realnvp", "maf"):
        density = FlowDensity(name, dtype="float32", **small).fit(X)
        assert density.flow_.network.reference.dtype == torch.float32
        assert np.isfinite(density.score_samples(X)).all()
    assert density.scale_[1] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be an int of at least 1, got 0"),
        ({"batch_size": True}, "batch_size must be an int of at least 1, got True"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number, got nan"),
        ({"dtype": "float16"}, "dtype must be one of float32, float64, got 'float16'"),
        ({"flow": "nope"}, "flow must be a callable or one of spline, .*, got 'nope'"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(fk.ConfigError, match=message):
        FlowDensity(**arguments).fit([[1.0], [2.0]])


def test_samples_that_are_none():
    with pytest.raises(fk.ConfigError, match="n_samples must be an int of at least 1, got 0"):
        FlowDensity(**QUICK).fit([[1.0], [2.0]]).sample(0)


def test_a_loss_that_is_not_finite_is_refused():
    with pytest.raises(fk.NonFiniteError, match=r"the loss must be finite, got (inf|nan) at step 1"):
        FlowDensity("nice", learning_rate=1e200).fit([[1.0, 2.0], [2.0, 5.0]])


def test_without_scikit_learn_it_is_one_sentence(monkeypatch):
    for name in [n for n in sys.modules if n == "flowkit.interop.density" or n.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(fk.MissingDependencyError, match="python -m pip install scikit-learn"):
        _ = interop.FlowDensity
