"""Navigation against its definition, stepped by hand."""

import numpy as np

from maml_dist.core.data.task_source import TaskKey
from maml_dist.tasks.navigation import Navigation, Points


def sampled(count):
    return np.array(
        [Navigation.sample(None, TaskKey(0, "train", 0, index)).value for index in range(count)]
    )


def test_goals_fill_the_square():
    goals = sampled(2000)
    assert np.abs(goals).max() <= 0.5
    np.testing.assert_allclose(goals.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(goals.var(0), 1 / 12, atol=0.006)


def test_every_step_by_hand():
    rng, goals = np.random.default_rng(0), sampled(3)
    points = Points(goals, 2)
    assert (points.reset() == 0).all()
    here = np.zeros((3, 2, 2))
    for _ in range(20):
        actions = rng.normal(size=(3, 2, 2)).astype(np.float32)
        seen, rewards, ended, _ = points.step(actions)
        for task, goal in enumerate(goals):
            for episode in range(2):
                for axis in range(2):
                    move = min(1.0, max(-1.0, float(actions[task, episode, axis])))
                    here[task, episode, axis] += 0.1 * move
                away = here[task, episode] - goal
                assert np.array_equal(seen[task, episode], here[task, episode])
                np.testing.assert_allclose(rewards[task, episode], -np.hypot(*away), rtol=1e-12)
                assert not ended[task, episode]


def test_ends_near_the_goal_on_both_axes():
    points = Points(np.array([[0.1, 0.05]]), 4)
    points.reset()
    moves = np.array([[[1, 0.5], [1.09, 0.59], [1, 0.61], [0.89, 0.5]]])  # 1.09 is clipped to 1
    assert points.step(moves).ended.tolist() == [[True, True, False, False]]
