"""One Ray for these tests, and the package's commands as a user runs them."""

import os
import subprocess
import sys

import pytest

from maml_dist.runtime.private_ray import own_ray
from maml_dist.runtime.ray_backend import RayBackend


@pytest.fixture(scope="module")
def ray_here():
    """Ray in this process, with more CPUs declared than there are cores."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Else the tests beside these starve its actors.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - as Ray spells it
    with own_ray(8):
        yield ray


@pytest.fixture
def groups(monkeypatch):
    """The actor groups that are made."""
    made = []
    start = RayBackend.start

    def keep_hold(place, *work, **options):
        made.append(start(place, *work, **options))
        return made[-1]

    monkeypatch.setattr(RayBackend, "start", keep_hold)
    return made


@pytest.fixture(scope="session")
def command_in():
    """Starts `python -m maml_dist.NAME ARGUMENTS` in a folder, as a user who has no cluster."""

    def start(folder, name: str, *arguments: str, **variables: str) -> subprocess.Popen:
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return subprocess.Popen(
            [sys.executable, "-m", f"maml_dist.{name}", *arguments],
            cwd=folder,
            env=own | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def command(tmp_path, command_in):
    """Starts `python -m maml_dist.NAME ARGUMENTS` in an empty folder."""
    started = []

    def start(name: str, *arguments: str, **variables: str) -> subprocess.Popen:
        started.append(command_in(tmp_path, name, *arguments, **variables))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
