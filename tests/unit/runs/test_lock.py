"""One driver a folder: a second is refused, a stale lock is taken over with a word."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from maml_dist.runs import lock
from maml_dist.runs.folder import Folder
from maml_dist.runs.lock import locked
from maml_dist.runs.owner import NAME, Owner

HOLDS = """
import sys
from maml_dist.runs.folder import Folder
from maml_dist.runs.lock import locked
with locked(Folder(sys.argv[1])) as held:
    print(held.word or "held", flush=True)
    sys.stdin.read()
"""


def write(folder, **changes):
    owner = replace(Owner.me(), **changes)
    (folder / NAME).write_text(json.dumps(asdict(owner)))


def refused(folder, said):
    with pytest.raises(ValueError, match=said), locked(Folder(folder)):
        pass


@pytest.fixture
def without_kernel_locks(monkeypatch):
    def unknown(*_):
        raise OSError("not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unknown)
    monkeypatch.setattr(lock, "SETTLES", 0.01)


def test_it_is_there_while_it_is_held_and_gone_afterwards(tmp_path):
    folder = tmp_path / "new" / "run"
    with locked(Folder(folder)) as held:
        assert held.word == "" and json.loads((folder / NAME).read_text())["pid"] == os.getpid()
        (folder / "made").write_text("")
    assert os.listdir(folder) == ["made"]


def test_a_second_is_refused_in_this_process_too(tmp_path):
    with locked(Folder(tmp_path)):
        for _ in range(2):
            refused(tmp_path, rf"trained by process {os.getpid()} on .* since")
    with locked(Folder(tmp_path)) as held:
        assert held.word == ""


def test_a_failure_lets_go_and_leaves_no_folder(tmp_path):
    with pytest.raises(KeyError), locked(Folder(tmp_path / "run")):
        raise KeyError
    assert not (tmp_path / "run").exists()


def test_another_process_holds_it_until_it_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        refused(tmp_path, f"by process {other.pid} on")
        other.kill()
        other.wait()
        with locked(Folder(tmp_path)) as held:
            assert (
                f"taking over from process {other.pid} on" in held.word and "has ended" in held.word
            )


def test_one_on_another_host_is_refused_and_the_line_says_how_to_clear_it(tmp_path):
    write(tmp_path, host="elsewhere")
    refused(tmp_path, rf"on elsewhere since .*, or, if it has, remove .*{NAME}")
    (tmp_path / NAME).unlink()
    with locked(Folder(tmp_path)) as held:
        assert held.word == ""


def test_without_kernel_locks_a_living_process_keeps_it(tmp_path, without_kernel_locks):
    with locked(Folder(tmp_path)):
        refused(tmp_path, "is being trained by process")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("changes", [{"pid": 2**22 + 1}, {"started": 1.5}])
def test_and_one_that_has_ended_does_not(tmp_path, without_kernel_locks, changes):
    write(tmp_path, **changes)  # no such process, or another has its number now
    with locked(Folder(tmp_path)) as held:
        assert "which has ended" in held.word
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("text", ["[1]", "{", '{"host": 1}', "\0" * 50])
def test_a_lock_that_is_none_is_said(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    refused(tmp_path, f"{NAME}.*if no driver is training there, remove it")


def test_it_is_not_made_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / NAME).symlink_to(victim)
    with pytest.raises(OSError, match=NAME), locked(Folder(tmp_path / "run")):
        pass
    assert victim.read_text() == "mine"


def test_a_place_that_is_not_local_has_one_too(tmp_path, monkeypatch):
    monkeypatch.setattr(Folder, "local", None)  # as of object stores
    monkeypatch.setattr(lock, "SETTLES", 0.01)
    folder = Folder(tmp_path)
    with locked(folder), pytest.raises(ValueError, match="is being trained by"), locked(folder):
        pass
    write(tmp_path, host="elsewhere")
    refused(tmp_path, "on elsewhere")
    write(tmp_path, host=socket.gethostname(), pid=2**22 + 1)
    with locked(folder) as held:
        assert "which has ended" in held.word
