"""Fetch and convert data sets: python -m maml_dist.data omniglot | mini-imagenet."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from maml_dist.cli import Parser, guarded
from maml_dist.loggers.lines import is_json, say

OMNIGLOT_URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
OMNIGLOT_SHA256 = {
    "images_background.zip": "8d3b0087d462ff4fd7fcfdcec8b96ef87758cc2a0a09f8eb6cf90e4a909049e9",
    "images_evaluation.zip": "077e703a0f6c17a203123bad6dbd83461e7bdd4c89d4d1c0f10b0bd43c271916",
}
WHERE = "(default: where the recipes look: $MAML_DIST_DATA, or the user's own data folder)"


def main(arguments: list[str]) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    status: int = options.run(options.source, options.out)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m maml_dist.data",
        description="Convert a data set to the memory-mapped Arrow files that training reads.",
    )
    datasets = parser.add_subparsers(required=True, metavar="omniglot | mini-imagenet")
    omniglot = datasets.add_parser(
        "omniglot",
        help="1,623 characters, 20 drawings of each",
        description="Convert Omniglot to DIR/omniglot.arrow. Without --source the two official zip "
        "files (14 MB) are downloaded to DIR/omniglot first.",
    )
    omniglot.add_argument(
        "--source",
        type=Path,
        metavar="PATH",
        help="a folder that holds images_background and images_evaluation, each as a folder or a "
        "zip file, or one zip file that holds both folders (default: download them)",
    )
    omniglot.set_defaults(run=_omniglot)
    mini_imagenet = datasets.add_parser(
        "mini-imagenet",
        help="100 classes, 600 images of each",
        description="Convert miniImagenet to train.arrow, val.arrow and test.arrow in DIR.",
    )
    mini_imagenet.add_argument(
        "--source",
        type=Path,
        required=True,
        metavar="PATH",
        help="a folder that holds images/ and the Ravi-Larochelle train.csv, val.csv and test.csv "
        "(filename,label), or one that holds mini-imagenet-cache-{train,val,test}.pkl",
    )
    mini_imagenet.set_defaults(run=_mini_imagenet)
    for command in (omniglot, mini_imagenet):
        command.add_argument("--out", type=Path, metavar="DIR", help=f"folder to write {WHERE}")
    return parser


def _omniglot(source: Path | None, out: Path | None) -> int:
    from maml_dist.runs.folder import made
    from maml_dist.tasks.images import class_file, omniglot

    folder = out or class_file.data_home()
    path = folder / "omniglot.arrow"
    if source is None:
        source = folder / "omniglot"
        with made(source):
            _download(source)
    with made(folder):
        omniglot.convert(source, path, track=_progress)
    _summarise([path], dataset="omniglot", official=1623)
    return 0


def _download(folder: Path) -> None:
    from maml_dist.tasks.images.download import fetch

    try:
        for name, sha256 in OMNIGLOT_SHA256.items():
            fetch(f"{OMNIGLOT_URL}/{name}", folder / name, sha256=sha256)
    except ConnectionError as error:
        raise ConnectionError(
            f"{error}; run the command again, or get {' and '.join(OMNIGLOT_SHA256)} "
            "some other way and say --source FOLDER"
        ) from error


def _mini_imagenet(source: Path, out: Path | None) -> int:
    from maml_dist.runs.folder import made
    from maml_dist.tasks.few_shot import SPLITS
    from maml_dist.tasks.images import class_file, mini_imagenet

    folder = out or class_file.data_home() / "mini-imagenet"
    with made(folder):
        mini_imagenet.convert(source, folder, track=_progress)
    paths = [folder / f"{split}.arrow" for split in SPLITS]
    _summarise(paths, dataset="mini-imagenet", official=100)
    return 0


def _progress(names: list[str]) -> Iterable[str]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(
        names, description="converting", console=console, transient=True, disable=is_json()
    )


def _summarise(paths: list[Path], *, dataset: str, official: int) -> None:
    from maml_dist.tasks.images import class_file

    classes = [c for path in paths for c in class_file.read(path, dataset=dataset).values()]
    images = sum(map(len, classes))
    line = f"{len(classes):,} classes, {images:,} images: {', '.join(map(str, paths))}"
    say(line, out=True, classes=len(classes), images=images, files=paths)
    if len(classes) != official:
        say(f"note: the whole of {dataset} has {official:,} classes", level="warning")


if __name__ == "__main__":
    sys.exit(guarded(main))
