"""Trained policies: acting, adapting in an environment, and their pictures."""

import gymnasium
import numpy as np
import pytest
import torch

import maml_dist
from maml_dist.core.data.task_source import TaskKey
from maml_dist.core.random import fold, keys, normal
from maml_dist.reporting.navigation import collect, navigation
from maml_dist.reporting.plotting import STYLES, PlottedRun
from maml_dist.runs.run import Run

SMALL = {"iterations": 2, "meta_batch": 3, "checkpoint_every": 1, "validation_tasks": 2}
SMALL |= {"test_steps": 2, "test_tasks": 4, "task.episodes": 3, "task.horizon": 8}
SMALL |= {"local": True, "progress": False, "engine.running": "eager"}
SMALL |= {"engine.batching": "vmap"}

EVOLVED = {**SMALL, "num_perturbations": 2, "num_inner_perturbations": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder, few = tmp_path_factory.mktemp("runs"), {"outer.iterations": 3}
    return maml_dist.meta_train("navigation", run=folder / "n", **SMALL, **few)


@pytest.fixture(scope="module")
def evolved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evolved")
    return maml_dist.meta_train("navigation-es", run=folder / "run", **EVOLVED)


class Point(gymnasium.Env):
    """Navigation to one goal, as a user would write it."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))
    goal = np.array([0.3, 0.2])

    def reset(self, *, seed=None, options=None):
        self.position = np.zeros(2)
        return self.position, {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.position = self.position + 0.1 * action
        away = np.linalg.norm(self.position - self.goal)
        return self.position, -away, bool(away < 0.01), False, {}


def test_it_acts_greedily_or_draws(run):
    policy = maml_dist.load(run.path)
    one, many = policy.act(np.zeros(2)), policy.act(np.zeros((4, 2)))
    assert one.shape == (2,) and many.shape == (4, 2) and np.allclose(many[0], one, atol=1e-6)
    output = policy(torch.zeros(2)).detach().numpy()
    assert np.allclose(one, output[:2], atol=1e-6)
    drawn = policy.act(np.zeros((5000, 2)), generator=np.random.default_rng(0))
    assert np.allclose(drawn.mean(0), output[:2], atol=0.1)
    assert np.allclose(drawn.std(0), np.exp(output[2:]), rtol=0.1)


def test_it_adapts_in_an_environment_by_the_policy_gradient(run):
    policy = maml_dist.load(run.path)
    before = {name: value.clone() for name, value in policy.named_parameters()}
    adapted = policy.adapt(Point(), steps=1, seed=3)
    source = run.experiment.task
    rolled = policy._live(Point(), np.random.default_rng([3, 0]))
    batch, _ = source.policy_gradient.compute_advantages(rolled, source.distribution)
    log_prob = source.distribution.log_prob(policy(batch.x[0]), batch.y.action[0])
    mask = batch.y.mask[0]
    loss = -(log_prob * batch.y.advantage[0] * mask).sum() / mask.sum()
    slopes = torch.autograd.grad(loss, list(policy.parameters()))
    for (name, value), slope in zip(policy.named_parameters(), slopes, strict=True):
        moved = dict(adapted.named_parameters())[name]
        assert torch.allclose(moved, value - run.experiment.learner.alpha * slope, atol=1e-6)
        assert torch.equal(value, before[name])


def slopes_of(policy, source, rolled):
    """The policy gradient's loss of one task's episodes, written out and differentiated."""
    batch, _ = source.policy_gradient.compute_advantages(rolled, source.distribution)
    like = next(policy.parameters())
    x, action, advantage, mask = (
        t[0].to(like) for t in (batch.x, batch.y.action, batch.y.advantage, batch.y.mask)
    )
    mean, log_std = policy(x).chunk(2, -1)
    log_prob = torch.distributions.Normal(mean, log_std.exp()).log_prob(action).sum(-1)
    loss = -(log_prob * advantage * mask).sum() / mask.sum()
    return torch.autograd.grad(loss, list(policy.parameters()))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_what_the_inner_rule_carries_is_carried_over_the_steps(tmp_path, precision):
    momentum = {"learner.inner.class_path": "Momentum"}
    momentum |= {"learner.inner.decay": 0.5, "learner.alpha": 0.1, "engine.precision": precision}
    settings = {**SMALL, **momentum, "iterations": 0}
    run = maml_dist.meta_train("navigation", run=tmp_path / "run", **settings)
    policy, source, task = maml_dist.load(run.path), run.experiment.task, goal(run)

    def in_env(policy, step):
        return policy._live(Point(), np.random.default_rng([3, step]))

    def of_its_own(policy, step):
        act = lambda seen: policy(seen.to(next(policy.parameters()).dtype)).float()  # noqa: E731
        return source.roll(act, [task], stage=step)

    for adapt, lives in (
        (lambda steps: policy.adapt(Point(), steps=steps, seed=3), in_env),
        (lambda steps: policy.learn(task, steps=steps), of_its_own),
    ):
        one, two = adapt(1), adapt(2)
        assert next(two.parameters()).dtype is getattr(torch, precision)
        first = slopes_of(policy, source, lives(policy, 0))
        second = slopes_of(one, source, lives(one, 1))
        tensors = zip(policy.parameters(), two.parameters(), first, second, strict=True)
        for start, moved, g1, g2 in tensors:  # the rates are 0.1 and half of it
            expected = start - 0.1 * g1 - 0.05 * (0.5 * g1 + g2)
            assert torch.allclose(moved, expected, atol=2e-6)


def goal(run, index=0):
    return run.experiment.task.sample(maml_dist.core.data.task_source.TaskKey(0, "test", 0, index))


def test_later_steps_have_the_later_rate(run):
    policy = maml_dist.load(run.path)
    task = run.experiment.task.sample(maml_dist.core.data.task_source.TaskKey(0, "test", 0, 0))
    one, two = policy.learn(task, steps=1), policy.learn(task, steps=2)
    lived = collect(run, tasks=1, steps=2)
    assert torch.allclose(lived.support[1].y.old_output[0, 0, 0], one(lived.support[1].x[0, 0, 0]))
    assert torch.allclose(lived.query.y.old_output[0, 0, 0], two(lived.query.x[0, 0, 0]), atol=1e-5)


def test_by_evolution_it_adapts_to_a_task_as_a_shard_does(evolved):
    policy = maml_dist.load(evolved.path)
    task = evolved.experiment.task.sample(maml_dist.core.data.task_source.TaskKey(0, "test", 0, 0))
    lived = collect(evolved, tasks=1, steps=2)
    for stage, batch in enumerate((*lived.support, lived.query)):
        there = policy.learn(task, steps=stage)(batch.x[0, 0, 0])
        assert torch.allclose(batch.y.old_output[0, 0, 0], there, atol=1e-5)
    assert len(maml_dist.meta_test(evolved)["results"][0]["steps"]) == 3


def test_by_evolution_every_candidate_lives_in_the_environment(evolved):
    policy, learner = maml_dist.load(evolved.path), evolved.experiment.learner
    (adapts,) = learner.adapted
    adapted = policy.adapt(Point(), steps=1, seed=3)
    moves = {
        name: (value - dict(policy.named_parameters())[name]).detach()
        for name, value in adapted.named_parameters()
    }
    assert [name for name, move in moves.items() if move.any()] == [adapts]

    def loss(offset):
        trial = maml_dist.load(evolved.path)
        with torch.no_grad():
            dict(trial.named_parameters())[adapts].add_(offset)
        rewards = trial._live(Point(), np.random.default_rng([3, 0])).rewards
        return -float(rewards.sum(2).mean())

    key = fold(fold(keys(3, "adapt", 0, [0])[0], 0), 1 << 30)
    sigma, pairs = learner.inner_sigma, learner.num_inner_perturbations
    offsets = sigma * normal(key, (pairs, 2))
    slope = sum((loss(offset) - loss(-offset)) * offset for offset in offsets)
    expected = -learner.alpha * slope / (2 * pairs * sigma**2)
    assert torch.allclose(moves[adapts], expected, rtol=1e-3, atol=1e-6)
    assert not torch.allclose(moves[adapts], torch.zeros(2))


class Wide(Point):
    """Its actions are meant for other bounds than the policy's."""

    action_space = gymnasium.spaces.Box(np.float32([-4, -np.inf]), np.float32([2, np.inf]))

    def __init__(self):
        self.got = []

    def step(self, action):
        self.got.append(action)
        return self.position, 0.0, False, False, {}


class Faulty(Point):
    def __init__(self, observation, reward):
        self.observation, self.reward = observation, reward

    def step(self, action):
        return self.observation, self.reward, False, False, {}


def test_actions_are_scaled_to_the_bounds_as_in_training(run):
    env = Wide()
    rolled = maml_dist.load(run.path)._live(env, np.random.default_rng(0))
    meant = rolled.actions.reshape(-1, 2).numpy()
    expected = np.stack([np.clip(3 * meant[:, 0] - 1, -4, 2), meant[:, 1]], -1)
    np.testing.assert_allclose(np.stack(env.got), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (gymnasium.make("CartPole-v1"), "takes Discrete\\(2\\); the policy acts by 2 numbers"),
        (Faulty(np.zeros(3), 0.0), "the observation's shape is \\(3,\\), not \\(2,\\)"),
        (
            Faulty(np.full(2, np.nan), 0.0),
            "episode 0, step 1: the environment's observation is not",
        ),
        (Faulty(np.zeros(2), np.inf), "episode 0, step 0: the environment's reward is not finite"),
        (Faulty(np.zeros(2), None), "step 0: the reward is None: must be a number"),
        (Faulty(np.zeros(2), "much"), "step 0: the reward is 'much': must be a number"),
        (Faulty(np.array(["a", "b"]), 0.0), "the observation is array.*: must be numbers"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused(run, env, said):
    with pytest.raises(ValueError, match=said):
        maml_dist.load(run.path).adapt(env)


@pytest.mark.parametrize("name", ["run", "evolved"])
def test_no_step_is_a_copy_and_fewer_are_refused(name, request):
    path = request.getfixturevalue(name).path
    policy = maml_dist.load(path)
    same = policy.adapt(Point(), steps=0)
    assert same is not policy
    assert all(
        torch.equal(a, b) for a, b in zip(same.parameters(), policy.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match="steps=-1: must be a whole number"):
        policy.adapt(Point(), steps=-1)
    task = Run.open(path).shard_spec.source.sample(TaskKey(0, "test", 0, 0))
    with pytest.raises(ValueError, match="steps=-1: must be a whole number"):
        policy.learn(task, steps=-1)


def test_the_walks_are_drawn_to_the_goal(run):
    opened = Run.open(run.path)
    picture = navigation([PlottedRun("n", opened, maml_dist.meta_test(opened), *STYLES[0])])
    for index, axes in enumerate(picture.figure.axes):
        key = maml_dist.core.data.task_source.TaskKey(0, "test", 0, index)
        (goal,) = [line for line in axes.lines if line.get_label() == "goal"]
        assert tuple(goal.get_xydata()[0]) == run.experiment.task.sample(key).value
        assert all(tuple(line.get_xydata()[0]) == (0, 0) for line in axes.lines[:-2])


@pytest.mark.parametrize(
    ("recipe", "settings", "said"),
    [
        ("navigation", {"model.action_dim": 1}, "gives 2 numbers for an action; the tasks need 4"),
        ("navigation", {"model.obs_dim": 5}, "cannot act on observations of 2 numbers"),
        ("navigation", {"task.oracle": True}, "perhaps model.obs_dim=4"),
        ("navigation", {"engine.precision": "bfloat16"}, "engine.precision=bfloat16: rollouts act"),
        ("grid", {"model.action_dim": 4}, "gives 4 numbers for an action; the tasks need 5 logits"),
        (
            "navigation",
            {"learner.class_path": "ESMAML"},
            "outer=TrustRegion: needs derivatives of the policies, and learner=ESMAML takes none",
        ),
        (
            "navigation-promp",
            {"outer.epochs": 1},
            "task.policy_gradient.penalty=0.0005: does nothing in a first epoch",
        ),
        ("navigation-es", {"outer.epochs": 3}, "outer.epochs=3: must be 1 with learner=ESMAML"),
        (
            "navigation-es",
            {"task.policy_gradient.penalty": 0.1},
            "task.policy_gradient.penalty=0.1: must be 0 with learner=ESMAML",
        ),
        (
            "navigation",
            {"task.policy_gradient.clip": 0.2},
            "clip=0.2: does nothing with outer_surrogate=ratio; use clipped",
        ),
        ("sinusoid", {"rollout_workers": 1}, "rollout_workers=1: task=Sinusoid has no rollouts"),
        (
            "sinusoid",
            {"max_parallel_envs": 9},
            "max_parallel_envs=9: task=Sinusoid has no rollouts",
        ),
        (
            "sinusoid",
            {"outer.class_path": "TrustRegion"},
            "outer=TrustRegion: needs the policies of rollouts, and task=Sinusoid has none",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_is_written(tmp_path, recipe, settings, said):
    with pytest.raises(ValueError, match=said):
        maml_dist.meta_train(recipe, run=tmp_path / "run", local=True, **settings)
    assert not (tmp_path / "run").exists()
