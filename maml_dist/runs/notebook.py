"""Notebook: what a cell shows that ends in a run."""

import html
from pathlib import Path
from typing import Any


def in_html(reached: str, path: Path, rows: list[dict[str, Any]]) -> str:
    """How far a run in `path` has got, in words, and the last validation of its `rows`."""
    validated = [row for row in rows if any(name.startswith("val/") for name in row)]
    last = validated[-1] if validated else {}
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{value:.4g}</td></tr>"
        for name, value in last.items()
        if name.startswith("val/") and isinstance(value, float)
    )
    at = f" · validated at {last['iteration']:,}" if last else ""
    return (
        f"<p><b>{html.escape(reached)}</b>{at}<br><code>{html.escape(str(path))}</code></p>"
        f"<table>{cells}</table>"
    )
