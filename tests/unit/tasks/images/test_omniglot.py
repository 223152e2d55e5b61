"""Omniglot: every form of the official images gives one file, and nothing else gives any."""

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from generated import omniglot_folder, omniglot_zips
from PIL import Image

from maml_dist.tasks.images import class_file
from maml_dist.tasks.images.omniglot import PARTS, Omniglot, convert


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return omniglot_folder(tmp_path / "images", characters=6, drawings=4)


def zip_of(folder: Path, path: Path, *, under: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for image in folder.rglob("*.png"):
            archive.write(image, under + image.relative_to(folder).as_posix())
    return path


def test_folders_zips_and_one_zip_give_the_same_file(folder: Path, tmp_path: Path) -> None:
    zips = omniglot_zips(folder, tmp_path / "zips")
    one = zip_of(folder, tmp_path / "all.zip", under="omniglot/python/")
    mixed = tmp_path / "mixed"
    shutil.copytree(folder / PARTS[0], mixed / PARTS[0])
    shutil.copy(zips / f"{PARTS[1]}.zip", mixed)
    for number, source in enumerate((folder, zips, one, mixed)):
        convert(source, tmp_path / f"{number}.arrow")
    files = {(tmp_path / f"{number}.arrow").read_bytes() for number in range(4)}
    assert len(files) == 1


def test_ink_is_one_and_upright(folder: Path, tmp_path: Path) -> None:
    path = next((folder / PARTS[0]).rglob("*.png"))
    image = Image.new("1", (105, 105), 1)
    image.paste(0, (0, 0, 75, 15))  # a bar of ink at the top left, 20 by 4 of 28
    image.save(path)
    convert(folder, tmp_path / "omniglot.arrow")
    character = class_file.read(tmp_path / "omniglot.arrow", dataset="omniglot")[
        path.parent.relative_to(folder).as_posix()
    ]
    drawing = character[sorted(path.parent.iterdir()).index(path), 0]
    assert character.shape == (4, 1, 28, 28)
    assert drawing[:3, :19].min() > 200 and drawing[6:].max() < 9 and drawing[:, 22:].max() < 9


def test_rotations_are_further_classes_and_no_copies(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "omniglot.arrow"
    convert(folder, path)
    plain = Omniglot(str(path), rotations=False).classes("train")
    turned = Omniglot(str(path)).classes("train")
    assert (len(plain), len(turned)) == (4, 16)  # 1100/1623 of 6 characters
    last_column = plain[1][0, 0, :, -1]
    np.testing.assert_array_equal(turned[4], plain[1])
    np.testing.assert_array_equal(turned[5][0, 0, 0], last_column)  # counter-clockwise: now the top
    np.testing.assert_array_equal(turned[6][0, 0, ::-1, 0], last_column)
    np.testing.assert_array_equal(turned[7][0, 0, -1, ::-1], last_column)
    assert not any(c.flags.owndata or c.flags.writeable for c in turned)


def test_splits_share_no_character_and_follow_the_seed(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "omniglot.arrow"
    convert(folder, path)

    def drawings(split: str, seed: int) -> set[bytes]:
        data = Omniglot(str(path), rotations=False, seed=seed)
        return {character.tobytes() for character in data.classes(split)}

    assert len(set.union(*(drawings(split, 0) for split in ("train", "val", "test")))) == 6
    assert len({frozenset(drawings("train", seed)) for seed in range(5)}) > 1


def test_the_file_is_looked_for_in_the_data_home(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAML_DIST_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="maml_dist.data omniglot --source PATH --out"):
        Omniglot().classes("train")
    convert(folder, tmp_path / "omniglot.arrow")
    assert len(Omniglot().classes("train")) == 16


def no_part(root: Path) -> None:
    (root / f"{PARTS[1]}.zip").unlink()


def truncated_zip(root: Path) -> None:
    path = root / f"{PARTS[1]}.zip"
    path.write_bytes(path.read_bytes()[:-100])


def damaged_member(root: Path) -> None:
    path = root / f"{PARTS[0]}.zip"
    content = path.read_bytes()
    place = content.index(b"IDAT")
    path.write_bytes(content[:place] + b"XXXX" + content[place + 4 :])


def wrong_content(root: Path) -> None:
    with zipfile.ZipFile(root / f"{PARTS[1]}.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing here")


def bad_png(root: Path) -> None:
    with zipfile.ZipFile(root / f"{PARTS[1]}.zip", "w") as archive:
        for number in range(4):
            archive.writestr(f"{PARTS[1]}/Angelic/character01/{number}.png", b"no png")


def lost_drawing(root: Path) -> None:
    with zipfile.ZipFile(root / f"{PARTS[1]}.zip", "w") as archive:
        archive.writestr(f"{PARTS[1]}/Angelic/character01/1.png", b"")


def bomb(root: Path) -> None:
    """64 megabytes of zeros in 64 kilobytes."""
    with zipfile.ZipFile(root / f"{PARTS[1]}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(f"{PARTS[1]}/Angelic/character01/1.png", "w", force_zip64=True) as entry:
            for _ in range(64):
                entry.write(bytes(1 << 20))
        for number in (2, 3, 4):
            archive.writestr(f"{PARTS[1]}/Angelic/character01/{number}.png", b"")


def lying_bomb(root: Path) -> None:
    """One that says that it is small."""
    path = root / f"{PARTS[1]}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"{PARTS[1]}/Angelic/character01/{number}.png", bytes(5_000_000))
    size = (5_000_000).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, (500).to_bytes(4, "little")))


def link_out(root: Path) -> None:
    with zipfile.ZipFile(root / f"{PARTS[1]}.zip", "w") as archive:
        for number in range(4):
            link = zipfile.ZipInfo(f"{PARTS[1]}/Angelic/character01/{number}.png")
            link.external_attr = 0o120777 << 16
            archive.writestr(link, "/etc/passwd")


def pipe(root: Path) -> None:
    (root / f"{PARTS[1]}.zip").unlink()
    os.mkfifo(root / f"{PARTS[1]}.zip")


def locked_entry(root: Path) -> None:
    path = root / f"{PARTS[1]}.zip"
    content = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(mark)
        while at >= 0:
            content[at + flags] |= 1  # encrypted
            at = content.find(mark, at + 4)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (bomb, "is damaged .more than 1,000,000 bytes, which no drawing has"),
        (lying_bomb, "is damaged"),
        (link_out, r"0\.png is not a readable image"),
        (pipe, "images_evaluation.zip is no zip file"),
        (locked_entry, "is damaged .*password"),
        (no_part, r"images_evaluation\.zip is not there; give the folder that holds"),
        (truncated_zip, r"images_evaluation\.zip is no zip file, or not a whole one"),
        (damaged_member, r"character01/0001_01\.png is damaged \(Bad CRC-32"),
        (wrong_content, "has no images_evaluation/ALPHABET/CHARACTER"),
        (bad_png, r"Angelic/character01/0\.png is not a readable image"),
        (lost_drawing, "Angelic/character01 has 1 drawings where others have 4"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(
    folder: Path, tmp_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    zips = omniglot_zips(folder, tmp_path / "zips")
    harm(zips)
    (tmp_path / "out").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert(zips, tmp_path / "out" / "omniglot.arrow")
    assert os.listdir(tmp_path / "out") == []


def test_names_that_lead_out_of_a_zip_file_are_only_names(folder: Path, tmp_path: Path) -> None:
    zips = omniglot_zips(folder, tmp_path / "zips")
    with zipfile.ZipFile(zips / f"{PARTS[1]}.zip", "a") as archive:
        archive.writestr("../../victim.png", b"not theirs")
        archive.writestr("/victim.png", b"not theirs")
    convert(zips, tmp_path / "out" / "omniglot.arrow")
    assert not list(tmp_path.parent.rglob("victim.png")) and not Path("/victim.png").exists()


def test_an_empty_source(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"images_background\.zip is not there"):
        convert(tmp_path, tmp_path / "omniglot.arrow")
    with pytest.raises(FileNotFoundError, match="nowhere is not there"):
        convert(tmp_path / "nowhere", tmp_path / "omniglot.arrow")


def test_what_systems_and_editors_leave_is_passed_over(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "before.arrow")
    drawing = next((folder / PARTS[0]).rglob("*.png"))
    alphabet = drawing.parent.parent
    for beside in (drawing.parent, alphabet, alphabet.parent, folder):
        (beside / ".ipynb_checkpoints" / "x").mkdir(parents=True)
        shutil.copy(drawing, beside / ".ipynb_checkpoints" / "x-checkpoint.png")
        shutil.copy(drawing, beside / ".ipynb_checkpoints" / "x" / "x.png")
        (beside / f"._{drawing.name}").write_bytes(b"resource fork")
        (beside / "Thumbs.db").write_bytes(b"thumbs")
    convert(folder, tmp_path / "after.arrow")
    assert (tmp_path / "before.arrow").read_bytes() == (tmp_path / "after.arrow").read_bytes()


def test_deep_drawings_are_rounded_to_a_byte(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "before.arrow")
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L")).astype(np.uint16) * 257
        Image.fromarray(pixels).save(path)
    convert(folder, tmp_path / "after.arrow")
    one, two = (
        class_file.read(tmp_path / f"{name}.arrow", dataset="omniglot")
        for name in ("before", "after")
    )
    for name, drawings in one.items():
        assert two[name].dtype == np.uint8
        # Pillow resizes bytes in two passes, and rounds and clips between them.
        np.testing.assert_allclose(drawings.astype(float), two[name].astype(float), atol=24)
