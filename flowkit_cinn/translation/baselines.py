"""The other systems of the paper's table: a regression, a conditional GAN and a VAE with a mixture density network.

Each has the conditioning net of a colorization flow, so that what is compared is the model of the colours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import flowkit as fk
from flowkit_cinn.pyramid import FeaturePyramid

L1_WEIGHT = 100.0  # pix2pix's
CODE = 64  # dimensions of the GAN's and the VAE's latent code; the VAE's published one has 64
COMPONENTS = 8  # of the mixture density network, as published
DISCRIMINATOR = (64, 128, 256)
LOG_VARIANCE = (-8.0, 4.0)  # of the encoder and the mixture: so that no exp overflows


class Colorizer(nn.Module):
    """A colorization model that is no flow: abstract. Everything is in the units of `translation.color`, normalised.

    Args:
        features: arguments of `FeaturePyramid`, as a colorization recipe has them.
        size: height and width of ab.
        photo_size: height and width of L.
        code: dimensions of what is drawn for a sample and seen by the decoder beside the features.

    Raises:
        fk.ConfigError: a pyramid coarser than the colours cannot be reached by doubling.
    """

    rate = 1e-3  # Adam's
    betas = (0.9, 0.999)

    def __init__(self, features: Mapping[str, Any], size: int = 64, photo_size: int = 64):
        super().__init__()
        self.size, self.photo_size = size, photo_size
        self.pyramid = FeaturePyramid(**features)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those that `update` takes."""
        return [torch.optim.Adam(self.parameters(), lr=self.rate, betas=self.betas)]

    def update(self, ab: Tensor, photo: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> float:
        """One training step on ab `(B, 2, h, w)` and L `(B, 1, H, W)`; the loss before it."""
        loss = self.loss(ab, photo)
        step(optimizers[0], loss)
        return loss.item()

    def loss(self, ab: Tensor, photo: Tensor) -> Tensor:
        """What a training step lowers."""
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def sample(self, photo: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Colorizations `(n, B, 2, h, w)`, drawn on the CPU's generator; call it in eval mode, without gradients."""
        raise NotImplementedError(f"{type(self).__name__} has no sample")

    def decoder(self, code: int = 0) -> ColourDecoder:
        """A decoder on this model's features, which also sees a code."""
        training = self.pyramid.training
        with torch.no_grad():
            shapes = [tuple(f.shape[1:]) for f in self.pyramid.eval()(torch.zeros(1, 1, *(self.photo_size,) * 2))]
        self.pyramid.train(training)
        return ColourDecoder(shapes, self.size, code)


class ColourDecoder(nn.Module):
    """From a pyramid's features, and a code, to ab: doubled from level to level, each seen on the way, as in a U-Net.

    Args:
        shapes: of the features, maps finest first, then the vector if there is one.
        size: height and width of ab.
        code: dimensions of the code; 0 for none.

    Raises:
        fk.ConfigError: a map whose size does not double up to `size`.

    >>> decoder = ColourDecoder([(8, 8, 8), (16, 4, 4), (5,)], size=16, code=3)
    >>> features = [torch.zeros(2, *shape) for shape in ((8, 8, 8), (16, 4, 4), (5,))]
    >>> decoder(features, torch.zeros(2, 1, 16, 16), torch.zeros(2, 3)).shape
    torch.Size([2, 2, 16, 16])
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], size: int, code: int = 0):
        super().__init__()
        maps = [shape for shape in shapes if len(shape) == 3]
        vector = sum(shape[0] for shape in shapes if len(shape) == 1) + code
        sides = [shape[1] for shape in maps]
        if any(fine != 2 * coarse for fine, coarse in pairwise(sides)) or size % sides[0]:
            raise fk.ConfigError(f"the features' sizes must halve from level to level up to {size}, got {sides}")
        self.size = size
        self.spread = nn.Linear(vector, maps[-1][0]) if vector else None
        self.stages = nn.ModuleList()
        width = maps[-1][0]
        for channels, *_ in reversed(maps):
            self.stages.append(nn.Sequential(conv(width + channels, channels), nn.LeakyReLU(0.2)))
            width = channels
        self.last = nn.Sequential(conv(width + 1, 32), nn.LeakyReLU(0.2), conv(32, 2))

    def forward(self, features: Sequence[Tensor], photo: Tensor, code: Tensor | None = None) -> Tensor:
        """Features and L to ab `(B, 2, h, w)`."""
        maps = [f for f in features if f.dim() == 4]
        seen = [f for f in features if f.dim() == 2] + ([] if code is None else [code])
        x = torch.zeros_like(maps[-1])
        if self.spread is not None:
            x = self.spread(torch.cat(seen, 1))[:, :, None, None].expand_as(maps[-1])
        for stage, level in zip(self.stages, reversed(maps), strict=True):
            if x.shape[-1] != level.shape[-1]:
                x = F.interpolate(x, size=level.shape[-2:])
            x = stage(torch.cat((x, level), 1))
        sized = (self.size, self.size)
        x = F.interpolate(x, size=sized)
        return self.last(torch.cat((x, F.adaptive_avg_pool2d(photo, sized)), 1))


class ColourRegression(Colorizer):
    """One colorization a photograph, by least squares: the mean of p(ab | L) at best, without diversity.

    Source: the paper's `CNN`, after S. Iizuka et al., Let there be Color!, SIGGRAPH 2016, on our conditioning net.

    >>> model = ColourRegression({"channels": (4, 4), "first": 1}, size=16, photo_size=16).eval()
    >>> model.sample(torch.zeros(2, 1, 16, 16), 3).shape
    torch.Size([3, 2, 2, 16, 16])
    """

    def __init__(self, features: Mapping[str, Any], size: int = 64, photo_size: int = 64):
        super().__init__(features, size, photo_size)
        self.decode = self.decoder()

    def colours(self, photo: Tensor) -> Tensor:
        """The colorization."""
        return self.decode(self.pyramid(photo), photo)

    def loss(self, ab: Tensor, photo: Tensor) -> Tensor:
        """The mean squared error."""
        return F.mse_loss(self.colours(photo), ab)

    def sample(self, photo: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        """The same colorization, as often as is asked for."""
        return self.colours(photo).expand(count, -1, -1, -1, -1)


class ColourGan(Colorizer):
    """pix2pix: a generator on features and noise, a PatchGAN that sees (L, ab), and 100 times the L1 distance.

    The noise is a code that the generator sees, not dropout; as published elsewhere, it learns to ignore it.

    Source: P. Isola et al., Image-to-Image Translation with Conditional Adversarial Networks, CVPR 2017; the paper's
        `cGAN`.

    >>> model = ColourGan({"channels": (4, 4), "first": 1}, size=16, photo_size=16).eval()
    >>> model.sample(torch.zeros(2, 1, 16, 16), 3).shape
    torch.Size([3, 2, 2, 16, 16])
    """

    rate = 2e-4
    betas = (0.5, 0.999)

    def __init__(self, features: Mapping[str, Any], size: int = 64, photo_size: int = 64):
        super().__init__(features, size, photo_size)
        self.decode = self.decoder(CODE)
        self.discriminator = _patches()

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The generator's, with the conditioning net, and the discriminator's."""
        generator = [*self.pyramid.parameters(), *self.decode.parameters()]
        return [
            torch.optim.Adam(p, lr=self.rate, betas=self.betas) for p in (generator, self.discriminator.parameters())
        ]

    def update(self, ab: Tensor, photo: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> float:
        """A step of the discriminator, then one of the generator; the generator's loss before it."""
        small = F.adaptive_avg_pool2d(photo, (ab.shape[-2], ab.shape[-1]))
        made = self.generate(photo, torch.randn(len(ab), CODE, dtype=ab.dtype).to(ab.device))
        real = self.discriminator(torch.cat((small, ab), 1))
        fake = self.discriminator(torch.cat((small, made.detach()), 1))
        step(optimizers[1], 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean()))
        self.discriminator.requires_grad_(False)
        judged = self.discriminator(torch.cat((small, made), 1))
        loss = F.softplus(-judged).mean() + L1_WEIGHT * F.l1_loss(made, ab)
        step(optimizers[0], loss)
        self.discriminator.requires_grad_(True)
        return loss.item()

    def generate(self, photo: Tensor, code: Tensor) -> Tensor:
        """Colours from L and a code `(B, 64)`."""
        return self.decode(self.pyramid(photo), photo, code)

    def sample(self, photo: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        """One colorization for each code drawn; the conditioning net runs once."""
        features = self.pyramid(photo)
        codes = torch.randn(count, len(photo), CODE, generator=generator, dtype=photo.dtype).to(photo.device)
        return torch.stack([self.decode(features, photo, code) for code in codes])


class ColourVae(Colorizer):
    """VAE-MDN: a VAE of colours, which sees no photograph, and a mixture density network from features to its code.

    Both are trained at once: the mixture by the likelihood of the encoder's code, whose gradient stops there. The
    decoder's one standard deviation is learned; a sample is the decoder's mean. Unlike the published one, each
    component has variances of its own, and the colours' loss is a plain Gaussian.

    Source: A. Deshpande et al., Learning Diverse Image Colorization, CVPR 2017; the paper's `VAE-MDN`.

    Raises:
        fk.ConfigError: a size that 16 does not divide; a pyramid without a vector.

    >>> model = ColourVae({"channels": (4, 4), "first": 1, "vector": 5}, size=16, photo_size=16).eval()
    >>> model.sample(torch.zeros(2, 1, 16, 16), 3).shape
    torch.Size([3, 2, 2, 16, 16])
    """

    def __init__(self, features: Mapping[str, Any], size: int = 64, photo_size: int = 64):
        super().__init__(features, size, photo_size)
        if size % 16 or not features.get("vector"):
            raise fk.ConfigError(f"ColourVae needs a size that 16 divides and a vector, got {size} and {features!r}")
        widths, least = (32, 64, 128, 128), size // 16
        downs: list[nn.Module] = []
        for c_in, c_out in zip((2, *widths), widths, strict=False):
            downs += [conv(c_in, c_out, stride=2), nn.LeakyReLU(0.2)]
        self.encode = nn.Sequential(*downs, nn.Flatten(), nn.Linear(widths[-1] * least**2, 2 * CODE))
        ups: list[nn.Module] = [nn.Linear(CODE, widths[-1] * least**2), nn.Unflatten(1, (widths[-1], least, least))]
        for c_in, c_out in zip(widths[::-1], (*widths[-2::-1], 32), strict=True):
            ups += [nn.LeakyReLU(0.2), nn.Upsample(scale_factor=2), conv(c_in, c_out)]
        self.decode = nn.Sequential(*ups, nn.LeakyReLU(0.2), conv(32, 2))
        self.mixture = nn.Sequential(
            nn.LeakyReLU(0.2),
            nn.Linear(features["vector"], 256),
            nn.LeakyReLU(0.2),
            nn.Linear(256, COMPONENTS * (1 + 2 * CODE)),
        )
        self.log_std = nn.Parameter(torch.zeros(()))

    def loss(self, ab: Tensor, photo: Tensor) -> Tensor:
        """Minus the evidence's bound, and minus the mixture's log-likelihood of the code, a dimension of ab."""
        mean, log_variance = self.encode(ab).chunk(2, 1)
        log_variance = log_variance.clamp(*LOG_VARIANCE)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        error = (self.decode(z) - ab) * (-self.log_std).exp()
        data = (0.5 * error.square() + self.log_std).flatten(1).sum(1)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return (data + divergence - self.log_density(z.detach(), photo)).mean() / ab[0].numel()

    def log_density(self, z: Tensor, photo: Tensor) -> Tensor:
        """The mixture's log p(z | L), `(B,)`."""
        weights, means, log_variances = self._components(photo)
        terms = (z[:, None] - means).square() * (-log_variances).exp() + log_variances + math.log(2 * math.pi)
        return torch.logsumexp(weights - 0.5 * terms.sum(2), 1)

    def sample(self, photo: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Codes from the mixture, through the decoder."""
        weights, means, log_variances = self._components(photo)
        which = torch.multinomial(weights.exp().cpu(), count, replacement=True, generator=generator).T.to(photo.device)
        noise = torch.randn(count, len(photo), CODE, generator=generator, dtype=photo.dtype).to(photo.device)
        rows = torch.arange(len(photo), device=photo.device)
        z = means[rows, which] + (0.5 * log_variances[rows, which]).exp() * noise
        return torch.stack([self.decode(each) for each in z])

    def _components(self, photo: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights `(B, K)`, means and log-variances `(B, K, 64)`."""
        predicted = self.mixture(self.pyramid(photo)[-1])
        weights, means, log_variances = predicted.split((COMPONENTS, COMPONENTS * CODE, COMPONENTS * CODE), 1)
        parted = (-1, COMPONENTS, CODE)
        return weights.log_softmax(1), means.reshape(parted), log_variances.reshape(parted).clamp(*LOG_VARIANCE)


BASELINES: dict[str, Callable[..., Colorizer]] = {"VAE-MDN": ColourVae, "cGAN": ColourGan, "CNN": ColourRegression}


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of an optimiser."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def conv(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the size, or halves it."""
    return nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1)


def _patches() -> nn.Sequential:
    """A PatchGAN: logits of patches being real, from L and ab."""
    layers: list[nn.Module] = []
    c_in = 3
    for number, width in enumerate(DISCRIMINATOR):
        layers.append(nn.Conv2d(c_in, width, 4, stride=2, padding=1))
        layers += [nn.BatchNorm2d(width)] if number else []
        layers.append(nn.LeakyReLU(0.2))
        c_in = width
    return nn.Sequential(*layers, nn.Conv2d(c_in, 1, 3, padding=1))
