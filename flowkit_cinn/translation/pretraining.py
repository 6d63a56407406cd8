"""Pre-training a conditioning net on the colorization task, by classification of colours as Zhang et al. did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flowkit as fk
from flowkit_cinn.pyramid import FeaturePyramid
from flowkit_cinn.translation.baselines import Colorizer
from flowkit_cinn.translation.color import denormalize_ab, lab_to_rgb, normalize_ab, rgb_to_lab

GRID = 10.0  # Lab units between bins, as published
FARTHEST = 120  # no sRGB colour has an a or b beyond +-108
NEIGHBOURS, SPREAD = 5, 5.0  # a colour's target: its nearest bins, weighted by a normal of this width, as published
ANNEALED = 0.38  # the temperature of the mean that is shown, as published
UNIFORM = 0.5  # the share of the uniform distribution in what rebalances, as published


def colour_bins(grid: float = GRID) -> Tensor:
    """The centres of the bins of ab, `(Q, 2)` in Lab units: multiples of the grid within half a step of sRGB's colours.

    These are 259 at a grid of 10, found by trying every whole lightness; Zhang et al. name 313.

    >>> bins = colour_bins()
    >>> bins.shape, bool((bins % 10 == 0).all())
    (torch.Size([259, 2]), True)
    """
    line = torch.arange(-FARTHEST, FARTHEST + 1, dtype=torch.float64)
    line = line[line % grid == 0]
    lightness = torch.arange(1.0, 100.0, dtype=torch.float64)
    lab = torch.stack(torch.meshgrid(lightness, line, line, indexing="ij")).flatten(2)  # (3, L, A B)
    off = (rgb_to_lab(lab_to_rgb(lab)) - lab).abs().amax(0) < grid / 2
    return lab[1:, 0, off.any(0)].T.to(torch.get_default_dtype())


class ColourClassifier(Colorizer):
    """The conditioning net up to its finest map, and a 1 x 1 convolution to the probabilities of the colour bins there.

    With the paper's features (backbone `"zhang"`) it is Zhang et al.'s net: 256 maps at a quarter of the photograph's
    size, then the second-to-last convolution, which the paper cuts off, and the fixed mean that stands for the last.
    The coarser levels, the vector and what else `features` has beyond the finest map are not part of it. Train it by
    `loss`, or as any `Colorizer`; then `give_to` copies what it learned into a flow's conditioning net, and the flow
    trains jointly from there.

    The loss is the cross entropy per pixel with the colour's nearest bins, softly; ab is averaged down to the map's
    size.

    Args:
        features: arguments of `FeaturePyramid`, as a colorization recipe has them.
        size: height and width of ab, a multiple of the finest map's.
        photo_size: height and width of L.
        frequencies: how often each bin occurs, `(Q,)`, to weigh rare colours up as published: see
            `colour_frequencies`. None weighs every pixel alike.

    Raises:
        fk.ConfigError: frequencies of another number of bins, or negative.

    Source: R. Zhang, P. Isola, A. Efros, Colorful Image Colorization, ECCV 2016; the paper, section 4.2.

    Example:
        >>> model = ColourClassifier({"channels": (4, 4), "first": 1, "vector": 3}, size=16, photo_size=16)
        >>> model(torch.zeros(2, 1, 16, 16)).shape, model.colours(torch.zeros(2, 1, 16, 16)).shape
        (torch.Size([2, 259, 8, 8]), torch.Size([2, 2, 16, 16]))
    """

    bins: Tensor
    weights: Tensor

    def __init__(
        self,
        features: Mapping[str, Any],
        size: int = 64,
        photo_size: int = 64,
        frequencies: Tensor | None = None,
    ):
        finest = {**features, "channels": tuple(features["channels"])[:1], "vector": None}
        super().__init__(finest, size, photo_size)
        self.register_buffer("bins", colour_bins())
        count = self.bins.shape[0]
        self.predict = nn.Conv2d(finest["channels"][0], count, 1)
        weights = torch.ones(count)
        if frequencies is not None:
            if frequencies.shape != (count,) or bool((frequencies < 0).any()) or not bool(frequencies.sum() > 0):
                raise fk.ConfigError(
                    f"ColourClassifier: frequencies must be {count} numbers, one a bin, none of them negative, got "
                    f"shape {tuple(frequencies.shape)}"
                )
            shares = (frequencies / frequencies.sum()).to(weights)
            weights = 1 / ((1 - UNIFORM) * shares + UNIFORM / count)
            weights = weights / (shares * weights).sum()  # so that the expected weight is 1
        self.register_buffer("weights", weights)

    def forward(self, photo: Tensor) -> Tensor:
        """L `(B, 1, H, W)` to the bins' log-odds `(B, Q, h, w)`, at the finest map's size."""
        return self.predict(self.pyramid(photo)[0])

    def loss(self, ab: Tensor, photo: Tensor) -> Tensor:
        """The mean cross entropy of a pixel, in nats."""
        log_shares = F.log_softmax(self(photo).movedim(1, -1), -1)
        height, width = log_shares.shape[1:3]
        nearest, soft = self.targets(F.adaptive_avg_pool2d(ab, (height, width)))
        entropy = -(log_shares.gather(-1, nearest) * soft).sum(-1)
        return (entropy * self.weights[nearest[..., 0]]).mean()

    def targets(self, ab: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised ab `(B, 2, h, w)` to its nearest bins, nearest first, and their shares, both `(B, h, w, 5)`."""
        colours = denormalize_ab(ab).movedim(1, -1)
        distance, nearest = torch.cdist(colours.flatten(0, 2), self.bins.to(ab)).topk(NEIGHBOURS, largest=False)
        soft = torch.softmax(-(distance**2) / (2 * SPREAD**2), -1)
        return nearest.view(*colours.shape[:3], -1), soft.view(*colours.shape[:3], -1)

    def colours(self, photo: Tensor) -> Tensor:
        """The annealed mean of the bins, as normalised ab `(B, 2, h, w)` at the size of the data."""
        shares = torch.softmax(self(photo) / ANNEALED, 1)
        ab = normalize_ab(torch.einsum("bqhw,qc->bchw", shares, self.bins))
        return F.interpolate(ab, size=(self.size, self.size), mode="bilinear", align_corners=False)

    def sample(self, photo: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        """The annealed mean, as often as is asked for."""
        return self.colours(photo).expand(count, -1, -1, -1, -1)

    def give_to(self, pyramid: FeaturePyramid) -> None:
        """Copy what was trained, the net up to its finest map, into a pyramid: a flow's `network.nodes["pyramid"]`.

        Raises:
            fk.ConfigError: the pyramid has another backbone or finest map.
        """
        theirs = pyramid.state_dict()
        mine = self.pyramid.state_dict()
        other = [name for name, value in mine.items() if name not in theirs or theirs[name].shape != value.shape]
        if other:
            raise fk.ConfigError(
                f"the pyramid is not the one that was trained: it has no '{other[0]}' of shape "
                f"{tuple(mine[other[0]].shape)}"
            )
        pyramid.load_state_dict({**theirs, **mine})


@torch.no_grad()
def colour_frequencies(ab: Tensor, bins: Tensor) -> Tensor:
    """How many pixels of normalised ab `(B, 2, h, w)` are nearest to each of the bins `(Q, 2)`: `(Q,)`; add up batches.

    >>> bins = colour_bins()
    >>> int(colour_frequencies(torch.zeros(2, 2, 4, 4), bins).sum())
    32
    """
    colours = denormalize_ab(ab).movedim(1, -1).flatten(0, 2)
    nearest = torch.cdist(colours, bins.to(colours)).argmin(1)
    return torch.bincount(nearest, minlength=bins.shape[0]).to(bins.dtype)
