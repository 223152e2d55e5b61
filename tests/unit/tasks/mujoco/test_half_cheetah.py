"""Half-cheetahs against Gymnasium's own environment, and against MuJoCo's own sensors."""

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
from maml_dist.tasks.mujoco.half_cheetah import HalfCheetah


@pytest.fixture(autouse=True)
def without_the_half_that_learns(monkeypatch):
    monkeypatch.setattr(HalfCheetah, "__abstractmethods__", frozenset())
    if importlib.util.find_spec("imageio") is None:  # which Gymnasium needs for films only
        monkeypatch.setitem(sys.modules, "imageio", ModuleType("imageio"))


def drawn(source, count):
    return [source.sample(TaskKey(7, "train", 3, index)) for index in range(count)]


def actions(steps, tasks, episodes):
    return np.random.default_rng(0).uniform(-1, 1, (steps, tasks, episodes, 6))


@pytest.mark.parametrize("goal", ["direction", "velocity"])
def test_gymnasium_profile_is_gymnasiums_environment_to_the_bit(goal):
    source = HalfCheetah(goal=goal, profile="gymnasium", episodes=2)
    tasks = drawn(source, 3)
    simulator = source.simulator(tasks, stage=0)
    environments = [[gymnasium.make("HalfCheetah-v5").unwrapped for _ in range(2)] for _ in tasks]
    seen = simulator.reset()
    assert seen.shape == (3, 2, source.obs_dim)
    for task, row in enumerate(environments):
        for episode, environment in enumerate(row):
            environment.reset(seed=0)
            environment.set_state(*(start[task, episode] for start in simulator.start))
            assert np.array_equal(seen[task, episode], environment._get_obs())
    for chosen in actions(60, 3, 2):
        stepped = simulator.step(chosen)
        for task, row in enumerate(environments):
            for episode, environment in enumerate(row):
                seen, _, ended, _, info = environment.step(chosen[task, episode])
                assert np.array_equal(stepped.observations[task, episode], seen)
                assert stepped.ended[task, episode] == ended
                wanted, velocity = tasks[task].value[0], info["x_velocity"]
                gain = wanted * velocity if goal == "direction" else -abs(velocity - wanted)
                assert stepped.rewards[task, episode] == gain + info["reward_ctrl"]


def test_gymnasium_profile_starts_as_gymnasium_does():
    source = HalfCheetah(profile="gymnasium", episodes=2000)
    qpos, qvel = source.simulator(drawn(source, 1), stage=0).start
    assert np.abs(qpos).max() <= 0.1
    np.testing.assert_allclose(qpos.std(), 0.1 / np.sqrt(3), rtol=0.03)
    np.testing.assert_allclose(qvel.std(), 0.1, rtol=0.03)


@pytest.fixture
def reference():
    """The released code's simulation, one at a time: MuJoCo refreshes and senses all."""
    model = physics.spec("half_cheetah")
    for kind in (mujoco.mjtSensor.mjSENS_SUBTREECOM, mujoco.mjtSensor.mjSENS_SUBTREELINVEL):
        physics.sense(model, kind)
    return physics.compiled(model)


@pytest.mark.parametrize("goal", ["direction", "velocity"])
def test_paper_profile_against_one_simulation_that_senses_all(goal, reference):
    source = HalfCheetah(goal=goal, episodes=2)
    tasks = drawn(source, 2)
    simulator, data = source.simulator(tasks, stage=0), mujoco.MjData(reference)
    first = simulator.reset()
    data.qpos[:], data.qvel[:] = (start[1, 1] for start in simulator.start)
    mujoco.mj_forward(reference, data)

    def seen():
        return np.concatenate([data.qpos[1:], data.qvel, data.sensordata[:3]])

    np.testing.assert_allclose(first[1, 1], seen(), rtol=0, atol=1e-14)
    for chosen in 1.5 * actions(100, 2, 2):  # some beyond the range
        stepped = simulator.step(chosen)
        data.ctrl[:] = action = chosen[1, 1].clip(-1, 1)
        mujoco.mj_step(reference, data)
        mujoco.mj_forward(reference, data)
        np.testing.assert_allclose(stepped.observations[1, 1], seen(), rtol=0, atol=1e-9)
        wanted, velocity = tasks[1].value[0], data.sensordata[3]
        gain = wanted * velocity if goal == "direction" else -abs(velocity - wanted)
        reward = gain - 0.05 * (action**2).sum()
        np.testing.assert_allclose(stepped.rewards[1, 1], reward, rtol=0, atol=1e-9)
        assert not stepped.ended.any()


def test_the_paid_velocity_is_the_displacement_of_the_centre_of_mass():
    source = HalfCheetah(episodes=3)
    simulator = source.simulator(drawn(source, 2), stage=0)
    before, timestep, errors, sizes = simulator.reset()[..., 17], 0.01, [], []
    last = np.full((2, 3), np.nan)
    for chosen in actions(100, 2, 3):
        stepped = simulator.step(chosen)
        paid = (stepped.rewards + 0.05 * (chosen**2).sum(-1)) / simulator.goals
        moved = (stepped.observations[..., 17] - before) / timestep
        errors.append(np.abs((last + paid) / 2 - moved).mean())
        sizes.append(np.abs(moved).mean())
        before, last = stepped.observations[..., 17], paid
    assert np.mean(sizes) > 0.1 and np.nanmean(errors) < 0.07 * np.mean(sizes)


def test_paper_profile_starts_as_the_released_code_does():
    source = HalfCheetah(episodes=2000)
    qpos, qvel = source.simulator(drawn(source, 1), stage=0).start
    np.testing.assert_allclose([qpos.std(), qvel.std()], [0.01, 0.1], rtol=0.03)


@pytest.mark.parametrize("profile", ["paper", "gymnasium"])
def test_a_task_alone_is_the_task_in_the_batch_to_the_bit(profile):
    source = HalfCheetah(profile=profile, episodes=3, horizon=30, oracle=True)

    def policy(seen):
        return torch.cat([seen[..., :6], seen[..., 10:16] / 4], -1)

    tasks = drawn(source, 3)
    together = source.roll(policy, tasks, stage=1)
    assert together.observations.shape == (3, 3, 30, source.obs_dim)
    for index, task in enumerate(tasks):
        alone = source.roll(policy, [task], stage=1)
        assert alone.scores is None  # the rest are tensors
        for part, whole in zip(alone[:-1], together[:-1], strict=True):
            assert torch.equal(part[0], whole[index])


def test_starts_are_a_function_of_key_and_stage():
    source = HalfCheetah(episodes=2)
    starts = [source.simulator(drawn(source, 2), stage=stage).start[0] for stage in (0, 0, 1)]
    assert np.array_equal(starts[0], starts[1])
    assert not np.isclose(starts[0], starts[2]).any()
    assert not np.isclose(starts[0][0], starts[0][1]).any()


def test_goals():
    ways = {goal.value[0] for goal in drawn(HalfCheetah(), 50)}
    speeds = np.array([goal.value[0] for goal in drawn(HalfCheetah(goal="velocity"), 1000)])
    assert ways == {-1.0, 1.0}
    assert 0 <= speeds.min() < 0.02 and 1.98 < speeds.max() <= 2


def test_actions_that_are_not_numbers_end_the_episode():
    source = HalfCheetah(episodes=2, horizon=5)
    tasks = drawn(source, 3)

    def policy(seen):
        output = torch.zeros(*seen.shape[:-1], 12)
        output[2, 0, 3] = torch.nan
        return output

    rolled = source.roll(policy, tasks, stage=0)
    assert rolled.mask.sum(-1).tolist() == [[5, 5], [5, 5], [1, 5]]
    assert rolled.rewards.isnan().nonzero().tolist() == [[2, 0, 0]]


@pytest.mark.parametrize("goal", ["direction", "velocity"])
@pytest.mark.parametrize("profile", ["paper", "gymnasium"])
def test_a_simulation_that_blows_up_ends_its_episode(profile, goal, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves a log
    source = HalfCheetah(profile=profile, goal=goal, episodes=2, horizon=5)
    tasks = drawn(source, 2)

    def policy(seen):
        return torch.zeros(*seen.shape[:-1], 12) - 0.5

    calm, start = source.roll(policy, tasks, stage=0), HalfCheetah._start
    drawn_before = []

    def thrown(self, rng):
        qpos, qvel = start(self, rng)
        if drawn_before:  # the second task's first
            qpos[0, 0], qvel[0] = 3e9, 1e9
        drawn_before.append(rng)
        return qpos, qvel

    monkeypatch.setattr(HalfCheetah, "_start", thrown)
    rolled = source.roll(policy, tasks, stage=0)
    assert rolled.mask.sum(-1).tolist() == [[5, 5], [1, 5]]
    assert rolled.rewards.isfinite().all() and rolled.observations.isfinite().all()
    # Of the step that was lost: no progress, and the action's cost.
    effort = (rolled.actions[1, 0, 0].clip(-1, 1) ** 2).sum()
    progress = -tasks[1].value[0] if goal == "velocity" else 0
    cost = (0.1 if profile == "gymnasium" else 0.05) * effort
    assert rolled.rewards[1, 0, 0] == pytest.approx(float(progress - cost), rel=1e-5)
    for ours, theirs in zip(rolled[:-1], calm[:-1], strict=True):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1, 1], theirs[1, 1])


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"goal": "speed"}, "task.goal='speed': must be direction or velocity"),
        ({"profile": "v5"}, "task.profile='v5': must be paper or gymnasium"),
        ({"threads": 0}, "task.threads=0: must be 1 or more"),
    ],
)
def test_settings_that_are_not(settings, says):
    with pytest.raises(ValueError, match=says):
        HalfCheetah(**settings)
