import pytest
import torch
from torch import distributions
from torch.func import functionalize, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from maml_dist.core.rl.distribution import Categorical, Categoricals, Gaussian

GAUSSIAN, CATEGORICAL = Gaussian(), Categorical()


def normal(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def uniform(seed, *shape):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def torchs(distribution, output):
    if distribution is CATEGORICAL:
        return distributions.Categorical(logits=output)
    mean, log_std = output.chunk(2, -1)
    return distributions.Independent(distributions.Normal(mean, log_std.exp()), 1)


def equal(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("distribution", [GAUSSIAN, CATEGORICAL])
def test_probabilities_entropy_and_divergence_are_torchs(distribution):
    old, new = normal(0, 5, 7, 6), normal(1, 5, 7, 6)
    action = torchs(distribution, old).sample()
    equal(distribution.log_prob(new, action), torchs(distribution, new).log_prob(action))
    equal(distribution.entropy(old), torchs(distribution, old).entropy())
    expected = distributions.kl_divergence(torchs(distribution, old), torchs(distribution, new))
    equal(distribution.kl(old, new), expected)
    equal(distribution.kl(old, old), torch.zeros(5, 7).double())


def test_a_gaussian_action_is_the_noise_scaled_and_moved():
    output, noise = normal(0, 5, 4), normal(1, 5, 2)
    equal(GAUSSIAN.sample(output, noise), output[:, :2] + output[:, 2:].exp() * noise)
    equal(GAUSSIAN.sample(output, 0 * noise), GAUSSIAN.mode(output))


def test_a_small_divergence_keeps_its_digits_in_float32():
    old = normal(0, 100, 4)
    new = old + 1e-3 * normal(1, 100, 4)
    single = GAUSSIAN.kl(old.float(), new.float()).double()
    exact = GAUSSIAN.kl(old.float().double(), new.float().double())
    assert ((single - exact).abs() < 5e-4 * exact + 1e-9).all()


def test_categorical_actions_come_as_often_as_they_should():
    logits = torch.tensor([0.3, -1.0, 2.0, -torch.inf]).double()
    noise = (torch.arange(100_000).double() + 0.5) / 100_000  # every share of [0, 1) once
    action = CATEGORICAL.sample(logits.expand(100_000, 4), noise)
    shares = torch.bincount(action, minlength=4) / 100_000
    torch.testing.assert_close(shares.double(), logits.softmax(-1), atol=2e-5, rtol=0)
    assert CATEGORICAL.mode(logits) == 2


@pytest.mark.parametrize("impossible", [0, 3, 6])
def test_the_ends_of_the_noise_choose_a_possible_action(impossible):
    logits = normal(0, 1000, 7).float()
    logits[:, impossible] = -torch.inf
    for noise in (0.0, 1 - 2**-24):
        action = CATEGORICAL.sample(logits, torch.full((1000,), noise))
        assert ((action >= 0) & (action < 7) & (action != impossible)).all()
        assert action.dtype == torch.int64
    beyond = CATEGORICAL.sample(logits, torch.ones(1000))
    assert ((beyond >= 0) & (beyond < 7)).all()


@pytest.mark.parametrize("distribution", [GAUSSIAN, CATEGORICAL])
def test_vmapped_and_traced_it_is_the_same(distribution):
    def all_of(old, new, noise):
        action = distribution.sample(old, noise)
        return (
            distribution.log_prob(new, action),
            distribution.kl(old, new),
            distribution.entropy(new),
            distribution.mode(new),
        )

    noise = normal(2, 3, 5, 2) if distribution is GAUSSIAN else uniform(2, 3, 5)
    arguments = normal(0, 3, 5, 4), normal(1, 3, 5, 4), noise
    expected = all_of(*arguments)
    others = [argument.flip(0) for argument in arguments]
    traced = make_fx(functionalize(vmap(all_of)))(*others)
    for function in (vmap(all_of), traced):
        for ours, theirs in zip(function(*arguments), expected, strict=True):
            equal(ours, theirs)


CHOICES = Categoricals((2, 4, 3))


def each(output):
    """Torch's own distribution of each choice."""
    return [distributions.Categorical(logits=part) for part in output.split(CHOICES.choices, -1)]


def test_several_choices_are_torchs_independent_ones():
    old, new = normal(0, 5, 7, 9), normal(1, 5, 7, 9)
    action = torch.stack([one.sample() for one in each(old)], -1)
    log_prob = sum(one.log_prob(action[..., k]) for k, one in enumerate(each(new)))
    equal(CHOICES.log_prob(new, action), log_prob)
    equal(CHOICES.entropy(old), sum(one.entropy() for one in each(old)))
    pairs = zip(each(old), each(new), strict=True)
    equal(CHOICES.kl(old, new), sum(distributions.kl_divergence(*pair) for pair in pairs))
    modes = torch.stack([one.logits.argmax(-1) for one in each(old)], -1)
    assert torch.equal(CHOICES.mode(old), modes)


def test_one_choice_of_several_is_one_choice():
    output, noise = normal(0, 6, 4), uniform(1, 6)
    one = Categoricals((4,))
    assert torch.equal(one.sample(output, noise[:, None])[:, 0], CATEGORICAL.sample(output, noise))
    action = CATEGORICAL.mode(output)
    equal(one.log_prob(output, action[:, None]), CATEGORICAL.log_prob(output, action))


def test_several_choices_come_as_often_as_they_should_and_apart():
    output, noise = normal(2, 9), uniform(3, 100_000, 3)
    action = CHOICES.sample(output.expand(100_000, 9), noise)
    for k, one in enumerate(each(output)):
        shares = torch.bincount(action[:, k], minlength=CHOICES.choices[k]) / 100_000
        torch.testing.assert_close(shares.double(), one.probs, atol=0.01, rtol=0)
    first, second = action[:, 0] == 0, action[:, 1] == 0
    both = (first & second).double().mean()
    assert abs(both - first.double().mean() * second.double().mean()) < 0.01
