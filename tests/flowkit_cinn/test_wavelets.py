import builtins
import math

import numpy as np
import pytest
import torch

import flowkit as fk
from flowkit_cinn import HaarDownsample, HaarUpsample, WaveletDownsample, WaveletUpsample

pywt = pytest.importorskip("pywt", reason="the oracle is PyWavelets")

ORTHOGONAL = [name for name in pywt.wavelist(kind="discrete") if pywt.Wavelet(name).orthogonal and name != "dmey"]
DOWN = [
    HaarDownsample((3, 4, 6)),
    HaarDownsample((3, 4, 6), rebalance=0.5, group="channel"),
    WaveletDownsample((3, 4, 6)),
    WaveletDownsample((3, 4, 6), wavelet="sym4", rebalance=2.0, group="channel"),
    WaveletDownsample((1, 2, 2), wavelet="db8"),
]
UP = [
    HaarUpsample((8, 2, 3)),
    HaarUpsample((8, 2, 3), rebalance=0.5, group="channel"),
    WaveletUpsample((8, 2, 3)),
    WaveletUpsample((4, 1, 2), wavelet="coif1", rebalance=2.0, group="channel"),
]


def jacobian(function, x):
    matrix = torch.autograd.functional.jacobian(
        lambda flat: function(flat.reshape(1, *x.shape))[0].flatten(), x.flatten()
    )
    return matrix.reshape(x.numel(), x.numel())


@pytest.mark.parametrize("op", [*DOWN, *UP], ids=repr)
def test_jacobian_in_both_directions(op):
    x = torch.randn(op.in_shapes[0])
    forward, inverse = jacobian(op, x), jacobian(op.inverse, op(x[None])[0][0])
    y, log_det = op(x.expand(2, *x.shape))
    assert y.shape == (2, *op.out_shapes[0])
    assert log_det.shape == (2,)
    assert log_det.dtype == torch.float64
    torch.testing.assert_close(torch.linalg.slogdet(forward).logabsdet, log_det[0], atol=1e-9, rtol=0)
    torch.testing.assert_close(op.inverse(y)[1], -log_det, atol=0, rtol=0)
    torch.testing.assert_close(inverse, forward.inverse(), atol=1e-12, rtol=0)
    r = op.rebalance if op in DOWN else 1 / op.rebalance
    torch.testing.assert_close(forward @ forward.T, r**2 * torch.eye(x.numel()), atol=1e-13, rtol=0)


@pytest.mark.parametrize("op", [*DOWN, *UP], ids=repr)
def test_round_trip_and_arguments_stay(op):
    x = torch.randn(3, *op.in_shapes[0])
    kept = x.clone()
    y, _ = op(x)
    assert torch.equal(x, kept)
    kept_y = y.clone()
    back, _ = op.inverse(y)
    assert torch.equal(y, kept_y)
    torch.testing.assert_close(back, x, atol=1e-14, rtol=1e-14)
    torch.testing.assert_close(op(x.float())[0], y.float(), atol=1e-6, rtol=1e-5)
    assert op(x[:0])[0].shape == (0, *op.out_shapes[0])
    assert op(x.float())[1].dtype == torch.float32


@pytest.mark.parametrize("down", DOWN, ids=repr)
def test_upsampling_is_the_inverse(down):
    up_class, config = (
        (HaarUpsample, {}) if isinstance(down, HaarDownsample) else (WaveletUpsample, {"wavelet": down.wavelet})
    )
    up = up_class(down.out_shapes[0], rebalance=down.rebalance, group=down.group, **config)
    x = torch.randn(2, *down.in_shapes[0])
    y, log_det = down(x)
    back, log_det_back = up(y)
    torch.testing.assert_close(back, x, atol=1e-14, rtol=1e-14)
    assert torch.equal(log_det_back, -log_det)
    assert torch.equal(up.inverse(back)[0], down(back)[0])
    assert up.out_shapes == down.in_shapes


def test_haar_is_the_formula():
    x = torch.randn(2, 3, 4, 6)
    a, b, c, d = (x[:, :, i::2, j::2] for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)))
    expected = torch.cat([(a + b + c + d) / 2, (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2], 1)
    torch.testing.assert_close(HaarDownsample((3, 4, 6))(x)[0], expected, atol=1e-15, rtol=1e-15)
    by_channel = HaarDownsample((3, 4, 6), group="channel")(x)[0]
    assert torch.equal(by_channel, HaarDownsample((3, 4, 6))(x)[0].unflatten(1, (4, 3)).transpose(1, 2).flatten(1, 2))


def test_horizontal_means_along_the_width():
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)  # changes along the width alone
    average, horizontal, vertical, diagonal = HaarDownsample((1, 4, 4))(ramp)[0][0]
    assert (horizontal == -1).all()
    assert (vertical == 0).all()
    assert (diagonal == 0).all()
    assert average[0].tolist() == [1.0, 5.0]


def test_haar_is_a_wavelet():
    x = torch.randn(2, 3, 4, 6)
    torch.testing.assert_close(WaveletDownsample((3, 4, 6), wavelet="haar")(x)[0], HaarDownsample((3, 4, 6))(x)[0])


@pytest.mark.parametrize("rebalance", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("by_wavelet", [False, True])
def test_freia(rebalance, by_wavelet):
    modules = pytest.importorskip("FrEIA.modules")
    x = torch.randn(2, 3, 4, 6)
    theirs = modules.HaarDownsampling([(3, 4, 6)], order_by_wavelet=by_wavelet, rebalance=rebalance)
    (expected,), jac = theirs([x])
    ours = HaarDownsample((3, 4, 6), rebalance=rebalance, group="subband" if by_wavelet else "channel")
    y, log_det = ours(x)
    torch.testing.assert_close(y, expected, atol=1e-14, rtol=1e-14)
    torch.testing.assert_close(log_det, torch.full((2,), float(jac)), atol=1e-12, rtol=1e-12)
    assert log_det[0].item() == pytest.approx(x[0].numel() * math.log(rebalance))


@pytest.mark.parametrize("wavelet", ORTHOGONAL)
def test_pywavelets(wavelet):
    for shape in ((2, 8, 12), (1, 2, 2), (1, 6, 4)):  # the longer filters wrap around several times
        x = torch.randn(2, *shape)
        op = WaveletDownsample(shape, wavelet=wavelet)
        average, (edges_h, edges_v, edges_d) = pywt.dwt2(x.numpy(), wavelet, mode="periodization")
        expected = torch.from_numpy(np.concatenate([average, edges_v, edges_h, edges_d], 1))
        y, log_det = op(x)
        torch.testing.assert_close(y, expected, atol=1e-10, rtol=0)
        torch.testing.assert_close(op.inverse(y)[0], x, atol=1e-13, rtol=0)
        assert (log_det == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cls", [HaarDownsample, WaveletDownsample])
def test_autocast_changes_no_bit(cls, dtype):
    op, x = cls((3, 8, 6)), torch.randn(2, 3, 8, 6, dtype=torch.float32)
    y, log_det = op(x)
    back, _ = op.inverse(y)
    with torch.autocast("cpu", dtype=dtype):
        y_auto, log_det_auto = op(x)
        back_auto, _ = op.inverse(y)
    assert torch.equal(y_auto, y)
    assert torch.equal(back_auto, back)
    assert torch.equal(log_det_auto, log_det)
    assert y_auto.dtype == log_det_auto.dtype == torch.float32
    exact = torch.randint(-64, 64, (2, 3, 8, 6)).float()  # small integers: additions and halves are exact
    if cls is HaarDownsample:
        assert torch.equal(op.inverse(op(exact)[0])[0], exact)


@pytest.mark.parametrize("op", [DOWN[1], UP[3]], ids=repr)
def test_compiles_exports_and_transforms(op):
    x = torch.randn(2, *op.in_shapes[0])
    y, log_det = op(x)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), (y, log_det))
    torch.testing.assert_close(torch.compile(op.inverse, fullgraph=True, backend="aot_eager")(y)[0], x)
    torch.testing.assert_close(torch.export.export(op, (x,)).module()(x), (y, log_det))
    rows = torch.func.vmap(lambda row: op(row[None])[0][0])(x)
    torch.testing.assert_close(rows, y)


def test_filters_survive_a_change_of_dtype():
    op = WaveletDownsample((1, 4, 4), wavelet="db4")
    x = torch.randn(2, 1, 4, 4)
    expected = op(x)[0]
    assert torch.equal(op.half().double()(x)[0], expected)
    assert not list(op.state_dict())


def test_memory_formats():
    x = torch.randn(2, 4, 4, 6)
    for op in (
        HaarDownsample((4, 4, 6)),
        WaveletDownsample((4, 4, 6)),
        HaarUpsample((4, 4, 6)),
        WaveletUpsample((4, 4, 6)),
    ):
        assert torch.equal(op(x.to(memory_format=torch.channels_last))[0], op(x)[0])


REFUSED = [
    (
        lambda: HaarDownsample((3, 5, 4)),
        fk.ShapeError,
        r"HaarDownsample needs an even height and width, got \(3, 5, 4\)",
    ),
    (lambda: WaveletDownsample((3, 4, 3)), fk.ShapeError, "WaveletDownsample needs an even height and width"),
    (lambda: HaarDownsample((4, 4)), fk.ShapeError, r"HaarDownsample needs a map \(C, H, W\), got \(4, 4\)"),
    (lambda: WaveletUpsample((8,)), fk.ShapeError, "WaveletUpsample needs a map"),
    (lambda: HaarUpsample((6, 4, 4)), fk.ShapeError, "HaarUpsample needs four subbands"),
    (lambda: HaarDownsample((1, 2, 2), rebalance=0), fk.ConfigError, "rebalance must be positive and finite, got 0"),
    (
        lambda: HaarDownsample((1, 2, 2), group="wavelet"),
        fk.ConfigError,
        "group must be 'subband' or 'channel', got 'wavelet'",
    ),
    (
        lambda: WaveletDownsample((1, 4, 4), wavelet="db99"),
        fk.ConfigError,
        "name of a discrete wavelet of PyWavelets.*'db99'",
    ),
    (lambda: WaveletDownsample((1, 4, 4), wavelet="bior2.2"), fk.ConfigError, "needs an orthogonal wavelet.*'bior2.2'"),
    (lambda: WaveletDownsample((1, 4, 4), wavelet="dmey"), fk.ConfigError, "'dmey' is off by 0.002"),
    (lambda: WaveletDownsample((1, 4, 4), wavelet="morl"), fk.ConfigError, "discrete wavelet"),
]


@pytest.mark.parametrize(("build", "error", "message"), REFUSED)
def test_refused_in_one_sentence(build, error, message):
    with pytest.raises(error, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_without_pywavelets(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "pywt":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(fk.MissingDependencyError, match="WaveletDownsample needs PyWavelets: python -m pip install"):
        WaveletDownsample((1, 4, 4))
    HaarDownsample((1, 4, 4))


def test_every_non_orthogonal_wavelet_is_refused():
    others = [name for name in pywt.wavelist(kind="discrete") if name not in ORTHOGONAL]
    assert "dmey" in others
    for name in others:
        with pytest.raises(fk.ConfigError, match="orthogonal"):
            WaveletDownsample((1, 4, 4), wavelet=name)
