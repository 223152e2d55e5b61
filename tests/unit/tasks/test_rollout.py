"""Rollouts: the samplers, the masks, the purity and the errors, on families of a few numbers."""

import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from maml_dist.core.data.simulator import EnvironmentFault, Simulator, StepResult
from maml_dist.core.data.task_source import TaskKey
from maml_dist.tasks.grid import Grid
from maml_dist.tasks.navigation import Navigation, Points
from maml_dist.tasks.rollout import Goal, Rollouts


class Counters(Simulator):
    """Observes the step; an episode ends after as many steps as its goal and its number say."""

    def __init__(self, tasks, episodes, wrong):
        self.length = np.array([task.value for task in tasks]) + np.arange(episodes)
        self.time, self.wrong = 0, wrong

    def reset(self):
        return np.zeros((*self.length.shape, 1)[: 2 if self.wrong == "first" else 3])

    def step(self, actions):
        self.time += 1
        values = np.where(self.time > self.length, np.nan, 1.0 * self.time)
        rewards = values.copy()
        if self.time == 3 and self.wrong == "reward":
            rewards[1, 0] = np.inf
        if self.time == 3 and self.wrong == "observation":
            values[1, 1] = np.nan
        if self.time == 3 and self.wrong == "fault":
            raise EnvironmentFault(1, "it broke") from OSError("at the joint")
        observations, ended = values[..., None], self.time >= self.length
        if self.time == 3 and self.wrong == "raises":
            raise KeyError("leg")
        if self.time == 3 and self.wrong == "few":
            return observations, rewards
        if self.time == 3 and self.wrong == "none":
            return StepResult(observations, np.full(rewards.shape, None), ended)
        if self.time == 3:
            observations = observations[:, :1] if self.wrong == "seen" else observations
            rewards = rewards[:, :1] if self.wrong == "paid" else rewards
            ended = ended[0] if self.wrong == "ended" else ended
        return StepResult(observations, rewards, ended)


@dataclass(frozen=True)
class Counting(Rollouts):
    wrong: str = ""

    state_dim = 1
    goal_dim = 1
    action_dim = 1
    collect = loss = None

    def sample(self, key):
        return Goal(key, (float(3 + 2 * key.index),))

    def simulator(self, tasks, *, stage):
        return Counters(tasks, self.episodes, self.wrong)


@dataclass(frozen=True)
class Walks(Navigation):
    collect = loss = None


@dataclass(frozen=True)
class Mazes(Grid):
    collect = loss = None


for family in (Counting, Walks, Mazes):  # the half that these tests are not about
    family.__abstractmethods__ = frozenset()


def drawn(source, count):
    return [source.sample(TaskKey(7, "train", 3, index)) for index in range(count)]


def constant(*output):
    return lambda seen: torch.tensor(output).expand(*seen.shape[:-1], -1)


def linear(source, out):
    """A policy with weights of its own for each task, applied task by task."""

    def of(tasks):
        weights = [
            torch.randn(source.obs_dim, out, generator=torch.Generator().manual_seed(index))
            for index in (task.key.index for task in tasks)
        ]
        return lambda seen: torch.stack([x @ w for x, w in zip(seen, weights, strict=True)])

    return of


def test_masked_up_to_and_with_the_last_step_and_zero_after_it():
    source = Counting(horizon=6, episodes=2)
    rolled = source.roll(constant(0.5, 0.0), drawn(source, 2), stage=0)
    assert rolled.mask.sum(-1).tolist() == [[3, 4], [5, 6]]
    assert (rolled.mask.diff(dim=-1) <= 0).all()
    time = torch.arange(6.0)
    assert torch.equal(rolled.observations[..., 0], time * rolled.mask)
    assert torch.equal(rolled.rewards, (time + 1) * rolled.mask)
    assert torch.equal(rolled.outputs[..., 0], 0.5 * rolled.mask)
    assert (rolled.actions[..., 0][rolled.mask == 0] == 0).all()


def test_stops_when_all_have_ended():
    source, asked = Counting(horizon=50, episodes=2), []

    def policy(seen):
        asked.append(1)
        return seen.repeat_interleave(2, -1)

    rolled = source.roll(policy, drawn(source, 2), stage=0)
    assert len(asked) == 6 and rolled.rewards.shape == (2, 2, 50)


def test_gaussian_actions_are_mean_plus_deviation_times_the_tasks_noise():
    source = Counting(horizon=3, episodes=2)
    tasks = drawn(source, 2)
    rolled = source.roll(constant(2.0, np.log(0.5)), tasks, stage=4)
    for index, task in enumerate(tasks):
        noise = task.key.rng(2 * 4 + 2).standard_normal((3, 2, 1), dtype=np.float32)
        np.testing.assert_allclose(
            rolled.actions[index], 2 + 0.5 * noise.transpose(1, 0, 2), rtol=1e-6
        )


def test_categorical_actions_have_the_policys_probabilities():
    source = Mazes(episodes=400, size=9, horizon=4)
    probabilities = torch.tensor([0.4, 0.0, 0.3, 0.2, 0.1])
    rolled = source.roll(
        constant(*probabilities.log().clip(-50).tolist()), drawn(source, 5), stage=0
    )
    assert rolled.actions.dtype == torch.int64 and rolled.actions.shape == (5, 400, 4)
    counts = torch.bincount(rolled.actions[rolled.mask == 1], minlength=5) / rolled.mask.sum()
    assert torch.allclose(counts, probabilities, atol=0.03) and counts[1] == 0


@pytest.mark.parametrize("source", [Walks(episodes=4), Mazes(episodes=4), Walks(oracle=True)])
def test_a_task_alone_is_the_task_in_the_batch_to_the_bit(source):
    policy = linear(source, source.action_dim * (1 if source.discrete else 2))
    tasks = drawn(source, 5)
    together = source.roll(policy(tasks), tasks, stage=1)
    for index, task in enumerate(tasks):
        alone = source.roll(policy([task]), [task], stage=1)
        for part, whole in zip(alone[:5], together[:5], strict=True):
            assert torch.equal(part[0], whole[index])


def test_stages_differ_and_repeat():
    source = Walks(episodes=2, horizon=5)
    tasks = drawn(source, 2)
    first, again, second = (
        source.roll(constant(0.0, 0.0, 0.0, 0.0), tasks, stage=stage).actions for stage in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.isclose(first, second).any()


def test_the_oracle_sees_the_goal_behind_the_rest():
    source = Walks(episodes=2, horizon=5, oracle=True)
    tasks = drawn(source, 3)
    rolled = source.roll(constant(0.0, 0.0, 0.0, 0.0), tasks, stage=0)
    goals = torch.tensor([task.value for task in tasks])[:, None, None].expand(3, 2, 5, 2)
    assert source.obs_dim == 4 and torch.equal(rolled.observations[..., 2:], goals)


WHERE = "after 4 adaptation steps, step"


@pytest.mark.parametrize(
    "wrong, says",
    [
        ("reward", f"task 1 of iteration 3, goal (5.0,), {WHERE} 2: rewards are not finite"),
        ("observation", f"task 1 of iteration 3, goal (5.0,), {WHERE} 2: observations are not"),
        ("fault", f"task 1 of iteration 3, goal (5.0,), {WHERE} 2: it broke"),
        ("raises", f"tasks [0, 1] of iteration 3, {WHERE} 2: the simulator raised KeyError: 'leg'"),
        ("first", f"{WHERE} 0: observations have shape (2, 2), not (2, 2, 1): [task, episode, num"),
        ("seen", f"{WHERE} 2: observations have shape (2, 1, 1), not (2, 2, 1): [task, episode, n"),
        ("paid", f"{WHERE} 2: rewards have shape (2, 1), not (2, 2): [task, episode]"),
        ("ended", f"{WHERE} 2: ended have shape (2,), not (2, 2): [task, episode]"),
        ("few", f"{WHERE} 2: the simulator raised ValueError: not enough values to unpack"),
        ("none", f"{WHERE} 2: the simulator raised TypeError: "),
    ],
)
def test_what_fails_names_the_task_and_the_step(wrong, says):
    source = Counting(horizon=6, episodes=2, wrong=wrong)
    with pytest.raises(ValueError, match=re.escape(says)):
        source.roll(constant(0.0, 0.0), drawn(source, 2), stage=4)


def test_what_fails_on_a_held_out_task_names_the_split():
    source = Counting(horizon=6, episodes=2, wrong="reward")
    tasks = [source.sample(TaskKey(7, "val", 0, index)) for index in range(2)]
    with pytest.raises(ValueError, match="^val task 1, goal .*, after 0 adaptation steps, step 2"):
        source.roll(constant(0.0, 0.0), tasks, stage=0)


@pytest.mark.parametrize("output", [float("nan"), 100.0])
def test_a_policy_that_diverges_takes_its_own_task_along_and_no_other(output):
    """By its log_std: not a number, or so large that the action is infinite."""
    source, given = Walks(horizon=6, episodes=3), []

    class Watched(Points):
        def step(self, actions):
            given.append(actions)
            return super().step(actions)

    def wild(seen):
        outputs = torch.zeros(*seen.shape[:-1], 4)
        if len(given) == 2:
            outputs[1, 0, 2] = output
        return outputs

    tasks = drawn(source, 3)
    calm = source.roll(constant(0.0, 0.0, 0.0, 0.0), tasks, stage=0)
    object.__setattr__(
        source, "simulator", lambda tasks, stage: Watched(np.array([t.value for t in tasks]), 3)
    )
    rolled = source.roll(wild, tasks, stage=0)
    assert rolled.mask[1].sum(-1).tolist() == [3, 6, 6]
    assert rolled.rewards[1, 0, 2].isnan() and rolled.rewards[1, 0, 3:].eq(0).all()
    assert all(np.isfinite(actions).all() for actions in given)
    for ours, theirs in zip(rolled[:5], calm[:5], strict=True):
        assert torch.equal(ours[[0, 2]], theirs[[0, 2]])
        assert torch.equal(ours[1, 1:], theirs[1, 1:])
    batch, scores = source.policy_gradient.compute_advantages(rolled, source.distribution)
    assert scores["return"].isnan().tolist() == [False, True, False]
    assert batch.y.advantage[1].isnan().any() and batch.y.advantage[[0, 2]].isfinite().all()


def test_a_diverged_policy_of_discrete_actions_too():
    source = Mazes(horizon=6, episodes=2)
    tasks = drawn(source, 2)

    def wild(seen):
        outputs = torch.zeros(*seen.shape[:-1], 5)
        outputs[0] = torch.nan
        return outputs

    rolled = source.roll(wild, tasks, stage=0)
    assert (
        rolled.mask[0].tolist() == [[1, 0, 0, 0, 0, 0]] * 2
        and rolled.rewards[0, :, 0].isnan().all()
    )
    assert rolled.rewards[1].isfinite().all() and rolled.outputs[0, :, 1:].eq(0).all()


def test_counts_must_be_positive():
    with pytest.raises(ValueError, match="task.horizon=0: must be 1 or more"):
        Counting(horizon=0)
