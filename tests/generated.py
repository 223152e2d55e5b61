"""Tiny data sets in the official layouts, made from a seed."""

import csv
import pickle
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from maml_dist.tasks.few_shot import SPLITS
from maml_dist.tasks.images import mini_imagenet, omniglot


def omniglot_folder(root: Path, *, characters: int = 12, drawings: int = 20) -> Path:
    """Drawings of random strokes, black on white, 105x105 1-bit: one alphabet for each part.

    A third of the characters are in images_evaluation. Returns `root`.
    """
    rng = np.random.default_rng(0)
    for number in range(1, characters + 1):
        part = omniglot.PARTS[number > characters - characters // 3]
        folder = root / part / f"Alphabet_of_{part}" / f"character{number:02}"
        folder.mkdir(parents=True)
        strokes = rng.uniform(15, 90, (4, 2))
        for drawing in range(1, drawings + 1):
            image = Image.new("1", (105, 105), 1)
            points = strokes + rng.normal(0, 2, strokes.shape)
            ImageDraw.Draw(image).line([tuple(point) for point in points], fill=0, width=3)
            image.save(folder / f"{number:04}_{drawing:02}.png")
    return root


def omniglot_zips(folder: Path, root: Path) -> Path:
    """The two parts of an `omniglot_folder` as the two official zip files. Returns `root`."""
    root.mkdir(exist_ok=True)
    for part in omniglot.PARTS:
        with zipfile.ZipFile(root / f"{part}.zip", "w") as archive:
            for path in sorted((folder / part).rglob("*.png")):
                archive.write(path, path.relative_to(folder))
    return root


def mini_imagenet_folder(root: Path, *, classes: int = 5, images: int = 20) -> Path:
    """Noisy pictures of one colour a class, with the Ravi-Larochelle tables. Returns `root`."""
    rng = np.random.default_rng(0)
    (root / "images").mkdir(parents=True)
    for place, split in enumerate(SPLITS):
        with (root / f"{split}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["filename", "label"])
            for number in range(place * classes, (place + 1) * classes):
                label, colour = f"n{number:08}", rng.uniform(30, 225, 3)
                for image in range(images):
                    name = f"{label}{image:08}.jpg"
                    pixels = colour + rng.normal(0, 10, (90, 100, 3))
                    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                        root / "images" / name
                    )
                    table.writerow([name, label])
    return root


def mini_imagenet_pickles(
    root: Path, *, classes: int = 5, images: int = 20, protocol: int = 4
) -> Path:
    """Random pictures as mini-imagenet-cache-{train,val,test}.pkl. Returns `root`."""
    rng = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    for split in SPLITS:
        indices = np.arange(classes * images).reshape(classes, images)
        cache = {
            "image_data": rng.integers(0, 256, (classes * images, 84, 84, 3), dtype=np.uint8),
            "class_dict": {f"{split}{c}": [int(i) for i in indices[c]] for c in range(classes)},
        }
        with (root / f"mini-imagenet-cache-{split}.pkl").open("wb") as file:
            pickle.dump(cache, file, protocol=protocol)
    return root


def fill_data_home(home: Path, *, characters: int = 90) -> Path:
    """Both sets, converted where the recipes look under MAML_DIST_DATA=home. Returns `home`.

    With 90 characters there are 20 classes or more in every split of Omniglot, rotations counted.
    """
    omniglot_folder(home / "omniglot-images", characters=characters)
    omniglot.convert(home / "omniglot-images", home / "omniglot.arrow")
    mini_imagenet_folder(home / "mini-imagenet-images")
    mini_imagenet.convert(home / "mini-imagenet-images", home / "mini-imagenet")
    return home
