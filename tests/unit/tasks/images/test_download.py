"""Downloading: whole and right, or not there under its name."""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Server, serving

from maml_dist.tasks.images.download import fetch

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.zip").write_bytes(CONTENT)
    with serving(Server(folder)) as server:
        yield server


def test_a_file_arrives_whole_and_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        fetch(f"{server.url}/a.zip", tmp_path / "new" / "a.zip", sha256=SHA256)
    assert (tmp_path / "new" / "a.zip").read_bytes() == CONTENT
    assert server.asked == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.zip"]


def test_a_broken_download_leaves_nothing_and_can_be_had_again(
    server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "a.zip"
    server.breaks_after = 100_000
    with pytest.raises(ConnectionError, match=r"cannot download http://.*/a\.zip .*100000"):
        fetch(f"{server.url}/a.zip", path, sha256=SHA256)
    assert not [*path.parent.iterdir()]
    server.breaks_after = None
    fetch(f"{server.url}/a.zip", path, sha256=SHA256)
    assert path.read_bytes() == CONTENT


def test_wrong_content_is_deleted(server: Server, tmp_path: Path) -> None:
    (server.folder / "a.zip").write_bytes(b"what another server sent")
    with pytest.raises(
        ValueError, match=f"does not match the known hash: expected sha256:{SHA256}"
    ):
        fetch(f"{server.url}/a.zip", tmp_path / "new" / "a.zip", sha256=SHA256)
    assert not [*(tmp_path / "new").iterdir()]


def test_wrong_content_that_is_there_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"what another server sent")
    fetch(f"{server.url}/a.zip", tmp_path / "a.zip", sha256=SHA256)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_an_unreachable_server_is_named(tmp_path: Path, server: Server) -> None:
    with pytest.raises(ConnectionError, match=r"cannot download http://127\.0\.0\.1:1/a\.zip"):
        fetch("http://127.0.0.1:1/a.zip", tmp_path / "a.zip", sha256=SHA256)
