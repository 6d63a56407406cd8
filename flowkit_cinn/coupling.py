"""The paper's conditional coupling block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flowkit as fk


@fk.register(
    "cinn.conditional_coupling",
    examples=lambda: [
        fk.Example((5,), given=(3,), subnet=fk.MLP(hidden=8)),
        fk.Example((2, 4, 4), given=(3, 4, 4), subnet=fk.ConvNet(hidden=4)),
        fk.Example((4, 2, 3), given=((1, 2, 3), (2, 2, 3)), limit=0.5),
    ],
)
class ConditionalCoupling(fk.AffineCoupling):
    """The paper's conditional coupling block (CCB): an affine coupling of both halves on each other and the conditions.

    With the halves u1, u2 of u and the conditions c, one subnet for each pair [r_j, t_j], and s_j = gamma_j tanh(r_j)
    with gamma_j learned per channel:

    forward (eq. 1): v1 = u1 exp(s1(u2, c)) + t1(u2, c), v2 = u2 exp(s2(v1, c)) + t2(v1, c); log-det sum s1 + sum s2.
    inverse (eq. 2): u2 = (v2 - t2(v1, c)) exp(-s2(v1, c)), u1 = (v1 - t1(u2, c)) exp(-s1(u2, c)); log-det
    -sum s1 - sum s2.

    It is `fk.AffineCoupling(two_sided=True, clamp="tanh")` that insists on a condition. Bounded by abs(gamma), the
    log-scale cannot explode on data that training never saw; what does, is the shift.

    Args:
        shape: event shape, (C, ...) with C at least 2; C = 2n + 1 splits as the core's coupling does.
        given: shapes of the conditions, of the data's spatial size; at least one.
        subnet: recipe of each subnet; None takes the core coupling's default.
        limit: gamma at the start.

    Raises:
        fk.ShapeError: no condition, or one of another spatial size.
        fk.ConfigError: a limit that is not positive.

    Source: the paper, equations 1 and 2, and section 4 for gamma tanh(r), after L. Dinh, J. Sohl-Dickstein, S. Bengio,
    Density estimation using Real NVP, ICLR 2017.

    Example:
        >>> import torch
        >>> block = ConditionalCoupling((2, 4, 4), given=(3, 4, 4), subnet=fk.ConvNet(hidden=8))
        >>> v, log_det = block(torch.zeros(5, 2, 4, 4), torch.zeros(5, 3, 4, 4))
        >>> v.shape, log_det.shape
        (torch.Size([5, 2, 4, 4]), torch.Size([5]))
    """

    def __init__(self, shape: int | Sequence[int], given: int | Sequence = (), subnet: Any = None, limit: float = 2.0):
        if given == () or given == []:
            raise fk.ShapeError(
                "ConditionalCoupling needs at least one condition, got none: name one with given=, or use "
                "fk.AffineCoupling(two_sided=True)"
            )
        super().__init__(shape, given=given, subnet=subnet, clamp="tanh", limit=limit, two_sided=True)
