"""miniImagenet: both sources become the same kind of files, and no pickle runs anything."""

import csv
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from generated import mini_imagenet_folder, mini_imagenet_pickles
from PIL import Image

from maml_dist.tasks.few_shot import SPLITS
from maml_dist.tasks.images import class_file
from maml_dist.tasks.images.mini_imagenet import MiniImagenet, convert


def cache(root: Path, split: str) -> Path:
    return root / f"mini-imagenet-cache-{split}.pkl"


def test_images_and_tables(tmp_path: Path) -> None:
    source = mini_imagenet_folder(tmp_path / "source", classes=2, images=3)
    for name in ("n0000000000000000.jpg", "n0000000000000001.jpg", "n0000000000000002.jpg"):
        Image.new("RGB", (60, 40), (250, 128, 3)).save(source / "images" / name)
    convert(source, tmp_path / "new" / "out")
    orange = MiniImagenet(str(tmp_path / "new" / "out")).classes("train")[0]
    assert orange.shape == (3, 3, 84, 84)
    expected = np.array([250, 128, 3]).reshape(3, 1, 1)
    assert abs(orange.astype(int) - expected).max() <= 3  # JPEG
    names = [
        list(class_file.read(tmp_path / "new" / "out" / f"{s}.arrow", dataset="x")) for s in SPLITS
    ]
    assert names == [
        ["n00000000", "n00000001"],
        ["n00000002", "n00000003"],
        ["n00000004", "n00000005"],
    ]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    source = mini_imagenet_pickles(tmp_path, classes=2, images=3, protocol=protocol)
    convert(source, tmp_path / "out")
    images = pickle.loads(cache(source, "val").read_bytes())["image_data"]
    second = MiniImagenet(str(tmp_path / "out")).classes("val")[1]
    for channel in range(3):
        np.testing.assert_array_equal(second[:, channel], images[3:6, :, :, channel])


def python2_pickle(images: np.ndarray, name: str) -> bytes:
    """{'image_data': images, 'class_dict': {name: [0, 1]}} as Python 2 and numpy 1 wrote it."""

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + number(0) + number(1) + b"tR("
    dtype += number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t"
    array += text(b"b") + b"tR(" + number(1) + b"(" + b"".join(map(number, images.shape)) + b"t"
    array += dtype + b"I00\n" + text(images.tobytes()) + b"tb"
    classes = b"}" + text(name.encode()) + b"](" + number(0) + number(1) + b"es"
    return b"\x80\x02}" + text(b"image_data") + array + b"s" + text(b"class_dict") + classes + b"s."


def test_pickles_written_by_python_2(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 84, 84, 3), dtype=np.uint8)
    for split in SPLITS:
        cache(tmp_path, split).write_bytes(python2_pickle(images, f"n{split}"))
    convert(tmp_path, tmp_path / "out")
    (found,) = MiniImagenet(str(tmp_path / "out")).classes("test")
    np.testing.assert_array_equal(found, images.transpose(0, 3, 1, 2))


class Calls:
    """Unpickles as function(*arguments)."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.reduced


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, "system"),
        (eval, "eval"),
        (exec, "exec"),
        (getattr, "getattr"),
        (np.load, "load"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_calls_something_is_refused_by_name(
    tmp_path: Path, function: Callable[..., Any], name: str, protocol: int
) -> None:
    source, marker = mini_imagenet_pickles(tmp_path, classes=1, images=1), tmp_path / "ran"
    touch = f"open({str(marker)!r}, 'w')"
    command = f"touch {marker}" if function is os.system else touch
    cache(source, "test").write_bytes(pickle.dumps(Calls(function, command), protocol=protocol))
    with pytest.raises(ValueError, match=rf"cache-test\.pkl is damaged or refused: .*\.{name},"):
        convert(source, tmp_path / "out")
    assert not marker.exists() and not (tmp_path / "out").exists()


def test_another_codec_is_refused(tmp_path: Path) -> None:
    source = mini_imagenet_pickles(tmp_path, classes=1, images=1)
    cache(source, "train").write_bytes(b"c_codecs\nencode\n(Vabc\nVrot13\ntR.")
    with pytest.raises(ValueError, match="asks for the codec rot13"):
        convert(source, tmp_path / "out")


class Wide:
    """An array of a shape that the file does not hold."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "wide",
    [
        Wide(np.ndarray, (1 << 33,)),
        Wide(np._core.multiarray._reconstruct, np.ndarray, (1 << 33,), b"b"),
    ],
)
def test_an_array_is_never_larger_than_its_file(tmp_path: Path, wide: Wide) -> None:
    source = mini_imagenet_pickles(tmp_path, classes=1, images=1)
    cache(source, "train").write_bytes(pickle.dumps({"image_data": wide, "class_dict": {"a": [0]}}))
    with pytest.raises(ValueError, match=r"cache-train\.pkl"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def content(**changes: Any) -> bytes:
    images = np.zeros((2, 84, 84, 3), np.uint8)
    return pickle.dumps({"image_data": images, "class_dict": {"a": [0, 1]}, **changes})


@pytest.mark.parametrize(
    "harmed",
    [
        b"",
        b"no pickle at all",
        content()[:-1000],
        pickle.dumps([1, 2]),
        pickle.dumps({"image_data": 1}),
        content(class_dict={}),
        content(class_dict={"a": ["x"]}),
        content(class_dict={"a": [0, 2]}),
        content(class_dict={"a": [0, -1]}),
        content(image_data=np.zeros((2, 32, 32, 3), np.uint8)),
        content(image_data=np.zeros((2, 84, 84, 3))),
        content(image_data=[[0]] * 2),
    ],
)
def test_a_harmed_pickle_is_named_and_nothing_is_written(tmp_path: Path, harmed: bytes) -> None:
    source = mini_imagenet_pickles(tmp_path, classes=1, images=1)
    cache(source, "test").write_bytes(harmed)
    with pytest.raises(ValueError, match=r"cache-test\.pkl"):
        convert(source, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == [cache(source, s).name for s in ("test", "train", "val")]


@pytest.mark.parametrize(
    "table", [b"", b"a,b\n1,2\n", b"filename,label\nx.jpg\n", b"filename,label\n", b"\xff\xfe\x00"]
)
def test_a_file_that_is_no_table_is_named(tmp_path: Path, table: bytes) -> None:
    source = mini_imagenet_folder(tmp_path / "source", classes=1, images=1)
    (source / "val.csv").write_bytes(table)
    with pytest.raises(ValueError, match=r"val\.csv is no table of filename,label"):
        convert(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize("lost", ["images/n0000000200000000.jpg", "test.csv"])
def test_a_lost_file_is_named_and_the_old_conversion_stays(tmp_path: Path, lost: str) -> None:
    source = mini_imagenet_folder(tmp_path / "source", classes=1, images=1)
    convert(source, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with (source / "train.csv").open("a", newline="") as file:
        csv.writer(file).writerow(["n0000000000000000.jpg", "another"])
    (source / lost).unlink()
    with pytest.raises(FileNotFoundError, match=lost):
        convert(source, tmp_path / "out")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_a_source_of_neither_kind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds neither train\.csv .* nor mini-imagenet-cache"):
        convert(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", ["mini-imagenet-cache-train.pkl", "train.csv"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is no file"):
        convert(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
