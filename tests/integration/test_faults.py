"""Actors are killed and freeze while a run goes on: it ends with the same bits, by itself."""

import os
import signal
import threading
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import maml_dist
from maml_dist.runtime.backend import ActorLost
from maml_dist.runtime.ray_actors import SERVER
from maml_dist.runtime.ray_peers import Peers

pytestmark = pytest.mark.ray

RECIPE = {"iterations": 60, "checkpoint_every": 10, "log_every": 10, "meta_batch": 8}
RECIPE |= {"validation_tasks": 10, "test_steps": 2, "test_tasks": 10, "progress": False}
RECIPE |= {"engine.running": "eager"}


def weights(run) -> np.ndarray:
    return torch.cat([value.flatten() for value in run.weights("last")[0].values()]).numpy()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A run in this process that nothing disturbs."""
    folder = tmp_path_factory.mktemp("local")
    return maml_dist.meta_train("sinusoid", run=folder / "run", slices=4, local=True, **RECIPE)


def server_pid(ray, group) -> int:
    actors = ray._private.state.actors().values()
    (pid,) = (each["Pid"] for each in actors if each["Name"] == SERVER and each["State"] == "ALIVE")
    return pid


def occupy(ray, *, cpus):
    """An actor that takes so many of Ray's eight CPUs."""

    @ray.remote(num_cpus=cpus)
    class Occupant:
        def ready(self):
            return True

    occupant = Occupant.remote()
    ray.get(occupant.ready.remote())
    return occupant


@pytest.mark.parametrize("server", ["spread", pytest.param("one", marks=pytest.mark.slow)])
def test_whatever_is_lost_the_bits_are_the_same(server, tmp_path, ray_here, local, groups, capfd):
    done = []

    def disturb(row):
        (group,) = groups
        shards = [seat.pulse.pid for seat in group.shards if seat.pulse]
        faults = {
            10: lambda: os.kill(shards[0], signal.SIGKILL),
            20: lambda: os.kill(shards[-1], signal.SIGSTOP),
            30: lambda: os.kill(server_pid(ray_here, group), signal.SIGKILL),
            40: lambda: [os.kill(pid, signal.SIGKILL) for pid in shards],
            50: lambda: os.kill(server_pid(ray_here, group), signal.SIGSTOP),
        }
        if row["iteration"] in faults:
            faults[row["iteration"]]()
            done.append(row["iteration"])

    run = maml_dist.meta_train(
        "sinusoid",
        run=tmp_path / "run",
        shards=3,
        slices=4,
        pipeline_depth=1,
        server=server,
        heartbeat_timeout=5,
        on_validation=disturb,
        **RECIPE,
    )
    assert done == [10, 20, 30, 40, 50]
    assert np.array_equal(weights(run), weights(local))
    assert [row["iteration"] for row in run.metrics] == [10, 20, 30, 40, 50, 60]
    for ours, theirs in zip(run.metrics, local.metrics, strict=True):
        assert ours["val/mse"] == theirs["val/mse"] and ours["loss/after"] == theirs["loss/after"]
    err = capfd.readouterr().err
    for said in (
        "was lost: its process has ended",
        "has not answered for",
        "the parameter server was lost: a new one goes on from iteration",
        "goes on from iteration",
    ):
        assert said in err
    assert "Traceback" not in err and "Unhandled error" not in err and "raylet" not in err


def test_what_cannot_be_linked_has_one_server_and_is_linked_later(
    tmp_path, ray_here, local, groups, monkeypatch, capfd
):
    linked = []
    form = Peers.form

    def first_time_not(peers, *given, **options):
        linked.append(len(linked) > 0)
        if not linked[-1]:
            raise ActorLost("no link to 10.0.0.2")
        form(peers, *given, **options)

    monkeypatch.setattr(Peers, "form", first_time_not)
    monkeypatch.setattr("maml_dist.runtime.ray_group.RELINKS_AFTER", 0.5)
    run = maml_dist.meta_train(
        "sinusoid",
        run=tmp_path / "run",
        shards=3,
        slices=4,
        pipeline_depth=1,
        on_validation=lambda row: time.sleep(0.2),
        **RECIPE,
    )
    assert linked == [False, True] and groups[0].linked
    assert np.array_equal(weights(run), weights(local))
    assert [row["iteration"] for row in run.metrics] == [10, 20, 30, 40, 50, 60]
    said = capfd.readouterr().err
    assert "no link to 10.0.0.2: one server makes the updates, until they can be linked" in said


def test_shards_that_come_later_take_slices(tmp_path, ray_here, local, groups):
    """Ray has room for two of four at first."""

    occupant = occupy(ray_here, cpus=6)
    up = []

    def make_room(row):
        (group,) = groups
        up.append(sum(seat.pulse is not None for seat in group.shards))
        if row["iteration"] == 20:
            ray_here.kill(occupant)
            while not all(seat.pulse for seat in group.shards):
                group._roster.tick()
                time.sleep(0.1)

    run = maml_dist.meta_train(
        "sinusoid",
        run=tmp_path / "run",
        shards={"min": 2, "max": 4},
        on_validation=make_room,
        **RECIPE,
    )
    assert up[:2] == [2, 2] and up[-1] == 4
    assert run.config["slices"] == 4 and run.config["shards"] == {"min": 2, "max": 4}
    assert np.array_equal(weights(run), weights(local))


@pytest.mark.slow
def test_no_shard_takes_the_room_of_rollout_workers(tmp_path, ray_here, groups):
    """Three shards of three would fit into three CPUs, and no worker beside them."""
    occupant = occupy(ray_here, cpus=5)
    up = []

    def look(row):
        (group,) = groups
        up.append([seat.name[:15] for seat in (*group.shards, *group.workers) if seat.placed])

    maml_dist.meta_train(
        "navigation",
        run=tmp_path / "run",
        shards={"min": 1, "max": 3},
        rollout_workers=1,
        on_validation=look,
        **RECIPE | {"iterations": 2, "checkpoint_every": 1, "meta_batch": 3},
        **{"task.episodes": 4, "task.horizon": 6},
    )
    ray_here.kill(occupant)
    assert [name.split()[0] for name in up[-1]] == ["TaskShard", "RolloutWorker"]


def test_where_there_is_no_room_it_waits_with_a_word_and_can_be_stopped(
    tmp_path, ray_here, monkeypatch, groups, capfd
):
    monkeypatch.setattr("maml_dist.runtime.ray_roster.WORD", (1.0, 1.0))
    stop = threading.Event()

    def end_all(row):
        (group,) = groups
        for seat in group.shards:
            seat.make = lambda: (_ for _ in ()).throw(ValueError("no room"))
            ray_here.kill(seat.actor)
        threading.Timer(4.0, stop.set).start()

    monkeypatch.setattr("maml_dist.training.loop.interruptible", lambda: _stopped_by(stop))
    run = maml_dist.meta_train(
        "sinusoid", run=tmp_path / "run", shards=2, on_validation=end_all, **RECIPE
    )
    assert not run.finished and run.checkpoints.last.iteration >= 10
    assert "waits since" in capfd.readouterr().err


def test_a_machine_that_is_too_small_is_refused_at_once(tmp_path, ray_here):
    with pytest.raises(ValueError, match="no machine of the cluster has 9 CPU .*the largest has 8"):
        maml_dist.meta_train("sinusoid", run=tmp_path / "run", shards=1, cpus_per_shard=9, **RECIPE)
    assert not (tmp_path / "run").exists()


def _stopped_by(event):
    return nullcontext(event.is_set)
