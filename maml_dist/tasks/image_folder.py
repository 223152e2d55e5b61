"""A folder of class folders of images."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from maml_dist.core.bounds import check_least, check_range
from maml_dist.tasks.few_shot import SPLITS, ClassData

Item = TypeVar("Item")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


def decode(data: bytes, *, name: str, size: int, grey: bool) -> np.ndarray:
    """An image file's bytes as uint8 [channels, size, size].

    Raises:
        ValueError: these are no image, or it is damaged; says `name`.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = image.convert("L" if grey else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is not a readable image ({error})") from error
    array = np.asarray(pixels.resize((size, size), Image.Resampling.LANCZOS))
    return array[None] if grey else array.transpose(2, 0, 1)


def divide(items: Sequence[Item], *, parts: Sequence[float], seed: int) -> dict[str, list[Item]]:
    """Items shuffled and divided into train, val and test in proportion to `parts`.

    A pure function of its arguments: give the items sorted.
    """
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(items))
    ends = np.rint(len(items) * np.cumsum(parts) / np.sum(parts)).astype(int)
    places = np.split(order, ends[:-1])
    return {split: [items[i] for i in at] for split, at in zip(SPLITS, places, strict=True)}


@dataclass(frozen=True)
class ImageFolder(ClassData):
    """Images as path/train/CLASS/*, path/val/CLASS/*, path/test/CLASS/*, or as path/CLASS/*.

    Without split folders the classes are divided at random, by a seed over their sorted names.
    Every process decodes the images into its own memory.
    """

    path: str
    size: int = 84  # pixels a side
    grey: bool = False  # one channel rather than three
    parts: tuple[float, float, float] = (0.64, 0.16, 0.2)  # classes to train, val and test
    seed: int = 0  # of the division into splits

    def __post_init__(self) -> None:
        check_range(self, "task.data", size=(1, 8192))
        check_least(self, "task.data", seed=0)
        if not all(0 <= part < math.inf for part in self.parts) or not sum(self.parts):
            raise ValueError(f"task.data.parts={self.parts}: must be three shares, 0 or more")

    def classes(self, split: str) -> list[np.ndarray]:
        """One array [images, channels, size, size] a class, sorted by name."""
        root = Path(self.path)
        if any((root / name).is_dir() for name in SPLITS):
            folders = _folders(root / split)
        else:
            folders = divide(_folders(root), parts=self.parts, seed=self.seed)[split]
        return [self._images(folder) for folder in folders]

    def _images(self, folder: Path) -> np.ndarray:
        files = sorted(
            file
            for file in folder.iterdir()
            if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".") and file.is_file()
        )
        if not files:
            raise ValueError(f"{folder} holds no image ({', '.join(sorted(_SUFFIXES))})")
        images = [
            decode(file.read_bytes(), name=str(file), size=self.size, grey=self.grey)
            for file in files
        ]
        return np.stack(images)


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not there: it should hold a folder for each class")
    folders = (path for path in root.iterdir() if path.is_dir())
    return sorted(path for path in folders if not path.name.startswith("."))  # .ipynb_checkpoints
