"""Files that are whole or not there, and folders that a failure does not leave behind."""

import errno
import os
import resource
import signal

import pytest

from maml_dist.runs.folder import Folder, made, read_bounded, replace


def test_a_file_is_written_read_in_parts_and_deleted(tmp_path):
    for where in (tmp_path / "a" / "b", (tmp_path / "c" / "d").as_uri()):
        folder = Folder(where)
        assert folder.names() == [] and folder.read("x", most=9) is None
        folder.write("x", b"0123456789")
        folder.write("x", b"abcdefghij")
        assert folder.names() == ["x"] and folder.size("x") == 10
        assert folder.read("x", most=3, start=2) == b"cde"
        assert b"".join(folder.chunks("x")) == b"abcdefghij"
        folder.delete("x")
        folder.delete("x")
        assert folder.names() == []


@pytest.mark.parametrize("where", ["", "  ", "a\0b", "gopher://x"])
def test_a_place_that_is_none_is_refused(where):
    with pytest.raises(ValueError, match="checkpoints="):
        Folder(where)


def test_something_else_of_that_name_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(ValueError, match=f"{name} is not a file"):
            Folder(tmp_path).read(name, most=9)
        with pytest.raises(ValueError, match=f"{name} is not a file"):
            read_bounded(tmp_path / name, most=9)


def test_what_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)  # takes no room
    with pytest.raises(ValueError, match="must be 1,000 at the most"):
        read_bounded(tmp_path / "large", most=1000)


def test_nothing_is_written_through_a_link(tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.write_text("mine")
    folder.mkdir()
    for name in ("x", "x.part", f"x.{os.getpid()}.part"):
        (folder / name).symlink_to(victim)
    Folder(folder).write("x", b"new")
    replace(folder / "x", b"newer")
    assert victim.read_text() == "mine"
    assert (folder / "x").read_text() == "newer" and not (folder / "x").is_symlink()


@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_full_disk_is_said_with_the_path_and_what_was_there_stays(tmp_path, monkeypatch, at):
    path = tmp_path / "index.json"
    replace(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, at, full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        replace(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["index.json"]


def test_a_file_too_large_for_the_disk_leaves_what_was_there(tmp_path):
    path = tmp_path / "index.json"
    replace(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{path}'"):
            replace(path, b"new" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["index.json"]


def test_a_new_file_does_not_replace_one(tmp_path):
    replace(tmp_path / "x", b"1", new=True)
    with pytest.raises(FileExistsError):
        replace(tmp_path / "x", b"2", new=True)
    assert (tmp_path / "x").read_bytes() == b"1" and os.listdir(tmp_path) == ["x"]


def test_a_folder_that_was_made_in_vain_is_removed(tmp_path):
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "a" / "b", tmp_path / "there"):
        with pytest.raises(KeyError), made(folder):
            assert folder.is_dir()
            raise KeyError
    assert os.listdir(tmp_path) == ["there"]


def test_but_not_what_is_in_it(tmp_path):
    with pytest.raises(KeyError), made(tmp_path / "a" / "b"):
        (tmp_path / "a" / "kept").write_text("")
        raise KeyError
    assert os.listdir(tmp_path / "a") == ["kept"]
