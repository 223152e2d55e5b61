import math

import pytest
import torch
from torch.func import functional_call, grad, vmap

from maml_dist.models.categorical_policy import CategoricalPolicy
from maml_dist.models.gaussian_policy import GaussianPolicy


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def by_hand(params, prefix, x):
    numbers = sorted({int(name.split(".")[1]) for name in params if name.startswith(prefix)})
    for number in numbers:
        x = x.clamp(min=0) if number else x
        x = x @ params[f"{prefix}.{number}.weight"].T + params[f"{prefix}.{number}.bias"]
    return x


def test_the_gaussian_output_is_a_mean_for_each_state_and_one_log_std():
    policy = GaussianPolicy(3, 2, log_std=-0.5).double()
    x = torch.randn(4, 5, 3).double()
    output = policy(x)
    expected = by_hand(dict(policy.named_parameters()), "mean", x)
    torch.testing.assert_close(output[..., :2], expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(output[..., 2:], torch.full((4, 5, 2), -0.5).double())
    assert policy(x[0, 0]).shape == (4,)


def test_the_categorical_output_is_logits():
    policy = CategoricalPolicy(3, 4, hidden=(6,)).double()
    x = torch.randn(4, 5, 3).double()
    expected = by_hand(dict(policy.named_parameters()), "logits", x)
    torch.testing.assert_close(policy(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("policy", [GaussianPolicy, CategoricalPolicy])
def test_it_starts_as_the_paper_says(policy):
    params = dict(policy(20, 6).named_parameters())
    weights = [value for name, value in params.items() if name.endswith("weight")]
    assert [tuple(weight.shape) for weight in weights] == [(100, 20), (100, 100), (6, 100)]
    for weight in weights:
        bound = math.sqrt(6 / sum(weight.shape))
        assert weight.abs().max() <= bound
        assert abs(weight.std() / (bound / math.sqrt(3)) - 1) < 0.1
    for name, value in params.items():
        if not name.endswith("weight"):
            assert (value == 0).all(), name


def test_log_std_has_a_floor_without_gradient():
    policy = GaussianPolicy(3, 2, min_std=0.1)
    with torch.no_grad():
        policy.log_std.copy_(torch.tensor([-50.0, -1.0]))
    output = policy(torch.randn(7, 3))
    torch.testing.assert_close(output[0, 2:], torch.tensor([math.log(0.1), -1.0]))
    output[:, 2:].sum().backward()
    assert policy.log_std.grad.tolist() == [0, 7]
    with pytest.raises(ValueError, match="model.min_std=0.0: must be a positive number"):
        GaussianPolicy(min_std=0.0)


@pytest.mark.parametrize("policy", [GaussianPolicy(3, 2), CategoricalPolicy(3, 2)])
def test_tasks_have_their_own_parameters_under_vmap(policy):
    params = {name: value.detach() for name, value in policy.named_parameters()}
    stacked = {name: torch.stack([value, 2 * value + 0.1]) for name, value in params.items()}
    x = torch.randn(2, 4, 5, 3)

    def output(params, x):
        return functional_call(policy, params, (x,))

    def slope(params, x):
        return grad(lambda p: output(p, x).square().sum())(params)

    for function in (output, slope):
        together = vmap(function)(stacked, x)
        for task in (0, 1):
            alone = function({name: value[task] for name, value in stacked.items()}, x[task])
            ours = (
                together[task]
                if function is output
                else {name: value[task] for name, value in together.items()}
            )
            torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-5)
