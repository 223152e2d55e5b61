import numpy as np
import pytest
import torch
from torch.func import vmap

from maml_dist.core.rl.baseline import Linear


def normal(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch(seed=0, episodes=5, horizon=30, obs=3):
    """Observations, some beyond ±10; returns; a mask that ends most episodes early."""
    observations = 6 * normal(seed, episodes, horizon, obs)
    ends = torch.randint(3, horizon, (episodes, 1), generator=torch.Generator().manual_seed(seed))
    ends[0] = horizon
    mask = (torch.arange(horizon) < ends).double()
    earned = observations[..., 0].abs() - torch.arange(horizon) / 7 + normal(seed + 1, *mask.shape)
    return observations, earned, mask


def test_the_linear_fit_is_written_out():
    observations, earned, mask = batch()
    rows, wanted = [], []
    for episode in range(5):
        for t in range(30):
            if mask[episode, t]:
                o = np.clip(observations[episode, t].numpy(), -10, 10)
                s = t / 100
                rows.append([*o, *o**2, s, s**2, s**3, 1.0])
                wanted.append(float(earned[episode, t]))
    features = np.array(rows)
    normal_matrix = features.T @ features + 1e-5 * np.eye(features.shape[1])
    weights = np.linalg.solve(normal_matrix, features.T @ np.array(wanted))
    ours = Linear().values(observations, earned, mask)[mask > 0]
    torch.testing.assert_close(ours, torch.tensor(features @ weights), rtol=1e-9, atol=1e-9)


def test_a_larger_ridge_shrinks_the_fit():
    observations, earned, mask = batch()
    norms = [
        float(Linear(ridge=ridge).values(observations, earned, mask)[mask > 0].norm())
        for ridge in (1e-5, 1e3, 1e9)
    ]
    assert norms[0] > norms[1] > norms[2]


def test_features_that_say_nothing_or_the_same_twice_leave_it_finite():
    observations, earned, mask = batch(obs=40)
    observations[..., 10:] = 0
    observations[..., 1:5] = observations[..., :1]
    observations = observations.float().clamp(-1, 1)  # o² of the clipped ±1 is nearly constant too
    fit = Linear().values(observations, earned.float(), mask.float())
    assert fit.isfinite().all() and fit.dtype == torch.float32
    alone = Linear().values(observations[..., [0, 5, 6, 7, 8, 9]], earned.float(), mask.float())
    torch.testing.assert_close(fit[mask > 0], alone[mask > 0], rtol=1e-3, atol=1e-3)


def test_an_observation_that_is_not_finite_is_not_hidden():
    observations, earned, mask = batch()
    observations[0, 0, 0] = torch.nan
    assert not Linear().values(observations, earned, mask).isfinite().any()


def test_what_comes_after_the_end_changes_nothing():
    observations, earned, mask = batch()
    expected = Linear().values(observations, earned, mask)[mask > 0]
    rubbish = Linear().values(
        torch.where(mask.unsqueeze(-1) > 0, observations, 1e3),
        torch.where(mask > 0, earned, torch.nan),
        mask,
    )
    assert torch.equal(rubbish[mask > 0], expected)


def test_vmapped_it_is_the_same():
    batches = [batch(seed) for seed in (0, 10)]
    expected = torch.stack([Linear().values(*each) for each in batches])
    stacked = [torch.stack(parts) for parts in zip(*batches, strict=True)]
    torch.testing.assert_close(vmap(Linear().values)(*stacked), expected, rtol=1e-8, atol=1e-8)


def test_a_ridge_of_zero_is_refused():
    with pytest.raises(ValueError, match="baseline.ridge=0.0: must be a positive number"):
        Linear(ridge=0.0)
