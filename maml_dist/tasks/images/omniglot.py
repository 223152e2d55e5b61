"""Omniglot (Lake, Salakhutdinov, Tenenbaum, Science 2015): 1,623 characters, 20 drawings of each.

As in arXiv 1703.03400: 28x28, inverted so that ink is 1; of the characters of both official parts
together 1,100 train, 100 validate and 423 test. A smaller set divides in the same proportion.
"""

import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np

from maml_dist.core.validation import check_minimum
from maml_dist.tasks.few_shot import ClassData
from maml_dist.tasks.images import class_file
from maml_dist.tasks.images.image_folder import decode_bytes, divide

PARTS = ("images_background", "images_evaluation")
SIZE = 28  # pixels a side
DRAWING_BYTES = 1_000_000  # of a zip file's entry at the most; the official ones have under 1,000
# PART/ALPHABET/CHARACTER/DRAWING.png; a leading dot marks what systems and editors add
_DRAWING = re.compile(rf"(?:.*/)?((?:{'|'.join(PARTS)})/[^/.][^/]*/[^/.][^/]*)/[^/.][^/]*\.png")
_LAYOUT = (
    f"give the folder that holds {' and '.join(PARTS)}, each as a folder or a zip file, "
    "or one zip file of both"
)


@dataclass(frozen=True)
class Omniglot(ClassData):
    """The converted file: uint8 [drawings, 1, 28, 28] for each character and rotation.

    Rotations by 0, 90, 180 and 270 degrees are classes of their own in every split: the released
    code rotates at validation and test too.
    """

    path: str | None = None  # the converted file; null: omniglot.arrow in the data folder
    rotations: bool = True  # characters turned by 90, 180 and 270 degrees are further classes
    seed: int = 0  # of the division into splits

    def __post_init__(self) -> None:
        check_minimum(self, "task.data", seed=0)

    def classes(self, split: str) -> list[np.ndarray]:
        """The split's characters in a random order, each followed by its rotations."""
        path = Path(self.path) if self.path else class_file.data_home() / "omniglot.arrow"
        characters = list(class_file.read(path, dataset="omniglot").values())
        kept = divide(characters, parts=(1100, 100, 423), seed=self.seed)[split]
        turns = range(4 if self.rotations else 1)
        return [np.rot90(drawings, k, axes=(2, 3)) for drawings in kept for k in turns]


def convert(source: Path, out: Path, *, track: Callable[[list[str]], Iterable[str]] = iter) -> None:
    """Convert the official images to one class file.

    Args:
        source: a folder that holds images_background and images_evaluation, each as a folder or a
            zip file; or one zip file that holds both folders.
        out: the file to write.
        track: sees the names of the characters as they are converted (a progress bar).

    Raises:
        ValueError, OSError: something is missing, damaged or incomplete; nothing is written.
    """
    with ExitStack() as opened:
        characters: dict[str, list[tuple[str, Callable[[], bytes]]]] = {}
        for name, load in sorted(_files(source, opened), key=itemgetter(0)):
            if match := _DRAWING.fullmatch(name):
                characters.setdefault(match[1], []).append((name, load))
        names = sorted(characters)
        _check(source, {name: len(files) for name, files in characters.items()})
        classes = (_drawings(source, characters[name]) for name in track(names))
        class_file.write(out, classes, names=names, shape=(1, SIZE, SIZE))


def _files(source: Path, opened: ExitStack) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The name and the reader of every file in the source."""
    if source.is_dir():
        for part in PARTS:
            if (source / part).is_dir():
                for path in filter(Path.is_file, (source / part).rglob("*.png")):
                    yield path.relative_to(source).as_posix(), path.read_bytes
            else:
                yield from _zipped(source / f"{part}.zip", opened)
    else:
        yield from _zipped(source, opened)


def _zipped(path: Path, opened: ExitStack) -> Iterator[tuple[str, Callable[[], bytes]]]:
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; {_LAYOUT}")
    if not path.is_file():  # a pipe would be waited for
        raise ValueError(f"{path} is no zip file")
    try:
        archive = opened.enter_context(zipfile.ZipFile(path))
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(f"{path} is no zip file, or not a whole one ({error})") from error
    for entry in archive.infolist():
        yield entry.filename, partial(_unzipped, archive, entry)


def _unzipped(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """An entry's bytes, of which there may be more than it says."""
    with archive.open(entry) as file:
        data = file.read(DRAWING_BYTES + 1)
    if len(data) > DRAWING_BYTES:
        raise zipfile.BadZipFile(f"more than {DRAWING_BYTES:,} bytes, which no drawing has")
    return data


def _check(source: Path, counts: dict[str, int]) -> None:
    for part in PARTS:
        if not any(name.startswith(part) for name in counts):
            raise ValueError(f"{source} has no {part}/ALPHABET/CHARACTER/*.png; {_LAYOUT}")
    most = max(counts.values())
    for name, count in counts.items():
        if count < most:
            raise ValueError(f"{source}: {name} has {count} drawings where others have {most}")


def _drawings(source: Path, files: list[tuple[str, Callable[[], bytes]]]) -> np.ndarray:
    """The drawings of one character: uint8 [drawings, 1, 28, 28], ink 255 on 0."""
    images = []
    for name, load in files:
        try:
            data = load()
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise ValueError(f"{source}: {name} is damaged ({error})") from error
        images.append(decode_bytes(data, name=f"{source}: {name}", size=SIZE, grey=True))
    return 255 - np.stack(images)
