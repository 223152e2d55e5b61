"""A folder of class folders of images, and what becomes of an image file.

    1, L, RGB, P, YCbCr …   0 … 255 as 0 … 1; 16-bit colours by their upper 8 bits, as Pillow reads
    CMYK, LAB, HSV          converted to RGB by Pillow
    alpha, transparency     laid over white (LA, RGBA, PA, a file's transparent colour)
    I;16, I                 0 … 65535 as 0 … 1, in float32; other values are refused
    F                       0 … 1 as they are; other values are refused

First the orientation that EXIF tells is applied, last the image is resized by Lanczos, whose
overshoot ends at 0 and 1. Of an animation the first frame is read. Names that begin with a dot
(`._x.png`, `.ipynb_checkpoints`), `__MACOSX` and files without an image's ending are passed over.
"""

import io
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from maml_dist.core.validation import check_minimum, check_range
from maml_dist.tasks.few_shot import SPLITS, ClassData

Item = TypeVar("Item")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
_DEEP = {"I": 65535, "F": 1}  # modes of one number beyond a byte, and which number is white


def decode(data: bytes, *, name: str, size: int, grey: bool) -> np.ndarray:
    """An image file's bytes [channels, size, size]: uint8, or float32 in 0 … 1 where it is deeper.

    Raises:
        ValueError: these are no image, it is damaged, or deeper than what is known of it; says
            `name`.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = ImageOps.exif_transpose(opened)
            clear = image.has_transparency_data
            mode = image.mode.partition(";")[0]
            if mode not in _DEEP:
                image = _opaque(image) if clear else image
                image = image.convert("L" if grey else "RGB")
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is not a readable image ({error})") from error
    if mode in _DEEP:
        image = _unit(np.asarray(image), _DEEP[mode], name=name, clear=clear)
    array = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))
    if mode in _DEEP:
        array = array.clip(0, 1)
        return array[None] if grey else np.repeat(array[None], 3, axis=0)
    return array[None] if grey else array.transpose(2, 0, 1)


def decode_bytes(data: bytes, *, name: str, size: int, grey: bool) -> np.ndarray:
    """As `decode`, but always uint8: deeper images are rounded."""
    array = decode(data, name=name, size=size, grey=grey)
    return array if array.dtype == np.uint8 else np.rint(255 * array).astype(np.uint8)


def _opaque(image: Image.Image) -> Image.Image:
    """Laid over white."""
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA"))


def _unit(values: np.ndarray, white: int, *, name: str, clear: bool) -> Image.Image:
    """A single-channel image in 0 … 1, of numbers 0 … `white`."""
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= white):
        raise ValueError(
            f"{name} holds numbers from {low:g} to {high:g}; an image of so deep numbers must have "
            f"0 as black and {white} as white: scale them, or write it with 8 bits"
        )
    if clear:
        raise ValueError(f"{name} has a transparent colour and more than 8 bits: write it without")
    return Image.fromarray((values / white).astype(np.float32))


def of_one_kind(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Images as they are where all are uint8, else all of them float32 in 0 … 1."""
    if all(array.dtype == np.uint8 for array in arrays):
        return list(arrays)
    return [
        array.astype(np.float32) / 255 if array.dtype == np.uint8 else array for array in arrays
    ]


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

    What an image becomes, and which names are passed over, is said at the head of this module.

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
        check_minimum(self, "task.data", seed=0)
        if not all(0 <= part < math.inf for part in self.parts) or not sum(self.parts):
            raise ValueError(f"task.data.parts={self.parts}: must be three shares, 0 or more")

    def classes(self, split: str) -> list[np.ndarray]:
        """One array [images, channels, size, size] a class, sorted by name."""
        root = Path(self.path)
        if any((root / name).is_dir() for name in SPLITS):
            folders = _folders(root / split)
        else:
            folders = divide(_folders(root), parts=self.parts, seed=self.seed)[split]
        return of_one_kind([self._images(folder) for folder in folders])

    def _images(self, folder: Path) -> np.ndarray:
        files = sorted(
            file
            for file in folder.iterdir()
            if file.suffix.lower() in _SUFFIXES and not _passed_over(file) and file.is_file()
        )
        if not files:
            raise ValueError(f"{folder} holds no image ({', '.join(sorted(_SUFFIXES))})")
        images = [
            decode(file.read_bytes(), name=str(file), size=self.size, grey=self.grey)
            for file in files
        ]
        return np.stack(of_one_kind(images))


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not there: it should hold a folder for each class")
    return sorted(path for path in root.iterdir() if path.is_dir() and not _passed_over(path))


def _passed_over(path: Path) -> bool:
    """What systems and editors leave beside the data."""
    return path.name.startswith(".") or path.name == "__MACOSX"
