"""Environments as people write them: splits, benchmarks, factories, scores, and what goes wrong."""

import pickle
import random
from types import SimpleNamespace

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium.spaces import Box, Discrete

from maml_dist.config.compose import build, compose
from maml_dist.core.data.task_source import TaskKey
from maml_dist.tasks.gym import GymTasks
from maml_dist.tasks.gym_worlds import Benchmark


class Goals(gymnasium.Env):
    """Says the task; its info says how near it is, and whether there."""

    observation_space, action_space = Box(-np.inf, np.inf, (2,), np.float64), Box(-1, 1, (1,))
    kind = "goals"

    def __init__(self, wrong=""):
        self.wrong, self.task, self.time = wrong, None, 0

    def sample_task(self, split):
        return {"train": 0, "val": 100, "test": 200}[split] + int(self.np_random.integers(9))

    def set_task(self, task):
        self.task = task

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.array([self.number, 0.0]), {}

    @property
    def number(self):
        return float(getattr(self.task, "goal", self.task))

    def step(self, action):
        self.time += 1
        info = {"success": self.time == 2, "far": 3.0 - self.time}
        if self.time % 2:
            info["odd"] = self.time
        return np.array([self.number, self.time]), 1.0, False, False, info


class Others(Goals):
    kind = "others"


class Bad(Goals):
    """Goes wrong in the way that it is told."""

    def reset(self, **given):
        seen, info = super().reset(**given)
        if self.wrong == "reset raises":
            raise LookupError("no ground")
        if self.wrong == "changes":
            self.observation_space = Box(-1, 1, (int(self.number) % 3 + 1,))
            seen = np.zeros(int(self.number) % 3 + 1)
        return seen if self.wrong == "old reset" else (seen, info)

    def step(self, action):
        seen, reward, terminated, truncated, info = super().step(action)
        if self.wrong == "step raises":
            raise ValueError("a leg too many")
        if self.wrong == "old step":
            return seen, reward, terminated, info
        if self.wrong == "list":
            return [seen, reward, terminated, truncated]
        if self.wrong == "nan":
            reward = float("nan")
        if self.wrong == "reward":
            reward = "much"
        if self.wrong == "rewards":
            reward = np.ones(2)
        if self.wrong == "done":
            terminated = {"done": True}
        if self.wrong == "info":
            info["success"] = "yes"
        if self.wrong == "info nan":
            info["success"] = np.nan
        if self.wrong == "no info":
            info = {"succes": 1.0}
        if self.wrong == "info none":
            info = None
        return seen, reward, terminated, truncated, info


def lists(**changes):
    """What Meta-World's benchmarks have."""
    if both := changes.pop("classes", None):
        changes = {"train_classes": both, "test_classes": both}
    tasks = [
        SimpleNamespace(env_name=name, goal=goal)
        for name, first in (("goals", 0), ("others", 10))
        for goal in range(first, first + 3)
    ]
    classes = {"goals": Goals, "others": Others}
    found = {"train_classes": classes, "train_tasks": tasks, "test_classes": classes}
    return SimpleNamespace(**{**found, "test_tasks": tasks[::-1], **changes})


class Suite:
    """A benchmark as a class, whose tasks are of its seed."""

    train_classes = test_classes = {"goals": Goals}

    def __init__(self, seed=None):
        drawn = np.random.uniform() if seed is None else seed
        self.tasks = [SimpleNamespace(env_name="goals", goal=drawn)]

    train_tasks = test_tasks = property(lambda self: self.tasks)


@pytest.fixture(autouse=True)
def concrete(monkeypatch):
    monkeypatch.setattr(GymTasks, "__abstractmethods__", frozenset())


def key(split, index, it=0):
    return TaskKey(5, split, it, index)


def still(source):
    return lambda seen: torch.zeros(*seen.shape[:-1], 2 * source.action_dim)


def test_an_environment_that_asks_is_told_the_split():
    source = GymTasks(env=Goals)
    for split, first in (("train", 0), ("val", 100), ("test", 200)):
        drawn = [source.sample(key(split, index)).value[0] for index in range(9)]
        assert {value // 100 * 100 for value in drawn} == {first} and len({*drawn}) > 2


def test_training_tasks_are_drawn_and_held_out_ones_go_round_all_kinds():
    source = GymTasks(env=lists, horizon=2, episodes=2)
    goals = {s: [source.sample(key(s, i)).value[0].goal for i in range(6)] for s in ("val", "test")}
    assert goals == {"val": [0, 10, 1, 11, 2, 12], "test": [12, 2, 11, 1, 10, 0]}
    drawn = [source.sample(key("train", 0, it)).value[0].goal for it in range(300)]
    counts = {goal: drawn.count(goal) for goal in drawn}
    assert counts.keys() == {0, 1, 2, 10, 11, 12} and min(counts.values()) > 25
    tasks = [source.sample(key("test", index)) for index in range(3)]
    rolled = source.roll(still(source), tasks, stage=0)
    assert rolled.observations[:, :, :, 0].unique(dim=2).squeeze(-1).tolist() == [
        [12, 12], [2, 2], [11, 11]
    ]  # fmt: skip
    assert sorted(kind for kind, _ in source._idle._envs) == ["goals"] * 2 + ["others"] * 4


def test_environments_of_several_kinds_are_kept_and_not_without_end():
    source = GymTasks(env=lists, horizon=1, episodes=1)
    for it in range(12):
        tasks = [source.sample(key("train", index, it)) for index in range(3)]
        source.roll(still(source), tasks, stage=0)
    assert 3 <= len(source._idle._envs) <= 6


@pytest.mark.parametrize("seed", [None, 7])
def test_a_benchmarks_tasks_are_the_same_everywhere(seed):
    settings = {} if seed is None else {"seed": seed}
    one, other = (GymTasks(env=Suite, settings=settings) for _ in range(2))
    np.random.seed(0)
    first = one.sample(key("train", 0)).value[0].goal
    np.random.seed(1)
    assert other.sample(key("train", 0)).value[0].goal == first == (seed or 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_tasks": []}, "train_tasks is empty"),
        ({"train_tasks": [1]}, "env_name=None; train_classes has goals, others"),
        ({"test_classes": []}, "a task of test_tasks has env_name='others'; test_classes has none"),
        ({"classes": {"goals": dict, "others": Others}}, "gives a builtins.dict: must give"),
        (
            {"test_classes": {"goals": Bad, "others": Others}},
            "goals is another class in test_class",
        ),
    ],
)
def test_a_benchmark_that_is_none(changes, said):
    with pytest.raises(ValueError, match=f"^task.env=<lambda>: .*{said}"):
        GymTasks(env=lambda: lists(**changes))


def test_a_benchmark_without_tests_has_none_to_give():
    source = GymTasks(env=lambda: lists(test_tasks=[]))
    with pytest.raises(ValueError, match="^test task 3: test_tasks is empty"):
        source.sample(key("test", 3))


def test_kinds_that_one_policy_cannot_act_in_are_refused():
    class Wider(Goals):
        observation_space = Box(-1, 1, (3,))

    source = GymTasks(env=lambda: lists(classes={"goals": Goals, "others": Wider}))
    task = next(t for i in range(20) if (t := source.sample(key("val", i))).value[0].goal > 9)
    with pytest.raises(ValueError, match="others has 3 numbers to observe.*goals has 2 numbers"):
        source.simulator([task], stage=0)


def test_scores_of_info_beside_the_return():
    entries = ("success", "far:last", "odd:sum")
    source = GymTasks(env=Goals, horizon=4, episodes=2, scores=entries)
    rolled = source.roll(still(source), [source.sample(key("train", 0))], stage=0)
    found = {name: value.tolist() for name, value in rolled.scores.items()}
    assert found == {"success": [[1, 1]], "far_last": [[-1, -1]], "odd_sum": [[4, 4]]}
    batch, scores = source.policy_gradient.compute_advantages(rolled, source.distribution)
    assert scores["success"].tolist() == [1] and scores["return"].tolist() == [4]
    assert source.other_scores == ("success", "far_last", "odd_sum")


WRONG = {
    "reset raises": "step 0: the environment raised at its start LookupError: no ground",
    "old reset": "reset gives a ndarray: must be the two values observation, info",
    "changes": "the environment has .* numbers to observe .* in this task, and 2 .* in others",
    "step raises": "step 0: the environment raised ValueError: a leg too many",
    "old step": "step gives 4 values: must be the five values .*, terminated, truncated, info",
    "list": "step gives 4 values",
    "nan": "step 0: rewards are not finite",
    "reward": "the reward is 'much': must be a number",
    "rewards": "the reward is array.*: must be a number",
    "done": "terminated is {'done': True}: must be true or false",
    "info": r"info\['success'\] is 'yes': must be a number",
    "info nan": r"info\['success'\] is nan: must be finite",
    "no info": r"no step of an episode has info\['success'\]; did you mean succes\?",
    "info none": "step gives 5 values",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_environments_give_and_must_not(wrong):
    settings = {"wrong": wrong}
    source = GymTasks(env=Bad, settings=settings, horizon=2, episodes=2, scores=("success",))
    named = next(t for i in range(9) if (t := source.sample(key("train", i))).value[0] % 3 != 1)
    where = rf"^task \d+ of iteration 0, goal \(\d,\), after 0 adaptation steps, .*{WRONG[wrong]}"
    with pytest.raises(ValueError, match=where) as found:
        source.roll(still(source), [named], stage=0)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: None, "gives None: must give a gymnasium.Env, or a benchmark with train_classes"),
        (lambda: Goals, r"gives the class Goals: must give an environment, Goals\(\)"),
        (lambda: 3, "gives a builtins.int: must give a gymnasium.Env"),
        (lambda: gymnasium.make("CartPole-v1"), "CartPoleEnv must have set_task, and sample_tasks"),
        (lambda: 1 / 0, "cannot be made, ZeroDivisionError: .*test_gym_worlds.py, line"),
        (lambda size: Goals(), "missing 1 required positional argument: 'size'"),
        (lambda: SimpleNamespace(train_tasks=[]), "gives a types.SimpleNamespace"),
    ],
)
def test_a_factory_that_makes_none(make, said):
    with pytest.raises(ValueError, match=f"^task.env=<lambda>: .*{said}"):
        GymTasks(env=make)


def test_an_environment_itself_is_no_factory():
    with pytest.raises(ValueError, match="Goals must be a name, or a class or function that makes"):
        GymTasks(env=Goals())


def test_a_closure_travels_by_value():
    wide = 3

    def make(legs):
        env = Goals()
        env.observation_space = Box(-1, 1, (wide + legs,))
        return env

    source = pickle.loads(cloudpickle.dumps(GymTasks(env=make, settings={"legs": 2})))
    assert source.obs_dim == 5


MAKES = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete


class Mine(gymnasium.Env):
    observation_space, action_space = Box(0, 1, (2,)), Discrete(3)

    def __init__(self, level):
        self.level = level

    def sample_task(self):
        return 0

    def set_task(self, task):
        pass


def make(level=1):
    return Mine(level)


class Maker:
    def __new__(cls, level=1):
        return Mine(10 * level)


number = 3
"""


def own(folder, env, **settings):
    (folder / "makes.py").write_text(MAKES)
    task = {"class_path": "GymTasks", "init_args": {"env": env, "settings": settings}}
    model = {"class_path": "CategoricalPolicy", "init_args": {"obs_dim": 2, "action_dim": 3}}
    (folder / "mine.yaml").write_text(
        yaml.safe_dump({**compose("navigation"), "task": task, "model": model})
    )
    return compose(folder / "mine.yaml")


@pytest.mark.parametrize(
    ("env", "level"), [("makes.make", 4), ("makes:make", 4), ("makes.Maker", 40)]
)
def test_a_factory_of_ones_own_is_named_as_a_class_is(tmp_path, env, level):
    config = own(tmp_path, env, level=4)
    assert config["task"]["init_args"]["env"] == env
    source = pickle.loads(pickle.dumps(build(config).task))
    assert source._one.env.level == level


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (
            "makes.maek",
            r"task.env=makes.maek: maek is no gymnasium.Env of makes; did you mean make\?",
        ),
        ("makes.number", "number is no gymnasium.Env of makes, nor a benchmark"),
    ],
)
def test_what_a_module_of_ones_own_does_not_make(tmp_path, env, said):
    with pytest.raises(ValueError, match=said):
        build(own(tmp_path, env))


def test_what_a_constructor_draws_is_the_same_everywhere():
    class Drawn(Goals):
        def __init__(self):
            super().__init__()
            self.drawn = random.random(), np.random.uniform()

    one, other = GymTasks(env=Drawn), GymTasks(env=Drawn)
    assert one._one.env.drawn == other._one.env.drawn


def test_an_environment_of_discrete_observations_is_one_hot():
    class Cells(Goals):
        observation_space = Discrete(4)

        def reset(self, **given):
            super().reset(**given)
            return 3, {}

        def step(self, action):
            return 2, *super().step(action)[1:]

    source = GymTasks(env=Cells, horizon=2, episodes=1)
    rolled = source.roll(still(source), [source.sample(key("train", 0))], stage=0)
    assert rolled.observations[0, 0].tolist() == [[0, 0, 0, 1], [0, 0, 1, 0]]


def test_metaworld_is_one(monkeypatch):
    """The benchmark itself, where it is installed: its lists, its own seed, its success."""
    metaworld = pytest.importorskip("metaworld")
    source = GymTasks(
        env="metaworld.ML1",
        settings={"env_name": "reach-v3"},
        horizon=3,
        episodes=1,
        scores=("success", "obj_to_target:last"),
    )
    assert isinstance(source._world, Benchmark) and source.obs_dim == 39
    mine = metaworld.ML1("reach-v3", seed=0)
    goals = [source.sample(key("test", index)).value[0] for index in range(50)]
    assert goals == mine.test_tasks
    rolled = source.roll(still(source), [source.sample(key("train", 0))], stage=0)
    assert rolled.scores["success"].tolist() == [[0]]
    assert (rolled.scores["obj_to_target_last"] > 0).all()
