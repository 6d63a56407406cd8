"""What the tests of bijections share: redrawn weights, data and conditions, the Jacobian."""

import pytest
import torch

from flowkit.bijection import as_tuple


def _redraw(module, std=0.4):
    """The module with all its parameters redrawn: what starts as the identity proves nothing."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, std)
    return module


def _arguments(bijection, batch=3):
    """Random data and random conditions, `(inputs, conditions)`."""
    if hasattr(bijection, "example_inputs"):  # whose domain is not all numbers
        inputs = as_tuple(bijection.example_inputs(batch))
    else:
        inputs = tuple(torch.randn(batch, *shape) for shape in bijection.in_shapes)
    return inputs, tuple(torch.randn(batch, *shape) for shape in bijection.condition_shapes)


def _log_abs_det(apply, inputs, conditions):
    """log abs det of the Jacobian of `apply`, one row at a time, by autograd."""
    shapes = [x.shape[1:] for x in inputs]
    sizes = [shape.numel() for shape in shapes]
    found = []
    for row in range(inputs[0].shape[0]):
        given = [c[row : row + 1] for c in conditions]

        def flat(vector, given=given):
            parts = [p.reshape(1, *shape) for p, shape in zip(vector.split(sizes), shapes, strict=True)]
            return torch.cat([out.flatten() for out in as_tuple(apply(*parts, *given)[0])])

        vector = torch.cat([x[row].flatten() for x in inputs])
        found.append(torch.linalg.slogdet(torch.autograd.functional.jacobian(flat, vector))[1])
    return torch.stack(found)


@pytest.fixture
def redraw():
    return _redraw


@pytest.fixture
def arguments():
    return _arguments


@pytest.fixture
def log_abs_det():
    return _log_abs_det
