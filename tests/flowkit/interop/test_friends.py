"""What is common to all friends: the list of them, imported only when used, and one sentence where one is missing."""

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit import interop
from flowkit.interop import __main__ as listing
from flowkit.testing import check_bijection


def test_the_list_names_versions_and_installs(capsys, monkeypatch):
    listing.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [package for package, _ in listing.FRIENDS]
    assert any(line.startswith(f"torch {torch.__version__.split('+')[0]}") for line in lines)
    monkeypatch.setattr(listing, "FRIENDS", (("no-such-friend", "nothing"),))
    listing.main()
    expected = "no-such-friend not installed (python -m pip install no-such-friend): nothing\n"
    assert capsys.readouterr().out == expected


def test_every_name_in_the_list_exists():
    text = " ".join(offers for _, offers in listing.FRIENDS)
    names = {word.split("(")[0] for word in text.replace(",", " ").split() if "(" in word and "." not in word}
    assert {"from_freia", "from_nflows", "from_zuko", "as_zuko", "as_pyro", "BijectionTransform"} <= names
    assert all(hasattr(interop, name) for name in names)


def test_no_friend_is_imported_before_it_is_used():
    program = (
        "import sys, flowkit as fk, flowkit.interop; fk.registered('flowkit'); "
        "print([m for m in ('FrEIA', 'nflows', 'zuko', 'pyro', 'normflows', 'onnx') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert printed.strip() == "[]"


def nflows_coupling():
    transforms, nets = pytest.importorskip("nflows.transforms"), pytest.importorskip("nflows.nn.nets")

    def net(c_in, c_out):
        silu = nn.functional.silu
        return nets.ResidualNet(c_in, c_out, hidden_features=5, context_features=2, activation=silu)

    return interop.NflowsTransform(transforms.AffineCouplingTransform([0, 1, 0], net), 3, given=(2,))


def nflows_linear():
    linear = interop.NflowsTransform(pytest.importorskip("nflows.transforms").LULinear(3), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        linear.inverse(torch.zeros(1, 3))  # torch.triangular_solve says once that it is deprecated
    return linear


def zuko_coupling():
    flow = pytest.importorskip("zuko").flows.NICE(3, 2, transforms=1, hidden_features=(5,), activation=nn.SiLU)
    return interop.ZukoTransform(flow.transform, 3, given=(2,))


@pytest.mark.parametrize("build", [nflows_coupling, nflows_linear, zuko_coupling])
def test_wrapped_parts_keep_the_laws_of_the_kit(build):
    torch.set_default_dtype(torch.float32)
    skip = ("compile_forward", "compile_inverse", "export_forward", "export_inverse", "processes")
    assert len(check_bijection(build(), skip=skip).passed) > 20


@pytest.mark.parametrize(
    ("package", "call", "install"),
    [
        ("FrEIA", lambda: interop.from_freia(nn.Linear(2, 2)), "FrEIA: python -m pip install FrEIA"),
        ("FrEIA", lambda: interop.as_freia(fk.Permute((2,))), "FrEIA: python -m pip install FrEIA"),
        ("FrEIA", lambda: interop.FreiaBijection({"module": "Flatten"}), "FrEIA: python -m pip install FrEIA"),
        ("nflows", lambda: interop.from_nflows(nn.Linear(2, 2)), "nflows: python -m pip install nflows"),
        ("zuko", lambda: interop.from_zuko(nn.Linear(2, 2)), "zuko: python -m pip install zuko"),
        ("zuko", lambda: interop.as_zuko(fk.Permute((2,))), "zuko: python -m pip install zuko"),
        ("pyro", lambda: interop.as_pyro(fk.Flow(fk.Permute((2,)))), "Pyro: python -m pip install pyro-ppl"),
    ],
)
def test_a_missing_friend_is_one_sentence(package, call, install, monkeypatch):
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(fk.MissingDependencyError, match=f"^this needs {install}$"):
        call()
