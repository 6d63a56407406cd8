"""Compares what a block prints with what the document shows under it."""

from __future__ import annotations

import re

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+\.\d+(?:[eE][-+]?\d+)?|(?<![\w.])[-+]?\d+[eE][-+]?\d+")


def differences(got: str, shown: str) -> str:
    """Why the two differ; empty where they agree.

    Word for word, but for two things: a decimal number may differ by one unit of its last shown digit, because machines
    round differently, and a line `...` stands for any lines.
    """
    got_lines, shown_lines = _lines(got), _lines(shown)
    if _agree(got_lines, shown_lines):
        return ""
    return "\n".join(
        ["shown:", *(f"  {line}" for line in shown_lines), "printed:", *(f"  {line}" for line in got_lines)]
    )


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


def _agree(got: list[str], shown: list[str]) -> bool:
    if not shown:
        return not got
    if shown[0] == "...":
        return any(_agree(got[skipped:], shown[1:]) for skipped in range(len(got) + 1))
    return bool(got) and _same(got[0], shown[0]) and _agree(got[1:], shown[1:])


def _same(got: str, shown: str) -> bool:
    if NUMBER.sub("#", got).split() != NUMBER.sub("#", shown).split():
        return False
    pairs = zip(NUMBER.findall(got), NUMBER.findall(shown), strict=True)
    return all(abs(float(a) - float(b)) <= 1.001 * _unit(b) for a, b in pairs)


def _unit(number: str) -> float:
    """The worth of the last digit: 0.01 of 3.14, 1e-7 of 2e-7."""
    mantissa, _, exponent = number.lower().partition("e")
    decimals = len(mantissa.partition(".")[2])
    return 10.0 ** (int(exponent or 0) - decimals)
