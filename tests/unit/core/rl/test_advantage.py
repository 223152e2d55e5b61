import pytest
import torch
from torch.func import functionalize, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from maml_dist.core.data.episode import map_tensors
from maml_dist.core.data.trajectories import Trajectories
from maml_dist.core.rl.advantage import (
    advantages,
    explained_variance,
    gae,
    normalised,
    returns,
)
from maml_dist.core.rl.baseline import Linear

LENGTHS = [7, 1, 4, 6]  # of the episodes, in a horizon of 7
HORIZON = 7


def normal(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def masked(lengths=LENGTHS, horizon=HORIZON):
    return (torch.arange(horizon) < torch.tensor(lengths).unsqueeze(1)).double()


def equal(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def collected(tasks=3, seed=0):
    """Tasks whose episodes end at different times, and with rubbish after the end."""
    masks, rewards = [], normal(seed, tasks, 4, HORIZON)
    for task in range(tasks):
        masks.append(masked([(length + task) % HORIZON + 1 for length in LENGTHS]))
    mask = torch.stack(masks)
    return Trajectories(
        observations=normal(seed + 1, tasks, 4, HORIZON, 2),
        actions=normal(seed + 2, tasks, 4, HORIZON, 1),
        rewards=torch.where(mask > 0, rewards, torch.nan),
        mask=mask,
        outputs=normal(seed + 3, tasks, 4, HORIZON, 2),
    )


def test_returns_are_a_loop_from_the_end():
    rewards, mask = normal(0, 4, HORIZON), masked()
    expected = torch.zeros(4, HORIZON).double()
    for episode, length in enumerate(LENGTHS):
        after = 0.0
        for t in reversed(range(length)):
            after = rewards[episode, t] + 0.9 * after
            expected[episode, t] = after
    equal(returns(rewards, mask, gamma=0.9), expected)


@pytest.mark.parametrize("horizon", [1, 2, 8, 9])
def test_undiscounted_returns_count_the_steps_left(horizon):
    ones = torch.ones(2, horizon).double()
    expected = torch.arange(horizon, 0, -1).double().expand(2, horizon)
    equal(returns(ones, ones, gamma=1.0), expected)
    equal(returns(ones, ones, gamma=0.0), ones)


def test_gae_is_its_definition():
    rewards, values, mask = normal(0, 4, HORIZON), normal(1, 4, HORIZON), masked()
    gamma, lam = 0.9, 0.7
    expected = torch.zeros(4, HORIZON).double()
    for episode, length in enumerate(LENGTHS):
        for t in range(length):
            for k in range(t, length):
                after = values[episode, k + 1] if k + 1 < length else 0.0
                surprise = rewards[episode, k] + gamma * after - values[episode, k]
                expected[episode, t] += (gamma * lam) ** (k - t) * surprise
    equal(gae(rewards, values, mask, gamma=gamma, lam=lam), expected)


def test_with_lambda_one_it_is_returns_less_values():
    rewards, values, mask = normal(0, 4, HORIZON), normal(1, 4, HORIZON), masked()
    expected = returns(rewards, mask, gamma=0.9) - values * mask
    equal(gae(rewards, values, mask, gamma=0.9, lam=1.0), expected)


def test_normalised_over_the_unmasked_steps_alone():
    mask = masked()
    made = normalised(torch.where(mask > 0, normal(0, 4, HORIZON) * 3 + 5, torch.inf), mask)
    kept = made[mask > 0]
    equal(kept.mean(), torch.tensor(0.0).double())
    torch.testing.assert_close(
        kept.std(correction=0), torch.tensor(1.0).double(), atol=1e-7, rtol=0
    )
    assert (made[mask == 0] == 0).all()


def test_equal_advantages_become_zero():
    assert torch.equal(normalised(4 * masked(), masked()), torch.zeros(4, HORIZON).double())


def test_explained_variance():
    earned, mask = normal(0, 4, HORIZON), masked()
    kept = earned[mask > 0]
    guess = normal(1, 4, HORIZON)
    expected = 1 - (kept - guess[mask > 0]).var() / kept.var()
    equal(explained_variance(guess, earned, mask), expected)
    equal(explained_variance(earned + 3, earned, mask), torch.tensor(1.0).double())
    assert explained_variance(guess, 0 * earned, mask) == 0


def test_a_task_is_the_same_to_the_bit_whatever_it_is_stacked_with():
    data = map_tensors(torch.Tensor.float, collected(tasks=5))
    made, explained = advantages(data, baseline=Linear(), gamma=0.99, lam=0.95)
    for tasks in ([0], [3, 1], [4, 4, 0, 2]):
        part = map_tensors(lambda tensor, own=tasks: tensor[own], data)
        again, explained_again = advantages(part, baseline=Linear(), gamma=0.99, lam=0.95)
        assert torch.equal(again, made[tasks])
        assert torch.equal(explained_again, explained[tasks])
    assert made.isfinite().all()


def test_vmapped_and_traced_it_is_the_same():
    def all_of(rewards, values, mask):
        made = gae(rewards, values, mask, gamma=0.9, lam=0.8)
        earned = returns(rewards, mask, gamma=0.9)
        return normalised(made, mask), explained_variance(values, earned, mask)

    data, values = collected(), normal(8, 3, 4, HORIZON)
    arguments = data.rewards, values, data.mask
    expected = [all_of(*task) for task in zip(*arguments, strict=True)]
    others = normal(0, 3, 4, HORIZON), normal(1, 3, 4, HORIZON), torch.ones(3, 4, HORIZON).double()
    traced = make_fx(functionalize(vmap(all_of)))(*others)
    for function in (vmap(all_of), traced):
        for ours, theirs in zip(function(*arguments), zip(*expected, strict=True), strict=True):
            equal(ours, torch.stack(theirs))
