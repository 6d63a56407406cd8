"""What importing costs, and that every public name is there."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flowkit as fk

LIGHT = """
import sys
import flowkit
assert flowkit.__version__
assert "Flow" in dir(flowkit)
from flowkit.cli import main
try:
    main(["--help"])
except SystemExit as done:
    assert not done.code, done.code
heavy = {"torch", "numpy", "safetensors", "flowkit_cinn", "lightning"} & set(sys.modules)
assert not heavy, heavy
import flowkit.flow, flowkit.storage, flowkit.graph, flowkit.bijections
flowkit.Permute((2,))
assert "flowkit_cinn" not in sys.modules
heavy = {"lightning", "torchvision", "matplotlib", "flowkit.testing", "flowkit.training"} & set(sys.modules)
assert not heavy, heavy
"""


def test_importing_is_light():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", LIGHT], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Usage: flowkit" in done.stdout


def test_every_public_name_resolves_and_is_listed():
    for name in fk.__all__:
        assert getattr(fk, name) is not None
        assert name in dir(fk)
    assert fk.AffineCoupling is fk.AffineCoupling
    with pytest.raises(AttributeError, match=r"module 'flowkit' has no attribute 'Nope'"):
        fk.Nope  # noqa: B018


def test_names_for_type_checkers_are_the_lazy_ones():
    tree = ast.parse(Path(fk.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    named = {alias.asname or alias.name: node.module for node in block.body for alias in node.names}
    assert named == fk._HOME


def test_flowkit_never_imports_the_plugin():
    root = Path(fk.__file__).parent
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(m.split(".")[0] == "flowkit_cinn" for m in modules), path
