"""ImageFolder: where splits come from, and what an image becomes."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maml_dist.core.source import TaskKey
from maml_dist.tasks.few_shot import FewShot
from maml_dist.tasks.image_folder import ImageFolder, divide


def paint(folder: Path, colour: tuple[int, int, int], *, images: int = 3) -> None:
    folder.mkdir(parents=True)
    for number in range(images):
        Image.new("RGB", (10, 8), colour).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no image")


def test_split_folders_and_channels_first(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "red", (255, 0, 0))
    paint(tmp_path / "train" / "blue", (0, 0, 255))
    paint(tmp_path / "test" / "green", (0, 255, 0), images=2)
    blue, red = ImageFolder(str(tmp_path), size=6).classes("train")
    (green,) = ImageFolder(str(tmp_path), size=6).classes("test")
    assert red.shape == (3, 3, 6, 6) and green.shape == (2, 3, 6, 6) and red.dtype == np.uint8
    assert [image[0, :, 2, 3].tolist() for image in (red, green, blue)] == [
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
    ]


def test_grey(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "white", (255, 255, 255))
    (white,) = ImageFolder(str(tmp_path), size=4, grey=True).classes("train")
    np.testing.assert_array_equal(white, np.full((3, 1, 4, 4), 255))


def test_classes_without_split_folders_are_divided_by_the_seed(tmp_path: Path) -> None:
    for number in range(10):
        paint(tmp_path / f"class{number}", (25 * number, 0, 0), images=1)
    data = ImageFolder(str(tmp_path), size=2, parts=(5, 2, 3))
    found = {
        split: [int(c[0, 0, 0, 0]) // 25 for c in data.classes(split)]
        for split in ("train", "val", "test")
    }
    assert [len(places) for places in found.values()] == [5, 2, 3]
    assert sorted(sum(found.values(), [])) == list(range(10))
    again = ImageFolder(str(tmp_path), size=2, parts=(5, 2, 3), seed=1)
    assert [int(c[0, 0, 0, 0]) // 25 for c in again.classes("train")] != found["train"]


def test_the_omniglot_division_is_the_papers_and_stays() -> None:
    split = divide(range(1623), parts=(1100, 100, 423), seed=0)
    assert [len(places) for places in split.values()] == [1100, 100, 423]
    assert sorted(sum(split.values(), [])) == list(range(1623))
    assert split["train"][:4] == [355, 1088, 1047, 693]
    assert split["test"][:4] == [1591, 787, 685, 667]


def test_a_source_sent_elsewhere_carries_no_images(tmp_path: Path) -> None:
    for number in range(5):
        paint(tmp_path / "train" / f"class{number}", (number, 0, 0))
    source = FewShot(ImageFolder(str(tmp_path), size=64), query=2)
    task = source.sample(TaskKey(0, "train", 0, 0))
    sent = pickle.dumps(source)
    assert len(sent) < 1000
    there = pickle.loads(sent)
    mine, yours = source.collect([task], steps=1), there.collect([task], steps=1)
    assert mine.query.x.equal(yours.query.x)


@pytest.mark.parametrize("content", [b"no image", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    paint(tmp_path / "train" / "red", (255, 0, 0))
    (tmp_path / "train" / "red" / "bad.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.png is not a readable image"):
        ImageFolder(str(tmp_path)).classes("train")


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "train" / "a").mkdir(parents=True)
    path = tmp_path / "train" / "a" / "half.png"
    Image.fromarray(rng.integers(0, 256, (50, 50, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"half\.png is not a readable image"):
        ImageFolder(str(tmp_path)).classes("train")


def test_a_class_without_images(tmp_path: Path) -> None:
    (tmp_path / "train" / "empty").mkdir(parents=True)
    with pytest.raises(ValueError, match="empty holds no image"):
        ImageFolder(str(tmp_path)).classes("train")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_that_is_not_there(tmp_path: Path, split: str) -> None:
    paint(tmp_path / "set" / "train" / "red", (255, 0, 0))
    root = tmp_path / "set" if split == "val" else tmp_path / "other"
    with pytest.raises(FileNotFoundError, match="is not there: it should hold a folder for each"):
        ImageFolder(str(root)).classes(split)


def test_what_other_programs_leave_is_passed_by(tmp_path: Path) -> None:
    for name in ("red", "blue"):
        paint(tmp_path / "train" / name, (255, 0, 0))
    before = ImageFolder(str(tmp_path), size=4).classes("train")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "red" / "._x.png").write_bytes(b"x")
    (tmp_path / "train" / "red" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "red" / "folder.png").mkdir()
    os.mkfifo(tmp_path / "train" / "red" / "pipe.png")
    after = ImageFolder(str(tmp_path), size=4).classes("train")
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"size": 0}, "task.data.size=0: must be 1 or more"),
        ({"size": 100_000}, "task.data.size=100000: must be 1 … 8192"),
        ({"seed": -1}, "task.data.seed=-1"),
        ({"parts": (1.0, float("nan"), 0.0)}, "task.data.parts"),
        ({"parts": (0.0, 0.0, 0.0)}, "task.data.parts"),
    ],
)
def test_settings_that_are_none(setting: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ImageFolder("x", **setting)
