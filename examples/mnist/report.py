"""report.html: one page that needs no other file and no network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from .._common.page import document, figures, made, network, notes, picture, section, short, text, tiles
from .choices import Settings


@dataclass(frozen=True)
class Report:
    """What the page shows: settings, metrics.json's content, pictures by name, the graph's SVG and the command."""

    settings: Settings
    metrics: dict[str, Any]
    pictures: dict[str, Image.Image]
    drawing: str
    command: str


def page(report: Report) -> str:
    """The page as HTML."""
    held_out, data = report.metrics["held_out"], report.metrics["data"]
    gain = held_out["gain"]["mean"]
    verdict = f"{short(gain)} bits per dimension better than" if gain > 0 else "no better than"
    body = [
        "<h1>Digits by their label</h1>",
        f"<p class=lead>A conditional normalizing flow that models a digit given its label, trained by maximum "
        f"likelihood for {report.metrics['training']['steps']:,} steps. On held-out digits it is {verdict} the same "
        f"flow trained without the label. {text(data)}</p>",
        tiles(_tiles(held_out)),
        section(
            "Samples",
            "A row for each label, each digit drawn from q(digit | label) with a code of its own.",
            picture(report.pictures["samples.png"], "Rows of digits, one row a label"),
        ),
        section(
            "Style transfer",
            "A held-out digit of each label is encoded with its label; the same code is decoded with every label. What "
            "the code keeps is the hand: slant, width, thickness.",
            picture(report.pictures["transfer.png"], "Held-out digits and their codes decoded with ten labels"),
        ),
        section(
            "A classifier by likelihood",
            "The label of a digit is the one with the largest log q(digit | label), every label as likely beforehand. "
            "A likelihood adds up over all pixels, so that a small misfit in many makes it too sure.",
            picture(report.pictures["reliability.png"], "Accuracy over confidence", chart=True),
        ),
        section(
            "Training",
            "-log2 q / D of each batch, with the label and without; the lines are moving medians. A density has no "
            "floor at zero: negative values are in order.",
            picture(report.pictures["curve"], "Bits per dimension over the steps", chart=True),
        ),
        section("Figures", "On held-out digits, with bootstrap errors of the mean.", figures(_figures(held_out))),
        network(report.drawing),
        made(report.command, report.settings, report.metrics["seconds"]),
        notes(
            [
                "Both flows had the same data, order, noise, steps and learning rate.",
                f"The classifier's mean confidence is {held_out['confidence']:.3f}, and it is right "
                f"{held_out['accuracy']['mean']:.1%} of the time.",
            ]
        ),
    ]
    return document("Digits report", body)


def _tiles(held_out: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (
            short(held_out["bits_per_dimension"]["mean"]),
            "bits per dimension",
            f"without the label: {short(held_out['bits_per_dimension_without_label']['mean'])}",
        ),
        (f"{held_out['accuracy']['mean']:.1%}", "accuracy", "argmax of log q(digit | label)"),
        (short(held_out["expected_calibration_error"]), "expected calibration error", "0 is perfect"),
        (f"{held_out['digits']:,}", "held-out digits", "never seen in training"),
    ]


def _figures(held_out: dict[str, Any]) -> list[tuple[str, dict[str, Any], str]]:
    of = held_out["bits_per_dimension_of"]
    rows = [
        ("bits per dimension", held_out["bits_per_dimension"], of),
        ("the same without the label", held_out["bits_per_dimension_without_label"], of.replace("x | label", "x")),
        ("what the label gains", held_out["gain"], "the difference, digit by digit"),
        ("loss without noise", held_out["loss_without_noise"], held_out["loss_without_noise_of"]),
        ("accuracy", held_out["accuracy"], "noise-free digits, of all labels"),
    ]
    rows += [
        (f"accuracy, label {label}", {"mean": value, "error": None}, "")
        for label, value in held_out["accuracy_of_label"].items()
    ]
    return rows
