"""The figures of metrics.json, and samples at a given code and temperature."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowkit import Flow
from flowkit_cinn.translation.color import denormalize_ab, denormalize_lightness
from flowkit_cinn.translation.crops import Crop
from flowkit_cinn.translation.metrics import UNITS, Estimate, diversity

from .recipes import METRIC_SAMPLES
from .training import held_out_bits, row_slices

UNIT_WORDS = {
    "ab": "Lab units squared, mean over a and b and the pixels",
    "rgb": "sRGB in 0..1 squared, mean over the channels and pixels",
}


@torch.no_grad()
def samples_of(flow: Flow, photo: Tensor, count: int, temperature: float, seed: int) -> Tensor:
    """Samples of ab in Lab units, `(n, B, 2, h, w)`, for normalised L `(B, 1, H, W)`; determined by the seed.

    The codes do not depend on the temperature, so that one seed at several temperatures shows one code, scaled.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for rows in row_slices(len(photo)):
        some = photo[rows]
        z = torch.randn(count, len(some), flow.dim, generator=generator, dtype=some.dtype).to(some.device)
        ab, _ = flow.inverse(temperature * z, given=some)  # the feature net runs once for all samples
        assert isinstance(ab, Tensor)  # a colorization flow has one input
        parts.append(denormalize_ab(ab))
    return torch.cat(parts, 1)


def judge(flow: Flow, crops: Crop, noise: float, seed: int) -> dict[str, Any]:
    """Every figure on held-out crops, as metrics.json holds it."""
    ab, lightness = denormalize_ab(crops["ab"]), denormalize_lightness(crops["photo"])
    if lightness.shape[-2:] != ab.shape[-2:]:
        lightness = torch.nn.functional.adaptive_avg_pool2d(lightness, (ab.shape[-2], ab.shape[-1]))
    samples = samples_of(flow, crops["photo"], METRIC_SAMPLES, 1.0, seed)
    figures: dict[str, Any] = {
        "images": len(ab),
        "samples": METRIC_SAMPLES,
        "bits_per_dimension": plain(held_out_bits(flow, crops, noise, seed)),
        "bits_per_dimension_of": f"-log2 q(ab | L) / D, of normalised ab with noise of standard deviation {noise}",
    }
    for units in UNITS:
        figures[units] = {name: plain(value) for name, value in diversity(samples, ab, lightness, units=units).items()}
        figures[units]["units"] = UNIT_WORDS[units]
    return figures


def plain(estimate: Estimate) -> dict[str, float | None]:
    """An estimate as JSON has it, which has no nan: a single image has no bootstrap error."""
    error = estimate.error if estimate.error == estimate.error else None
    return {"mean": estimate.mean, "error": error}
