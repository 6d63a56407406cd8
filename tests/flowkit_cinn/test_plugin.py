import subprocess
import sys

import pytest

import flowkit as fk
import flowkit_cinn

BIJECTIONS = [
    "cinn.conditional_coupling",
    "cinn.haar_downsample",
    "cinn.haar_upsample",
    "cinn.wavelet_downsample",
    "cinn.wavelet_upsample",
]


def test_registered_names():
    assert set(fk.registered("cinn")) >= {*BIJECTIONS, "cinn.feature_pyramid"}
    assert fk.registered("cinn")["cinn.haar_downsample"] is flowkit_cinn.HaarDownsample


@pytest.mark.parametrize("name", BIJECTIONS)
def test_every_bijection_has_examples(name):
    examples = fk.examples_of(name)
    assert len(examples) >= 2
    for example in examples:
        assert isinstance(example.build(fk.lookup(name)), fk.Bijection)


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_found_by_its_entry_point():
    code = """
import sys
import flowkit as fk
before = "flowkit_cinn" in sys.modules
print(before, fk.lookup("cinn.haar_downsample").__name__)
"""
    assert python(code) == "False HaarDownsample"


def test_the_core_does_not_know_the_plugin():
    code = """
import importlib, pkgutil, sys
import flowkit
for name in flowkit.__all__:
    getattr(flowkit, name)
print([name for name in sys.modules if name.startswith("flowkit_cinn")])
"""
    assert python(code) == "[]"


def test_importing_the_plugin_brings_no_optional_package():
    code = """
import sys
import flowkit_cinn
print([name for name in ("torchvision", "pywt", "kornia", "skimage", "PIL", "lightning") if name in sys.modules])
"""
    assert python(code) == "[]"
