"""Flows converted from nflows and zuko, saved, and loaded by a process in which neither can be imported."""

import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import flowkit as fk
from flowkit.interop import from_nflows, from_zuko

pytest.importorskip("nflows")
zuko = pytest.importorskip("zuko")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import nflows.distributions as nd
    import nflows.transforms as nt
    from nflows.distributions.normal import DiagonalNormal
    from nflows.flows import Flow
    from nflows.nn.nets import ConvResidualNet, ResidualNet

MASK, TAILS = [0, 1, 0], {"tails": "linear", "tail_bound": 3.0}
SCRIPT = """
import sys
sys.modules.update(dict.fromkeys(("nflows", "zuko", "FrEIA"), None))
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
import flowkit as fk
folder, found = Path(sys.argv[1]), {}
for path in sorted(folder.glob("*.flow.safetensors")):
    name = path.name.removesuffix(".flow.safetensors")
    data = load_file(folder / f"{name}.data.safetensors")
    flow = fk.load(path)
    found[name] = flow.log_prob(data["x"], given=data.get("y")).detach()
save_file(found, folder / "found")
"""


def net(c_in, c_out):
    return ResidualNet(c_in, c_out, hidden_features=6, use_batch_norm=True)


def tanh_net(c_in, c_out):
    return ResidualNet(c_in, c_out, hidden_features=6, context_features=2, activation=torch.tanh)


def conv_net(c_in, c_out):
    return ConvResidualNet(c_in, c_out, hidden_channels=4, num_blocks=1)


def masked(cls, **options):
    return cls(features=3, hidden_features=6, num_blocks=1, **options)


def composite(*parts):
    return nt.CompositeTransform(list(parts))


def embedding():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def spline(cls, **options):
    return cls(MASK, net, num_bins=4, **TAILS, **options)


NFLOWS = {
    "linear": lambda: composite(
        nt.LULinear(3, identity_init=False),
        nt.QRLinear(3, 3),
        nt.SVDLinear(3, 2),
        nt.HouseholderSequence(3, 3),
        nt.RandomPermutation(3),
        nt.LeakyReLU(0.3),
        nt.PointwiseAffineTransform(0.5, 2.0),
        nt.Tanh(),
        nt.InverseTransform(composite(nt.LULinear(3, identity_init=False), nt.Tanh())),
    ),
    "couplings": lambda: composite(
        nt.AffineCouplingTransform(MASK, net),
        nt.AdditiveCouplingTransform(MASK, net),
        spline(nt.PiecewiseLinearCouplingTransform),
        spline(nt.PiecewiseQuadraticCouplingTransform),
        spline(nt.PiecewiseCubicCouplingTransform),
        spline(nt.PiecewiseRationalQuadraticCouplingTransform, min_derivative=0.01),
    ),
    "masked": lambda: composite(
        masked(nt.MaskedAffineAutoregressiveTransform, use_residual_blocks=False, random_mask=True),
        masked(nt.MaskedPiecewiseQuadraticAutoregressiveTransform, num_bins=4, **TAILS),
        masked(nt.MaskedPiecewiseRationalQuadraticAutoregressiveTransform, num_bins=4, use_batch_norm=True, **TAILS),
        nt.Sigmoid(),
        masked(nt.MaskedPiecewiseRationalQuadraticAutoregressiveTransform, num_bins=4),
    ),
    "elementwise": lambda: composite(
        nt.PiecewiseLinearCDF((3,), num_bins=4, **TAILS),
        nt.PiecewiseQuadraticCDF((3,), num_bins=4, **TAILS),
        nt.PiecewiseCubicCDF((3,), num_bins=4, **TAILS),
        nt.CompositeCDFTransform(nt.Sigmoid(), nt.PiecewiseRationalQuadraticCDF((3,), num_bins=4)),
    ),
    "images": lambda: composite(
        nt.SqueezeTransform(),
        nt.OneByOneConvolution(4, identity_init=False),
        nt.AffineCouplingTransform([0, 1, 0, 1], conv_net),
        nt.PiecewiseRationalQuadraticCouplingTransform([0, 1, 1, 0], conv_net, num_bins=3, **TAILS),
    ),
    "context": lambda: composite(
        nt.MaskedAffineAutoregressiveTransform(3, 6, context_features=2),
        nt.PiecewiseRationalQuadraticCouplingTransform(MASK, tanh_net, num_bins=3, **TAILS),
    ),
}
BASES = {
    "context": lambda: nd.ConditionalDiagonalNormal((3,), nn.Linear(2, 6)),
    "masked": lambda: DiagonalNormal((3,)),
    "images": lambda: nd.StandardNormal((4, 2, 2)),
}
HIDDEN = {"transforms": 2, "hidden_features": (6,)}
ZUKO = {
    "NICE": {"activation": nn.Tanh, "normalize": True},
    "MAF": {"residual": True, "hidden_features": (6, 6)},
    "NSF": {"bins": 4, "slope": 0.01},
    "NCSF": {"bins": 4},
    "SOSPF": {"degree": 2, "polynomials": 2},
    "BPF": {"degree": 4},
    "GF": {"components": 3},
}


def redraw(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


def nflow(name):
    base = BASES.get(name, lambda: nd.StandardNormal((3,)))()
    theirs = redraw(Flow(NFLOWS[name](), base, embedding() if name == "context" else None))
    data = {"x": 0.8 * torch.randn(5, *((1, 4, 4) if name == "images" else (3,)))}
    if name == "context":
        data["y"] = torch.randn(5, 4)
    ours = from_nflows(theirs, condition=4 if name == "context" else None)
    return ours, data, theirs.log_prob(data["x"], context=data.get("y"))


def made_mixture():
    theirs = redraw(Flow(nt.IdentityTransform(), nd.MADEMoG(3, 6, 2, num_mixture_components=2)))
    data = {"x": torch.randn(5, 3), "y": torch.randn(5, 2)}
    return from_nflows(theirs, condition=2), data, theirs.log_prob(data["x"], context=data["y"])


def zukos(name, context):
    theirs = redraw(getattr(zuko.flows, name)(3, context, **{**HIDDEN, **ZUKO[name]}))
    data = {"x": 0.8 * torch.randn(5, 3), **({"y": torch.randn(5, context)} if context else {})}
    return from_zuko(theirs, condition=context or None), data, theirs(data.get("y")).log_prob(data["x"])


def zukos_own_parts():
    lazy, transforms = zuko.lazy.UnconditionalTransform, zuko.transforms
    parts = [
        lazy(transforms.MonotonicAffineTransform, torch.ones(3), torch.randn(3)),
        lazy(transforms.PermutationTransform, torch.tensor([2, 0, 1]), buffer=True),
        lazy(transforms.RotationTransform, torch.randn(3, 3)),
        lazy(transforms.LULinearTransform, torch.randn(3, 3) + 2 * torch.eye(3)),
        zuko.flows.gaussianization.ElementWiseTransform(3, 2, hidden_features=(4,)),
        zuko.flows.GeneralCouplingTransform(3, 2, univariate=transforms.AdditiveTransform, shapes=[()]),
    ]
    base = zuko.lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, torch.ones(3), 2 * torch.ones(3))
    theirs = redraw(zuko.lazy.Flow(parts, base))
    data = {"x": torch.randn(5, 3), "y": torch.randn(5, 2)}
    return from_zuko(theirs, condition=2), data, theirs(data["y"]).log_prob(data["x"])


def test_what_was_converted_is_loaded_without_the_friends(tmp_path):
    torch.manual_seed(0)
    cases = {f"nflows_{name}": nflow(name) for name in NFLOWS}
    cases |= {f"zuko_{name}_{context}": zukos(name, context) for name in ZUKO for context in (0, 2)}
    cases |= {"nflows_mixture": made_mixture(), "zuko_own": zukos_own_parts()}
    for name, (ours, data, _) in cases.items():
        fk.save(ours, tmp_path / f"{name}.flow.safetensors")
        save_file(data, tmp_path / f"{name}.data.safetensors")
    subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT, str(tmp_path)], check=True)
    found = load_file(tmp_path / "found")
    assert set(found) == set(cases)
    for name, (_, _, expected) in cases.items():
        torch.testing.assert_close(found[name], expected.detach(), atol=1e-10, rtol=1e-10, msg=lambda m, n=name: n + m)
