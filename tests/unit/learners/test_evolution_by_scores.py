"""Evolution on what is only scored: stacked tasks and candidates, against one task's own loop."""

from dataclasses import replace

import pytest
import torch
from torch.func import vmap

from maml_dist.core.adaptation.inner_optimizers import Adam
from maml_dist.core.data.episode import Batch, supervised
from maml_dist.core.random import keys
from maml_dist.learners.evolution import ESMAML

IT = torch.tensor(0.0)
KEYS = keys(0, "train", 2, range(3))
META = {
    name: torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(place))
    for place, (name, shape) in enumerate({"gain": (2, 2), "push": (2,)}.items())
}
GOALS = torch.tensor([[0.3, 0.4], [-0.5, 0.1], [0.2, -0.6]], dtype=torch.float64)
SMALL = ESMAML(alpha=0.02, steps=2, num_perturbations=3, num_inner_perturbations=2)


def lived(params, goal):
    """Minus the return of a walk by position' = position + tanh(gain position + push) / 3."""
    position, total = torch.zeros(2, dtype=torch.float64), 0.0
    for _ in range(6):
        position = position + torch.tanh(params["gain"] @ position + params["push"]) / 3
        total = total + (position - goal).norm()
    return total


def score(candidates, stage):
    """Of stacked tasks and any number of axes of candidates."""
    judge = lived
    for _ in range(candidates["push"].dim() - 2):
        judge = vmap(judge, in_dims=(0, None))
    return vmap(judge)(candidates, GOALS)


@pytest.mark.parametrize(
    "learner",
    [
        SMALL,
        replace(SMALL, steps=0),
        replace(SMALL, inner=Adam()),
        replace(SMALL, adaptation="hill-climb"),
        replace(SMALL, adapted=("push",), steps=3),
    ],
)
def test_it_is_the_estimate_of_every_task_alone(learner):
    """By `gradient` and `path`, which take one task and a loss of stored examples."""
    slopes, path = learner.es_gradient(score, META, KEYS)
    assert len(path) == learner.steps + 1
    for task, (key, goal) in enumerate(zip(KEYS, GOALS, strict=True)):
        batch = Batch(torch.zeros(()), goal)

        def loss(params, batch):
            return lived(params, batch.y)

        episode = supervised(batch, batch, steps=learner.steps)._replace(key=key)
        expected, _ = learner.gradient(loss, loss, META, episode, IT)
        alone = learner.path(loss, META, episode.support, IT, key)
        for name, value in expected.items():
            assert value.any()
            torch.testing.assert_close(slopes[name][task], value, rtol=1e-10, atol=1e-12)
        for ours, theirs in zip(path, alone, strict=True):
            for name, value in theirs.items():
                torch.testing.assert_close(ours[name][task], value, rtol=1e-10, atol=1e-12)


def test_the_estimate_is_a_hand_written_loop_over_its_candidates():
    seen = []

    def recorded(candidates, stage):
        seen.append((stage, candidates, score(candidates, stage)))
        return seen[-1][-1]

    learner = replace(SMALL, steps=1, sigma=0.2)
    slopes, _ = learner.es_gradient(recorded, META, KEYS)
    (first, tried, inner), (last, adapted, losses) = seen
    assert (first, last) == (0, 1)
    assert tried["gain"].shape == (3, 7, 4, 2, 2) and adapted["gain"].shape == (3, 6, 2, 2)
    for name, centre in META.items():
        for task in range(3):
            total = torch.zeros_like(centre)
            for pair in range(3):
                starts = [tried[name][task, pair + 3 * side].mean(0) for side in (0, 1)]
                for side, start in enumerate(starts):
                    candidates = tried[name][task, pair + 3 * side]
                    slope = torch.zeros_like(centre)
                    for up, down in ((0, 2), (1, 3)):
                        judged = inner[task, pair + 3 * side]
                        rise = judged[up] - judged[down]
                        slope += rise * (candidates[up] - start) / (2 * 2 * 0.1**2)
                    moved = start - 0.02 * slope
                    torch.testing.assert_close(adapted[name][task, pair + 3 * side], moved)
                rise = losses[task, pair] - losses[task, pair + 3]
                total += rise * (starts[0] - centre) / (2 * 3 * 0.2**2)
            torch.testing.assert_close(slopes[name][task], total, rtol=1e-9, atol=1e-9)


def test_equal_returns_teach_nothing():
    def equal(candidates, stage):
        return torch.full(candidates["push"].shape[:-1], 7.0, dtype=torch.float64)

    for learner in (SMALL, replace(SMALL, adaptation="hill-climb")):
        slopes, path = learner.es_gradient(equal, META, KEYS)
        for name, value in META.items():
            assert not slopes[name].any()
            torch.testing.assert_close(path[-1][name], value.expand(3, *value.shape))


def test_it_goes_on_where_it_stopped():
    start = {name: value.expand(3, 1, *value.shape) for name, value in META.items()}
    *_, whole = SMALL.zeroth_order_path(score, start, KEYS, steps=3)
    *_, half = SMALL.zeroth_order_path(score, start, KEYS, steps=1)
    *_, rest = SMALL.zeroth_order_path(score, half, KEYS, steps=2, done=1)
    for name, value in whole.items():
        torch.testing.assert_close(rest[name], value, rtol=1e-12, atol=0)
