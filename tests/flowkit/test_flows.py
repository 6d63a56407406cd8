"""The ready flows: invertible, conditional, normalised, writable, and able to learn."""

import math

import pytest
import torch

import flowkit as fk

VECTORS = {
    "nice": lambda **k: fk.flows.nice(2, hidden=(16,), **k),
    "realnvp": lambda **k: fk.flows.realnvp(2, hidden=(16,), **k),
    "nsf": lambda **k: fk.flows.nsf(2, layers=3, hidden=(16,), bins=4, **k),
    "autoregressive nsf": lambda **k: fk.flows.nsf(2, layers=2, hidden=(16,), bins=4, autoregressive=True, **k),
    "maf": lambda **k: fk.flows.maf(2, layers=3, hidden=(16,), **k),
    "iaf": lambda **k: fk.flows.iaf(2, layers=2, hidden=(16,), **k),
    "naf": lambda **k: fk.flows.naf(2, layers=2, hidden=(16,), components=3, **k),
    "gaussianization": lambda **k: fk.flows.gaussianization(2, layers=2, hidden=(16,), components=3, **k),
    "planar": lambda **k: fk.flows.planar(2, layers=4, **k),
    "sylvester": lambda **k: fk.flows.sylvester(2, layers=3, **k),
    "residual_flow": lambda **k: fk.flows.residual_flow(2, layers=2, hidden=(8,), **k),
    "ffjord": lambda **k: fk.flows.ffjord(2, hidden=(8,), solver="rk4", steps=4, **k),
}


def redrawn(flow, by=0.3):
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return flow


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("condition", [None, 3, (3,), {"label": 2, "where": (1,)}])
def test_inverts_with_every_form_of_condition(name, condition):
    flow = redrawn(VECTORS[name](condition=condition))
    given = {n: torch.randn(5, *s) for n, s in flow.condition_shapes.items()} or None
    x = torch.randn(5, 2)
    z, log_det = flow(x, given=given)
    within = max(1e-9, flow.network.tolerance)
    torch.testing.assert_close(flow.inverse(z, given=given), (x, -log_det), atol=within, rtol=within)
    if isinstance(condition, int):
        assert list(flow.condition_shapes) == ["y"]


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("condition", [None, 3])
def test_density_integrates_to_one(name, condition):
    """On a grid of half as much again as 4000 samples reach; kinks of splines, and heavy tails, cost it 1e-4."""
    # Couplings of exponentials stretch space a thousandfold at less noise than the others.
    flow = redrawn(VECTORS[name](condition=condition), by=0.07 if name == "realnvp" else 0.15)
    posterior = flow.given() if condition is None else flow.given(torch.randn(condition))
    reach = 1.5 * posterior.sample((4000,)).abs().max().item() + 2
    grid = torch.linspace(-reach, reach, 401)
    with torch.no_grad():
        total = posterior.log_prob(torch.cartesian_prod(grid, grid)).exp().sum() * (grid[1] - grid[0]) ** 2
    assert total.item() == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize("name", VECTORS)
def test_samples_have_the_density(name):
    """The mean of 1 / q over samples within a box is the box's area; 4 standard errors, false alarm 6e-5."""
    flow = redrawn(VECTORS[name](), by=0.12)
    torch.manual_seed(1)
    x, log_prob = flow.given().sample_and_log_prob((40_000,))
    inside = (x.abs() < 0.5).all(-1)
    weights = torch.where(inside, (-log_prob).exp(), torch.zeros(()))
    assert abs(weights.mean().item() - 1.0) < 4 * weights.std().item() / math.sqrt(len(weights))


def test_glow_is_multi_scale_and_takes_vectors_and_maps():
    flow = fk.flows.glow((1, 4, 8), condition={"label": 3, "photo": (2, 8, 16)}, hidden=4, layers=2)
    assert {n: s for n, (_, s) in flow.latents.items()} == {"z1": (2, 2, 4), "z": (8, 1, 2)}
    x, given = torch.randn(6, 1, 4, 8), {"label": torch.randn(6, 3), "photo": torch.randn(6, 2, 8, 16)}
    redrawn(flow.initialize(x, given=given))
    z, log_det = flow(x, given=given)
    torch.testing.assert_close(flow.inverse(z, given=given), (x, -log_det), atol=1e-9, rtol=1e-9)


def test_gaussianization_takes_maps_one_feature_and_any_univariate_map():
    flow = fk.flows.gaussianization((2, 3, 4), condition={"label": 3, "photo": (1, 6, 8)}, layers=1, hidden=4)
    x, given = torch.randn(5, 2, 3, 4), {"label": torch.randn(5, 3), "photo": torch.randn(5, 1, 6, 8)}
    z, log_det = flow(x, given=given)
    torch.testing.assert_close(flow.inverse(z, given=given), (x, -log_det), atol=1e-9, rtol=1e-9)
    one = redrawn(fk.flows.gaussianization(1, layers=1, univariate=fk.BernsteinPolynomial.recipe(degree=3)))
    x = torch.randn(5, 1)
    z, log_det = one(x)
    torch.testing.assert_close(one.inverse(z), (x, -log_det), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["naf", "gaussianization"])
def test_two_bumps_are_learnt(name):
    """Where both axes have two bumps at +-1, the best affine flow reaches 2.92 nats and the truth is 1.82."""
    torch.manual_seed(0)
    x = torch.randn(512, 2) * 0.3 + torch.randint(0, 2, (512, 2)) * 2 - 1
    flow = VECTORS[name]()
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.02)
    for _ in range(250):
        loss = -flow.log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 2.3


def test_maps_take_convolutions(tmp_path):
    flow = redrawn(fk.flows.nsf((2, 4, 4), condition=(1, 8, 8), layers=2, hidden=4, bins=3))
    x, y = torch.randn(3, 2, 4, 4), torch.randn(3, 1, 8, 8)
    fk.save(flow, tmp_path / "nsf.safetensors")
    assert torch.equal(fk.load(tmp_path / "nsf.safetensors").log_prob(x, given=y), flow.log_prob(x, given=y))


def test_residual_and_continuous_flows_of_images_say_that_their_likelihood_is_an_estimate(tmp_path):
    for make, config in ((fk.flows.residual_flow, {}), (fk.flows.ffjord, {"solver": "rk4", "steps": 3})):
        flow = redrawn(
            make((1, 6, 6), condition={"label": 3, "photo": (2, 12, 12)}, layers=1, hidden=4, **config)
        ).eval()
        assert not flow.exact
        x, given = torch.randn(4, 1, 6, 6), {"label": torch.randn(4, 3), "photo": torch.randn(4, 2, 12, 12)}
        z, _ = flow(x, given=given)
        within = max(1e-9, flow.network.tolerance)
        torch.testing.assert_close(flow.inverse(z, given=given)[0], x, atol=within, rtol=within)
        fk.save(flow, tmp_path / "flow.safetensors")
        loaded, log_probs = fk.load(tmp_path / "flow.safetensors"), []
        for each in (flow, loaded):
            torch.manual_seed(0)
            log_probs.append(each.log_prob(x, given=given))
        assert torch.equal(*log_probs)


@pytest.mark.parametrize("log_det", ["exact", "estimate"])
def test_a_residual_flow_learns(log_det):
    """Correlated normal data: the entropy is reached within 0.05 nats, by estimated log-dets as by exact ones."""
    torch.manual_seed(0)
    mix = torch.tensor([[1.0, 0.8], [0.0, 0.6]])  # unit variances, correlation 0.8
    flow = fk.flows.residual_flow(2, layers=3, hidden=(16,), log_det=log_det)
    flow.initialize(torch.randn(512, 2) @ mix)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150)
    for _ in range(150):
        loss = -flow.log_prob(torch.randn(128, 2) @ mix).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    x = torch.randn(4000, 2) @ mix
    exact = fk.flows.residual_flow(2, layers=3, hidden=(16,), log_det="exact")
    exact.load_state_dict(flow.state_dict())
    truth = torch.distributions.MultivariateNormal(torch.zeros(2), mix.T @ mix)
    with torch.no_grad():
        assert (truth.log_prob(x) - exact.log_prob(x)).mean().item() < 0.05


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fk.flows.nsf(2, layers=0), "nsf: layers must be an int of at least 1, got 0"),
        (lambda: fk.flows.glow((3, 6, 8)), r"H and W divisible by 4, got shape \(3, 6, 8\)"),
        (lambda: fk.flows.glow((3, 8, 8), levels=0), "glow: levels must be"),
        (lambda: fk.flows.maf((2, 4, 4)), "MaskedAutoregressive"),
        (lambda: fk.flows.naf(2, components=0), "Sigmoidal: components must be an int of at least 1, got 0"),
        (lambda: fk.flows.gaussianization(2, layers=0), "gaussianization: layers must be an int of at least 1"),
        (lambda: fk.flows.planar(2, layers=-1), "planar: layers must be"),
        (lambda: fk.flows.residual_flow(2, layers=0), "residual_flow: layers must be"),
        (lambda: fk.flows.residual_flow(2, coeff=1), "ResidualBlock: coeff must be above 0 and below 1"),
        (lambda: fk.flows.ffjord(2, layers=0), "ffjord: layers must be"),
        (lambda: fk.flows.ffjord(2, solver="rk4"), "ContinuousFlow: solver='rk4' takes fixed steps"),
        (lambda: fk.flows.sylvester(2, layers=0), "sylvester: layers must be"),
        (lambda: fk.flows.realnvp(1), "AffineCoupling needs at least two channels"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(fk.FlowkitError, match=message):
        make()


def test_circular_nsf_on_the_torus():
    """It inverts, has no seam, takes angles modulo 2 pi, and its density integrates to one over one turn of each."""
    flow = redrawn(fk.flows.circular_nsf(2, condition=3, layers=3, hidden=(16,), bins=4))
    y = torch.randn(1, 3)
    steps = 400
    grid = 2 * math.pi * (torch.arange(steps) + 0.5) / steps - math.pi
    points = torch.cartesian_prod(grid, grid)
    given = flow.given(y[0])
    with torch.no_grad():
        log_prob = given.log_prob(points)
        total = log_prob.exp().mean() * (2 * math.pi) ** 2
        assert total.item() == pytest.approx(1, abs=1e-3)  # kinks at the knots cost the rule its order
        assert log_prob.std() > 0.1
        some = points[::1777]
        torch.testing.assert_close(given.log_prob(some + 2 * math.pi), given.log_prob(some))
        edge = torch.stack((torch.full((9,), math.pi), torch.linspace(-3, 3, 9)), 1)
        inside = edge - torch.tensor([1e-9, 0.0])
        torch.testing.assert_close(given.log_prob(edge), given.log_prob(inside), atol=1e-6, rtol=1e-6)
        conditions = y.expand(len(some), 3)
        z, log_det = flow(some, given=conditions)
        torch.testing.assert_close(flow.inverse(z, given=conditions), (some, -log_det), atol=1e-8, rtol=1e-8)
        assert given.sample((50,)).abs().max() <= math.pi
    with pytest.raises(fk.ShapeError, match=r"needs vectors of angles \(D,\), got shape \(2, 3\)"):
        fk.flows.circular_nsf((2, 3))


def test_one_layer_of_circular_nsf_takes_angles_modulo_a_turn_too():
    """Its passive half passed unchanged, and outside of the base's turn."""
    flow = redrawn(fk.flows.circular_nsf(3, layers=1, hidden=(8,), bins=3))
    x = torch.rand(5, 3)
    torch.testing.assert_close(flow.log_prob(x + 2 * math.pi), flow.log_prob(x))


def test_hidden_widths_of_maps_are_all_used():
    flow = fk.flows.nsf((4, 4, 4), layers=1, hidden=(5, 6))
    assert [p.shape[0] for p in flow.parameters() if p.dim() == 4] == [5, 6, 46]  # 2 channels of 3 * 8 - 1 numbers
    flow = fk.flows.glow((1, 4, 4), levels=1, layers=1, hidden=5)  # two hidden layers, as the paper's
    assert [tuple(p.shape) for p in flow.parameters() if p.dim() == 4][-3:] == [
        (5, 2, 3, 3),
        (5, 5, 1, 1),
        (4, 5, 3, 3),
    ]


@pytest.mark.parametrize("make", [fk.flows.nice, fk.flows.gaussianization])
def test_no_hidden_layers_are_refused_on_maps_too(make):
    with pytest.raises(fk.ConfigError, match="hidden must be a positive int or a tuple of them"):
        make((4, 4, 4), condition=2, hidden=())


def test_a_budget_for_adaptive_steps_is_refused():
    pytest.importorskip("torchdiffeq")
    flow = fk.flows.ffjord(2, hidden=(8,))
    flow.network.budget = 10**9
    flow.backprop = "auto"
    with pytest.raises(fk.ConfigError, match="where ContinuousFlow, whose number of steps depends on the data"):
        flow.log_prob(torch.zeros(3, 2))
