import pytest
import torch
from FrEIA.modules import AllInOneBlock as FreiaBlock
from torch import nn

import flowkit as fk
from flowkit.errors import ConfigError


def net(c_in, c_out):
    return nn.Sequential(nn.Linear(c_in, 6), nn.SiLU(), nn.Linear(6, c_out))


def conv(c_in, c_out):
    return nn.Sequential(nn.Conv2d(c_in, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, c_out, 1))


def freias_and_ours(shape, condition, recipe, theirs, ours):
    """FrEIA's block with random weights, and ours with the same."""
    channels = shape[0]
    block = FreiaBlock([shape], [condition], subnet_constructor=recipe, affine_clamping=1.5, **theirs).double()
    made = fk.AllInOneBlock(
        shape,
        given=(condition,),
        subnet=recipe,
        limit=1.5,
        split=tuple(range(channels - channels // 2, channels)),
        **ours,
    )
    made.coupling.subnets[0].net.load_state_dict(block.subnet.state_dict())
    matrix = block.w_0 if block.householder else block.w_perm.reshape(channels, channels)
    with torch.no_grad():
        block.global_offset.normal_()
        block.global_scale.add_(torch.randn_like(block.global_scale) * 0.3)
        last = made.coupling.subnets[0].net[-1]
        last.weight *= 0.1  # theirs scales what the subnet predicts
        last.bias *= 0.1
        made.shift.copy_(block.global_offset[0])
        if made.raw_scale is not None:
            made.raw_scale.copy_(block.global_scale[0])
        if made.reflections is not None:
            made.reflections.vectors.copy_(block.vk_householder)
        if isinstance(made.mixing, fk.FixedRotation):
            made.mixing.rotation.copy_(torch.linalg.qr(matrix)[0] * torch.linalg.qr(matrix)[1].diagonal().sign())
            matrix.copy_(made.mixing.rotation)  # theirs is rounded to float32
            if not block.householder:
                block.w_perm_inv.copy_(block.w_perm.transpose(0, 1))
        else:
            made.mixing.order.copy_(matrix.argmax(1))
            made.mixing.inverse_order.copy_(matrix.argmax(0))
    return block, made


CONFIGS = [
    ({"global_affine_type": "SOFTPLUS"}, {}),
    ({"global_affine_type": "SIGMOID", "permute_soft": True}, {"scale": "sigmoid", "mixing": "rotation"}),
    (
        {"global_affine_type": "EXP", "learned_householder_permutation": 3, "reverse_permutation": True},
        {"scale": "exp", "reflections": 3, "reverse_mixing": True},
    ),
    ({"gin_block": True}, {"volume_preserving": True}),
]


@pytest.mark.parametrize(("theirs", "ours"), CONFIGS)
@pytest.mark.parametrize(("shape", "condition", "recipe"), [((5,), (3,), net), ((3, 2, 4), (2, 2, 4), conv)])
def test_is_freias_with_equal_weights(shape, condition, recipe, theirs, ours):
    block, made = freias_and_ours(shape, condition, recipe, theirs, ours)
    x, c = torch.randn(4, *shape), torch.randn(4, *condition)
    (y,), log_det = block([x], [c])
    torch.testing.assert_close(made(x, c), (y, log_det), atol=1e-10, rtol=1e-10)
    (back,), log_det = block([y], [c], rev=True)
    torch.testing.assert_close(made.inverse(y, c), (back, log_det), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(back, x, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("scale", ["softplus", "sigmoid", "exp"])
@pytest.mark.parametrize("initial", [0.1, 1.0, 4.0])
def test_starts_with_the_initial_scale(scale, initial):
    block = fk.AllInOneBlock((4,), scale=scale, initial_scale=initial)
    x = torch.randn(3, 4)
    y, log_det = block(x)
    torch.testing.assert_close(y, initial * block.mixing(x)[0])
    torch.testing.assert_close(log_det, torch.full((3,), 4 * torch.tensor(initial).log().item()))


def test_promises_of_an_instance():
    assert fk.AllInOneBlock((4,), volume_preserving=True).volume_preserving
    assert not fk.AllInOneBlock((4,)).volume_preserving


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"mixing": "soft"}, "mixing must be 'permutation' or 'rotation', got 'soft'"),
        ({"reflections": -1}, "reflections must be a whole number, 0 for none, got -1"),
        ({"reflections": True}, "reflections must be a whole number, 0 for none, got True"),
        ({"scale": "tanh"}, "scale must be one of softplus, sigmoid, exp, got 'tanh'"),
        ({"initial_scale": 0.0}, "initial_scale must be positive and finite, got 0.0"),
        ({"initial_scale": 10.0, "scale": "sigmoid"}, "initial_scale must be positive, and below 10 with 'sigmoid'"),
    ],
)
def test_refusals(config, sentence):
    with pytest.raises(ConfigError, match=f"AllInOneBlock: {sentence}"):
        fk.AllInOneBlock((4,), **config)
