"""The class file: a faithful, shared, complete file or none."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import platformdirs
import pyarrow as pa
import pytest

from maml_dist.tasks.images import class_file


def examples(classes: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (n + 1, 3, 2), dtype=np.uint8) for n in range(classes)]


def written(path: Path, arrays: list[np.ndarray]) -> Path:
    names = [f"class {n}" for n in range(len(arrays))]
    class_file.write(path, arrays, names=names, shape=(3, 2))
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    arrays = examples()
    classes = class_file.read(written(tmp_path / "new" / "set.arrow", arrays), dataset="omniglot")
    assert list(classes) == ["class 0", "class 1", "class 2", "class 3"]
    for expected, found in zip(arrays, classes.values(), strict=True):
        np.testing.assert_array_equal(expected, found)


def test_a_transposed_array_is_written_in_its_own_order(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.uint8).reshape(1, 2, 3).transpose(0, 2, 1)
    (found,) = class_file.read(written(tmp_path / "a.arrow", [array]), dataset="x").values()
    np.testing.assert_array_equal(array, found)


def test_views_are_of_the_file_itself_and_read_only(tmp_path: Path) -> None:
    marker = np.frombuffer(b"marker of this class", np.uint8)[:18].reshape(3, 3, 2)
    path = written(tmp_path / "set.arrow", [marker])
    (view,) = class_file.read(path, dataset="omniglot").values()
    assert not view.flags.writeable and not view.flags.owndata
    place = path.read_bytes().index(b"marker")
    with path.open("r+b") as file:  # what changes on disk changes in the view: nothing was copied
        file.seek(place)
        file.write(b"MARKER")
    assert view.tobytes() == b"MARKER of this cla"


def test_it_is_an_arrow_file_with_a_batch_for_each_class(tmp_path: Path) -> None:
    reader = pa.ipc.open_file(written(tmp_path / "set.arrow", examples()))
    assert [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)] == [1, 2, 3, 4]


def test_nothing_is_left_of_a_failed_write_and_the_old_file_stays(tmp_path: Path) -> None:
    path = written(tmp_path / "set.arrow", examples())
    before = path.read_bytes()

    def broken() -> Iterator[np.ndarray]:
        yield np.zeros((5, 3, 2), np.uint8)
        raise ValueError("the second class cannot be read")

    with pytest.raises(ValueError, match="the second class"):
        class_file.write(path, broken(), names=["a", "b"], shape=(3, 2))
    assert os.listdir(tmp_path) == ["set.arrow"] and path.read_bytes() == before


@pytest.mark.parametrize("kept", [0, 1, 100, -100, -1])
def test_a_truncated_file(tmp_path: Path, kept: int) -> None:
    path = written(tmp_path / "set.arrow", examples())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"set\.arrow is damaged or no class file .* with:"):
        class_file.read(path, dataset="omniglot")


@pytest.mark.parametrize("content", [b"a text file, long enough to be looked at", b"ARROW1\0\0"])
def test_a_foreign_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "set.arrow"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or no class file"):
        class_file.read(path, dataset="omniglot")


def test_an_arrow_file_of_something_else(tmp_path: Path) -> None:
    path, table = tmp_path / "set.arrow", pa.table({"a": [1, 2]})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ValueError, match="damaged or no class file"):
        class_file.read(path, dataset="omniglot")


HEADERS = [
    b"",
    b"[1]",
    b"[" * 100_000,
    b'{"names": ["a"]}',
    b'{"names": ["a"], "shape": [-2, -2]}',
    b'{"names": ["a"], "shape": [0]}',
    b'{"names": ["a"], "shape": []}',
    b'{"names": ["a"], "shape": [4294967296, 4294967296]}',
    b'{"names": ["a"], "shape": ["2", 2]}',
    b'{"names": ["a"], "shape": [2, 1]}',
    b'{"names": ["a", "b"], "shape": [2, 2]}',
    b'{"names": [1], "shape": [2, 2]}',
    b'{"names": "a", "shape": [2, 2]}',
]


def arrow(path: Path, header: bytes, *, compression: str | None = None, examples: int = 3) -> Path:
    schema = pa.schema([("example", pa.list_(pa.uint8(), 4))], metadata={class_file._KEY: header})
    column = pa.FixedSizeListArray.from_arrays(np.zeros(4 * examples, np.uint8), 4)
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(path, schema, options=options) as writer:
        writer.write_batch(pa.record_batch([column], schema=schema))
    return path


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_of_another_form(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(ValueError, match="damaged or no class file") as error:
        class_file.read(arrow(tmp_path / "set.arrow", header), dataset="omniglot")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_class_is_not_unpacked(tmp_path: Path) -> None:
    header = b'{"names": ["a"], "shape": [2, 2]}'
    path = arrow(tmp_path / "set.arrow", header)
    assert class_file.read(path, dataset="omniglot")["a"].shape == (3, 2, 2)
    path = arrow(tmp_path / "packed.arrow", header, compression="zstd", examples=1_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match="a class is compressed"):
        class_file.read(path, dataset="omniglot")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "set.arrow")
    with pytest.raises(ValueError, match="not a file"):
        class_file.read(tmp_path / "set.arrow", dataset="omniglot")


def test_a_missing_file_says_the_command_that_makes_it(tmp_path: Path) -> None:
    command = f"python -m maml_dist.data omniglot --source PATH --out {tmp_path}"
    with pytest.raises(FileNotFoundError) as error:
        class_file.read(tmp_path / "omniglot.arrow", dataset="omniglot")
    assert str(error.value).endswith(command)


def test_data_home_is_moved_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAML_DIST_DATA", str(tmp_path))
    assert class_file.data_home() == tmp_path
    monkeypatch.delenv("MAML_DIST_DATA")
    assert class_file.data_home() == platformdirs.user_data_path("maml_dist")
