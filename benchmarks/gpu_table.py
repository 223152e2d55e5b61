"""The results of benchmarks/gpu.py as a table."""

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_rows import Row


def lines(results: dict[str, Any]) -> Iterator[str]:
    """All of it, line by line."""
    machine = results["machine"]
    yield ", ".join(f"{name} {value}" for name, value in machine.items())
    for part in results["parts"]:
        yield ""
        yield f"{part['part']}: {part['status']}, {part['seconds']} s of {part['limit']}"
        timed = [row for row in part["rows"] if "who" in row]
        for row in part["rows"]:
            if "who" not in row:
                yield "  " + ", ".join(f"{key} {_shown(value)}" for key, value in row.items())
        if timed:
            yield from _measured(timed)
        for line in part.get("said", ()):
            yield f"  | {line[:160]}"


def _measured(rows: list[Row]) -> Iterator[str]:
    """What was timed: the fastest of ours is what the others are measured by."""
    ours = {
        name: min(
            (
                row["ms"]
                for row in rows
                if "ms" in row and _ours(row) and row.get("workload") == name
            ),
            default=None,
        )
        for name in {row.get("workload") for row in rows}
    }
    yield f"  {'':44}{'ms':>10}{'/ ours':>8}{'first s':>9}{'MiB':>8}{'error':>10}"
    for row in rows:
        who = f"{row.get('workload', '')} {row['who']}"
        if "ms" not in row:
            why = row.get("failed") or f"left out: {row.get('left_out')}"
            yield f"  {who:44}{'':6}{why}"
            continue
        best = ours[row["workload"]]
        ratio = f"{row['ms'] / best:.2f}" if best else "–"
        peak = row.get("peak_mib", row.get("process_peak_mib", "–"))
        error = f"{row['error']:.1e}" if "error" in row else "–"
        yield f"  {who:44}{row['ms']:10.3f}{ratio:>8}{row['first_s']:9.2f}{peak:>8}{error:>10}"


def _ours(row: Row) -> bool:
    return bool(row["who"].startswith("maml_dist"))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
