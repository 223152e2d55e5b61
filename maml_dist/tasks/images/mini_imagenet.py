"""miniImagenet (Vinyals et al., arXiv 1606.04080) in the split of Ravi and Larochelle (2017).

64 classes train, 16 validate and 20 test, 600 colour images of 84x84 in each.
"""

import codecs
import csv
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from maml_dist.tasks.few_shot import SPLITS, ClassData
from maml_dist.tasks.images import class_file
from maml_dist.tasks.images.image_folder import decode_bytes

SIZE = 84  # pixels a side

Loaders = dict[str, Callable[[], np.ndarray]]  # class -> its images, uint8 [images, 3, 84, 84]


@dataclass(frozen=True)
class MiniImagenet(ClassData):
    """The converted files: uint8 [images, 3, 84, 84] for each class."""

    path: str | None = None  # the folder of train.arrow …; null: mini-imagenet in the data folder

    def classes(self, split: str) -> list[np.ndarray]:
        """The split's classes, sorted by name."""
        folder = Path(self.path) if self.path else class_file.data_home() / "mini-imagenet"
        return list(class_file.read(folder / f"{split}.arrow", dataset="mini-imagenet").values())


def convert(source: Path, out: Path, *, track: Callable[[list[str]], Iterable[str]] = iter) -> None:
    """Convert the images to `out`/train.arrow, val.arrow and test.arrow.

    Args:
        source: a folder that holds images/ and train.csv, val.csv and test.csv (filename, label),
            or one that holds mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl.
        out: the folder to write.
        track: sees the names of the classes as they are converted (a progress bar).

    Raises:
        ValueError, OSError: something is missing, damaged or refused; nothing is written.
    """
    if (source / "mini-imagenet-cache-train.pkl").exists():
        load = _from_pickle
    elif (source / "train.csv").exists():
        load = _from_csv
    else:
        raise ValueError(
            f"{source} holds neither train.csv (with val.csv, test.csv and images/) "
            "nor mini-imagenet-cache-train.pkl (with -val.pkl and -test.pkl)"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as partial_out:
        files = [Path(partial_out) / f"{split}.arrow" for split in SPLITS]
        for split, file in zip(SPLITS, files, strict=True):
            loaders = load(source, split)
            names = sorted(loaders)
            classes = (loaders[name]() for name in track(names))
            class_file.write(file, classes, names=names, shape=(3, SIZE, SIZE))
        out.mkdir(exist_ok=True)
        for file in files:
            file.replace(out / file.name)


def _from_csv(source: Path, split: str) -> Loaders:
    path = source / f"{split}.csv"
    files: dict[str, list[Path]] = {}
    _check_file(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            for row in csv.DictReader(lines, restval=""):
                files.setdefault(row["label"], []).append(source / "images" / row["filename"])
    except (csv.Error, KeyError, UnicodeError):
        files = {}
    if not all(files) or not files:
        raise ValueError(f"{path} is no table of filename,label with an image and its class a line")
    return {label: partial(_decode, paths) for label, paths in files.items()}


def _check_file(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file")  # a pipe or a device would never end


def _decode(paths: list[Path]) -> np.ndarray:
    for path in paths:
        _check_file(path)
    return np.stack(
        [decode_bytes(path.read_bytes(), name=str(path), size=SIZE, grey=False) for path in paths]
    )


def _from_pickle(source: Path, split: str) -> Loaders:
    path = source / f"mini-imagenet-cache-{split}.pkl"
    _check_file(path)
    try:
        with path.open("rb") as file:
            cache = _Unpickler(file, encoding="latin1").load()  # some were written by Python 2
        images = cache["image_data"]
        indices = {name: np.asarray(where, np.int64) for name, where in cache["class_dict"].items()}
        last = max(where.max() for where in indices.values())
        least = min(where.min() for where in indices.values())
    except (pickle.UnpicklingError, EOFError, ImportError, MemoryError) as error:
        raise ValueError(f"{path} is damaged or refused: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no miniImagenet cache ({error!r})") from error
    kind = (getattr(images, "dtype", None), getattr(images, "shape", ())[1:])
    if kind != (np.dtype(np.uint8), (SIZE, SIZE, 3)) or last >= len(images) or least < 0:
        raise ValueError(
            f"{path}: image_data must be uint8 [images, 84, 84, 3], one for each index"
        )
    return {name: partial(_select, images, where) for name, where in indices.items()}


def _select(images: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images[where].transpose(0, 3, 1, 2))


class _Unpickler(pickle.Unpickler):
    """Rebuilds numpy arrays out of plain containers; whatever else a file asks for is refused."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # numpy 1
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if (module, name) == ("numpy", "ndarray"):
            return _NDARRAY
        if (module, name) == ("numpy._core.multiarray", "_reconstruct"):
            return _reconstruct
        if (module, name) in {
            ("numpy", "dtype"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy._core.numeric", "_frombuffer"),
        }:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")


_NDARRAY = "numpy.ndarray"  # stands for the class, which could be called with any size


def _reconstruct(kind: Any, shape: Any, dtype: Any) -> np.ndarray:
    """How an array begins: empty. Its bytes follow, so that it is never larger than the file."""
    if kind != _NDARRAY or tuple(shape) != (0,):
        raise pickle.UnpicklingError(f"an array begins with the shape {shape!r}, not (0,)")
    return np.ndarray((0,), np.uint8)


def _latin1(text: str, encoding: str) -> bytes:
    """How old pickle protocols write bytes; other codecs are not needed."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}, which no array needs")
    return codecs.latin_1_encode(text)[0]
