"""Examples by class in one Arrow IPC file: a record batch a class, memory-mapped by every process.

So all processes of a node share one copy, in the page cache. Examples are uint8 arrays of one
shape; the schema's metadata holds that shape and the names of the classes in order.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import platformdirs
import pyarrow as pa

_KEY = b"maml_dist.classes"


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
        # Not closed here: the views keep the map open.
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        header = json.loads((reader.schema.metadata or {})[_KEY])
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        views = [batch.column(0).flatten().to_numpy() for batch in batches]
        return {
            name: view.reshape(-1, *header["shape"])
            for name, view in zip(header["names"], views, strict=True)
        }
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no class file; make it with: {command}") from error
