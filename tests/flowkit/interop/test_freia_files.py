"""FrEIA's modules: each named refusal, and those that are right saved without code and loaded in another process."""

import copy
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import flowkit as fk
from flowkit.interop import FreiaBijection, from_freia
from flowkit.interop.freia_modules import REFUSED, WRITABLE
from flowkit.interop.layers import build_layers, describe_layers

ff = pytest.importorskip("FrEIA.framework")
fm = pytest.importorskip("FrEIA.modules")


def dense(c_in, c_out):
    return nn.Sequential(nn.Linear(c_in, 5), nn.LeakyReLU(0.3), nn.Linear(5, c_out))


def convolutions(c_in, c_out):
    return nn.Sequential(nn.Conv2d(c_in, 3, 3, padding=1), nn.BatchNorm2d(3), nn.SiLU(), nn.Conv2d(3, c_out, 1))


# ---------------------------------------------------------------------- refusals


def refused_modules():
    rotation = fm.OrthogonalTransform([(3,)])
    rotation.weights.data.mul_(1.1)
    yield "LearnedElementwiseScaling", lambda: fm.LearnedElementwiseScaling([(3,)]), "wrong sign"
    yield "InvAutoFC", lambda: fm.InvAutoFC([(3,)]), "no bijection"
    yield "InvAutoConv2D", lambda: fm.InvAutoConv2D([(3, 4, 4)]), "no bijection"
    yield "IResNetLayer", lambda: fm.IResNetLayer([(3,)]), "truncated random estimate"
    yield "GaussianMixtureModel", lambda: fm.GaussianMixtureModel([(3,)], [(2, 3), (2, 6), (2,), ()]), "component"
    yield "ActNorm", lambda: fm.ActNorm([(3,)]), "has seen no data"
    yield "InvertibleSigmoid", lambda: fm.InvertibleSigmoid([(2, 3)]), "over channels alone"
    yield "HouseholderPerm", lambda: fm.HouseholderPerm([(3,)], [(3, 2)], n_reflections=2), "condition's reflections"
    yield "OrthogonalTransform", lambda: rotation, "drifted from orthogonality"


@pytest.mark.parametrize(
    ("name", "build", "reason"), list(refused_modules()), ids=lambda v: v if type(v) is str else ""
)
def test_each_refusal_has_its_name_and_reason(name, build, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = build()
    with pytest.raises(fk.ConfigError, match=f"FrEIA's {name} cannot be converted: .*{reason}"):
        FreiaBijection(module)


def test_every_refused_name_is_freias_and_every_module_is_either_refused_or_writable():
    deprecated = {"InvertibleModule", "SplitChannel", "ConcatChannel", "InvAutoActFixed"}
    assert set(fm.__all__) - deprecated == {*REFUSED, *WRITABLE}


def test_a_refused_module_inside_a_network_is_refused_and_other_objects_are():
    x = ff.InputNode(3)
    node = ff.Node(x, fm.LearnedElementwiseScaling, {})
    with pytest.raises(fk.ConfigError, match="LearnedElementwiseScaling"):
        from_freia(ff.GraphINN([x, node, ff.OutputNode(node)]))
    with pytest.raises(fk.ConfigError, match="GraphINN, ReversibleGraphNet or SequenceINN, got Linear"):
        from_freia(nn.Linear(2, 2))


def test_an_act_norm_that_has_seen_data_converts():
    norm = fm.ActNorm([(3, 2)])
    norm([torch.randn(20, 3, 2) * 3 + 1])
    part = FreiaBijection(norm)
    x = torch.randn(4, 3, 2)
    y, log_det = part(x)
    jacobian = torch.autograd.functional.jacobian(lambda one: part(one)[0].flatten(), x[:1]).reshape(6, 6)
    torch.testing.assert_close(jacobian.slogdet()[1], log_det[0])
    torch.testing.assert_close(part.inverse(y)[0], x)
    pickle.dumps(part)


# ---------------------------------------------------------------------- files

MODULES = {
    "AllInOneBlock": ((4,), {"subnet_constructor": dense, "permute_soft": True, "global_affine_type": "SIGMOID"}),
    "NICECouplingBlock": ((3,), {"subnet_constructor": dense}),
    "RNVPCouplingBlock": ((4,), {"subnet_constructor": dense, "clamp_activation": "SIGMOID", "clamp": 1.5}),
    "GLOWCouplingBlock": ((3, 4, 4), {"subnet_constructor": convolutions, "split_len": 1}),
    "GINCouplingBlock": ((4,), {"subnet_constructor": dense, "clamp_activation": "TANH"}),
    "AffineCouplingOneSided": ((5,), {"subnet_constructor": dense}),
    "InvAutoAct": ((3, 2), {"learnable": False}),
    "InvAutoActTwoSided": ((3,), {}),
    "OrthogonalTransform": ((3,), {}),
    "HouseholderPerm": ((4,), {"n_reflections": 3, "fixed": True}),
    "PermuteRandom": ((7,), {}),
    "FixedLinearTransform": ((3,), {"M": torch.eye(3) + torch.ones(3, 3), "b": torch.arange(3.0)}),
    "Fixed1x1Conv": ((2, 3, 3), {"M": torch.eye(2) * 2 + torch.ones(2, 2)}),
    "InvertibleSigmoid": ((3,), {}),
    "IRevNetDownsampling": ((2, 4, 4), {"legacy_backend": True}),
    "IRevNetUpsampling": ((4, 2, 2), {}),
    "HaarDownsampling": ((2, 4, 4), {"rebalance": 0.5, "order_by_wavelet": True}),
    "HaarUpsampling": ((8, 2, 2), {"rebalance": 2.0}),
    "Flatten": ((2, 3), {}),
    "Reshape": ((2, 6), {"output_dims": (3, 4)}),
    "Split": ((5,), {"section_sizes": [2, 3], "dim": 0}),
}


@pytest.mark.parametrize("name", MODULES)
def test_saved_and_loaded_is_the_same_to_the_last_bit_and_a_bijection(name, tmp_path):
    shape, options = MODULES[name]
    part = FreiaBijection(getattr(fm, name)([shape], **options)).double()
    flow = fk.Flow(part).eval()
    fk.save(flow, tmp_path / "flow.safetensors")
    loaded = fk.load(tmp_path / "flow.safetensors")
    x = torch.randn(3, *shape)
    z, log_det = flow(x)
    for copied in (loaded, pickle.loads(pickle.dumps(flow)), copy.deepcopy(flow)):
        found, found_log_det = copied(x)
        assert torch.equal(found, z)
        assert torch.equal(found_log_det, log_det)
        torch.testing.assert_close(copied.inverse(z)[0], x)
        torch.testing.assert_close(copied.inverse(z)[1], -log_det)
    flags = [p.requires_grad for p in flow.parameters()]
    assert [p.requires_grad for p in loaded.parameters()] == flags


def test_loaded_in_a_process_that_has_not_imported_the_friend(tmp_path):
    torch.manual_seed(3)
    network = ff.SequenceINN(4)
    for _ in range(2):
        network.append(fm.GLOWCouplingBlock, cond=0, cond_shape=(3,), subnet_constructor=dense)
        network.append(fm.PermuteRandom)
    flow = from_freia(network.double()).eval()
    fk.save(flow, tmp_path / "flow.safetensors")
    x, c = torch.randn(3, 4), torch.randn(3, 3)
    torch.save((x, c), tmp_path / "data.pt")
    program = (
        "import sys, torch, flowkit as fk; x, c = torch.load(sys.argv[2]); "
        "print(fk.load(sys.argv[1]).log_prob(x, given=c).tolist())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "flow.safetensors"), str(tmp_path / "data.pt")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.strip() == str(flow.log_prob(x, given=c).tolist())


class Own(nn.Linear):
    pass


def test_what_cannot_be_written_is_refused_by_name_only_when_saved(tmp_path):
    flow = fk.Flow(FreiaBijection(fm.NICECouplingBlock([(4,)], subnet_constructor=Own)))
    assert flow.log_prob(torch.zeros(2, 4)).shape == (2,)
    with pytest.raises(fk.StorageError, match=r"NICECouplingBlock \(Own has no written form"):
        fk.save(flow, tmp_path / "flow.safetensors")
    clamped = fm.GLOWCouplingBlock([(4,)], subnet_constructor=dense, clamp_activation=torch.erf)
    with pytest.raises(fk.StorageError, match="erf"):
        fk.save(fk.Flow(FreiaBijection(clamped)), tmp_path / "flow.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"module": "os.system", "dims_in": [(3,)]}, "must be one of AllInOneBlock, .* got 'os.system'"),
        ({"module": "IResNetLayer", "dims_in": [(3,)]}, "must be one of"),
        ({"module": "Flatten", "dims_in": [(3,)], "options": {"code": "1"}}, "described by nothing"),
        ({"module": "NICECouplingBlock", "dims_in": [(3,)]}, "has the subnets F, G"),
        ({"module": "Reshape", "dims_in": [(3,)], "options": {"output_dims": (2,)}}, "cannot be built"),
    ],
)
def test_descriptions_name_freias_modules_alone(description, message):
    with pytest.raises(fk.ConfigError, match=message):
        FreiaBijection(description)


def test_construction_draws_from_torchs_generator_alone():
    description = {"module": "PermuteRandom", "dims_in": [(50,)]}
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    permutations = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        permutations.append(FreiaBijection(description).module.perm.tolist())
    assert permutations[0] == permutations[1] != permutations[2]
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


def test_layers_are_described_and_built_again():
    net = nn.Sequential(nn.Conv2d(2, 4, (3, 1), bias=False), nn.GroupNorm(2, 4), nn.Flatten(), nn.Dropout(0.1))
    written = describe_layers(net)
    assert str(build_layers(written)) == str(net)
    with pytest.raises(fk.ConfigError, match="'LSTM' is not one of those"):
        build_layers({"layer": "LSTM", "input_size": 2, "hidden_size": 2})
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(print)
    with pytest.raises(fk.ConfigError, match="hooks"):
        describe_layers(hooked)
