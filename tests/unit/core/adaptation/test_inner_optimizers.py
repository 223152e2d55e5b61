import pytest
import torch
from torch.func import functionalize, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from maml_dist.core.adaptation.inner_optimizers import (
    SGD,
    Adam,
    Momentum,
    adapting,
    at_step,
    check_patterns,
    support_gradient,
)
from maml_dist.core.data.episode import Batch

STEPS, ALPHA = 6, 0.1
RULES = {
    "descent": (SGD(), lambda leaves: torch.optim.SGD(leaves, ALPHA)),
    "momentum": (Momentum(0.8), lambda leaves: torch.optim.SGD(leaves, ALPHA, momentum=0.8)),
    "nesterov": (
        Momentum(0.8, nesterov=True),
        lambda leaves: torch.optim.SGD(leaves, ALPHA, momentum=0.8, nesterov=True),
    ),
    "adam": (Adam(floor=1e-30), lambda leaves: torch.optim.Adam(leaves, ALPHA)),
    "adam without momentum": (
        Adam(decays=(0.0, 0.99), eps=1e-4, floor=1e-30),
        lambda leaves: torch.optim.Adam(leaves, ALPHA, betas=(0.0, 0.99), eps=1e-4),
    ),
}


def params():
    torch.manual_seed(0)
    return {"w": torch.randn(2, 3).double(), "b": torch.randn(()).double()}


def gradients():
    torch.manual_seed(1)
    return [
        {name: torch.randn_like(value) for name, value in params().items()} for _ in range(STEPS)
    ]


@pytest.mark.parametrize("name", RULES)
def test_a_rule_moves_as_the_optimiser_of_torch_does(name):
    rule, optimiser = RULES[name]
    phi = params()
    leaves = {name: value.clone().requires_grad_() for name, value in phi.items()}
    theirs = optimiser(list(leaves.values()))
    state = rule.init(phi)
    for k, gradient in enumerate(gradients()):
        direction, state = rule.direction(gradient, state, torch.tensor(k))
        phi = {name: phi[name] - ALPHA * along for name, along in direction.items()}
        for name, leaf in leaves.items():
            leaf.grad = gradient[name]
        theirs.step()
        expected = {name: leaf.detach() for name, leaf in leaves.items()}
        torch.testing.assert_close(phi, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_one_trace_over_all_tasks_serves_all_steps(name):
    rule, _ = RULES[name]

    def direction(gradient, state, k):
        return rule.direction(gradient, state, k)

    def stacked(k):
        return {name: torch.stack([g, 2 * g]) for name, g in gradients()[k].items()}

    over = vmap(direction, in_dims=(0, None, None))
    traced = make_fx(functionalize(over))(stacked(0), rule.init(params()), torch.tensor(0))
    state = rule.init(params())
    for k, gradient in enumerate(gradients()):
        ours, _ = traced(stacked(k), state, torch.tensor(k))
        expected, state = rule.direction(gradient, state, torch.tensor(k))
        for name, value in expected.items():
            torch.testing.assert_close(ours[name][0], value, rtol=1e-12, atol=1e-14)


def test_adams_bias_is_corrected_to_the_last_digit_of_float32():
    gradient = {"w": torch.tensor([3.0, -0.2]), "b": torch.tensor(7.0)}
    rule = Adam()
    first = vmap(lambda g: rule.direction(g, rule.init(g), torch.tensor(0))[0])(
        {name: torch.stack([g, g]) for name, g in gradient.items()}
    )
    for name, g in gradient.items():  # with both moments at zero, Adam's first step is the sign
        torch.testing.assert_close(first[name][0], g.sign(), rtol=3e-7, atol=0)


def test_adam_has_a_derivative_where_the_gradient_is_zero():
    rule, state = Adam(), Adam().init({"w": torch.zeros(2)})

    def moved(g):
        return rule.direction({"w": g}, state, torch.tensor(0))[0]["w"]

    derivative = torch.func.jacrev(moved)(torch.tensor([0.0, 1.0]))
    assert derivative.isfinite().all()


def test_a_support_gradient_is_of_the_adapted_parameters_alone():
    def loss(params, batch):
        return params["b"] ** 2 * (params["w"] * batch.x).sum()

    batch = Batch(torch.arange(6.0).double().reshape(2, 3), torch.zeros(()))
    gradient = support_gradient(loss, params(), batch, adapted=("w",))
    assert list(gradient) == ["w"]
    torch.testing.assert_close(gradient["w"], params()["b"] ** 2 * batch.x)


@pytest.mark.parametrize(("first_order", "slope"), [(False, 2.0), (True, 0.0)])
def test_first_order_takes_the_support_gradient_as_a_constant(first_order, slope):
    batch = Batch(torch.zeros(()), torch.zeros(()))

    def gradient(w):
        how = {"adapted": ("*",), "first_order": first_order}
        return support_gradient(lambda params, _: params["w"] ** 2, {"w": w}, batch, **how)["w"]

    assert torch.func.grad(gradient)(torch.tensor(3.0)) == slope


def test_a_row_of_each_step_and_the_last_for_all_later_ones():
    rows = torch.arange(6.0).reshape(3, 2)
    assert [at_step(rows, torch.tensor(k)).tolist() for k in (0, 2, 3, 100)] == [
        [0, 1], [4, 5], [4, 5], [4, 5],
    ]  # fmt: skip
    assert at_step(torch.tensor([7, 8]), torch.tensor(1)) == 8


def test_patterns_choose_by_name():
    named = dict.fromkeys(("body.0.weight", "body.0.bias", "head.weight", "head.bias"), 0)
    assert list(adapting(named, ("head.*",))) == ["head.weight", "head.bias"]
    assert list(adapting(named, ("*.bias", "body.*"))) == [
        "body.0.weight", "body.0.bias", "head.bias",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (("w", "hed.*"), r"learner.adapted='hed\.\*' matches no parameter; there are w, b"),
        ((), r"learner.adapted=\(\): must be one pattern or more"),
    ],
)
def test_patterns_that_adapt_nothing_are_refused(patterns, said):
    with pytest.raises(ValueError, match=said):
        check_patterns(patterns, params())


@pytest.mark.parametrize(
    ("rule", "bad"),
    [
        (Momentum, {"decay": 1.0}),
        (Momentum, {"decay": -0.1}),
        (Adam, {"decays": (0.9, 1.0)}),
        (Adam, {"eps": 0.0}),
        (Adam, {"floor": 0.0}),
    ],
)
def test_impossible_settings_are_refused_by_name(rule, bad):
    with pytest.raises(ValueError, match=f"learner.inner.{next(iter(bad))}="):
        rule(**bad)
