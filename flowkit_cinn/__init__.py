"""flowkit's plugin for "Conditional Invertible Neural Networks for Diverse Image-to-Image Translation".

`flowkit.lookup("cinn.haar_downsample")` finds it by its entry point; it stands on flowkit's public names alone.
"""

from flowkit_cinn.backbones import PretrainedWeightsError
from flowkit_cinn.coupling import ConditionalCoupling
from flowkit_cinn.levels import ImageRecipe, Level
from flowkit_cinn.models import ColorizationRecipe, colorization_cinn, day2night_cinn, mnist_cinn
from flowkit_cinn.pyramid import FeaturePyramid
from flowkit_cinn.wavelets import HaarDownsample, HaarUpsample, WaveletDownsample, WaveletUpsample

__all__ = [
    "ColorizationRecipe",
    "ConditionalCoupling",
    "FeaturePyramid",
    "HaarDownsample",
    "HaarUpsample",
    "ImageRecipe",
    "Level",
    "PretrainedWeightsError",
    "WaveletDownsample",
    "WaveletUpsample",
    "colorization_cinn",
    "day2night_cinn",
    "mnist_cinn",
]
