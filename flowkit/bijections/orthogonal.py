"""A learned orthogonal matrix on the channels, by reflections, the matrix exponential, or Cayley's map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowkit.arguments import is_int
from flowkit.bijection import zero_log_det
from flowkit.bijections.linear import MatrixLinear, full_precision, widened
from flowkit.errors import ConfigError
from flowkit.registry import Example, register

FORMS = ("householder", "matrix_exp", "cayley")


def householder(vectors: Tensor, columns: int | None = None) -> Tensor:
    """The product of reflections H_1 H_2 ... H_K, `(..., C, C)`, for vectors `(..., K, C)`; one of 0 reflects nothing.

    Only the first `columns` of it, if given, `(..., C, columns)`, without the work for the others.

    With unit vectors as the rows of V the product is I - V^T S^-1 V, where S is upper triangular, has V V^T above its
    diagonal and 1/2 on it: one solve in place of K steps that wait for each other (Joffrain et al., 2006).
    """
    vectors = widened(vectors)
    with full_precision(vectors):
        v = nn.functional.normalize(vectors, dim=-1)
        eye = torch.eye(v.shape[-2], dtype=v.dtype, device=v.device)
        triangle = (v @ v.mT).triu(1) + 0.5 * eye
        product = v.mT @ torch.linalg.solve_triangular(triangle, v[..., :columns], upper=True)
        return torch.eye(*product.shape[-2:], dtype=v.dtype, device=v.device) - product


def reflection_vectors(owner: str, channels: int, reflections: int | None) -> Tensor:
    """Random vectors `(K, C)` in equal pairs, so that the reflections cancel; an odd one is left over at the end."""
    if reflections is None:
        reflections = max(2, channels - channels % 2)  # an even number reaches every rotation
    if not is_int(reflections) or reflections < 1:
        raise ConfigError(f"{owner}: reflections must be a whole number of at least 1, got {reflections!r}")
    pairs = torch.randn((reflections + 1) // 2, channels, dtype=torch.float64)
    return pairs.repeat_interleave(2, 0)[:reflections].to(torch.get_default_dtype())


def hold(module: nn.Module, name: str, start: Tensor) -> None:
    """Make `start` `(..., C)` a parameter; a buffer for one channel, where a rotation has nothing to learn."""
    if start.shape[-1] > 1:
        module.register_parameter(name, nn.Parameter(start))
    else:
        module.register_buffer(name, start)


def _examples() -> list[Example]:
    return [
        Example((1,)),
        Example((3, 4), reflections=3),
        Example((4,), form="matrix_exp"),
        Example((3, 2, 2), form="cayley"),
    ]


@register("flowkit.orthogonal_linear", examples=_examples)
class OrthogonalLinear(MatrixLinear):
    """A learned orthogonal matrix on the channels: y = Q x at every position.

    forward: y = Q x, log-det 0. inverse: x = Q^T y, log-det 0. Float32 or wider, under autocast too.

    Cost: the log-det is free and the inverse is a transpose, as dear as the forward: C^2 products a position. Q is
    built once a call: C^2 K products for K reflections, a multiple of C^3 for the other forms.

    Forms: `"householder"`, a product of reflections H_1 ... H_K with H = I - 2 v v^T / v^T v, reaches every rotation
    where K is even and at least C - 1; `"matrix_exp"`, exp(A) with A skew-symmetric, reaches every rotation;
    `"cayley"`, (I + A)^-1 (I - A), reaches those without the eigenvalue -1. All start as the identity, except that an
    odd number of reflections starts as one random reflection; its determinant is -1.

    Shapes: x `(B, C, ...)`, any rank of at least 1. State: the parameter `vectors` `(K, C)`, or `generator` `(C, C)`,
    whose part above the diagonal is A's; a buffer for one channel, where there is nothing to learn.

    Args:
        shape: event shape `(C, ...)`.
        form: how Q is parametrised.
        reflections: K, with `"householder"` alone; by default the largest even number up to C, and at least 2.

    Raises:
        ShapeError: shape ().
        ConfigError: an unknown form, reflections below 1, or reflections with another form.

    Source: Tomczak and Welling, Improving Variational Auto-Encoders using Householder Flow, 2016, equation 8;
    Lezcano-Casado and Martinez-Rubio, Cheap Orthogonal Constraints in Neural Networks, 2019.

    >>> linear, x = OrthogonalLinear((3, 8, 8)), torch.randn(2, 3, 8, 8)
    >>> torch.allclose(linear(x)[0].norm(dim=1), x.norm(dim=1), atol=1e-5)
    True
    """

    volume_preserving = True

    vectors: Tensor
    generator: Tensor

    def __init__(self, shape: int | Sequence[int], form: str = "householder", reflections: int | None = None):
        super().__init__(shape)
        if form not in FORMS:
            raise ConfigError(f"OrthogonalLinear: form must be one of {', '.join(FORMS)}, got {form!r}")
        self.form = form
        channels = self.in_shapes[0][0]
        if form == "householder":
            hold(self, "vectors", reflection_vectors("OrthogonalLinear", channels, reflections))
        elif reflections is not None:
            raise ConfigError(
                f"OrthogonalLinear: reflections go with form 'householder', got {reflections!r} with {form!r}"
            )
        else:
            hold(self, "generator", torch.zeros(channels, channels))

    def weight(self) -> Tensor:
        """The matrix Q, `(C, C)`."""
        if self.form == "householder":
            return householder(self.vectors)
        with full_precision(self.generator):
            above = widened(self.generator).triu(1)
            skew = above - above.T
            if self.form == "matrix_exp":
                return torch.linalg.matrix_exp(skew)
            eye = torch.eye(skew.shape[0], dtype=skew.dtype, device=skew.device)
            return torch.linalg.solve_ex(eye + skew, eye - skew)[0]  # I + A is never singular: nothing to check

    def inverse_weight(self) -> Tensor:
        """The matrix Q^T, `(C, C)`."""
        return self.weight().T

    def log_abs_det(self) -> Tensor:
        """Zero."""
        state = self.vectors if self.form == "householder" else self.generator
        return zero_log_det(state[:1]).sum()

    def _log_det(self, x: Tensor) -> Tensor:
        return zero_log_det(x)

    def extra_repr(self) -> str:
        """The event shape and the form."""
        return f"{self.in_shapes[0]}, form={self.form!r}"
