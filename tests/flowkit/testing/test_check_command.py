"""`flowkit check`: names, modules and files."""

import sys

import pytest
import torch

import flowkit as fk
from flowkit.testing.command import check

MODULE = """
import flowkit as fk
from flowkit.testing.wrong import WrongInverse


@fk.register("acme_shop.scale", examples=lambda: [fk.Example((3,))])
class Scale(WrongInverse):
    pass
"""


@pytest.fixture
def shop(tmp_path, monkeypatch):
    (tmp_path / "acme_shop_parts.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "acme_shop_parts"
    sys.modules.pop("acme_shop_parts", None)


def test_a_name_is_checked_in_every_law():
    checked = check("flowkit.identity")
    assert checked.ok
    assert "flowkit.identity((3,))" in str(checked)
    assert not checked.report.failed
    assert {"data_parallel", "round_trip", "compile_forward"} <= {result.law for result in checked.report}


def test_a_module_in_the_working_directory_is_imported(shop):
    checked = check("acme_shop.scale", [shop])
    assert not checked.ok
    assert checked.report.failed == ["round_trip", "frugal_gradients"]
    assert "failed   inverse(forward(x)) differs from x" in str(checked)


def test_a_module_that_is_not_there_is_one_sentence():
    with pytest.raises(fk.ConfigError, match=r"^the module 'nowhere_at_all' cannot be imported: ModuleNotFoundError"):
        check("flowkit.identity", ["nowhere_at_all"])


def flow():
    graph = fk.Graph()
    label, x = graph.condition("label", (2,)), graph.input("x", (4,))
    x = graph.add(fk.AffineCoupling, x, given=label, subnet=fk.MLP(hidden=8))
    graph.output("z", graph.add(fk.ElementwiseAffine, x, name="last"))
    return fk.Flow(graph).float()


def test_a_file_is_diagnosed(tmp_path):
    path = str(tmp_path / "flow.safetensors")
    fk.save(flow(), path)
    checked = check(path)
    assert checked.ok, str(checked)
    assert checked.report.passed == ["round_trip_float32", "round_trip_float64", "log_det", "trace"]
    assert "affine_coupling_1" in str(checked)
    assert "log-scale" in str(checked)
    assert "standard normal data" in str(checked)


def test_a_file_whose_numbers_go_wrong_names_the_node(tmp_path):
    path = str(tmp_path / "flow.safetensors")
    bad = flow()
    with torch.no_grad():
        bad.network.nodes["last"].log_scale.fill_(200.0)
    fk.save(bad, path)
    checked = check(path)
    assert not checked.ok
    assert "node 'last' is the first that goes wrong" in str(checked)


def test_labels_are_drawn_as_integers(tmp_path):
    graph = fk.Graph()
    label, x = graph.condition("label", (), dtype=torch.long), graph.input("x", (3,))
    one_hot = graph.features(fk.OneHot(4), label)
    graph.output("z", graph.add(fk.AffineCoupling, x, given=one_hot, subnet=fk.MLP(hidden=8)))
    path = str(tmp_path / "flow.safetensors")
    fk.save(fk.Flow(graph), path)
    assert check(path).ok


def test_a_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "no.safetensors"
    path.write_text("nothing")
    with pytest.raises(fk.StorageError):
        check(str(path))
