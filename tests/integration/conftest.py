"""One Ray for these tests, and the package's commands as a user runs them."""

import os
import subprocess
import sys

import pytest

QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def ray_here():
    """Ray in this process, with more CPUs declared than there are cores."""
    import ray

    os.environ.update(QUIET)
    ray.init(
        address="local",
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield ray
    ray.shutdown()


@pytest.fixture
def command(tmp_path):
    """Starts `python -m maml_dist.NAME ARGUMENTS` in an empty folder."""
    started = []

    def start(name: str, *arguments: str, **variables: str) -> subprocess.Popen:
        environment = {**os.environ, **QUIET, **variables}
        environment.pop("RAY_ADDRESS", None)
        process = subprocess.Popen(
            [sys.executable, "-m", f"maml_dist.{name}", *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
