"""The quantile of the normal distribution by elementary functions, where a format has no operation for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Highest power first: of the middle, and of the tails in z = sqrt(-2 log p), up to z = 8 and beyond.
MIDDLE = (
    (-59.96335010141079, 98.00107541859997, -56.67628574690703, 13.931260938727968, -1.2391658386738125),
    (
        1.0,
        1.9544885833814176,
        4.676279128988815,
        86.36024213908905,
        -225.46268785411937,
        200.26021238006066,
        -82.03722561683334,
        15.90562251262117,
        -1.1833162112133,
    ),
)
NEAR = (
    (
        4.0554489230596245,
        31.525109459989388,
        57.16281922464213,
        44.08050738932008,
        14.684956192885803,
        2.1866330685079025,
        -0.1402560791713545,
        -0.03504246268278482,
        -0.0008574567851546854,
    ),
    (
        1.0,
        15.779988325646675,
        45.39076351288792,
        41.3172038254672,
        15.04253856929075,
        2.504649462083094,
        -0.14218292285478779,
        -0.03808064076915783,
        -0.0009332594808954574,
    ),
)
FAR = (
    (
        3.2377489177694603,
        6.915228890689842,
        3.9388102529247444,
        1.3330346081580755,
        0.20148538954917908,
        0.012371663481782003,
        0.00030158155350823543,
        2.6580697468673755e-06,
        6.239745391849833e-09,
    ),
    (
        1.0,
        6.02427039364742,
        3.6798356385616087,
        1.3770209948908132,
        0.21623699359449663,
        0.013420400608854318,
        0.00032801446468212774,
        2.8924786474538068e-06,
        6.790194080099813e-09,
    ),
)
EXP_MINUS_2 = math.exp(-2)
SQRT_2_PI = math.sqrt(2 * math.pi)


def normal_quantile(p: Tensor) -> Tensor:
    """`torch.special.ndtri` to rounding: minus infinity at 0, infinity at 1, NaN outside.

    Source: Moshier, Cephes mathematical library, ndtri.

    >>> normal_quantile(torch.tensor([0.5, 0.975])).round(decimals=4).tolist()
    [0.0, 1.9600000381469727]
    """
    p_upper = 1 - p
    upper = p_upper < EXP_MINUS_2
    tail = torch.where(upper, p_upper, p)  # the smaller side of a tail; the middle is found from p itself
    middle = p - 0.5
    square = middle * middle
    inner = (middle + middle * square * _ratio(MIDDLE, square)) * SQRT_2_PI
    inside = (tail > EXP_MINUS_2) | ~(tail > 0)
    z = (-2 * torch.where(inside, EXP_MINUS_2, tail).log()).sqrt()
    inverse = 1 / z
    series = inverse * torch.where(z < 8, _ratio(NEAR, inverse), _ratio(FAR, inverse))
    outer = z - z.log() / z - series
    found = torch.where(inside, inner, torch.where(upper, outer, -outer))
    found = torch.where(p == 0, -math.inf, torch.where(p == 1, math.inf, found))
    return torch.where((p < 0) | (p > 1), math.nan, found)


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Tensor) -> Tensor:
    above, below = (_polynomial(each, x) for each in coefficients)
    return above / below


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    total = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total
