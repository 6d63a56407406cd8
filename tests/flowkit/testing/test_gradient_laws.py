"""The laws on gradients: truncation, or a kink within the step, is not taken for a fault, and a fault still is one."""

import math

import pytest
import torch

import flowkit as fk
from flowkit.bijection import event_sum
from flowkit.testing import check_bijection
from flowkit.testing.laws.gradients import central_difference, extrapolated_difference

LAWS = "output_gradients", "log_det_gradients"


class Steep(fk.Bijection):
    """x + sin(a x) / (2 a) with a in the thousands: a third derivative of millions. `error` is put into a gradient."""

    def __init__(self, shape, steepness=3000.0, error=0.0):
        super().__init__(shape)
        self.steepness, self.error = steepness, error
        self.shift = torch.nn.Parameter(torch.zeros(shape))

    def _derivative(self, x):
        return 1 + (self.steepness * x).cos() / 2

    def forward(self, x):
        wrong = self.error * (x - x.detach())
        y = x + (self.steepness * x).sin() / (2 * self.steepness) + self.shift + wrong
        return y, event_sum(self._derivative(x).log())

    def inverse(self, y):
        x = y - self.shift
        for _ in range(60):  # a step of Newton's may cross a whole wave; half of the slope is never too far
            x = x - (x + (self.steepness * x).sin() / (2 * self.steepness) + self.shift - y) / 1.5
        x = x.detach()
        for _ in range(2):
            value = x + (self.steepness * x).sin() / (2 * self.steepness) + self.shift
            x = x - (value - y) / self._derivative(x.detach())
        return x, -event_sum(self._derivative(x).log())


class Shifted(fk.Bijection):
    """A leaky ReLU with its kink at a learned place."""

    def __init__(self, shape):
        super().__init__(shape)
        self.kink = torch.nn.Parameter(torch.zeros(shape))

    def forward(self, x):
        below = x < self.kink
        y = self.kink + torch.where(below, 0.5, 1.0).to(x.dtype) * (x - self.kink)
        return y, event_sum(below.to(x.dtype) * math.log(0.5))

    def inverse(self, y):
        below = y < self.kink
        x = self.kink + torch.where(below, 2.0, 1.0).to(y.dtype) * (y - self.kink)
        return x, event_sum(below.to(y.dtype) * math.log(2))


def test_extrapolation_is_right_where_the_difference_is_not():
    def wave(step):
        return math.sin(1 + 3000 * step)

    exact = 3000 * math.cos(1)
    assert abs(central_difference(wave, 1e-5) - exact) > 1e-4 * exact
    assert abs(extrapolated_difference(wave, 1e-5) - exact) < 1e-9 * exact


@pytest.mark.parametrize("place", [3e-6, -3e-6, 2e-7])
def test_extrapolation_keeps_to_the_side_of_a_kink_that_it_is_on(place):
    def kinked(step):
        return math.exp(step) * (2.0 if step > place else 1.0) * (step - place)

    slope = math.exp(0) * (2.0 if place < 0 else 1.0) * (1 - place)
    assert abs(central_difference(kinked, 1e-5) - slope) > 0.1
    assert abs(extrapolated_difference(kinked, 1e-5) - slope) < 1e-7


def test_a_large_third_derivative_is_no_fault_and_a_wrong_gradient_is():
    assert check_bijection(Steep((3,)), laws=LAWS).ok
    report = check_bijection(Steep((3,), error=1e-4), laws=LAWS, raises=False)
    assert report.failed == ["output_gradients"]
    assert "forward's output with respect to data 0" in str(report)


@pytest.mark.parametrize("distance", [3e-6, -3e-6, 1e-7])
def test_data_beside_a_kink_are_judged_on_their_side_of_it(distance):
    bijection = Shifted((4,))

    def beside(rows):
        kink = bijection.kink.detach() + redrawn
        return (kink + distance * torch.ones(rows, 4),)

    generator = torch.Generator().manual_seed(0)
    redrawn = 0.5 * torch.randn(4, generator=generator)  # what the kit adds to the only parameter
    assert check_bijection(bijection, laws=LAWS, inputs=beside).ok
