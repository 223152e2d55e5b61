"""Batch norm's derivatives are those of its formula, written in elementary operations."""

import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.nn import functional

from maml_dist.core.compile.tracing import TracedFunction, trace
from maml_dist.core.model.batch_norm import differentiates_fast, normalise
from maml_dist.core.model.functional_rules import by_batch

EPS = 1e-5
SHAPES = [(6, 3, 4, 5), (7, 3), (4, 3, 5), (2, 3, 2, 3, 2)]


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).double()


def by_formula(x, weight, bias):
    over = [axis for axis in range(x.dim()) if axis != 1]
    wide = (-1, *[1] * (x.dim() - 2))
    centred = x - x.mean(over, keepdim=True)
    scale = (centred.square().mean(over, keepdim=True) + EPS).rsqrt()
    y = centred * scale
    y = y if weight is None else y * weight.reshape(wide)
    return y if bias is None else y + bias.reshape(wide)


def derivative(function, order, x, weight, bias):
    """Of a crooked sum of the derivatives of one order less, down to those of the output."""
    target = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).cos().view(x.shape)

    def crooked(*given):
        return (function(*given).sin() * target).sum()

    for _ in range(order - 1):
        before = crooked

        def crooked(*given, before=before):
            return sum((g + 0.3 * g * g).sum() for g in grad(before, (0, 1, 2))(*given))

    return grad(crooked, (0, 1, 2))(x, weight, bias)


@pytest.mark.parametrize("order", [1, 2, 3])  # torch 2.13's own is wrong in the third
@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_are_those_of_the_formula(shape, order):
    given = (normal(*shape) * 2 + 3, normal(3), normal(3) + 1)
    ours = derivative(lambda x, w, b: normalise(x, w, b, EPS), order, *given)
    for one, other in zip(ours, derivative(by_formula, order, *given), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_finite_differences_agree():
    def ours(x, weight, bias):
        return normalise(x, weight, bias, EPS)

    given = [value.requires_grad_() for value in (normal(4, 3, 2, 2), normal(3), normal(3))]
    assert torch.autograd.gradcheck(ours, given)
    assert torch.autograd.gradgradcheck(ours, given)


@pytest.mark.parametrize("affine", [(True, False), (False, False)])
def test_weight_and_bias_may_be_missing(affine):
    x, target = normal(5, 3, 2), normal(5, 3, 2) + 1
    weight, bias = (normal(3) if there else None for there in affine)

    def second(function):
        inner = lambda x: (function(x).sin() * target).sum()  # noqa: E731
        return grad(lambda x: grad(inner)(x).square().sum())(x)

    ours = second(lambda x: normalise(x, weight, bias, EPS))
    torch.testing.assert_close(ours, second(lambda x: by_formula(x, weight, bias)))


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("shared", [False, True])  # the images of all tasks
def test_tasks_may_be_stacked(shared, traced):
    x, weights, biases = normal(4, 6, 3, 2, 2), normal(4, 3), normal(4, 3) + 1

    def of(function):
        return lambda x, weight, bias: derivative(function, 2, x, weight, bias)

    given = (x[0] if shared else x, weights, biases)
    stacked = vmap(
        of(lambda x, w, b: normalise(x, w, b, EPS)), in_dims=(None if shared else 0, 0, 0)
    )
    found = (TracedFunction(stacked) if traced else stacked)(*given)
    for task in range(4):
        alone = of(by_formula)(x[0] if shared else x[task], weights[task], biases[task])
        for one, other in zip(found, alone, strict=True):
            torch.testing.assert_close(one[task], other, rtol=1e-10, atol=1e-10)


def test_the_second_derivative_is_a_few_passes_over_the_data():
    x, weight, bias = normal(6, 3, 4, 4), normal(3), normal(3)

    def passes(function):
        second = lambda x, w, b: derivative(function, 2, x, w, b)  # noqa: E731
        nodes = trace(second, [x, weight, bias])[0].graph.nodes
        forms = (node.meta.get("tensor_meta") for node in nodes)
        return sum(getattr(form, "shape", None) == x.shape for form in forms)

    def torchs(x, weight, bias):
        return functional.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)

    ours = passes(lambda x, w, b: normalise(x, w, b, EPS))
    assert ours < passes(torchs) - 15


def test_what_it_does_not_take_is_left_to_torch():
    x, weight = torch.zeros(4, 3, 2), torch.zeros(3)
    assert differentiates_fast(x, weight, None)
    assert not differentiates_fast(x.bfloat16(), weight, None)  # mixed precision
    assert not differentiates_fast(x.to("meta"), weight.to("meta"), None)
    assert not differentiates_fast(x[:1, :, 0], weight, None)  # torch says that it needs more


def test_a_forward_mode_derivative_is_torchs():
    x, along, weight, bias = normal(4, 3, 2), normal(4, 3, 2) + 1, normal(3), normal(3)

    found = jvp(lambda x: by_batch(x, None, None, weight, bias, EPS), (x,), (along,))
    torch.testing.assert_close(found, jvp(lambda x: by_formula(x, weight, bias), (x,), (along,)))
