"""Ants against Gymnasium's own environment, and against one simulation that derives all."""

import importlib.util
import sys
from types import ModuleType

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from maml_dist.core.data.task_source import TaskKey
from maml_dist.tasks.mujoco import physics
from maml_dist.tasks.mujoco.ant import REST, Ant


@pytest.fixture(autouse=True)
def without_the_half_that_learns(monkeypatch):
    monkeypatch.setattr(Ant, "__abstractmethods__", frozenset())
    if importlib.util.find_spec("imageio") is None:  # which Gymnasium needs for films only
        monkeypatch.setitem(sys.modules, "imageio", ModuleType("imageio"))


def drawn(source, count):
    return [source.sample(TaskKey(7, "train", 3, index)) for index in range(count)]


def actions(steps, tasks, episodes):
    return np.random.default_rng(0).uniform(-1, 1, (steps, tasks, episodes, 8))


@pytest.mark.parametrize("goal", ["direction", "velocity"])
def test_gymnasium_profile_is_gymnasiums_environment_to_the_bit(goal):
    source = Ant(goal=goal, profile="gymnasium", episodes=3)
    tasks = drawn(source, 3)
    simulator = source.simulator(tasks, stage=0)
    # One is thrown over the bounds of health, and must end when Gymnasium's does.
    simulator.start[0][2, 2, 2], simulator.start[1][2, 2, 2] = 0.95, 2.0
    environments = [[gymnasium.make("Ant-v5").unwrapped for _ in range(3)] for _ in tasks]
    seen = simulator.reset()
    assert seen.shape == (3, 3, source.obs_dim)
    for task, row in enumerate(environments):
        for episode, environment in enumerate(row):
            environment.reset(seed=0)
            environment.set_state(*(start[task, episode] for start in simulator.start))
            assert np.array_equal(seen[task, episode], environment._get_obs())
    over, felt = np.zeros((3, 3), bool), 0
    for chosen in actions(60, 3, 3):
        stepped = simulator.step(chosen)
        for task, row in enumerate(environments):
            for episode, environment in enumerate(row):
                if over[task, episode]:
                    continue
                seen, _, ended, _, info = environment.step(chosen[task, episode])
                assert np.array_equal(stepped.observations[task, episode], seen)
                felt += np.abs(seen[27:]).max() > 0
                over[task, episode] = ended
                assert stepped.ended[task, episode] == ended
                wanted, velocity = tasks[task].value[0], info["x_velocity"]
                gain = wanted * velocity if goal == "direction" else 1 - abs(velocity - wanted)
                costs = -info["reward_ctrl"] - info["reward_contact"]
                assert stepped.rewards[task, episode] == gain + info["reward_survive"] - costs
        assert np.array_equal(stepped.ended, over)
    assert over[2, 2] and over.sum() < 9 and felt > 30


@pytest.fixture
def reference():
    """The released code's ant, one at a time: all is derived at the new state, forces too."""
    text = (physics.MODELS / "ant.xml").read_text()
    for old, new in [
        ('timestep="0.01"', 'timestep="0.02"'),
        ('ctrlrange="-1.0 1.0"', 'ctrlrange="-150 150"'),
        ('gear="150"', 'gear="1"'),
    ]:
        assert old in text
        text = text.replace(old, new)
    return mujoco.MjModel.from_xml_string(text)


@pytest.mark.parametrize("goal", ["direction", "velocity"])
def test_paper_profile_against_one_simulation_that_derives_all(goal, reference):
    source = Ant(goal=goal, episodes=2)
    tasks = drawn(source, 2)
    simulator, data = source.simulator(tasks, stage=0), mujoco.MjData(reference)
    first = simulator.reset()
    data.qpos[:], data.qvel[:] = (start[1, 1] for start in simulator.start)

    def seen():
        mujoco.mj_forward(reference, data)
        mujoco.mj_subtreeVel(reference, data)
        mujoco.mj_rnePostConstraint(reference, data)
        forces = data.cfrc_ext.clip(-1, 1).ravel()
        parts = data.qpos, data.qvel, forces, data.xmat[1], data.subtree_com[1]
        return np.concatenate(parts), forces

    np.testing.assert_array_equal(first[1, 1], seen()[0])
    felt = 0
    for chosen in 0.3 * actions(100, 2, 2):
        stepped = simulator.step(chosen)
        data.ctrl[:] = 150 * chosen[1, 1]
        mujoco.mj_step(reference, data)
        observation, forces = seen()
        np.testing.assert_array_equal(stepped.observations[1, 1], observation)
        wanted, velocity = tasks[1].value[0], data.subtree_linvel[1, 0]
        gain = wanted * velocity if goal == "direction" else 1 - abs(velocity - wanted)
        reward = gain + 0.05 - 0.005 * (chosen[1, 1] ** 2).sum() - 0.0005 * (forces**2).sum()
        np.testing.assert_allclose(stepped.rewards[1, 1], reward, rtol=0, atol=1e-12)
        felt += np.abs(forces).max() > 0
        ended = not 0.2 <= data.qpos[2] <= 1
        assert stepped.ended[1, 1] == ended
        if ended:
            break
    assert felt > 10


def test_the_paid_velocity_is_the_displacement_of_the_centre_of_mass():
    source = Ant(episodes=2)
    simulator = source.simulator(drawn(source, 2), stage=0)
    before, timestep, errors, sizes = simulator.reset()[..., 122], 0.02, [], []
    last = np.full((2, 2), np.nan)
    for chosen in 0.2 * actions(60, 2, 2):
        stepped = simulator.step(chosen)
        forces = stepped.observations[..., 29:113]
        costs = 0.005 * (chosen**2).sum(-1) + 0.0005 * (forces**2).sum(-1)
        paid = (stepped.rewards - 0.05 + costs) / simulator.goals
        moved = (stepped.observations[..., 122] - before) / timestep
        running = ~stepped.ended
        errors += np.abs((last + paid) / 2 - moved)[running].tolist()
        sizes += np.abs(moved)[running].tolist()
        before, last = stepped.observations[..., 122], paid
    assert np.mean(sizes) > 0.1 and np.nanmean(errors) < 0.05 * np.mean(sizes)


def test_starts():
    source = Ant(episodes=2000)
    qpos, qvel = (start[0] for start in source.simulator(drawn(source, 1), stage=0).start)
    np.testing.assert_allclose(qpos.mean(0), REST, atol=0.001)
    np.testing.assert_allclose([(qpos - REST).std(), qvel.std()], [0.01, 0.1], rtol=0.03)
    source = Ant(episodes=2000, profile="gymnasium")
    qpos, qvel = (start[0] for start in source.simulator(drawn(source, 1), stage=0).start)
    np.testing.assert_allclose([np.ptp(qpos, axis=0).max(), qvel.std()], [0.2, 0.1], rtol=0.03)


@pytest.mark.parametrize("profile", ["paper", "gymnasium"])
def test_a_task_alone_is_the_task_in_the_batch_to_the_bit(profile):
    source = Ant(profile=profile, episodes=3, horizon=150, oracle=True)

    def policy(seen):
        return torch.cat([seen[..., :8], seen[..., 10:18] / 4], -1)

    tasks = drawn(source, 3)
    together = source.roll(policy, tasks, stage=1)
    assert together.observations.shape == (3, 3, 150, source.obs_dim)
    assert together.mask.min() == 0  # some fall
    for index, task in enumerate(tasks):
        alone = source.roll(policy, [task], stage=1)
        assert alone.scores is None  # the rest are tensors
        for part, whole in zip(alone[:-1], together[:-1], strict=True):
            assert torch.equal(part[0], whole[index])


def test_starts_are_a_function_of_key_and_stage():
    source = Ant(episodes=2)
    starts = [source.simulator(drawn(source, 2), stage=stage).start[1] for stage in (0, 0, 1)]
    assert np.array_equal(starts[0], starts[1])
    assert not np.isclose(starts[0], starts[2]).any()


def test_goals():
    ways = {goal.value[0] for goal in drawn(Ant(), 50)}
    speeds = np.array([goal.value[0] for goal in drawn(Ant(goal="velocity"), 1000)])
    assert ways == {-1.0, 1.0}
    assert 0 <= speeds.min() < 0.03 and 2.97 < speeds.max() <= 3


@pytest.mark.parametrize("profile", ["paper", "gymnasium"])
def test_a_simulation_that_blows_up_ends_its_episode(profile, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves a log
    source = Ant(profile=profile, episodes=2, horizon=5)
    simulator = source.simulator(drawn(source, 2), stage=0)
    simulator.start[0][1, 0, 0], simulator.start[1][1, 0] = 1e6, 1e9
    simulator.reset()
    for chosen in 0.1 * actions(5, 2, 2):
        stepped = simulator.step(chosen)
        assert np.abs(stepped.rewards).max() < 50  # where it was thrown to is no progress
    assert stepped.ended.tolist() == [[False, False], [True, False]]


def test_actions_that_are_not_numbers_end_the_episode():
    source = Ant(episodes=2, horizon=5)
    policy = lambda seen: torch.full((3, 2, 16), torch.nan)  # noqa: E731 - all there is to it
    rolled = source.roll(policy, drawn(source, 3), stage=0)
    assert rolled.rewards[..., 0].isnan().all() and rolled.mask.sum() == 6
