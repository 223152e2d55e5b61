"""Record files: Parquet and Arrow files in a folder, their row groups, and the task ids in them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs, ipc
from pyarrow import parquet as pq

SUFFIXES = (".parquet", ".arrow", ".feather")
Opened = tuple[pa.Schema, int, Callable[[int], pa.Table]]


def value_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values of a dictionary-encoded column, else the type itself."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def runs_of_ids(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """The runs of equal ids: the id of each and its rows."""
    runs = pc.run_end_encode(column.cast(value_type(column.type)).combine_chunks())
    return runs.values, np.diff(runs.run_ends.to_numpy(), prepend=np.int32(0))


def hash_ids(ids: pa.Array) -> np.ndarray:
    """A number in [0, 2^64) for each id: the same for ever, on every machine."""
    if not pa.types.is_integer(ids.type):
        names = (name.encode() for name in ids.to_pylist())
        return np.frombuffer(b"".join(blake2b(n, digest_size=8).digest() for n in names), "<u8")
    words = ids.to_numpy().astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> 30)) * np.uint64(0xBF58476D1CE4E5B9)  # splitmix64: a bijection,
    words = (words ^ (words >> 27)) * np.uint64(0x94D049BB133111EB)  # so no two ids collide
    return np.asarray(words ^ (words >> 31))


def find_files(path: str) -> tuple[fs.FileSystem, list[str]]:
    """The file system of `path` and the data files there, sorted."""
    with _reading(path):
        files, place = fs.LocalFileSystem(), path
        if "://" in path:
            files, place = fs.FileSystem.from_uri(path)
        info = files.get_file_info(place)
        if info.type == fs.FileType.NotFound:
            raise ValueError(f"task.path={path!r}: no such file or folder")
        folder = fs.FileSelector(place, recursive=True)
        found = [info] if info.is_file else files.get_file_info(folder)
        infos = [each for each in found if info.is_file or not _passed_over(each.path, info.path)]
    paths = sorted(each.path for each in infos if each.is_file and each.path.endswith(SUFFIXES))
    if not paths:
        raise ValueError(f"task.path={path!r}: no file ending in {', '.join(SUFFIXES)}")
    return files, paths


def _passed_over(path: str, folder: str) -> bool:
    """What Spark, Hive and editors leave beside the data, as pyarrow's own data sets have it."""
    inside = path.removeprefix(folder).strip("/").split("/")
    return any(name.startswith((".", "_")) for name in inside)


@contextmanager
def open_file(files: fs.FileSystem, path: str, names: list[str]) -> Iterator[Opened]:
    """The schema of a file, how many row groups it has, and what reads columns of one of them."""
    with _reading(path), files.open_input_file(path) as file:
        if path.endswith(".parquet"):
            parquet = pq.ParquetFile(
                file,
                pre_buffer=True,  # one request for all columns
                page_checksum_verification=True,  # where there are any
            )
            read = partial(parquet.read_row_group, columns=names)
            yield parquet.schema_arrow, parquet.num_row_groups, read
        else:
            schema = ipc.open_file(file).schema
            wanted = [number for number, name in enumerate(schema.names) if name in names]
            arrow = ipc.open_file(file, options=ipc.IpcReadOptions(included_fields=wanted))
            yield schema, arrow.num_record_batches, lambda number: pa.table(arrow.get_batch(number))


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Name the file in what Arrow has to say about it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
