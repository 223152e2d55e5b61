"""Examples by class in one Arrow IPC file: a record batch a class, memory-mapped by every process.

So all processes of a node share one copy, in the page cache. Examples are uint8 arrays of one
shape; the schema's metadata holds that shape and the names of the classes in order.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import platformdirs
import pyarrow as pa

from maml_dist.core.schema import from_json

_KEY = b"maml_dist.classes"


class Header(TypedDict):
    """What the schema's metadata holds."""

    names: list[str]  # of the classes, in order
    shape: list[int]  # of an example


def data_home() -> Path:
    """Where converted data sets lie: $MAML_DIST_DATA, or the user's own data folder."""
    return Path(os.environ.get("MAML_DIST_DATA") or platformdirs.user_data_path("maml_dist"))


def write(
    path: Path, classes: Iterable[np.ndarray], *, names: Sequence[str], shape: Sequence[int]
) -> None:
    """Write one uint8 array [examples, *shape] for each name, as they come.

    The file appears under its name when it is complete, and not at all if `classes` raises.
    """
    size = int(np.prod(shape))
    header = json.dumps({"names": list(names), "shape": list(shape)})
    schema = pa.schema([("example", pa.list_(pa.uint8(), size))], metadata={_KEY: header})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for _, examples in zip(names, classes, strict=True):
                assert examples.dtype == np.uint8 and examples.shape[1:] == tuple(shape)
                column = pa.FixedSizeListArray.from_arrays(examples.reshape(-1), size)
                writer.write_batch(pa.record_batch([column], schema=schema))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path, *, dataset: str) -> dict[str, np.ndarray]:
    """The classes by name, each a read-only view [examples, *shape] of the mapped file.

    Raises:
        FileNotFoundError: it is not there; the message says how to make it.
        ValueError: it is damaged, or something else.
    """
    command = f"python -m maml_dist.data {dataset} --source PATH --out {path.parent}"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; make it with: {command}")
    try:
        if not path.is_file():  # a pipe would be waited for
            raise ValueError("not a file")
        # Not closed here: the views keep the map open.
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        header: Header = from_json((reader.schema.metadata or {})[_KEY], Header, "its header")
        if min(header["shape"], default=0) < 1 or len(set(header["names"])) < len(header["names"]):
            raise ValueError("its header names no shape of examples, or a class twice")
        (kind,) = reader.schema.types
        size = math.prod(header["shape"])
        if not pa.types.is_fixed_size_list(kind) or kind.list_size != size:
            raise ValueError(f"it does not hold examples of {header['shape']}")
        views = [_mapped(reader.get_batch(i), path) for i in range(reader.num_record_batches)]
        return {
            name: view.reshape(-1, *header["shape"])
            for name, view in zip(header["names"], views, strict=True)
        }
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or no class file ({error}); make it with: {command}"
        ) from error


def _mapped(batch: pa.RecordBatch, path: Path) -> np.ndarray:
    """The examples of a class, where they lie in the file: every process would unpack its own."""
    batch.validate()  # that its buffers are as long as it says
    column = batch.column(0)
    if column.null_count or column.type.value_type != pa.uint8():
        raise ValueError("a class has gaps, or other numbers than bytes")
    if batch.nbytes > path.stat().st_size:
        raise ValueError("a class is compressed")
    examples: np.ndarray = column.flatten().to_numpy()
    return examples
