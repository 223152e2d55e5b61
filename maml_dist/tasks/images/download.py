"""Download a file: resumable, checked, and under its name only when it is whole."""

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn


def fetch(url: str, path: Path, *, sha256: str) -> None:
    """Download `url` to `path` unless it is there, going on from what an earlier try left.

    Raises:
        ConnectionError: not reachable, or it broke off; what came is kept.
        ValueError: the wrong content came; it is deleted.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    try:
        _receive(url, partial)
    except (
        http.client.HTTPException,
        urllib.error.URLError,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise ConnectionError(f"cannot download {url} ({error})") from error
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        partial.unlink()
        raise ValueError(f"{url} gave other content than expected (sha256 {found}, not {sha256})")
    partial.replace(path)


def _receive(url: str, partial: Path) -> None:
    """Append to `partial` what it lacks, or write it anew where the server cannot resume."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # nothing is left to send
            return
        raise
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with response, Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        if response.status != http.client.PARTIAL_CONTENT:
            have = 0
        length = response.headers["Content-Length"]
        total = have + int(length) if length else None
        bar = progress.add_task(url.rpartition("/")[2], total=total, completed=have)
        with partial.open("ab" if have else "wb") as file:
            while chunk := response.read(1 << 16):
                file.write(chunk)
                progress.advance(bar, len(chunk))
    if total is not None and partial.stat().st_size < total:
        raise ConnectionError(f"it broke off after {partial.stat().st_size:,} of {total:,} bytes")
