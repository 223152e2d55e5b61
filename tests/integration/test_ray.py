"""The same run on Ray and in this process, undisturbed and disturbed: the same bits."""

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import yaml

import maml_dist
from maml_dist.config.recipe import read_recipe
from maml_dist.core.outer.optimizers import Adam
from maml_dist.learners.maml import MAML
from maml_dist.runs.run import Run
from maml_dist.runtime import ray_peers
from maml_dist.runtime.ray_backend import RayBackend
from maml_dist.tasks.sinusoid import Sinusoid
from maml_dist.training.trainer import execute, prepare

pytestmark = pytest.mark.ray

RECIPE = {"iterations": 30, "checkpoint_every": 10, "log_every": 10}
RECIPE |= {"validation_tasks": 10, "test_steps": 2, "test_tasks": 10}
RECIPE |= {"engine.running": "eager"}  # test_learners has a traced one
SMALL = {**RECIPE, "progress": False}


def weights(run: Run) -> np.ndarray:
    return torch.cat([value.flatten() for value in run.weights("last")[0].values()]).numpy()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The weights of a run in this process, by its number of shards."""
    folder = tmp_path_factory.mktemp("local")
    return {
        shards: weights(
            maml_dist.meta_train(
                "sinusoid", run=folder / str(shards), shards=shards, local=True, **SMALL
            )
        )
        for shards in (1, 2, 4)
    }


@pytest.mark.parametrize(
    "shards", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)]
)
def test_ray_and_this_process_give_the_same_bits(tmp_path, ray_here, local, shards):
    run = maml_dist.meta_train("sinusoid", run=tmp_path / "run", shards=shards, **SMALL)
    assert np.array_equal(weights(run), local[shards])


@pytest.mark.parametrize(
    ("mode", "ranged"),
    [
        ({"server": "one"}, False),
        ({"server": "split", "servers": 2}, False),
        ({"server": "spread"}, True),
    ],
)
def test_whoever_makes_the_updates_the_bits_are_the_same(
    tmp_path, ray_here, local, monkeypatch, mode, ranged
):
    if ranged:
        monkeypatch.setattr(ray_peers, "RANGED_FROM", 1)
    run = maml_dist.meta_train("sinusoid", run=tmp_path / "run", shards=2, **mode, **SMALL)
    assert np.array_equal(weights(run), local[2])


@pytest.mark.parametrize(
    "keys", [{"max_staleness": 2}, pytest.param({"backup": 1}, marks=pytest.mark.slow)]
)
def test_updates_that_do_not_wait_learn_too_and_say_what_was_stale(tmp_path, ray_here, keys):
    run = maml_dist.meta_train("sinusoid", run=tmp_path / "run", shards=2, **keys, **SMALL)
    assert run.finished and [row["iteration"] for row in run.metrics] == [10, 20, 30]
    for row in run.metrics:
        assert row["dropped"] == keys.get("backup", 0)
        assert 0 <= row["staleness"] <= row["staleness/most"] <= keys.get("max_staleness", 0)


@pytest.mark.parametrize("shards", [2, 4])
def test_any_number_of_shards_agrees_to_rounding(local, shards):
    difference = np.linalg.norm(local[shards] - local[1])
    assert difference <= 1e-5 * np.linalg.norm(local[1])


@pytest.mark.slow  # test_faults.py loses more
def test_a_killed_shard_is_restarted_and_nothing_changes(tmp_path, ray_here, local, groups):
    def kill_a_shard(row):
        if row["iteration"] == 20:
            ray_here.kill(groups[0].shards[0].actor)

    run = maml_dist.meta_train(
        "sinusoid",
        run=tmp_path / "run",
        shards=2,
        pipeline_depth=1,
        on_validation=kill_a_shard,
        **SMALL,
    )
    assert np.array_equal(weights(run), local[2])


def test_a_users_error_in_an_actor_is_raised_as_it_was(tmp_path, ray_here):
    with pytest.raises(FloatingPointError, match="is not finite"):
        maml_dist.meta_train(
            "sinusoid", run=tmp_path / "run", shards=2, alpha=1e30, steps=5, **SMALL
        )


def test_objects_of_no_file_travel_by_value(tmp_path, ray_here):
    @dataclass(frozen=True)
    class Scaled(Sinusoid):
        scale: float = 2.0

        def loss(self, output, batch):
            return self.scale * super().loss(output, batch)

    net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    given = {"task": Scaled(), "model": net, "learner": MAML(), "outer": Adam(), "slices": 2}
    one = maml_dist.meta_train(run=tmp_path / "1", **given, **SMALL | {"local": True})
    two = maml_dist.meta_train(run=tmp_path / "2", shards=2, **given, **SMALL)
    assert np.array_equal(weights(one), weights(two))
    assert maml_dist.load(two.path).adapt(torch.ones(2, 1), torch.ones(2, 1)) is not None


@dataclass(frozen=True)
class Locked(Sinusoid):
    """A task source that holds what cannot be pickled."""

    def __post_init__(self):
        object.__setattr__(self, "lock", threading.Lock())


@dataclass(frozen=True)
class Refusing(Adam):
    """An outer optimizer that raises something of its own."""

    def __reduce_ex__(self, protocol):
        raise NotImplementedError("not this one")


@dataclass(frozen=True)
class Unfolding(Sinusoid):
    """Travels, and cannot be made again."""

    def __setstate__(self, state):
        raise KeyError("gone")


def locked(module):
    module.lock = threading.Lock()
    return module


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e: replace(e, task=Locked()), "task.lock: cannot be sent to Ray's actors"),
        (lambda e: replace(e, model=locked(e.model)), "because of the model .* cannot pickle"),
        (lambda e: replace(e, outer=Refusing(beta=0.1)), "outer: cannot be sent .*not this one"),
        (lambda e: replace(e, task=Unfolding()), "an actor could not be made: KeyError: 'gone'"),
    ],
)
def test_what_cannot_travel_is_one_line_and_nothing_is_written(
    tmp_path, ray_here, monkeypatch, capfd, change, said
):
    ray_here.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    run = prepare("sinusoid", {**RECIPE, "shards": 2}, run=tmp_path / "run")
    monkeypatch.setattr(Run, "experiment", change(run.experiment))
    with pytest.raises(ValueError, match=said) as caught:
        execute(run, progress=False)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    assert "Traceback" not in capfd.readouterr().err


@dataclass(frozen=True)
class Deadly(Sinusoid):
    """One task kills every process that tries it, but the driver."""

    driver: int = 0

    def sample(self, key):
        if key[1:] == ("train", 3, 1) and os.getpid() != self.driver:
            os._exit(1)
        return super().sample(key)


@pytest.mark.slow
def test_a_task_that_kills_its_process_ends_the_run(tmp_path, ray_here, monkeypatch):
    run = prepare("sinusoid", {**RECIPE, "shards": 1}, run=tmp_path / "run")
    deadly = replace(run.experiment, task=Deadly(driver=os.getpid()))
    monkeypatch.setattr(Run, "experiment", deadly)
    ray_here.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # `tests` may be another's
    with pytest.raises(ChildProcessError, match=r"iteration 0( to \d+)?, or one collected with it"):
        execute(run, progress=False)


TWICE = """
from beside_it import FACTOR, Factor
from maml_dist.tasks.sinusoid import Sinusoid


class Twice(Sinusoid):
    def loss(self, output, batch):
        from later import scaled
        return scaled(super().loss(output, batch), FACTOR)
"""


def test_a_users_files_travel_to_where_they_are_not(tmp_path, ray_here, monkeypatch):
    """Those that it imports while it runs too; its learner goes to the shards, its outer optimizer
    to the server."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "beside_it.py").write_text("FACTOR = 2.0\nclass Factor: ...\n")
    (mine / "later.py").write_text("def scaled(value, factor): return value * factor\n")
    (mine / "users_task.py").write_text(TWICE)
    (mine / "rule.py").write_text(
        "from dataclasses import dataclass\nfrom maml_dist import OuterSGD\n\n\n"
        "@dataclass(frozen=True)\nclass Rule(OuterSGD):\n    beta: float = 0.1\n"
    )
    recipe = {**read_recipe("sinusoid"), "task": "users_task.Twice", "outer": "rule.Rule"}
    (mine / "mine.yaml").write_text(yaml.safe_dump(recipe))
    settings = {**SMALL, "iterations": 3, "shards": 2}
    local = maml_dist.meta_train(mine / "mine.yaml", run=tmp_path / "local", local=True, **settings)
    start = RayBackend.start

    def elsewhere(place, *work, **options):
        mine.rename(tmp_path / "gone")
        return start(place, *work, **options)

    monkeypatch.setattr(RayBackend, "start", elsewhere)
    run = maml_dist.meta_train(mine / "mine.yaml", run=tmp_path / "run", **settings)
    assert np.array_equal(weights(run), weights(local))


def test_another_address_than_the_one_joined_is_an_error(tmp_path, ray_here):
    with pytest.raises(ValueError, match="127.0.0.1:1: this process is on the cluster at"):
        maml_dist.meta_train("sinusoid", run=tmp_path / "run", address="127.0.0.1:1", **SMALL)
    assert not (tmp_path / "run").exists()


def test_more_gpus_than_there_are_is_an_error_before_anything_is_written(tmp_path, ray_here):
    with pytest.raises(ValueError, match="2 shards with 99 GPU each need 198 GPUs; there are 0"):
        maml_dist.meta_train("sinusoid", run=tmp_path / "run", shards=2, gpus_per_shard=99, **SMALL)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("delay", [pytest.param(0.0, marks=pytest.mark.slow), 2.0])
def test_a_killed_driver_resumes_to_the_same_bits(tmp_path, command, local, delay):
    """Killed with SIGKILL as soon as the run is there, and later."""
    settings = [f"{name}={value}" for name, value in RECIPE.items()]
    driver = command("train", "sinusoid", "shards=2", *settings, "--run", "run")
    while not (tmp_path / "run" / "recipe.yaml").exists():
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.05)
    time.sleep(delay)
    driver.kill()
    driver.wait()
    run = maml_dist.meta_train(resume=tmp_path / "run", local=True, progress=False)
    assert np.array_equal(weights(run), local[2])


def test_ctrl_c_leaves_a_checkpoint_and_the_working_directory_hides_nothing(tmp_path, command):
    for name in ("torch", "typing", "random"):  # from the command, and from the actors
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')")
    words = ["iterations=1000000", "engine.running=eager", "--run", "run", "shards=1"]
    driver = command("train", "sinusoid", *words)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 180  # of a busy machine
    while not (metrics.exists() and metrics.read_text()):
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    driver.send_signal(signal.SIGINT)
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "go on with --resume" in out and "Traceback" not in err
    assert "core_worker" not in err  # nor does Ray warn of how the actors are made
    assert Run.open(tmp_path / "run").checkpoints.last.iteration > 0


def test_it_runs_outside_the_main_thread(tmp_path, ray_here, local):
    runs = []
    thread = threading.Thread(
        target=lambda: runs.append(
            maml_dist.meta_train("sinusoid", run=tmp_path / "run", shards=1, **SMALL)
        )
    )
    thread.start()
    thread.join()
    assert np.array_equal(weights(runs[0]), local[1])
