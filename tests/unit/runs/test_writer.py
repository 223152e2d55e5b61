"""A thread that writes: what fails is kept and tried again, and said once."""

import errno
import os
from threading import Event

import pytest

from maml_dist.runs import growing_file, writer
from maml_dist.runs.growing_file import GrowingFile
from maml_dist.runs.lock import LockLost
from maml_dist.runs.writer import Output, Writer


class Counted(Output):
    """Fails as told."""

    place, meanwhile = "/mnt/there", "it is kept"

    def __init__(self, *failures):
        self.failures, self.tries, self.written = list(failures), 0, Event()

    @property
    def pending(self):
        return not self.written.is_set()

    def write(self):
        self.tries += 1
        if self.failures:
            raise self.failures.pop(0)
        self.written.set()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(writer, "EVERY", 0.01)
    monkeypatch.setattr(writer, "RETRY", 0.01)
    started = []

    def start(*outputs):
        started.append(Writer())
        for output in outputs:
            started[-1].add(output)
        return started[-1]

    yield start
    for each in started:
        each.close()


def full():
    return OSError(errno.ENOSPC, "No space left on device", "/mnt/there/x")


def test_what_fails_is_tried_again_unasked_and_said_once(quick, capsys):
    output = Counted(full(), full(), full())
    started = quick(output)
    assert output.written.wait(20)
    started.flush()
    assert output.tries == 4 and not started.unwritten
    assert capsys.readouterr().err == (
        "/mnt/there/x: No space left on device: training goes on, it is kept in memory; tried "
        "again each minute\n/mnt/there: is written again\n"
    )


def test_another_reason_is_said_too(quick, capsys):
    quick(output := Counted(full(), OSError(errno.EROFS, "Read-only file system"), full()))
    assert output.written.wait(20)
    said = capsys.readouterr().err
    assert said.count("No space left") == 2 and said.count("/mnt/there: Read-only file system") == 1


def test_it_is_tried_at_once_where_more_is_due(quick, monkeypatch):
    monkeypatch.setattr(writer, "RETRY", 1e6)
    output = Counted(full(), full())
    started = quick(output)
    started.flush()
    assert output.tries in (1, 2)  # unasked, and asked
    assert "No space left" in started.unwritten[output] or not output.pending
    started.flush()
    started.flush()
    assert output.tries == 3 and not output.pending


def test_a_mistake_and_a_lost_lock_are_raised_where_training_is(quick, monkeypatch):
    monkeypatch.setattr(writer, "RETRY", 1e6)
    for error in (LockLost("taken over"), KeyError("mine")):
        started = quick(Counted(error))
        with pytest.raises(type(error)):
            for _ in range(2):
                started.flush()
        started.refuse_failed()


def test_a_place_that_does_not_answer_is_not_waited_for(quick, monkeypatch, capsys):
    monkeypatch.setattr(writer, "PATIENCE", 0.05)
    answers, behind = Event(), Counted()

    class Hangs(Counted):
        def write(self):
            assert answers.wait(20)
            super().write()

    started = quick(hanging := Hangs(), behind)
    started.flush()
    started.flush()
    assert started.hangs and hanging.pending
    said = capsys.readouterr().err
    assert said.count("does not answer: training goes on") == 1
    answers.set()
    assert hanging.written.wait(20) and behind.written.wait(20)
    started.wait(20)
    monkeypatch.setattr(writer, "PATIENCE", 20)
    hanging.written.clear()
    started.flush()  # waits again
    assert not hanging.pending and not started.hangs


def test_a_file_grows_by_whole_pieces_over_what_a_full_disk_has_cut(tmp_path, monkeypatch):
    path = tmp_path / "rows"
    path.write_bytes(b"old\nof another\n")
    file = GrowingFile(path, size=4, meanwhile="")
    file.add(b"first\n")
    file.write()
    assert path.read_bytes() == b"old\nfirst\n"
    room, pwrite = [3], os.pwrite

    def cut(descriptor, content, at):
        if not room[0]:
            raise full()
        taken = pwrite(descriptor, content[: room[0]], at)
        room[0] -= taken
        return taken

    file.add(b"second\n")
    monkeypatch.setattr(growing_file.os, "pwrite", cut)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        file.write()
    assert path.read_bytes() == b"old\nfirst\nsec" and file.whole(readable=False) == b"second\n"
    assert file.whole(readable=True) == b"old\nfirst\nsecond\n"
    file.add(b"third\n")
    room[0] = 100
    file.write()
    assert path.read_bytes() == b"old\nfirst\nsecond\nthird\n" and not file.pending


def test_it_is_not_written_through_a_link(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "rows").symlink_to(tmp_path / "victim")
    file = GrowingFile(tmp_path / "rows", meanwhile="")
    file.add(b"x")
    with pytest.raises(OSError, match="rows"):
        file.write()
    assert (tmp_path / "victim").read_text() == "mine"
