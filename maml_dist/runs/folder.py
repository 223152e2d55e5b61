"""Folder: files that appear whole or not at all, local or on any `pyarrow.fs` file system.

A file is written under another name and moved. Where the folder is local, it is on the disk before
it is moved, and never written through a link that somebody has put in its place.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyarrow import fs


class Folder:
    """A folder and its files, by name."""

    def __init__(self, where: str | Path) -> None:
        """`where`: a path, or a URI of `pyarrow.fs`. ValueError: it is neither."""
        self._fs, self.path = _file_system(str(where))
        self.guard: Callable[[], None] | None = None  # called before the folder is changed

    @property
    def local(self) -> Path | None:
        """The path, where the folder is on this machine."""
        return Path(self.path) if isinstance(self._fs, fs.LocalFileSystem) else None

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where it is not there.

        Raises:
            ValueError: there is something else of that name.
        """
        info = self._fs.get_file_info(f"{self.path}/{name}")
        if info.type == fs.FileType.NotFound:
            return None
        if info.type != fs.FileType.File:
            raise ValueError(f"{self.path}/{name} is not a file")
        return int(info.size)

    def modified(self, name: str) -> float | None:
        """When a file was written, seconds since 1970; None where that is not known."""
        seconds: float | None = self._fs.get_file_info(f"{self.path}/{name}").mtime_ns
        return None if seconds is None else seconds / 1e9

    def read(self, name: str, *, most: int, start: int = 0) -> bytes | None:
        """A file's bytes from `start` on, `most` at the most; None where it is not there.

        Raises:
            ValueError: there is something else of that name.
        """
        if self.size(name) is None:
            return None
        try:
            with self._fs.open_input_file(f"{self.path}/{name}") as file:
                file.seek(start)
                content: bytes = file.read(most)
        except FileNotFoundError:
            return None
        return content

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's bytes, a part at a time.

        Raises:
            OSError: it is not there.
        """
        with self._fs.open_input_stream(f"{self.path}/{name}") as stream:
            while part := stream.read(1 << 20):
                yield part

    def names(self) -> list[str]:
        """What is in the folder, sorted; nothing where it is not there."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        return sorted(info.base_name for info in self._fs.get_file_info(selector))

    def write(self, name: str, content: bytes, *, part: str | None = None) -> None:
        """Make or replace a file; what was there stays until all of it is written.

        `part` is its name until then, where several processes may write it.

        Raises:
            OSError: it cannot be written; names the path.
        """
        if self.guard:
            self.guard()
        path, part = f"{self.path}/{name}", part or f"{name}.part"
        if self.local:
            self.local.mkdir(parents=True, exist_ok=True)
            replace(self.local / name, content, part=part)
            return
        try:
            self._fs.create_dir(self.path, recursive=True)
            with self._fs.open_output_stream(f"{self.path}/{part}") as stream:
                stream.write(content)
            self._fs.move(f"{self.path}/{part}", path)
        except OSError as error:
            raise OSError(f"{path} cannot be written: {error}") from error

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.guard:
            self.guard()
        with suppress(FileNotFoundError):
            self._fs.delete_file(f"{self.path}/{name}")


def folder_of(path: str) -> tuple[Folder, str]:
    """The folder and the name of a checkpoint's file, by its path or URI.

    Raises:
        ValueError: it is not there.
    """
    where, _, name = path.rpartition("/") if "://" in path else ("", "", "")
    if not name:
        where, name = str(Path(path).absolute().parent), Path(path).name
    try:
        folder = Folder(where)
        if not name or folder.size(name) is None:
            raise ValueError("no such file")
    except (ValueError, OSError) as error:
        raise ValueError(f"no checkpoint at {path}: {error}") from None
    return folder, name


def replace(path: Path, content: bytes, *, part: str | None = None, new: bool = False) -> None:
    """Make or replace a local file in one go: a power loss leaves the old or the new.

    Args:
        path: the file.
        content: its bytes.
        part: the name that it has until it is whole; by this process's number if None, for files
            that several processes may write.
        new: the file must not be there yet.

    Raises:
        FileExistsError: it is to be new and is there.
        OSError: it cannot be written; names the path.
    """
    partial = path.with_name(part or f"{path.name}.{os.getpid()}.part")
    try:
        with naming(path):
            partial.unlink(missing_ok=True)  # of one that was killed
            with partial.open("xb") as file:  # x: never through a link
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            _move(partial, path, new=new)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _move(partial: Path, path: Path, *, new: bool) -> None:
    try:
        if new:
            os.link(partial, path)  # unlike a rename, fails where another has been faster
        else:
            os.replace(partial, path)
    except FileExistsError:
        raise
    except OSError:
        if not new or path.exists():
            raise
        os.replace(partial, path)  # a file system without hard links
    with suppress(OSError):  # some file systems cannot
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_bounded(path: Path, *, most: int) -> bytes:
    """The bytes of a local file that is one of ours, and so no larger than `most`.

    Raises:
        ValueError: it is no file, or larger.
        OSError: it cannot be read.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
        raise ValueError(f"{path} is not a file")
    if found.st_size > most:
        raise ValueError(f"{path} has {found.st_size:,} bytes: must be {most:,} at the most")
    return path.read_bytes()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, an OSError of writing says the path."""
    try:
        yield
    except OSError as error:
        raise type(error)(error.errno, error.strerror or str(error), str(path)) from error


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """Inside, the folder is there; where that fails, what was made and is empty is removed.

    Raises:
        OSError: it cannot be made.
    """
    absent = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for each in absent:
            with suppress(OSError):
                each.rmdir()
        raise


def make_within(folder: Path) -> None:
    """Make a folder of a run's own, if it is not there.

    Raises:
        ValueError: it is a link, by which files elsewhere would be overwritten.
        OSError: it cannot be made.
    """
    refuse_link(folder)
    folder.mkdir(parents=True, exist_ok=True)


def refuse_link(folder: Path) -> None:
    """Raise ValueError where what is a run's own is a link, by which others are written to."""
    if folder.is_symlink():
        raise ValueError(
            f"{folder} is a link to {folder.resolve()}: must be there itself, or not be"
        )


def refuse_links_to_run(path: Path) -> None:
    """Raise ValueError where a run within another's folder is reached, or writes, by a link."""
    for folder in (path.parent, path, path / "checkpoints"):
        refuse_link(folder)


def refuse_links_in(folders: Iterable[Path]) -> None:
    """Raise ValueError where any of what lies in these folders is a link."""
    for folder in folders:
        for each in sorted(folder.iterdir()) if folder.is_dir() else ():
            refuse_link(each)


def _file_system(where: str) -> tuple[fs.FileSystem, str]:
    if not where.strip() or "\0" in where:
        raise ValueError(f"checkpoints={where!r}: must be a folder or a URI, or null")
    if "://" in where:
        try:
            system, folder = fs.FileSystem.from_uri(where)
        except (OSError, ValueError) as error:
            raise ValueError(f"checkpoints={where}: {error}") from None
        return system, folder
    return fs.LocalFileSystem(), str(Path(where).absolute())
