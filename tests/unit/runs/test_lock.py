"""One driver a folder: a second is refused, a stale lock is taken over with a word."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from threading import Barrier, Thread
from threading import Event as ThreadEvent

import pytest
from pyarrow._fs import _MockFileSystem

from maml_dist.runs import folder, lock
from maml_dist.runs.folder import Folder
from maml_dist.runs.lock import LockLost, locked
from maml_dist.runs.owner import NAME, SIZE, Owner, read_owner

HOLDS = """
import sys
from maml_dist.runs.folder import Folder
from maml_dist.runs.lock import LockLost, locked
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


@pytest.fixture
def quick(monkeypatch):
    """Seconds become hundredths."""
    monkeypatch.setattr(lock, "SETTLES", 0.02)
    monkeypatch.setattr(lock, "REFRESH", 0.05)
    monkeypatch.setattr(lock, "WATCHED", 1.0)


@pytest.fixture
def objects(quick, monkeypatch):
    """A place that is not local: one file system in memory for all folders."""
    memory = _MockFileSystem()
    monkeypatch.setattr(folder, "_file_system", lambda where: (memory, where))
    return Folder("bucket/checkpoints")


def put(where, **changes):
    owner = replace(Owner.me(), **changes)
    where.write(NAME, owner.content())
    return owner


def until(holds):
    ends = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)


LONG_AGO = {"refreshed": 1e9, "host": "elsewhere"}


def test_a_holder_writes_again_and_again_that_it_lives(objects):
    with locked(objects) as held:
        first = read_owner(objects)
        until(lambda: read_owner(objects).refreshed > first.refreshed)
        assert read_owner(objects).id == first.id
        held.check()
    assert objects.names() == []


def test_on_a_local_disk_too_and_takes_no_more_room(tmp_path, quick):
    with locked(Folder(tmp_path)):
        first = read_owner(Folder(tmp_path))
        until(lambda: read_owner(Folder(tmp_path)).refreshed > first.refreshed)
        assert (tmp_path / NAME).stat().st_size == SIZE


def test_one_elsewhere_is_refused_while_it_is_fresh(objects):
    put(objects, host="elsewhere")
    said = "on elsewhere since .*, last heard 0 s ago: .* or has been silent for 5 minutes, or"
    with pytest.raises(ValueError, match=said), locked(objects):
        pass
    assert read_owner(objects).host == "elsewhere"


@pytest.mark.parametrize("refreshed", [1e9, 1e11])
def test_a_silent_one_is_taken_over_with_a_word(objects, monkeypatch, capsys, refreshed):
    monkeypatch.setattr(lock, "WATCHED", 0.02)
    put(objects, **{**LONG_AGO, "refreshed": refreshed})  # also by a clock that is ahead
    with locked(objects) as held:
        assert "taking over from process" in held.word and "which is silent" in held.word
        assert read_owner(objects).host == socket.gethostname()
    assert "watching for" in capsys.readouterr().err


def test_but_not_if_only_its_clock_is_wrong(objects, monkeypatch):
    living = put(objects, **LONG_AGO)

    def watched(seconds):
        objects.write(NAME, replace(living, refreshed=1e9 + 20).content())

    monkeypatch.setattr(lock.time, "sleep", watched)
    with pytest.raises(ValueError, match="is being trained by"), locked(objects):
        pass
    assert read_owner(objects).id == living.id


def test_one_that_is_not_refreshed_is_of_an_earlier_version_and_stays(objects):
    put(objects, host="elsewhere", refreshed=None)
    with pytest.raises(ValueError, match=rf"or, if it has, remove .*{NAME}"), locked(objects):
        pass


def test_of_two_that_start_together_one_steps_back(objects, monkeypatch):
    other = replace(Owner.me(), host="elsewhere", id="other")
    monkeypatch.setattr(lock.time, "sleep", lambda s: objects.write(NAME, other.content()))
    with pytest.raises(ValueError, match="being trained by .* elsewhere"), locked(objects):
        pass
    assert read_owner(objects) == other


def test_many_that_start_together_are_one_in_the_end(objects):
    holding, refused = [], []
    barrier, ends = Barrier(8), ThreadEvent()

    def start():
        barrier.wait()
        try:
            with locked(objects) as held:
                holding.append(held)
                ends.wait(20)
        except ValueError:
            refused.append(1)

    threads = [Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(holding) + len(refused) == 8)

    def living():
        count = 0
        for held in holding:
            with suppress(LockLost):
                held.check()
                count += 1
        return count

    until(lambda: living() == 1)
    ends.set()
    for thread in threads:
        thread.join()
    assert objects.names() == []


def test_who_was_overtaken_knows_before_it_writes_and_soon_by_itself(objects):
    with locked(objects) as held:
        other = put(objects, host="elsewhere")
        with pytest.raises(LockLost, match="was taken over by process .* on elsewhere"):
            held.check()
        until(lambda: held._lost)
        with pytest.raises(LockLost):
            held.refuse_lost()
    assert read_owner(objects) == other  # it is not removed


def test_a_lock_that_was_removed_is_written_again(objects, tmp_path, quick):
    for where in (objects, Folder(tmp_path)):
        with locked(where) as held:
            mine = read_owner(where)
            where.delete(NAME)
            held.check()
            assert read_owner(where).id == mine.id
            with pytest.raises(ValueError, match="is being trained"), locked(where):
                pass


def test_but_not_by_one_that_slept_meanwhile(objects):
    """Another may have trained there, and ended."""
    with locked(objects) as held:
        held._released.set()
        held._thread.join()
        held._mine = replace(held._mine, refreshed=1e9)
        objects.delete(NAME)
        with pytest.raises(LockLost):
            held.check()
    assert objects.names() == []


def test_one_that_was_frozen_between_its_look_and_its_write_leaves_the_place(objects, monkeypatch):
    with locked(objects) as held:
        held._released.set()
        held._thread.join()
        held._released.clear()
        held._mine = replace(held._mine, refreshed=1e9)
        objects.write(NAME, held._mine.content())
        write, other = held._write, replace(Owner.me(), host="elsewhere")

        def late(mine):
            objects.write(NAME, other.content())  # who has begun, and is written over
            time.sleep(0.1)
            write(mine)

        monkeypatch.setattr(held, "_write", late)
        held._refresh()
        with pytest.raises(LockLost, match="this one was frozen"):
            held.refuse_lost()
        assert objects.names() == []  # the other writes it again


def test_what_cannot_be_read_is_no_reason_to_stop(objects, monkeypatch):
    with locked(objects) as held:
        objects.write(NAME, b"{")
        with pytest.raises(OSError, match="is not JSON"):
            held.check()
    objects.delete(NAME)


def test_what_outlives_the_holder_writes_nothing(objects, tmp_path):
    for place in (objects, Folder(tmp_path / "local")):
        with locked(place) as held:
            held.check()
        with pytest.raises(LockLost, match="is not held any more"):
            held.check()
        assert place.read(NAME, most=SIZE) is None


def test_a_process_of_another_container_of_this_host_has_not_ended():
    mine = Owner.me()
    assert mine.here and not mine.ended
    gone = replace(mine, pid=2**22 + 1)
    assert gone.ended and not replace(gone, system="another boot").ended


@pytest.mark.parametrize(
    "wrong", [{"pid": 10**30}, {"pid": 0}, {"since": "\x1b]0;title\x07"}, {"host": "h" * 101}]
)
def test_a_strangers_lock_is_looked_at_before_it_is_said(tmp_path, wrong):
    content = json.dumps({**asdict(Owner.me()), **wrong})
    (tmp_path / NAME).write_text(content)
    with pytest.raises(ValueError, match="driver.lock: .*if no driver is training there") as caught:
        read_owner(Folder(tmp_path))
    assert str(caught.value).isprintable()
