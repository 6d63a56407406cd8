"""Every Python example of the design, as it is written there: it must run as it stands."""

# fmt: off
# ruff: noqa: I001, E501

import pytest
import torch


@pytest.fixture(autouse=True)
def single_precision():
    """The examples are a reader's own, under torch's usual default."""
    torch.set_default_dtype(torch.float32)


def test_how_it_reads():
    import torch
    import flowkit as fk

    graph = fk.Graph()
    label = graph.condition("label", (10,))
    x = graph.input("x", (2,))
    for _ in range(8):
        x = graph.add(fk.AffineCoupling, x, given=label, subnet=fk.MLP(hidden=(128, 128)))
        x = graph.add(fk.Permute, x)
    graph.output("z", x)
    flow = fk.Flow(graph)                                  # base: standard normal

    batch, one_hot = torch.randn(5, 2), torch.eye(10)[:5]
    loss = -flow.log_prob(batch, given=one_hot).mean()     # given: a tensor, or {"label": tensor}
    samples = flow.sample((100,), given=one_hot)           # (100, 5, 2)
    posterior = flow.given(one_hot)                        # a torch.distributions.Distribution; condition work done once
    assert loss.requires_grad
    assert samples.shape == (100, 5, 2)
    samples, log_prob = posterior.sample_and_log_prob((1000,))
    assert samples.shape == (1000, 5, 2)
    assert log_prob.shape == (1000, 5)
    assert isinstance(posterior, torch.distributions.Distribution)
    assert torch.equal(flow.log_prob(batch, given={"label": one_hot}), flow.log_prob(batch, given=one_hot))


def test_multi_scale_with_a_feature_pyramid():
    import flowkit as fk
    from flowkit_cinn import ConditionalCoupling, FeaturePyramid, HaarDownsample

    graph = fk.Graph()
    photo = graph.condition("photo", (1, 64, 64))
    fine, mid, coarse = graph.features(FeaturePyramid(channels=(32, 64, 64), backbone="small"), photo)   # (32,64,64), (64,32,32), (64,16,16)
    x = graph.input("ab", (2, 64, 64))
    for name, level in (("fine", fine), ("mid", mid)):
        for _ in range(2):
            x = graph.add(ConditionalCoupling, x, given=level, subnet=fk.ConvNet(hidden=64))
            x = graph.add(fk.Permute, x)
        x = graph.add(HaarDownsample, x)
        x, detail = graph.add(fk.Split, x, sizes=(2, 6))
        graph.output(name, detail)
    x = graph.add(ConditionalCoupling, x, given=coarse, subnet=fk.ConvNet(hidden=64))
    graph.output("coarse", x)
    flow = fk.Flow(graph)
    assert [level.shape for level in (fine, mid, coarse)] == [(32, 64, 64), (64, 32, 32), (64, 16, 16)]
    assert flow.latents == {
        "fine": (slice(0, 6144), (6, 32, 32)),
        "mid": (slice(6144, 7680), (6, 16, 16)),
        "coarse": (slice(7680, 8192), (2, 16, 16)),
    }
    samples, log_prob = flow.given(torch.randn(1, 1, 64, 64)).sample_and_log_prob((2,))
    assert samples.shape == (2, 1, 2, 64, 64)
    assert log_prob.shape == (2, 1)
    bigger = flow.resized(ab=(2, 128, 128), photo=(1, 128, 128))
    assert bigger.dim == 4 * flow.dim


def test_a_plugin_author_writes_one_class():
    import torch
    from torch import nn
    import flowkit as fk


    @fk.register("acme.scale", examples=lambda: [fk.Example((3,)), fk.Example((2, 4, 4))])   # in_shapes, then given and config by name
    class Scale(fk.Bijection):
        """y = x * exp(w)."""

        constant_log_det = True

        def __init__(self, shape):
            super().__init__(shape)
            self.w = nn.Parameter(torch.zeros(shape))

        def forward(self, x):                       # inputs, then conditions; exactly one batch dimension
            return x * self.w.exp(), self.w.sum().expand(x.shape[0])

        def inverse(self, y):
            return y * (-self.w).exp(), -self.w.sum().expand(y.shape[0])

    from flowkit import registry
    import flowkit.testing

    try:
        assert [e.in_shapes for e in fk.examples_of("acme.scale")] == [((3,),), ((2, 4, 4),)]
        flow = fk.Flow(Scale((3,)))
        assert flow.log_prob(torch.zeros(5, 3)).shape == (5,)
        graph = fk.Graph()
        graph.output("z", graph.add(Scale, graph.input("x", (3,))))
        assert fk.Graph.from_dict(graph.to_dict()).nodes[0].cls is Scale
        flowkit.testing.check_bijection(Scale((3,)))
    finally:
        registry._objects.pop("acme.scale")
        registry._examples.pop("acme.scale")


def test_the_table_of_names():
    import flowkit as fk

    graph = fk.Graph()
    y, x = graph.condition("y", (3,)), graph.input("x", (4,))
    a, b = graph.add(fk.Split, graph.add(fk.ActNorm, graph.add(fk.AffineCoupling, x, given=y)))
    graph.output("a", a)
    graph.output("b", b)
    flow = fk.Flow(graph)
    x, y = torch.randn(5, 4), torch.randn(5, 3)
    z, log_det = flow(x, given=y)
    x, log_det = flow.inverse(z, given=y)
    assert z.shape == (5, 4)
    assert log_det.shape == (5,)
    assert flow.input_shapes == {"x": (4,)}
    assert flow.condition_shapes == {"y": (3,)}
    assert flow.latents == {"a": (slice(0, 2), (2,)), "b": (slice(2, 4), (2,))}
    assert torch.equal(flow.join(flow.split(z)), z)
    flow.sample((2,), given=y, temperature=1.0)
    for method in ("log_prob", "sample", "rsample", "sample_and_log_prob", "expand"):
        assert callable(getattr(flow.given(y), method))
    flow.initialize(x, given=y)
    assert [record.name for record in flow.trace(x, given=y)] == ["affine_coupling_1", "act_norm_1", "split_1"]
    for adaptor in (fk.ToMap((8, 8)), fk.ToVector(), fk.Resize((8, 8)), fk.OneHot(3)):
        assert isinstance(adaptor, torch.nn.Module)
    assert fk.InvertibleNetwork(fk.Graph.from_dict(graph.to_dict())).input_names == ("x",)
