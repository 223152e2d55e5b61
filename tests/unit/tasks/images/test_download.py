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
    assert server.ranges == [None]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.zip"]


@pytest.mark.parametrize("resumes", [True, False])
def test_a_broken_download_goes_on_where_it_stopped(
    server: Server, tmp_path: Path, resumes: bool
) -> None:
    path = tmp_path / "a.zip"
    server.resumes, server.breaks_after = resumes, 100_000
    with pytest.raises(ConnectionError, match=r"a\.zip .*broke off after 100,000 of 300,000 bytes"):
        fetch(f"{server.url}/a.zip", path, sha256=SHA256)
    assert not path.exists()
    server.breaks_after = None
    fetch(f"{server.url}/a.zip", path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-"]


def test_a_download_killed_just_before_its_end_was_noticed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(CONTENT)
    fetch(f"{server.url}/a.zip", tmp_path / "a.zip", sha256=SHA256)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_wrong_content_is_deleted(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(b"what another server sent")
    with pytest.raises(ValueError, match=f"other content than expected .*, not {SHA256}"):
        fetch(f"{server.url}/a.zip", tmp_path / "a.zip", sha256=SHA256)
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


def test_an_unreachable_server_is_named(tmp_path: Path, server: Server) -> None:
    with pytest.raises(ConnectionError, match=r"cannot download http://127\.0\.0\.1:1/a\.zip"):
        fetch("http://127.0.0.1:1/a.zip", tmp_path / "a.zip", sha256=SHA256)
