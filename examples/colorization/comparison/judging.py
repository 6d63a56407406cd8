"""The figures of one system, on held-out photographs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import flowkit as fk
from flowkit.errors import NonFiniteError
from flowkit_cinn.backbones import PretrainedWeightsError
from flowkit_cinn.translation.baselines import Colorizer
from flowkit_cinn.translation.color import denormalize_ab, denormalize_lightness, lab_to_rgb, stack_lab
from flowkit_cinn.translation.crops import Crop
from flowkit_cinn.translation.metrics import (
    UNITS,
    Estimate,
    best_of_n_mse,
    bootstrap,
    grayscale_mse,
    in_units,
    sample_variance,
)
from flowkit_cinn.translation.realism import Extractor, bootstrap_frechet, imagenet_classes, top5, vgg16
from flowkit_cinn.translation.sources import Source

from ..choices import Settings
from ..recipes import METRIC_SAMPLES
from ..scoring import plain, samples_of
from ..training import bits_of_each, row_slices

LEAST_FOR_FID = 2  # photographs: a covariance is needed
NO_VGG_CLASSES = "the data's folders are not ImageNet's 1,000 classes"


@dataclass
class Judges:
    """What every system is judged with: the held-out crops, features of other photographs, and a classifier.

    Attributes:
        crops: normalised ab and L.
        reference: features of training photographs, to which the Fréchet distance is measured.
        extractor: what made them.
        temperature: of the flows' samples.
        classifier: VGG-16, or None; `without` then says why.
        classes: of the held-out photographs.
    """

    crops: Crop
    reference: Tensor
    extractor: Extractor
    noise: float
    seed: int
    temperature: float
    classifier: nn.Module | None = None
    classes: Tensor | None = None
    without: str = ""
    lightness: Tensor = field(init=False)
    ab: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.ab = denormalize_ab(self.crops["ab"])
        lightness = denormalize_lightness(self.crops["photo"])
        size = (self.ab.shape[-2], self.ab.shape[-1])
        self.lightness = nn.functional.adaptive_avg_pool2d(lightness, size)

    def picture_figures(self, ab: Tensor) -> dict[str, Estimate]:
        """The Fréchet distance, and the top-5 accuracy where there is a classifier, of one ab for each photograph."""
        images = lab_to_rgb(stack_lab(self.lightness, ab)).clamp(0, 1)
        figures = {}
        if min(len(self.reference), len(images)) >= LEAST_FOR_FID:
            figures["fid"] = bootstrap_frechet(self.reference, self.extractor.features(images))
        if self.classifier is not None and self.classes is not None:
            figures["top5"] = bootstrap(top5(self.classifier, images, self.classes))
        return figures


def judges(
    crops: Crop, names: list[str], reference: Crop, source: Source, extractor: Extractor, *, settings: Settings
) -> Judges:
    """The judges for a data set; a VGG-16 among them where its weights and the classes can be had."""
    ab, lightness = denormalize_ab(reference["ab"]), denormalize_lightness(reference["photo"])
    size = (ab.shape[-2], ab.shape[-1])
    images = lab_to_rgb(stack_lab(nn.functional.adaptive_avg_pool2d(lightness, size), ab)).clamp(0, 1)
    made = Judges(crops, extractor.features(images), extractor, settings.noise, settings.seed, settings.temperature)
    made.classes = imagenet_classes(names, [image.name for image in (*source.train, *source.held_out)])
    if made.classes is None:
        made.without = NO_VGG_CLASSES
        return made
    try:
        made.classifier = vgg16()
    except PretrainedWeightsError as error:
        made.without = str(error)
    return made


@torch.no_grad()
def judge(model: nn.Module, judges: Judges) -> dict[str, Any]:
    """Best of 8 and variance in both units, Fréchet distance, top-5; bits per dimension of a flow.

    Raises:
        NonFiniteError: a sample is not finite: the model has no figures.
    """
    first: list[Tensor] = []
    per_image: dict[str, dict[str, list[Tensor]]] = {units: {"best_of_n_mse": [], "variance": []} for units in UNITS}
    for number, rows in enumerate(row_slices(len(judges.ab))):
        samples = drawn(model, judges.crops["photo"][rows], METRIC_SAMPLES, judges.seed + number, judges.temperature)
        if not samples.isfinite().all():
            raise NonFiniteError(f"of the photographs from number {rows.start} on, a sample is not finite")
        lightness, target = judges.lightness[rows], judges.ab[rows]
        first.append(samples[0])
        for units in UNITS:
            made, wanted = in_units(samples, lightness, units), in_units(target, lightness, units)
            per_image[units]["best_of_n_mse"].append(best_of_n_mse(made, wanted))
            per_image[units]["variance"].append(sample_variance(made))
    figures: dict[str, Any] = {
        units: {name: plain(bootstrap(torch.cat(values))) for name, values in by_name.items()}
        for units, by_name in per_image.items()
    }
    figures.update({name: plain(value) for name, value in judges.picture_figures(torch.cat(first)).items()})
    if isinstance(model, fk.Flow):
        bits = bits_of_each(model, judges.crops, judges.noise, judges.seed)
        figures["bits_per_dimension"] = plain(bootstrap(bits))
    return figures


def judge_grayscale(judges: Judges) -> dict[str, Any]:
    """The same of leaving the photographs gray."""
    figures: dict[str, Any] = {
        units: {"best_of_n_mse": plain(bootstrap(grayscale_mse(judges.ab, judges.lightness, units)))} for units in UNITS
    }
    return {**figures, **{n: plain(v) for n, v in judges.picture_figures(torch.zeros_like(judges.ab)).items()}}


def judge_truth(judges: Judges) -> dict[str, Any]:
    """The pictures' figures of the true colours."""
    return {name: plain(value) for name, value in judges.picture_figures(judges.ab).items()}


@torch.no_grad()
def drawn(model: nn.Module, photo: Tensor, count: int, seed: int, temperature: float) -> Tensor:
    """Samples of ab in Lab units, `(n, B, 2, h, w)`, of a flow or a baseline, for normalised L."""
    if isinstance(model, fk.Flow):
        return samples_of(model, photo, count, temperature, seed)
    assert isinstance(model, Colorizer)
    return denormalize_ab(model.sample(photo, count, torch.Generator().manual_seed(seed)))
