"""Tables of scores, for a terminal."""

from typing import Any

from rich.table import Table

from maml_dist.loggers.lines import is_json, say, show_table


def score_text(value: float | None) -> str:
    """A score as a reader wants it: – where some tasks diverged."""
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.3g}"


def show(evaluation: dict[str, Any], paper: dict[int, float]) -> None:
    """Print an evaluation as a table, beside the paper's figures (steps -> score)."""
    for result in evaluation["results"]:
        title = (
            f"{evaluation['recipe']}: {evaluation['metric']} over {evaluation['tasks']} "
            f"{evaluation['split']} tasks ({result['mode']})"
        )
        if is_json():
            say(title, out=True, **{**evaluation, "results": [result]})
            continue
        papers = paper if result["mode"] in ("default", "transductive") else {}
        show_table(_table(title, result["steps"], papers))
        for name, steps in result.get("others", {}).items():
            show_table(_table(name, steps, {}))


def _table(title: str, steps: list[dict[str, Any]], paper: dict[int, float]) -> Table:
    """A line for each number of steps."""
    table = Table(title=title)
    for column in ("steps", "mean", "± 95%", "median", "paper"):
        table.add_column(column, justify="right")
    for row in steps:
        numbers = [score_text(row[key]) for key in ("mean", "ci95", "median")]
        cited = paper.get(row["step"])
        table.add_row(str(row["step"]), *numbers, "" if cited is None else f"{cited:g}")
    return table
