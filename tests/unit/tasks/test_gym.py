"""Environments that hand out tasks: the convention, the masks, the purity and the errors."""

import inspect
import pickle
import random
import sys
from types import ModuleType

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from gymnasium.spaces import Box, Dict, Discrete

import maml_dist
from maml_dist.config.compose import build, compose
from maml_dist.core.data.task_source import TaskKey
from maml_dist.reporting.page import report
from maml_dist.tasks.gym import GymTasks
from maml_dist.tasks.gym_spaces import flatten_observation, scale_action


class Walk(gymnasium.Env):
    """A walk whose task is how many steps it takes; starts anywhere; says which action it got."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    low, high = np.array([-3.0, -np.inf]), np.array([1.0, np.inf])

    def __init__(self, wrong=""):
        self.action_space = Box(self.low.astype(np.float32), self.high.astype(np.float32))
        self.wrong, self.length, self.episodes = wrong, None, 0

    def sample_tasks(self, count):
        return [{"length": int(length)} for length in self.np_random.integers(2, 9, count)]

    def set_task(self, task):
        self.length = task["length"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.episodes = 0, self.episodes + 1
        return np.array([self.np_random.random(), 0, 0], np.float32), {}

    def step(self, action):
        self.time += 1
        seen = np.array([self.time, *action], np.float32)
        if self.time == 2 and self.length == 8:
            if self.wrong == "raises":
                raise KeyError("legs")
            if self.wrong == "shape":
                seen = seen[:2]
            if self.wrong == "nan":
                seen[0] = np.nan
        return seen, self.np_random.random(), self.time == self.length, False, {"time": self.time}


class Coin(gymnasium.Env):
    """Guess a side, by the older names and with numpy's own generator."""

    observation_space = Dict({"side": Discrete(2), "heat": Box(0, 1, (1, 2))})
    action_space = Discrete(2, start=5)

    def sample_task(self):
        return np.random.randint(2)

    def set_task(self, side):
        self.side = side

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"side": 0, "heat": np.full((1, 2), random.random(), np.float32)}, {}

    def step(self, action):
        seen = {"side": int(action - 5), "heat": np.zeros((1, 2), np.float32)}
        return seen, float(action - 5 == self.side), False, False, {}


class Taskless(gymnasium.Env):
    observation_space, action_space = Box(0, 1, (1,)), Discrete(2)


class Untold(Walk):
    def sample_tasks(self, count):
        raise LookupError("no map")


class Broken(Walk):
    def __init__(self):
        raise LookupError("no legs")


class Many(Walk):
    def __init__(self):
        super().__init__()
        self.action_space = Dict({"hand": Discrete(2), "arm": Box(0, 1)})


class Fixed(gymnasium.Env):
    """Says what its task is; takes tasks, but none of its own kind is to be drawn."""

    observation_space, action_space = Box(-np.inf, np.inf, (1,)), Discrete(2)
    task = -1.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.array([self.task], np.float32), {}

    def step(self, action):
        return np.array([self.task], np.float32), 0.0, False, False, {}


class Tasked(Fixed):
    def sample_tasks(self, count):
        return [1.0] * count

    def set_task(self, task):
        self.task = task


class Draws(gymnasium.Wrapper):
    """Draws and gives tasks to what it wraps, whatever that does itself."""

    def __init__(self, env=None):
        super().__init__(env or Fixed())

    def sample_task(self):
        return float(self.np_random.integers(2, 5))

    def set_task(self, task):
        self.unwrapped.task = 10 * task


class Takes(gymnasium.Wrapper):
    def __init__(self, env=None):
        super().__init__(env or Tasked())

    def set_task(self, task):
        self.env.get_wrapper_attr("set_task")(task + 0.5)


WRAPPED = {
    "a wrapper that makes what it wraps": (Draws, {20.0, 30.0, 40.0}),
    "the innermost": (lambda: limited(Tasked()), {1.0}),
    "in the middle": (lambda: limited(Draws(limited(Fixed()))), {20.0, 30.0, 40.0}),
    "the outermost, whatever its name": (lambda: Draws(Tasked()), {20.0, 30.0, 40.0}),
    "each from where it is": (lambda: limited(Takes(limited(Tasked()))), {1.5}),
    "through two": (lambda: Takes(Draws(Tasked())), {25.0, 35.0, 45.0}),
}


def limited(env):
    """In what gymnasium.make puts around an environment."""
    env = gymnasium.wrappers.OrderEnforcing(gymnasium.wrappers.PassiveEnvChecker(env))
    return gymnasium.wrappers.TimeLimit(env, 100)


@pytest.mark.parametrize("case", WRAPPED)
@pytest.mark.filterwarnings("ignore:.*Overwriting")
def test_tasks_are_drawn_and_set_by_the_outermost_definition(case):
    make, seen = WRAPPED[case]
    gymnasium.register("Wrapped-v0", make)
    source = GymTasks(env="Wrapped-v0", horizon=3, episodes=2)
    tasks = drawn(source, 12)
    rolled = source.roll(still(2), tasks, stage=0)
    assert set(rolled.observations.unique().tolist()) == seen
    assert (rolled.observations == rolled.observations[:, :1, :1]).all()  # of all episodes, steps
    assert [task.value for task in drawn(source, 12)] == [task.value for task in tasks]
    del gymnasium.registry["Wrapped-v0"]


REGISTERS = """
import gymnasium
from {module} import World
gymnasium.register("Mine-v3", entry_point="{module}:World", max_episode_steps=2)
"""


@pytest.mark.parametrize("named", ["ids:Mine-v3", "inner.world:World", "ids.World"])
def test_an_environment_of_ones_own_by_its_id_or_its_class(tmp_path, named):
    """Its id names the class by a module that only its own folder's modules can import."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "world.py").write_text(
        "import random\nimport gymnasium\nimport numpy as np\n"
        f"from gymnasium.spaces import Box, Discrete\n"
        f"{inspect.getsource(Walk).replace('class Walk', 'class World')}"
    )
    (tmp_path / "ids.py").write_text(REGISTERS.format(module="inner.world"))
    task = {"class_path": "GymTasks", "init_args": {"env": named}}
    sizes = {"obs_dim": 3, "action_dim": 2}
    model = {"class_path": "GaussianPolicy", "init_args": sizes}
    recipe = {**compose("navigation"), "task": task, "model": model}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    config = compose(tmp_path / "mine.yaml")
    assert config["task"]["init_args"]["env"] == named
    source = build(config).task
    kept = pickle.loads(pickle.dumps(source))  # as a rollout worker has it
    steps = source.roll(still(4), drawn(kept, 6), stage=0).mask.sum(-1)
    assert type(kept._one.env.unwrapped).__name__ == "World"
    assert steps.max() == (2 if "Mine" in named else steps.max())
    gymnasium.registry.pop("Mine-v3", None)


def test_an_id_that_it_does_not_register_is_said_as_it_was_named(tmp_path):
    (tmp_path / "ids.py").write_text("")
    task = {"class_path": "GymTasks", "init_args": {"env": "ids:Mine"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**compose("navigation"), "task": task}))
    with pytest.raises(ValueError, match="^task.env=ids:Mine: [^_]*Mine"):
        build(compose(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("env", ["subprocess:Popen", "os.system", "builtins:exec", "worlds:made"])
def test_what_is_no_environment_is_never_called(monkeypatch, env):
    calls = []
    monkeypatch.setattr(sys.modules["worlds"], "made", lambda **_: calls.append(1), raising=False)
    with pytest.raises(ValueError, match=f"task.env={env}: .* is no gymnasium.Env of"):
        GymTasks(env=env, settings={"args": "true"})
    assert not calls


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setattr(GymTasks, "__abstractmethods__", frozenset())
    module = ModuleType("worlds")
    for world in (Walk, Coin, Taskless, Untold, Broken, Many):
        setattr(module, world.__name__, world)
    monkeypatch.setitem(sys.modules, "worlds", module)
    gymnasium.register("Walk-v0", lambda **settings: Walk(**settings), max_episode_steps=6)
    yield
    del gymnasium.registry["Walk-v0"]


def drawn(source, count):
    return [source.sample(TaskKey(7, "train", 3, index)) for index in range(count)]


def still(out):
    return lambda seen: torch.zeros(*seen.shape[:-1], out)


def test_tasks_are_a_function_of_the_key():
    source, other = GymTasks(env="worlds:Walk"), GymTasks(env="worlds.Walk")
    lengths = [task.value[0]["length"] for task in drawn(source, 20)]
    assert len(set(lengths)) > 3
    assert [task.value[0]["length"] for task in drawn(other, 20)[::-1]] == lengths[::-1]


def test_tasks_drawn_by_numpys_own_generator_are_too_and_leave_it_alone():
    source = GymTasks(env="worlds:Coin")
    before = np.random.get_state()[1].copy(), random.getstate()
    first, second = drawn(source, 20), drawn(source, 20)
    assert [task.value for task in first] == [task.value for task in second]
    assert {task.value[0] for task in first} == {0, 1}
    assert np.array_equal(np.random.get_state()[1], before[0]) and random.getstate() == before[1]


def test_an_episode_ends_with_its_task_and_is_not_begun_again():
    source = GymTasks(env="worlds:Walk", horizon=12, episodes=2)
    tasks = drawn(source, 6)
    rolled = source.roll(still(4), tasks, stage=0)
    for index, task in enumerate(tasks):
        length = task.value[0]["length"]
        assert rolled.mask[index].sum(-1).tolist() == [length, length]
        assert rolled.observations[index, :, 1:length, 0].tolist() == [list(range(1, length))] * 2
        assert (rolled.rewards[index, :, :length] > 0).all()
        assert (rolled.rewards[index, :, length:] == 0).all()


def test_the_environments_own_time_limit_ends_an_episode():
    source = GymTasks(env="Walk-v0", horizon=12, episodes=1)
    tasks = drawn(source, 6)
    lengths = [min(6, task.value[0]["length"]) for task in tasks]
    assert source.roll(still(4), tasks, stage=0).mask.sum(-1).ravel().tolist() == lengths
    assert len(set(lengths)) > 1


def test_actions_are_scaled_to_bounds_and_clipped_where_these_are_finite():
    source = GymTasks(env="worlds:Walk", horizon=2, episodes=4)
    means = torch.tensor([[-1.0, -7.0], [0.0, 0.5], [1.0, 1.0], [2.0, 7.0]])

    def policy(seen):
        return torch.cat([means, torch.full((4, 2), -200.0)], -1).expand(1, 4, 4)

    rolled = source.roll(policy, drawn(source, 1), stage=0)
    got = rolled.observations[0, :, 1, 1:]
    assert got.tolist() == [[-3.0, -7.0], [-1.0, 0.5], [1.0, 1.0], [1.0, 7.0]]
    assert torch.equal(rolled.actions[0, :, 0], means)  # of the policy, not of the environment


def test_discrete_actions_begin_where_the_space_does_and_observations_are_flat():
    source = GymTasks(env="worlds:Coin", horizon=8, episodes=5)
    assert (source.discrete, source.action_dim, source.obs_dim) == (True, 2, 4)
    tasks = drawn(source, 4)
    rolled = source.roll(still(2), tasks, stage=0)
    sides = torch.tensor([task.value[0] for task in tasks])[:, None, None]
    assert torch.equal(rolled.rewards, (rolled.actions == sides).float())
    assert rolled.actions.unique().tolist() == [0, 1] and (rolled.mask == 1).all()
    side = rolled.observations[:, :, 1:, 2:]  # a Dict is flattened in the order of its names
    assert torch.equal(side.argmax(-1), rolled.actions[:, :, :-1])


@pytest.mark.parametrize("world", ["Walk", "Coin"])
def test_a_task_alone_is_the_task_in_the_batch_to_the_bit(world):
    source = GymTasks(env=f"worlds:{world}", horizon=9, episodes=2)
    out = 2 if source.discrete else 4
    tasks = drawn(source, 4)
    together = source.roll(still(out), tasks, stage=1)
    again = source.roll(still(out), tasks, stage=1)  # in the environments used before
    for index, task in enumerate(tasks):
        alone = GymTasks(env=f"worlds:{world}", horizon=9, episodes=2)
        for part, whole, other in zip(
            alone.roll(still(out), [task], stage=1)[:5], together[:5], again[:5], strict=True
        ):
            assert torch.equal(part[0], whole[index]) and torch.equal(other, whole)
    assert not torch.equal(source.roll(still(out), tasks, stage=0)[0], together[0])


def test_environments_are_made_once():
    source = GymTasks(env="worlds:Walk", horizon=3, episodes=2)
    tasks = drawn(source, 2)
    source.roll(still(4), tasks, stage=0)
    kept = [env for _, env in source._idle._envs]
    source.roll(still(4), tasks, stage=0)
    assert {*kept} == {env for _, env in source._idle._envs} and len(kept) == 4
    assert [env.env.unwrapped.episodes for env in kept] == [2] * 4
    first, second = (source.simulator(tasks, stage=0) for _ in range(2))
    assert not {*first.envs} & {*second.envs}


def test_a_copy_takes_no_environment_with_it():
    source = GymTasks(env="worlds:Walk", horizon=3, episodes=2)
    source.roll(still(4), drawn(source, 1), stage=0)
    copy = pickle.loads(pickle.dumps(source))
    assert copy == source and not {"_made", "_idle"} & set(vars(copy))


@pytest.mark.parametrize(
    "wrong, says",
    [
        ("raises", r"step 1: the environment raised KeyError: 'legs'"),
        ("shape", r"step 1: the observation's shape is \(2,\), not \(3,\)"),
        ("nan", r"step 1: observations are not finite"),
    ],
)
def test_what_fails_names_the_task_and_the_step(wrong, says):
    source = GymTasks(env="worlds:Walk", settings={"wrong": wrong}, horizon=12, episodes=2)
    tasks = drawn(source, 20)
    index = next(i for i, task in enumerate(tasks) if task.value[0]["length"] == 8)
    name = rf"task {index} of iteration 3, goal \({{'length': 8}},\), after 0 adaptation steps"
    with pytest.raises(ValueError, match=rf"{name}, {says}"):
        source.roll(still(4), tasks, stage=0)


@pytest.mark.parametrize("split", ["train", "val"])
def test_what_cannot_be_drawn_is_named(split):
    source = GymTasks(env="worlds:Untold")
    name = "task 2 of iteration 3" if split == "train" else "val task 2"
    said = f"^{name}: the environment raised as it drew the task, LookupError: no map$"
    with pytest.raises(ValueError, match=said):
        source.sample(TaskKey(7, split, 3, 2))


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"env": "Nowhere-v7"}, "task.env=Nowhere-v7: "),
        ({"env": "nowhere:Walk"}, "task.env=nowhere:Walk: No module named 'nowhere'"),
        ({"env": ""}, "task.env=: "),
        ({"env": "worlds:Walk", "settings": {"legs": 2}}, "unexpected keyword argument 'legs'"),
        ({"env": "worlds:Taskless"}, "must have set_task, and sample_tasks or sample_task"),
        (
            {"env": "worlds:Broken"},
            "task.env=worlds:Broken: cannot be made, LookupError: no legs .*test_gym.py, line",
        ),
        ({"env": "worlds:Many"}, "the action space Dict.*: its parts must be all Box, or all Disc"),
        ({"env": "worlds:Walk", "oracle": True}, "task.oracle=True: must be False"),
    ],
)
def test_settings_that_are_not(settings, says):
    with pytest.raises(ValueError, match=says):
        GymTasks(**settings)


@pytest.mark.parametrize(
    ("world", "model", "obs_dim", "task"),
    [
        (Coin, "CategoricalPolicy", 4, 1),
        (Walk, "GaussianPolicy", 3, {"length": 3}),
    ],
)
def test_a_trained_policy_adapts_in_the_environment_and_is_reported(
    tmp_path, world, model, obs_dim, task
):
    """Dict observations, discrete actions that count from 5, tasks that are dicts."""
    small = {"iterations": 1, "meta_batch": 2, "validation_tasks": 2, "test_tasks": 2}
    small |= {"test_steps": 1, "episodes": 2, "horizon": 4, "local": True, "progress": False}
    small |= {"running": "eager", "batching": "vmap", "outer.iterations": 3}
    env, sizes = f"worlds.{world.__name__}", {"obs_dim": obs_dim, "action_dim": 2}
    (tmp_path / "worlds.py").write_text(
        "import random\nimport gymnasium\nimport numpy as np\n"
        f"from gymnasium.spaces import Box, Dict, Discrete\n{inspect.getsource(world)}"
    )
    recipe = {
        "task": {"class_path": "GymTasks", "init_args": {"env": env}},
        "model": {"class_path": model, "init_args": sizes},
        "learner": {"class_path": "MAML"},
        "outer": {"class_path": "TrustRegion"},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe))
    run = maml_dist.meta_train(tmp_path / "own.yaml", run=tmp_path / "run", **small)
    maml_dist.meta_test(run)
    report(run)
    assert (run.path / "report.html").exists()
    policy, env = maml_dist.load(run.path), world()
    env.set_task(task)
    rolled = policy._live(env, np.random.default_rng(0))
    if world is Coin:  # heat, then the side one-hot: what was played is seen next
        sides, played = rolled.observations[0, :, 1:, 2:], rolled.actions[0, :, :-1]
        assert torch.equal(sides.argmax(-1), played) and played.unique().tolist() == [0, 1]
    else:  # the actions it got are seen next
        got, meant = rolled.observations[0, :, 1:3, 1], rolled.actions[0, :, :2, 0]
        assert torch.allclose(got, (2 * meant - 1).clamp(-3, 1), atol=1e-5)
    pairs = zip(policy.adapt(env, steps=1).parameters(), policy.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)


def test_what_is_given_and_seen_has_the_shape_and_values_of_the_space():
    assert scale_action(np.array([0.5]), Box(0, 1, ())).tolist() == 0.75
    assert scale_action(np.array([3]), Discrete(4, start=5)).shape == ()
    fractions = flatten_observation([0.25, 0.5], Box(0, 255, (2,), np.uint8))
    assert fractions.tolist() == [0.25, 0.5]  # as in training, whatever the space declares
    assert flatten_observation([[1], [2]], Box(0, 9, (2, 1))).tolist() == [1, 2]
