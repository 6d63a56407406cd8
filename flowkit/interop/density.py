"""scikit-learn: a flow as a density estimator, in pipelines and searches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from torch import Tensor

from flowkit import flows
from flowkit.errors import ConditionError, ConfigError, NonFiniteError
from flowkit.flow import Flow
from flowkit.univariate import RationalQuadraticSpline

SPLINE = "spline"
DTYPES = {"float32": torch.float32, "float64": torch.float64}
LARGEST_NORM = 5.0  # of a step's gradient: one odd batch must not undo what was learned
ROWS = 4096  # evaluated at a time


class FlowDensity(DensityMixin, BaseEstimator):
    """A normalizing flow as a scikit-learn density estimator, conditional if wanted.

    `fit` standardises the data (and the conditions), builds a flow and trains it by maximum likelihood with Adam;
    densities are of the data as they came, the standardisation's log-det included.

    Args:
        flow: `"spline"`, a masked autoregressive flow of rational-quadratic splines, for any number of features; the
            name of another ready flow, such as `"nsf"` or `"realnvp"`; or a callable `(features, condition) -> Flow`,
            `condition` an int or None.
        flow_options: of the ready flow, such as `{"layers": 5, "hidden": (64, 64)}`.
        steps: of training.
        batch_size: rows a step.
        learning_rate: of Adam, at the start; it falls to zero along a cosine.
        standardize: bring every feature and condition to mean 0 and standard deviation 1 first.
        dtype: `"float64"`, or `"float32"`, which is faster where layers are wide.
        device: where to train and compute.
        random_state: an int, a `numpy.random.RandomState` or None: of the flow's weights, the batches and the samples.
            torch's and numpy's own generators are left as they are.

    Attributes: `flow_`, the trained `fk.Flow` of the standardised data; `mean_`, `scale_`, and `condition_mean_`,
        `condition_scale_` or None; `loss_curve_`, nats a row at each step; `n_features_in_`.

    Raises:
        ConfigError: an argument outside its range.
        ConditionError: conditions missing, not expected, or of another form than those that were fitted.
        NonFiniteError: the loss was not finite.

    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(200, 2))
    >>> density = FlowDensity(steps=20, random_state=0).fit(X)
    >>> density.score_samples(X).shape, density.sample(5).shape
    ((200,), (5, 2))
    """

    def __init__(
        self,
        flow: str | Callable[[int, int | None], Flow] = SPLINE,
        flow_options: Mapping[str, Any] | None = None,
        steps: int = 1000,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        standardize: bool = True,
        dtype: str = "float64",
        device: str = "cpu",
        random_state: Any = None,
    ):
        self.flow = flow
        self.flow_options = flow_options
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.standardize = standardize
        self.dtype = dtype
        self.device = device
        self.random_state = random_state

    # ------------------------------------------------------------------ scikit-learn's methods

    def fit(self, X: Any, y: Any = None, condition: Any = None) -> FlowDensity:
        """Train on the rows of X `(n, D)`, given the rows of `condition` `(n, C)` where there are some."""
        self._check_arguments()
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=1)
        conditions = None if condition is None else self._condition_array(condition, len(X))
        self.mean_, self.scale_ = self._moments(X)
        moments: tuple[Any, Any] = (None, None) if conditions is None else self._moments(conditions)
        self.condition_mean_, self.condition_scale_ = moments
        size = None if conditions is None else conditions.shape[1]
        devices = [self.device] if torch.device(self.device).type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self._seed(self.random_state))
            flow = self._build(X.shape[1], size).to(self.device, DTYPES[self.dtype])
            self.loss_curve_ = self._train(flow, self._data(X), self._conditions(conditions))
        self.flow_ = flow.eval()
        return self

    def score_samples(self, X: Any, condition: Any = None) -> np.ndarray:
        """The log-density of each row of X `(n, D)`, in nats, `(n,)`; `condition` has as many rows, or one."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        given = self._conditions(self._given(condition, len(X)))
        data, parts = self._data(X), []
        with torch.no_grad():
            for start in range(0, len(X), ROWS):
                rows = slice(start, start + ROWS)
                here = None if given is None else given if len(given) == 1 else given[rows]
                parts.append(self.flow_.log_prob(data[rows], given=here))
        return torch.cat(parts).double().cpu().numpy() - np.log(self.scale_).sum()

    def score(self, X: Any, y: Any = None, condition: Any = None) -> float:
        """The mean log-density of the rows of X, in nats."""
        return float(self.score_samples(X, condition).mean())

    def sample(self, n_samples: int = 1, condition: Any = None, random_state: Any = None) -> np.ndarray:
        """Samples `(n_samples, D)`; for conditions `(R, C)`, `(n_samples, R, D)`; for a single one `(C,)`, as without.

        `random_state` is the estimator's own where none is given: an int there gives the same samples every time.
        """
        check_is_fitted(self)
        if isinstance(n_samples, bool) or not isinstance(n_samples, int | np.integer) or n_samples < 1:
            raise ConfigError(f"FlowDensity: n_samples must be an int of at least 1, got {n_samples!r}")
        single = condition is not None and np.ndim(condition) == 1
        given = self._conditions(self._given([condition] if single else condition, None))
        devices = [self.device] if torch.device(self.device).type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self._seed(self.random_state if random_state is None else random_state))
            x: Any = self.flow_.sample((int(n_samples),), given=given)
        samples = x.double().cpu().numpy() * self.scale_ + self.mean_
        return samples[:, 0] if single else samples

    # ------------------------------------------------------------------ the work

    def _check_arguments(self) -> None:
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise ConfigError(f"FlowDensity: {name} must be an int of at least 1, got {value!r}")
        if not (isinstance(self.learning_rate, int | float) and 0 < self.learning_rate < float("inf")):
            raise ConfigError(f"FlowDensity: learning_rate must be a positive number, got {self.learning_rate!r}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"FlowDensity: dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        ready = (SPLINE, *flows.__all__)
        if not callable(self.flow) and self.flow not in ready:
            raise ConfigError(f"FlowDensity: flow must be a callable or one of {', '.join(ready)}, got {self.flow!r}")

    def _build(self, features: int, condition: int | None) -> Flow:
        options = dict(self.flow_options or {})
        if self.flow == SPLINE:
            defaults = {"layers": 3, "univariate": RationalQuadraticSpline.recipe(bins=8, bound=4.0)}
            return flows.maf(features, condition=condition, **{**defaults, **options})
        if callable(self.flow):
            return self.flow(features, condition, **options)
        return getattr(flows, self.flow)(features, condition=condition, **options)

    def _train(self, flow: Flow, x: Tensor, given: Tensor | None) -> list[float]:
        flow.train().initialize(x, given=given)
        trained = [p for p in flow.parameters() if p.requires_grad]
        if not trained:
            return []
        optimizer = torch.optim.Adam(trained, lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        losses, order = [], torch.empty(0, dtype=torch.int64)
        for step in range(self.steps):
            if not len(order):
                order = torch.randperm(len(x))
            rows, order = order[: self.batch_size].to(x.device), order[self.batch_size :]
            here = None if given is None else given[rows]
            loss = -flow.log_prob(x[rows], given=here).mean()
            losses.append(loss.item())
            if not np.isfinite(losses[-1]):
                raise NonFiniteError(f"FlowDensity: the loss must be finite, got {losses[-1]} at step {step}")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, LARGEST_NORM)
            optimizer.step()
            schedule.step()
        return losses

    def _moments(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not self.standardize:
            return np.zeros(values.shape[1]), np.ones(values.shape[1])
        mean, scale = values.mean(0), values.std(0)
        # A constant feature, up to rounding, has no scale to bring to 1
        constant = scale <= 10 * np.finfo(np.float64).eps * np.abs(mean)
        return mean, np.where(constant, 1.0, scale)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.tensor(values, dtype=DTYPES[self.dtype], device=self.device)

    def _data(self, X: np.ndarray) -> Tensor:
        return self._tensor((X - self.mean_) / self.scale_)

    def _conditions(self, conditions: np.ndarray | None) -> Tensor | None:
        if conditions is None:
            return None
        return self._tensor((conditions - self.condition_mean_) / self.condition_scale_)

    def _condition_array(self, condition: Any, rows: int | None) -> np.ndarray:
        values = check_array(condition, dtype=np.float64, input_name="condition", ensure_min_samples=1)
        if rows is not None and len(values) != rows:
            raise ConditionError(f"FlowDensity: condition needs a row for each of X's {rows}, got {len(values)}")
        return values

    def _given(self, condition: Any, rows: int | None) -> np.ndarray | None:
        if self.condition_mean_ is None:
            if condition is not None:
                raise ConditionError("FlowDensity: it was fitted without conditions, so none can be given")
            return None
        size = len(self.condition_mean_)
        if condition is None:
            raise ConditionError(f"FlowDensity: it was fitted with conditions, so condition (n, {size}) is needed")
        values = self._condition_array(condition, rows if rows is None or len(condition) != 1 else None)
        if values.shape[1] != size:
            raise ConditionError(f"FlowDensity: condition must have {size} columns, got {values.shape[1]}")
        return values

    def _seed(self, random_state: Any) -> int:
        if random_state is None:  # scikit-learn would draw it from numpy's global generator
            return int(np.random.default_rng().integers(2**31))
        return int(check_random_state(random_state).randint(2**31 - 1))
