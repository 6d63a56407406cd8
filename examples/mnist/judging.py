"""What is measured on held-out digits: likelihoods, the classifier that they make, and its calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from flowkit import Flow
from flowkit.training import keyed_noise
from flowkit_cinn.translation.metrics import Estimate, bits_per_dimension, bootstrap

from .digits import CLASSES

ROWS = 500  # digits at a time
BINS = 10  # of confidence


@dataclass(frozen=True)
class Judgement:
    """metrics.json's figures, and what the reliability picture is drawn from."""

    figures: dict[str, Any]
    bins: list[dict[str, float]]


def judge(flow: Flow, blind: Flow, held_out: TensorDataset, noise: float, seed: int) -> Judgement:
    """Every figure on held-out digits, of the flow and of the same flow without the label."""
    x, labels = held_out.tensors
    noisy = x + noise * keyed_noise(x, seed, "held out", range(len(x)))
    bits = bits_of_each(flow, noisy, labels)
    without = bits_of_each(blind, noisy, labels)
    posterior = posteriors(log_prob_of_labels(flow, x))
    right = (posterior.argmax(1) == labels).double()
    bins = reliability(posterior, labels)
    figures = {
        "digits": len(x),
        "bits_per_dimension": plain(bootstrap(bits)),
        "bits_per_dimension_without_label": plain(bootstrap(without)),
        "gain": plain(bootstrap(without - bits)),
        "bits_per_dimension_of": f"-log2 q(x | label) / D, of normalised grey with noise of standard deviation {noise}",
        "loss_without_noise": plain(bootstrap(loss_of_each(flow, x, labels))),
        "loss_without_noise_of": "(|z|^2 / 2 - log|J|) / D in nats, as the authors print it, of noise-free digits",
        "accuracy": plain(bootstrap(right)),
        "confidence": posterior.amax(1).mean().item(),
        "expected_calibration_error": calibration_error(bins),
        "accuracy_of_label": {
            str(label): right[labels == label].mean().item() for label in range(CLASSES) if (labels == label).any()
        },
        "reliability": bins,
    }
    return Judgement(figures, bins)


@torch.no_grad()
def bits_of_each(flow: Flow, x: Tensor, labels: Tensor) -> Tensor:
    """-log2 q(x | label) / D of each digit, `(B,)`; of q(x) where the flow has no condition."""
    return bits_per_dimension(_log_prob(flow, x, labels), flow.dim)


@torch.no_grad()
def loss_of_each(flow: Flow, x: Tensor, labels: Tensor) -> Tensor:
    """(|z|^2 / 2 - log|J|) / D of each digit, `(B,)`: the likelihood without the normal's constant."""
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi)).item()
    return -_log_prob(flow, x, labels) / flow.dim - constant


@torch.no_grad()
def log_prob_of_labels(flow: Flow, x: Tensor) -> Tensor:
    """log q(x | label) for every label, `(B, classes)`."""
    return torch.stack([_log_prob(flow, x, torch.full((len(x),), label)) for label in range(CLASSES)], 1)


def posteriors(log_prob: Tensor) -> Tensor:
    """q(label | x), every label as likely beforehand: Bayes' rule, from log q(x | label) `(B, classes)`.

    >>> posteriors(torch.tensor([[0.0, 0.0]])).tolist()
    [[0.5, 0.5]]
    """
    return torch.softmax(log_prob.double(), 1)


def reliability(posterior: Tensor, labels: Tensor, bins: int = BINS) -> list[dict[str, float]]:
    """For each bin of confidence: its edges, how many digits, their mean confidence, and how many were right.

    Empty bins are left out.
    """
    confidence, predicted = posterior.max(1)
    right = (predicted == labels).double()
    place = (confidence * bins).long().clamp(0, bins - 1)
    return [
        {
            "from": number / bins,
            "to": (number + 1) / bins,
            "digits": int(here.sum()),
            "confidence": confidence[here].mean().item(),
            "accuracy": right[here].mean().item(),
        }
        for number in range(bins)
        if (here := place == number).any()
    ]


def calibration_error(bins: list[dict[str, float]]) -> float:
    """The expected calibration error: |accuracy - confidence|, averaged over the digits of all bins."""
    total = sum(each["digits"] for each in bins)
    return sum(each["digits"] * abs(each["accuracy"] - each["confidence"]) for each in bins) / total


def plain(estimate: Estimate) -> dict[str, float | None]:
    """An estimate as JSON holds it: a single digit has no bootstrap error, and JSON no nan."""
    return {"mean": estimate.mean, "error": estimate.error if estimate.error == estimate.error else None}


def _log_prob(flow: Flow, x: Tensor, labels: Tensor) -> Tensor:
    parts = zip(x.split(ROWS), labels.split(ROWS), strict=True)
    return torch.cat([flow.log_prob(some, given=of if flow.condition_shapes else None) for some, of in parts])
