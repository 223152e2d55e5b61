"""ImageFolder: where splits come from, and what an image becomes."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maml_dist.core.data.task_source import TaskKey
from maml_dist.tasks.few_shot import FewShot
from maml_dist.tasks.images.image_folder import ImageFolder, decode, decode_bytes, divide


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


def seen(image: Image.Image, *, kind: str = "PNG", grey: bool = True, **options) -> np.ndarray:
    """What the model sees of an image file: [channels, size, size] in 0 … 1, at its own size."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    array = decode(file.getvalue(), name="it", size=image.size[0], grey=grey)
    if array.dtype == np.uint8:
        return array / 255
    assert array.dtype == np.float32
    return array


RAMP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
NEAR = {"rtol": 0, "atol": 1e-6}


@pytest.mark.parametrize("grey", [True, False])
@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (Image.fromarray(RAMP), "PNG"),
        (Image.fromarray(RAMP), "TIFF"),
        (Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
        (Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"),
    ],
    ids=["16-bit png", "16-bit tiff", "32-bit integers", "floats"],
)
def test_deep_images_keep_all_of_their_range(image, kind, grey):
    found = seen(image, kind=kind, grey=grey)
    assert found.shape == (1 if grey else 3, 8, 8)
    np.testing.assert_allclose(found, np.stack([RAMP / 65535] * len(found)), **NEAR)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.full((4, 4), 255, np.float32), "it holds numbers from 255 to 255"),
        (np.full((4, 4), -0.5, np.float32), "it holds numbers from -0.5 to -0.5"),
        (np.full((4, 4), np.nan, np.float32), "it holds numbers from nan"),
        (np.full((4, 4), 70000, np.int32), "it holds numbers from 70000 to 70000"),
        (np.full((4, 4), -1, np.int32), "must have 0 as black and 65535 as white"),
    ],
)
def test_numbers_beyond_the_range_are_refused_not_clipped(values, said):
    with pytest.raises(ValueError, match=said):
        seen(Image.fromarray(values), kind="TIFF")


def palette(**options):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    return image


CLEAR = (10, 20, 30)


@pytest.mark.parametrize(
    ("image", "kind", "options", "expected"),
    [
        (Image.new("1", (4, 4), 1), "PNG", {}, (255, 255, 255)),
        (Image.new("L", (4, 4), 51), "PNG", {}, (51, 51, 51)),
        (Image.new("RGB", (4, 4), CLEAR), "PNG", {}, CLEAR),
        (palette(), "PNG", {}, (0, 0, 255)),
        (palette(), "PNG", {"transparency": 1}, (255, 255, 255)),
        (palette(), "GIF", {"transparency": 1}, (255, 255, 255)),
        (Image.new("RGB", (4, 4), CLEAR), "PNG", {"transparency": CLEAR}, (255, 255, 255)),
        (Image.new("L", (4, 4), 7), "PNG", {"transparency": 7}, (255, 255, 255)),
        (Image.new("LA", (4, 4), (100, 0)), "PNG", {}, (255, 255, 255)),
        (Image.new("LA", (4, 4), (100, 255)), "PNG", {}, (100, 100, 100)),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 51)), "PNG", {}, (204, 204, 204)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), "PNG", {}, (255, 0, 0)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF", {}, (255, 0, 0)),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 255)), "TIFF", {}, (0, 0, 0)),
    ],
)
def test_colours_palettes_and_alpha_over_white(image, kind, options, expected):
    colour = seen(image, kind=kind, grey=False, **options)
    np.testing.assert_array_equal(colour[:, 2, 2] * 255, expected)
    grey = seen(image, kind=kind, grey=True, **options)
    weights = np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert abs(grey[0, 2, 2] * 255 - weights @ expected) <= 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, lambda a: a), (3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1))],
)
def test_the_orientation_of_exif_is_applied(kind, orientation, turn):
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8, :8], pixels[:8, 8:] = 250, 120
    exif = Image.Exif()
    exif[0x112] = orientation
    found = seen(Image.fromarray(pixels), kind=kind, exif=exif) * 255
    assert np.abs(found[0] - turn(pixels.astype(float))).mean() < 5


def test_a_deep_image_with_a_transparent_colour_is_refused():
    with pytest.raises(ValueError, match="has a transparent colour and more than 8 bits"):
        seen(Image.fromarray(RAMP), transparency=5)


def test_eight_bits_of_a_deep_image():
    file = io.BytesIO()
    Image.fromarray(RAMP).save(file, "PNG")
    array = decode_bytes(file.getvalue(), name="it", size=8, grey=True)
    np.testing.assert_array_equal(array[0], np.rint(RAMP / 257).astype(np.uint8))
    assert array.dtype == np.uint8


def test_resizing_a_deep_image_stays_within_its_range():
    edges = np.zeros((64, 64), np.uint16)
    edges[:, 32:] = 65535
    file = io.BytesIO()
    Image.fromarray(edges).save(file, "PNG")
    small = decode(file.getvalue(), name="it", size=7, grey=True)
    byte = Image.fromarray((edges // 257).astype(np.uint8)).resize((7, 7), Image.Resampling.LANCZOS)
    assert small.min() == 0 and small.max() == 1
    np.testing.assert_allclose(small[0], np.asarray(byte) / 255, atol=0.003)


def test_deep_and_plain_images_beside_each_other_are_all_floats(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "plain", (51, 51, 51), images=3)
    (tmp_path / "train" / "deep").mkdir()
    for number in range(3):
        value = np.full((8, 8), 13107, np.uint16)
        Image.fromarray(value).save(tmp_path / "train" / "deep" / f"{number}.png")
    Image.new("L", (8, 8), 51).save(tmp_path / "train" / "deep" / "byte.png")
    source = FewShot(ImageFolder(str(tmp_path), size=4, grey=True), ways=2, query=1)
    episode = source.collect([source.sample(TaskKey(0, "train", 0, 0))], steps=1)
    assert episode.query.x.dtype.is_floating_point
    np.testing.assert_allclose(episode.query.x, np.full((1, 2, 1, 4, 4), 0.2), **NEAR)


def test_what_systems_and_editors_leave_is_passed_over(tmp_path: Path) -> None:
    for name in ("a", "b"):
        paint(tmp_path / "train" / name, (255, 0, 0), images=2)
    before = ImageFolder(str(tmp_path), size=4).classes("train")
    train = tmp_path / "train"
    (train / "a" / "._0.png").write_bytes(b"\0\5\x16\7")
    (train / "a" / ".0.png").write_bytes(b"")
    (train / "a" / "Thumbs.db").write_bytes(b"thumbs")
    (train / "a" / ".DS_Store").write_bytes(b"store")
    (train / "a" / "folder.png").mkdir()
    paint(train / "a" / ".ipynb_checkpoints", (0, 0, 0))
    paint(train / ".ipynb_checkpoints", (0, 0, 0))
    paint(train / "__MACOSX", (0, 0, 0))
    paint(tmp_path / ".ipynb_checkpoints" / "c", (0, 0, 0))
    after = ImageFolder(str(tmp_path), size=4).classes("train")
    assert len(after) == 2
    np.testing.assert_array_equal(before, after)
