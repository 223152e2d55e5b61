"""Policy search on Ray and in this process, undisturbed and disturbed: the same weights."""

import sys

import numpy as np
import pytest
import torch

import maml_dist
from maml_dist import train
from maml_dist.cli import guarded
from maml_dist.runtime.ray_backend import RayBackend

pytestmark = pytest.mark.ray

SMALL = {"iterations": 3, "meta_batch": 6, "checkpoint_every": 1, "validation_tasks": 4}
SMALL |= {"test_steps": 2, "task.episodes": 4, "task.horizon": 10, "progress": False, "seed": 3}
SMALL |= {"engine.running": "eager", "engine.batching": "vmap"}
TRUSTED = {**SMALL, "outer.iterations": 3}  # few products with the curvature
EVOLVED = {**SMALL, "iterations": 2, "num_perturbations": 3, "num_inner_perturbations": 2}
EVOLVED |= {"hidden": [9]}


def weights(run):
    return torch.cat([value.flatten() for value in run.weights("last")[0].values()]).numpy()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    return {
        shards: weights(
            maml_dist.meta_train(
                "navigation", run=folder / str(shards), shards=shards, local=True, **TRUSTED
            )
        )
        for shards in (1, 2)
    }


@pytest.fixture(scope="module")
def evolved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evolved")
    return weights(maml_dist.meta_train("navigation-es", run=folder / "run", local=True, **EVOLVED))


@pytest.mark.slow
@pytest.mark.parametrize(("shards", "workers"), [(1, 1), (1, 3)])
def test_evolution_spreads_its_candidates_to_the_same_bits(
    tmp_path, ray_here, evolved, shards, workers
):
    run = maml_dist.meta_train(
        "navigation-es", run=tmp_path / "run", shards=shards, rollout_workers=workers, **EVOLVED
    )
    assert np.array_equal(weights(run), evolved)


def test_evolution_in_few_environments_killed_and_resumed_gives_the_same_bits(tmp_path, evolved):
    some = {**EVOLVED, "iterations": 1, "max_parallel_envs": 5}
    run = maml_dist.meta_train("navigation-es", run=tmp_path / "run", local=True, **some)
    run = maml_dist.meta_train(resume=run.path, iterations=2, local=True, progress=False)
    assert np.array_equal(weights(run), evolved)


def test_any_number_of_shards_agrees_to_rounding(tmp_path):
    """In float64, and with few products: conjugate gradient magnifies rounding."""
    exact = {**TRUSTED, "engine.precision": "float64"}
    found = [
        weights(
            maml_dist.meta_train(
                "navigation", run=tmp_path / str(shards), shards=shards, local=True, **exact
            )
        )
        for shards in (1, 3)
    ]
    assert np.linalg.norm(found[1] - found[0]) <= 1e-5 * np.linalg.norm(found[0])


@pytest.mark.parametrize(
    ("shards", "workers"),
    [(2, 0), *(pytest.param(1, workers, marks=pytest.mark.slow) for workers in (1, 3))],
)
def test_ray_and_this_process_give_the_same_bits(tmp_path, ray_here, local, shards, workers):
    run = maml_dist.meta_train(
        "navigation", run=tmp_path / "run", shards=shards, rollout_workers=workers, **TRUSTED
    )
    assert np.array_equal(weights(run), local[shards])


def test_few_environments_at_once_change_nothing(tmp_path, local):
    run = maml_dist.meta_train(
        "navigation", run=tmp_path / "run", shards=1, local=True, max_parallel_envs=4, **TRUSTED
    )
    assert np.array_equal(weights(run), local[1])


def test_a_killed_run_ends_with_the_same_bits(tmp_path, local):
    some = {**TRUSTED, "iterations": 2}
    run = maml_dist.meta_train("navigation", run=tmp_path / "run", shards=1, local=True, **some)
    rest = {"rollout_workers": 3, "cpus_per_worker": 2, "max_parallel_envs": 8}  # change nothing
    run = maml_dist.meta_train(resume=run.path, iterations=3, local=True, progress=False, **rest)
    assert np.array_equal(weights(run), local[1])


def test_killed_workers_and_shards_change_nothing(tmp_path, ray_here, local, monkeypatch):
    groups = []
    start = RayBackend.start

    def keep_hold(place, *work, **options):
        groups.append(start(place, *work, **options))
        return groups[0]

    def kill(row):
        actors = groups[0]
        seats = actors.workers if row["iteration"] == 1 else actors.shards
        ray_here.kill(seats[0].actor)

    monkeypatch.setattr(RayBackend, "start", keep_hold)
    run = maml_dist.meta_train(
        "navigation",
        run=tmp_path / "run",
        shards=1,
        rollout_workers=2,
        on_validation=kill,
        pipeline_depth=1,
        **TRUSTED,
    )
    assert np.array_equal(weights(run), local[1])


def test_other_updates_and_surrogates_run(tmp_path):
    adam = {"outer.class_path": "Adam"}
    proximal = adam | {"outer.epochs": 3}
    proximal |= {
        "task.policy_gradient.outer_surrogate": "clipped",
        "task.policy_gradient.penalty": 0.0005,
    }
    start = maml_dist.meta_train(
        "navigation", run=tmp_path / "start", local=True, **{**SMALL, "iterations": 0}
    )
    for name, settings in (
        ("proximal", {**proximal, "task.policy_gradient.inner_surrogate": "ratio"}),
        ("plain", adam),
        (
            "share",
            {
                "outer.share": 0.5,
                "outer.iterations": 3,
                "task.policy_gradient.inner_surrogate": "dice",
            },
        ),
    ):
        run = maml_dist.meta_train(
            "navigation", run=tmp_path / name, local=True, **SMALL, **settings
        )
        assert np.isfinite(weights(run)).all() and not np.array_equal(weights(run), weights(start))
        apart = [row["kl"] for row in run.metrics if "return/after" in row and "kl" in row]
        assert apart and all(kl > 0 for kl in apart)


WORLD = """
import gymnasium
import numpy as np


class Reach(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))
    goal = np.zeros(2)

    def __init__(self, wrong):
        self.wrong = wrong

    def sample_task(self):
        return self.np_random.uniform(-0.5, 0.5, 2)

    def set_task(self, task):
        self.goal = task

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.time = np.zeros(2), 0
        return self.position, {}

    def step(self, action):
        self.time += 1
        self.position = self.position + 0.1 * action
        seen, reward = self.position, -float(np.linalg.norm(self.position - self.goal))
        if self.time == 3 and self.goal[1] < -0.475:  # which no task is that is tried before
            if self.wrong == "raises":
                raise KeyError("legs")
            seen = {"nan": seen * np.nan, "shape": seen[:1], "reward": seen}[self.wrong]
            reward = np.nan if self.wrong == "reward" else reward
        return seen, reward, False, False, {}
"""

REACH = """
task:
  class_path: GymTasks
  init_args: {{env: reach.Reach, settings: {{wrong: {wrong}}}, horizon: 5, episodes: 2}}
model:
  class_path: GaussianPolicy
  init_args: {{obs_dim: 2, action_dim: 2, hidden: [4]}}
learner: {{class_path: MAML, init_args: {{alpha: 0.1, steps: 1}}}}
outer: {{class_path: TrustRegion, init_args: {{bound: 0.01}}}}
iterations: 6
meta_batch: 6
validation_tasks: 2
"""


SAID = {
    "raises": "the environment raised KeyError: 'legs'",
    "nan": "observations are not finite",
    "reward": "rewards are not finite",
    "shape": "the observation's shape is (1,), not (2,)",
}
ON_RAY = ["shards=1", "rollout_workers=1"]


@pytest.fixture
def reach(tmp_path):
    """Writes the recipe of an environment that goes wrong, and gives its name."""

    def written(wrong):
        (tmp_path / "reach.py").write_text(WORLD)
        (tmp_path / "mine.yaml").write_text(REACH.format(wrong=wrong))
        return "mine.yaml"

    return written


def assert_one_clear_line(wrong, status, out, err):
    lines = [line for line in err.splitlines() if " E " not in line]  # of Ray's own
    assert status == 2 and out == "" and "Traceback" not in err
    assert lines[-1].startswith("error: task 0 of iteration 2, goal (")
    assert lines[-1].endswith(f"), after 0 adaptation steps, step 2: {SAID[wrong]}")
    assert len(lines) == 1


def failing(reach, monkeypatch, capfd, wrong, how):
    recipe = reach(wrong)
    quick = ["engine.running=eager", "engine.batching=vmap", "outer.iterations=3"]
    monkeypatch.setattr(sys, "argv", ["train", recipe, *how, *quick])
    status = guarded(train.main)
    assert_one_clear_line(wrong, status, *capfd.readouterr())


@pytest.mark.parametrize("wrong", SAID)
def test_an_environment_that_fails_in_mid_run_is_one_clear_line(
    tmp_path, reach, monkeypatch, capfd, wrong
):
    monkeypatch.chdir(tmp_path)
    failing(reach, monkeypatch, capfd, wrong, ["--local"])


def test_and_on_ray(tmp_path, ray_here, reach, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    failing(reach, monkeypatch, capfd, "raises", ON_RAY)


@pytest.mark.slow
@pytest.mark.parametrize("how", [["--local"], ON_RAY], ids=["local", "on Ray"])
def test_and_of_the_command_as_a_user_starts_it(command, reach, how):
    process = command("train", reach("nan"), *how)
    out, err = process.communicate(timeout=120)
    assert_one_clear_line("nan", process.returncode, out, err)
