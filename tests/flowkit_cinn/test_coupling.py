import pytest
import torch

import flowkit as fk
from flowkit_cinn import ConditionalCoupling


def redraw(module, std=0.3):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return module


def test_equations_1_and_2():
    block = redraw(ConditionalCoupling((5,), given=(3,), subnet=fk.MLP(hidden=8)))
    u, c = torch.randn(4, 5), torch.randn(4, 3)
    (u1, u2), (gamma1, gamma2) = u.split((2, 3), 1), (univariate.gamma for univariate in block.univariates)

    def s_and_t(subnet, gamma, passive):
        r, t = subnet(passive, c).chunk(2, 1)
        return gamma * torch.tanh(r), t

    s1, t1 = s_and_t(block.subnets[0], gamma1, u2)
    v1 = u1 * s1.exp() + t1
    s2, t2 = s_and_t(block.subnets[1], gamma2, v1)
    v2 = u2 * s2.exp() + t2
    v, log_det = block(u, c)
    torch.testing.assert_close(v, torch.cat([v1, v2], 1))
    torch.testing.assert_close(log_det, s1.sum(1) + s2.sum(1))
    back, log_det_back = block.inverse(v, c)
    torch.testing.assert_close(back, u)
    torch.testing.assert_close(log_det_back, -log_det)


@pytest.mark.parametrize("number", range(len(fk.examples_of("cinn.conditional_coupling"))))
def test_jacobian(number):
    block = redraw(fk.examples_of("cinn.conditional_coupling")[number].build(ConditionalCoupling))
    x = torch.randn(1, *block.in_shapes[0])
    c = [torch.randn(1, *shape) for shape in block.condition_shapes]
    matrix = torch.autograd.functional.jacobian(lambda flat: block(flat.reshape(x.shape), *c)[0].flatten(), x.flatten())
    log_det = block(x, *c)[1]
    torch.testing.assert_close(torch.linalg.slogdet(matrix).logabsdet, log_det[0], atol=1e-9, rtol=1e-9)
    assert log_det.abs() > 1e-3  # or the test proves nothing


def test_gamma_is_learned_per_channel_and_bounds_the_log_scale():
    block = ConditionalCoupling((4, 2, 2), given=(1, 2, 2), limit=0.5)
    assert [tuple(univariate.gamma.shape) for univariate in block.univariates] == [(2, 1, 1), (2, 1, 1)]
    assert all((univariate.gamma == 0.5).all() for univariate in block.univariates)
    for subnet in block.subnets:
        redraw(subnet, std=100.0)
    scales = block.log_scales(torch.randn(3, 4, 2, 2), torch.randn(3, 1, 2, 2))
    assert scales.abs().max() <= 0.5
    assert scales.abs().max() > 0.4


def test_starts_as_the_identity():
    block, u = ConditionalCoupling((4,), given=(3,)), torch.randn(2, 4)
    v, log_det = block(u, torch.randn(2, 3))
    assert torch.equal(v, u)
    assert (log_det == 0).all()


@pytest.mark.parametrize("given", [(), []])
def test_needs_a_condition(given):
    with pytest.raises(fk.ShapeError, match="ConditionalCoupling needs at least one condition, got none"):
        ConditionalCoupling((4,), given=given)
    with pytest.raises(fk.ShapeError, match="needs at least one condition"):
        ConditionalCoupling((4,))


def test_in_a_graph_without_a_condition():
    graph = fk.Graph()
    x = graph.input("x", (4,))
    with pytest.raises(fk.GraphError, match="ConditionalCoupling needs at least one condition"):
        graph.add(ConditionalCoupling, x)


def test_a_condition_of_another_size_is_refused():
    with pytest.raises(fk.ShapeError, match="ConditionalCoupling"):
        ConditionalCoupling((4, 8, 8), given=(3, 4, 4))
