"""A Ray of the run's own, started on this machine: nobody but its owner finds a way in.

By itself Ray listens on every interface and opens its folder in /tmp to everyone. Here it listens
on the loopback address alone, answers nobody without a token that is made for this run, and its
files, the token among them, lie in a folder of the owner's that ends with it (docs/security.md).
"""

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from maml_dist.loggers.lines import say
from maml_dist.runtime.allocator import ONE_HEAP
from maml_dist.runtime.ray_init import init
from maml_dist.runtime.ray_options import mute, options

SOCKET_PATH = 103 if sys.platform == "darwin" else 107  # bytes that the system allows
LONGEST = "/maml-01234567/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"


_MARK = "MAML_DIST_OWN_RAY"  # in the environment of all of its processes


def is_own() -> bool:
    """Whether the Ray of this process is one of these."""
    return _MARK in os.environ


@contextmanager
def own_ray(cpus: int) -> Iterator[None]:
    """Inside, this process is the driver of a Ray with so many CPUs that is closed to others.

    A token and a mode of authentication in the environment are for the clusters that the user
    names: they are put aside for as long as this Ray lives.

    Raises:
        ChildProcessError: Ray did not start, or an actor was lost: Ray's logs are left, and named.
        OSError: there is no room for temporary files.
    """
    mode = os.environ.get("RAY_AUTH_MODE") or "token"
    if mode.lower() != "token":
        warning = f"RAY_AUTH_MODE={mode} is for a cluster of --address: this Ray asks for its token"
        say(warning, level="warning")
    folder = Path(tempfile.mkdtemp(prefix="maml-", dir=_base()))  # of mode 0700
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    lost = False
    try:
        with _environment(token):
            try:
                _start(cpus, folder / "ray")
                yield
            finally:
                _stop()
    except ChildProcessError as error:
        lost = True
        raise ChildProcessError(f"{error}; Ray's logs: {folder}") from None
    finally:
        if lost:
            token.unlink()
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _base() -> str | None:
    """Where the folder is made: the system's choice, or /tmp where sockets' paths grow too long."""
    there = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return there if len(os.fsencode(there + LONGEST)) <= SOCKET_PATH else "/tmp"


def _start(cpus: int, folder: Path) -> None:
    mute()
    try:
        init(
            "Ray on this machine",
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            _temp_dir=str(folder),
            _system_config={"enable_metrics_collection": False},  # an open page of them, else
            **options(),
        )
    except Exception as error:  # Ray's own word for a process that does not come up
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ChildProcessError(f"Ray did not start on this machine: {said}") from error


def _stop() -> None:
    import ray

    ray.shutdown()


@contextmanager
def _environment(token: Path) -> Iterator[None]:
    """Inside, this process and what it starts know the token, and call this machine 127.0.0.1.

    Ray keeps what it has read of them, so it is made to read them again, inside and afterwards.
    """
    from ray import _raylet
    from ray._private import ray_constants

    ours = {
        _MARK: "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_AUTH_TOKEN": None,  # else it would come first
        "RAY_ENABLE_K8S_TOKEN_AUTH": None,
        # What Ray does by itself on macOS: one machine, and so the loopback address.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        **{name: os.environ.get(name, value) for name, value in ONE_HEAP.items()},
    }
    before = {name: os.environ.get(name) for name in ours}
    cluster, raylet = ray_constants.ENABLE_RAY_CLUSTER, cast(Any, _raylet)

    def become(variables: dict[str, str | None], *, cluster: bool) -> None:
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        ray_constants.ENABLE_RAY_CLUSTER = cluster
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()

    become(ours, cluster=False)
    try:
        yield
    finally:
        become(before, cluster=cluster)
