"""The data command, from the command line's words to the files that training reads."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from generated import (
    mini_imagenet_folder,
    mini_imagenet_pickles,
    omniglot_folder,
    omniglot_zips,
)
from served import Server, serving

from maml_dist import data
from maml_dist.cli import guarded
from maml_dist.tasks.images.mini_imagenet import MiniImagenet
from maml_dist.tasks.images.omniglot import Omniglot


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAML_DIST_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "home"


def test_omniglot_goes_where_the_source_looks(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = omniglot_folder(tmp_path / "source", characters=6, drawings=2)
    assert data.main(["omniglot", "--source", str(source)]) == 0
    said = capsys.readouterr()
    assert said.out == f"6 classes, 12 images: {home / 'omniglot.arrow'}\n"
    assert said.err.endswith("note: the whole of omniglot has 1,623 classes\n")
    assert len(Omniglot(rotations=False).classes("train")) == 4


@pytest.mark.parametrize("make", [mini_imagenet_folder, mini_imagenet_pickles])
def test_mini_imagenet_goes_where_the_source_looks(
    tmp_path: Path, home: Path, make: Callable[..., Path]
) -> None:
    source = make(tmp_path / "source", classes=2, images=3)
    assert data.main(["mini-imagenet", "--source", str(source)]) == 0
    assert [c.shape for c in MiniImagenet().classes("val")] == [(3, 3, 84, 84)] * 2


def test_out_moves_the_files(tmp_path: Path, home: Path) -> None:
    characters = omniglot_folder(tmp_path / "characters", characters=3, drawings=1)
    images = mini_imagenet_folder(tmp_path / "images", classes=1, images=1)
    out = tmp_path / "out"
    assert data.main(["omniglot", "--source", str(characters), "--out", str(out)]) == 0
    assert data.main(["mini-imagenet", "--source", str(images), "--out", str(out)]) == 0
    files = ["omniglot.arrow", "test.arrow", "train.arrow", "val.arrow"]
    assert sorted(path.name for path in out.iterdir()) == files
    assert not home.exists()


def test_omniglot_is_downloaded_once(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zips = omniglot_zips(omniglot_folder(tmp_path / "images", characters=3), tmp_path / "zips")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in zips.iterdir()}
    monkeypatch.setattr(data, "OMNIGLOT_SHA256", sums)
    with serving(Server(zips)) as server:
        monkeypatch.setattr(data, "OMNIGLOT_URL", server.url)
        for _ in range(2):
            assert data.main(["omniglot"]) == 0
    assert server.asked == 2
    assert (home / "omniglot.arrow").exists()


def test_without_internet_one_line_says_what_to_do(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "OMNIGLOT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(sys, "argv", ["data", "omniglot"])
    assert guarded(data.main) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: cannot download http://127.0.0.1:1/images_background.zip")
    assert said.endswith("say --source FOLDER\n") and said.count("\n") == 1


@pytest.mark.parametrize("dataset", ["omniglot", "mini-imagenet"])
def test_a_wrong_source_is_one_line(
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dataset: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["data", dataset, "--source", str(tmp_path / "nowhere")])
    assert guarded(data.main) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}/nowhere") and said.count("\n") == 1
    assert not home.exists()


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import json, sys\nfrom maml_dist import data\n"
        "try: data.main(['omniglot', '--help'])\n"
        "except SystemExit: print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "--source PATH" in ended.stdout and "--out DIR" in ended.stdout
    assert not {"torch", "pyarrow", "numpy", "ray", "rich"} & set(json.loads(ended.stderr))


@pytest.mark.parametrize("data_set", ["omniglot", "mini-imagenet"])
@pytest.mark.parametrize("there", [False, True])
def test_a_source_that_does_not_serve_leaves_no_folder(
    tmp_path: Path, home: Path, data_set: str, there: bool
) -> None:
    out = tmp_path / "deep" / "out"
    if there:
        out.mkdir(parents=True)
    (tmp_path / "source").mkdir()
    with pytest.raises((ValueError, OSError)):
        data.main([data_set, "--source", str(tmp_path / "source"), "--out", str(out)])
    assert out.exists() == there and (tmp_path / "deep").exists() == there
