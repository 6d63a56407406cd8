"""Learning-rate schedules, as plain data: a factor for every step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flowkit.errors import ConfigError

KINDS = ("constant", "cosine", "milestones")


@dataclass(frozen=True)
class Schedule:
    """The factor that multiplies the learning rate at a step.

    Args:
        kind: "constant"; "cosine", half a period from 1 to `floor` over the whole run; "milestones", times `factor` at
            each milestone, as the paper does at 100,000 and 200,000 steps.
        warmup: the first steps, over which the factor grows linearly; multiplied with the rest.
        milestones: steps.
        factor: of each milestone.
        floor: where the cosine ends.

    Raises:
        ConfigError: an unknown kind, or values out of range.

    Example:
        >>> [round(Schedule("cosine", warmup=2)(step, 10), 2) for step in (0, 1, 5, 10)]
        [0.5, 0.98, 0.5, 0.0]
        >>> [Schedule("milestones", milestones=(3, 6))(step, 10) for step in (2, 3, 6)]
        [1.0, 0.1, 0.010000000000000002]
    """

    kind: str = "constant"
    warmup: int = 0
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"a schedule is one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.warmup < 0 or not 0 <= self.floor <= 1 or self.factor <= 0:
            raise ConfigError(
                f"a schedule needs warmup >= 0, floor in 0..1 and a positive factor, "
                f"got {self.warmup}, {self.floor} and {self.factor}"
            )

    def __call__(self, step: int, steps: int) -> float:
        """The factor for the step after `step` steps, of a run of `steps`."""
        factor = 1.0
        if self.kind == "cosine" and math.isfinite(steps):
            done = min(1.0, step / max(1, steps))
            factor = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))
        elif self.kind == "milestones":
            for milestone in self.milestones:
                factor *= self.factor if step >= milestone else 1.0
        return factor * min(1.0, (step + 1) / self.warmup) if self.warmup else factor
