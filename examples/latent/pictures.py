"""The pictures: a function each, from a flow, regions of photographs, names of levels and a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import flowkit as fk
from flowkit_cinn import latent
from flowkit_cinn.translation.color import denormalize_ab, split_rgb
from flowkit_cinn.translation.crops import central_box
from flowkit_cinn.translation.fitting import shrink
from flowkit_cinn.translation.images import read_photograph, to_tensor
from flowkit_cinn.translation.pictures import grid
from flowkit_cinn.translation.upsample import recolor

from ..colorization.training import sizes_of

SIDE = 160  # pixels of a picture in the grid
STEPS = 5  # of an interpolation, in both directions
RESAMPLED, DIVERSE, OUTLIERS = 5, 7, 4
SAMPLES = 48  # among which the most different, and the least likely, are found
CLIMB = 60  # steps to the most likely colours
TAILS = 0.02  # of a feature map's values are shown black or white


@dataclass(frozen=True)
class Region:
    """A photograph's central region: as shown; and L `(1, H, W)` and ab `(2, h, w)` as the flow sees them."""

    name: str
    image: Image.Image
    photo: Tensor
    ab: Tensor


def read_region(flow: fk.Flow, path: Path) -> Region:
    """The central region at the flow's aspect.

    Raises:
        PhotographError: the photograph cannot be read.
    """
    sizes = sizes_of(flow)
    image = read_photograph(path, at_least=max(SIDE, *sizes.photo)).image
    image = image.crop(central_box(image.size, sizes.photo[1] / sizes.photo[0]))
    scale = SIDE / max(image.size)
    shown = shrink(image, (max(8, round(image.height * scale)), max(8, round(image.width * scale))))
    like = next(flow.parameters())
    seen = [split_rgb(to_tensor(shrink(image, size))[None].to(like) / 255) for size in (sizes.photo, sizes.ab)]
    return Region(path.name, shown, seen[0][0][0], seen[1][1][0])


def chosen_levels(flow: fk.Flow, level: str | None) -> list[str]:
    """The level that was asked for, or all.

    Raises:
        ConfigError: the flow has no such level.
    """
    if level is not None and level not in flow.latents:
        raise fk.ConfigError(f"the model has the levels {', '.join(flow.latents)}, and no '{level}'")
    return list(flow.latents) if level is None else [level]


def temperature(flow: fk.Flow, regions: Sequence[Region], levels: Sequence[str], seed: int) -> Image.Image:
    """Fig. 7: one typical code for each photograph, scaled."""
    z = latent.typical_code(_codes(flow, len(regions), seed))
    row = latent.temperature_row(flow, z, _photos(regions))
    rows = [
        [_gray(r), *(_coloured(r, x[i]) for x in row), r.image]  # type: ignore[index]  # a flow with one input
        for i, r in enumerate(regions)
    ]
    heads = ["grayscale", *(f"z* × {t:g}" for t in latent.TEMPERATURES), "original"]
    return _grid(rows, [r.name for r in regions], heads, "One typical latent code, scaled by a temperature")


def interpolation(flow: fk.Flow, regions: Sequence[Region], levels: Sequence[str], seed: int) -> Image.Image:
    """Two grids between the same four typical codes for each photograph: linear in the signed power, and spherical."""
    corners = latent.typical_code(_codes(flow, 4, seed)).reshape(2, 2, -1)
    rows, names = [], []
    for region in regions:
        decoded = []
        for method in ("linear", "spherical"):
            codes = latent.interpolation_grid(corners, STEPS, STEPS, method=method)
            decoded.append(_decode(flow, codes.flatten(0, 1), region))
        for i in range(STEPS):
            where = range(i * STEPS, (i + 1) * STEPS)
            left, right = ([_coloured(region, ab[j]) for j in where] for ab in decoded)
            rows.append([*left, None, *right])
            names.append(region.name if i == 0 else "")
    heads = ["signed power", *[""] * STEPS, "spherical", *[""] * (STEPS - 1)]
    return _grid(rows, names, heads, "Between four latent codes, which are at the corners")


def transfer(flow: fk.Flow, regions: Sequence[Region], levels: Sequence[str], seed: int) -> Image.Image:
    """Fig. 8: every photograph's code, decoded under every photograph's L."""
    colours = torch.stack([r.ab for r in regions])
    rows: list[list[Any]] = [[None, *(r.image for r in regions)]]
    for region in regions:
        moved: Any = latent.transfer(flow, colours, _photos(regions), region.photo.expand(len(regions), -1, -1, -1))
        rows.append([_gray(region), *(_coloured(region, ab) for ab in moved)])
    names = ["colours of", *(r.name for r in regions)]
    heads = ["new L", *(r.name for r in regions)]
    return _grid(rows, names, heads, "Color transfer: the code of one photograph under the L of another")


def resample(flow: fk.Flow, regions: Sequence[Region], levels: Sequence[str], seed: int) -> Image.Image:
    """A sample; and the same with the latents of one level drawn anew, and all the others kept."""
    rows, names = [], []
    for number, region in enumerate(regions):
        z = _codes(flow, 1, seed + number)[0]
        for level in levels:
            generator = torch.Generator().manual_seed(seed)
            fresh = latent.resample_level(flow, z, level, RESAMPLED, generator=generator)
            found = _decode(flow, torch.cat([z[None], fresh]), region)
            rows.append([_gray(region), *(_coloured(region, ab) for ab in found)])
            names.append(f"{region.name}\n{level}")
    heads = ["grayscale", "a sample", *(f"drawn anew {i + 1}" for i in range(RESAMPLED))]
    return _grid(rows, names, heads, "One level of the latent code drawn anew, the others kept")


def likeliest(flow: fk.Flow, regions: Sequence[Region], levels: Sequence[str], seed: int) -> Image.Image:
    """The most likely colours, climbed from z = 0, beside z = 0 itself and a sample."""
    photos, zero = _photos(regions), _codes(flow, len(regions), seed) * 0
    _, start = latent.most_likely(flow, zero, photos, steps=0)
    z, end = latent.most_likely(flow, zero, photos, steps=CLIMB)
    rows, names = [], []
    for i, region in enumerate(regions):
        codes = torch.stack([zero[i], z[i], _codes(flow, 1, seed + i)[0]])
        rows.append([_gray(region), *(_coloured(region, ab) for ab in _decode(flow, codes, region)), region.image])
        names.append(f"{region.name}\n{start[i] / flow.dim:.2f} to {end[i] / flow.dim:.2f} nats a dimension")
    heads = ["grayscale", "z = 0", "most likely", "a sample", "original"]
    return _grid(rows, names, heads, "The most likely colours: log q(ab | L) climbed over z")


def features(flow: fk.Flow, regions: Sequence[Region], levels: Sequence[str], seed: int) -> Image.Image:
    """Fig. 6: the first principal component of each level of the conditioning net, and the first three as red, green
    and blue.

    Raises:
        ConfigError: the flow's conditions go through no net that gives maps.
    """
    maps = {n: f for n, f in latent.condition_features(flow, _photos(regions)).items() if f.dim() == 4}
    if not maps:
        raise fk.ConfigError("the model has no conditioning net that gives maps, so there are no features to draw")
    found, heads = [], ["photograph"]
    for level, feature in maps.items():
        count = min(3, feature.shape[1], len(feature) * feature[0, 0].numel())
        parts = latent.principal_components(feature, count)
        share = parts.variances[0] / feature.var((0, 2, 3)).sum().clamp(min=1e-12)
        found.append(_to_unit(parts.scores))
        heads.append(f"{level}\n{feature.shape[-2]} × {feature.shape[-1]}, {share:.0%}")
    rows, names = [], []
    for i, region in enumerate(regions):
        rows.append([_gray(region), *(level[i, :1].expand(3, -1, -1) for level in found)])
        rows.append([region.image, *(torch.cat([level[i], level[i][-1:].expand(2, -1, -1)])[:3] for level in found)])
        names += [f"{region.name}\nfirst component", "first three"]
    return _grid(rows, names, heads, "Conditioning features, and the share of variance of the first component")


def diverse(flow: fk.Flow, regions: Sequence[Region], levels: Sequence[str], seed: int) -> Image.Image:
    """Fig. 9: of many colorizations the most different ones."""
    rows = []
    for number, region in enumerate(regions):
        samples = _decode(flow, _codes(flow, SAMPLES, seed + number), region)
        chosen = latent.most_different(denormalize_ab(samples), DIVERSE)
        rows.append([_gray(region), *(_coloured(region, samples[i]) for i in chosen.tolist())])
    heads = ["grayscale", *(f"{i + 1}" for i in range(DIVERSE))]
    return _grid(rows, [r.name for r in regions], heads, f"The most different of {SAMPLES} colorizations")


def failures(flow: fk.Flow, regions: Sequence[Region], levels: Sequence[str], seed: int) -> Image.Image:
    """Fig. 10: sampling outliers of each photograph; the photograph whose own colours are the least likely on top."""
    order, own = latent.outliers(flow, torch.stack([r.ab for r in regions]), _photos(regions))
    rows, names = [], []
    for number, value in zip(order.tolist(), own.tolist(), strict=True):
        region = regions[number]
        samples = _decode(flow, _codes(flow, SAMPLES, seed + number), region)
        which, _ = latent.outliers(flow, samples, region.photo)
        shown = [*which[:OUTLIERS].tolist(), int(which[-1])]
        rows.append([_gray(region), *(_coloured(region, samples[i]) for i in shown), region.image])
        names.append(f"{region.name}\nits own colours: {value / flow.dim:.2f} nats a dimension")
    heads = ["grayscale", *(f"outlier {i + 1}" for i in range(OUTLIERS)), "likeliest sample", "original"]
    return _grid(rows, names, heads, f"The least likely of {SAMPLES} colorizations")


DRAWN: dict[str, Callable[[fk.Flow, Sequence[Region], Sequence[str], int], Image.Image]] = {
    "temperature": temperature,
    "interpolation": interpolation,
    "transfer": transfer,
    "resample": resample,
    "most-likely": likeliest,
    "features": features,
    "diverse": diverse,
    "failures": failures,
}


def _codes(flow: fk.Flow, count: int, seed: int) -> Tensor:
    like = next(flow.parameters())
    return torch.randn(count, flow.dim, generator=torch.Generator().manual_seed(seed), dtype=like.dtype).to(like.device)


@torch.no_grad()
def _decode(flow: fk.Flow, z: Tensor, region: Region) -> Tensor:
    ab: Any = flow.inverse(z, given=region.photo)[0]
    return ab  # type: ignore[no-any-return]  # a tensor: a colorization flow has one input


def _photos(regions: Sequence[Region]) -> Tensor:
    return torch.stack([region.photo for region in regions])


def _coloured(region: Region, ab: Tensor) -> Image.Image:
    return recolor(region.image, denormalize_ab(ab))


def _gray(region: Region) -> Image.Image:
    return recolor(region.image, torch.zeros(2, 1, 1))


def _to_unit(scores: Tensor) -> Tensor:
    """Scores `(B, K, H, W)` in 0..1, each component by its own range over all photographs."""
    flat = scores.transpose(0, 1).flatten(1)
    low, high = (flat.quantile(q, dim=1)[:, None, None] for q in (TAILS, 1 - TAILS))
    return ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).cpu()


def _grid(rows: Sequence[Sequence[Any]], names: Sequence[str], heads: Sequence[str], title: str) -> Image.Image:
    return grid(rows, row_titles=names, column_titles=heads, title=title, cell=SIDE)
