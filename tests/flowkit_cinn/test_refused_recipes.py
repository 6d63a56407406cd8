"""Garbage in every field of a network's recipe: refused in a sentence, or a network is built."""

import dataclasses
import math

import pytest
import torch

import flowkit as fk
import flowkit_cinn
from flowkit_cinn.models import ColorizationRecipe, DigitRecipe

GARBAGE = ["x", b"x", 2.5, -2.5, math.nan, None, -1, 0, (), (1,), [1], {}, True, torch.tensor(2.0), object()]
NETWORKS = {"colorization_cinn": ("no-conditioning-net", ColorizationRecipe), "mnist_cinn": ("digits", DigitRecipe)}


@pytest.mark.parametrize(
    ("network", "field"),
    [(name, field.name) for name, (_, recipe) in NETWORKS.items() for field in dataclasses.fields(recipe)],
)
def test_no_field_of_a_recipe_accepts_garbage(network, field):
    preset, recipe = NETWORKS[network]
    kinds = next(each.type for each in dataclasses.fields(recipe) if each.name == field)
    for value in GARBAGE:
        told = ""
        try:
            with torch.device("meta"):
                getattr(flowkit_cinn, network)(preset, **{field: value})
        except fk.FlowkitError as error:
            told = str(error)
        number = type(value) in (int, float)
        may = {"None": value is None, "bool": value is True, "int": type(value) is int, "float": number}
        if told or not any(may.get(kind, value == {}) for kind in kinds.split(" | ")):
            assert network in told, f"{value!r} is accepted"
            assert "\n" not in told


@pytest.mark.parametrize("network", ["colorization_cinn", "day2night_cinn", "mnist_cinn"])
def test_presets_and_flags_that_are_none(network):
    for wrong in ({"preset": {}}, {"preset": 3}, {"unconditional": "no"}, {"unconditional": 1}):
        with pytest.raises(fk.ConfigError, match=f"^{network}: {next(iter(wrong))} must be "):
            getattr(flowkit_cinn, network)(**wrong)


def test_levels_that_are_none():
    with pytest.raises(fk.ConfigError, match="couplings must be an int of 0 or more, got -1"):
        flowkit_cinn.levels.Level(couplings=-1)
    with pytest.raises(fk.ConfigError, match=r"^Level: permute must be True or False, got 'no'$"):
        flowkit_cinn.levels.Level(permute="no")
