"""What a Ray of the run's own changes of this process, and gives back; no Ray is started."""

import os
from pathlib import Path

import pytest

from maml_dist.runtime import private_ray
from maml_dist.runtime.private_ray import LONGEST, SOCKET_PATH

NAMES = (
    *("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_K8S_TOKEN_AUTH"),
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
)


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Instead of Ray: what the process would have started it with, in the order of the calls."""
    seen = []

    def start(cpus, folder):
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        modes = [path.stat().st_mode & 0o777 for path in (token, token.parent)]
        seen.append((token.read_text(), modes, {name: os.environ.get(name) for name in NAMES}))

    monkeypatch.setattr(private_ray, "_start", start)
    monkeypatch.setattr(private_ray, "_stop", lambda: None)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(private_ray, "SOCKET_PATH", 1000)
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return seen


def test_each_has_a_token_of_its_own_for_the_owner_alone(started, tmp_path):
    for _ in range(2):
        with private_ray.own_ray(2):
            assert len(list(tmp_path.iterdir())) == 1
    (first, modes, variables), (second, *_) = started
    assert len(first) == len(second) == 64 and first != second
    assert modes == [0o600, 0o700]
    assert variables["RAY_AUTH_MODE"] == "token" and variables["RAY_AUTH_TOKEN"] is None
    assert not list(tmp_path.iterdir()) and not os.environ.keys() & {*NAMES}


@pytest.mark.parametrize("mode", ["disabled", "Disabled", "k8s"])
def test_a_users_settings_for_clusters_are_put_aside_and_given_back(
    started, monkeypatch, capsys, mode
):
    theirs = {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": "t", "RAY_AUTH_TOKEN_PATH": "/p"}
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    with private_ray.own_ray(2):
        pass
    (_, _, variables) = started[0]
    assert variables["RAY_AUTH_MODE"] == "token" and variables["RAY_AUTH_TOKEN"] is None
    assert {name: os.environ[name] for name in theirs} == theirs
    assert capsys.readouterr().err.startswith(f"RAY_AUTH_MODE={mode} is for a cluster")


@pytest.mark.parametrize("mode", [None, "", "token", "TOKEN"])
def test_where_nothing_is_weakened_nothing_is_said(started, monkeypatch, capsys, mode):
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with private_ray.own_ray(2):
        pass
    assert not capsys.readouterr().err and os.environ.get("RAY_AUTH_MODE") == mode


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_a_run_that_fails_leaves_nothing(started, tmp_path, error):
    with pytest.raises(type(error)), private_ray.own_ray(2):
        raise error
    assert not list(tmp_path.iterdir()) and not os.environ.keys() & {*NAMES}


def test_a_lost_actor_leaves_rays_logs_without_the_token(started, tmp_path):
    with pytest.raises(ChildProcessError) as caught, private_ray.own_ray(2):
        raise ChildProcessError("an actor was lost")
    (left,) = tmp_path.iterdir()
    assert str(caught.value) == f"an actor was lost; Ray's logs: {left}"
    assert not list(left.iterdir()) and left.stat().st_mode & 0o777 == 0o700


def test_a_folder_is_chosen_where_sockets_have_room(monkeypatch, tmp_path):
    room = SOCKET_PATH - len(LONGEST)
    for length, expected in ((room, "/" + "x" * (room - 1)), (room + 1, "/tmp")):
        monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * (length - 1))
        assert private_ray._base() == expected
    monkeypatch.setenv("RAY_TMPDIR", "/" + "é" * (room - 1))  # bytes, not letters, are counted
    assert private_ray._base() == "/tmp"
