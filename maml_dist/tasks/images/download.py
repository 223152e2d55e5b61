"""Download a file: checked, and under its name only when it is whole."""

import logging
from pathlib import Path

import pooch
import requests

TIMEOUT = 30  # seconds without a byte


def fetch(url: str, path: Path, *, sha256: str) -> None:
    """Download `url` to `path`, unless it is there with this content.

    Raises:
        ConnectionError: not reachable, or it broke off.
        ValueError: other content came; it is deleted.
    """
    pooch.get_logger().setLevel(logging.WARNING)
    try:
        pooch.retrieve(
            url,
            known_hash=f"sha256:{sha256}",
            fname=path.name,
            path=path.parent,
            downloader=pooch.HTTPDownloader(timeout=TIMEOUT),
        )
    except (requests.RequestException, ConnectionError) as error:
        raise ConnectionError(f"cannot download {url} ({error})") from error
