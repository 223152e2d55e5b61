"""The report of a search: its pictures, and one self-contained page that shows them."""

from dataclasses import asdict
from pathlib import Path

import yaml

from maml_dist.reporting.page import rendered, saved
from maml_dist.reporting.search_pictures import curves, front, importance, keys, parallel, progress
from maml_dist.runs.folder import make_within, replace
from maml_dist.tuning.opened import PLAN, Opened, opened
from maml_dist.tuning.trials import text


def is_search(path: str | Path) -> bool:
    """Whether a folder is that of a search."""
    return (Path(path) / PLAN).is_file()


def report_search(path: str | Path) -> Path:
    """Draw a search: replaces `figures/*.png` and `report.html` in its folder.

    Returns:
        The page.

    Raises:
        ValueError: the folder holds no search, or a damaged one.
        OSError: the pictures cannot be written.
    """
    search = opened(path)
    folder = search.trials.folder / "figures"
    make_within(folder)
    drawn = [draw(search) for draw in (progress, curves, keys, importance, parallel, front)]
    pictures = [saved(picture, folder) for picture in drawn if picture]
    columns, rows = search.trials.table()
    page = search.trials.folder / "report.html"
    content = rendered(
        "search.html",
        title=f"Search of {search.plan.recipe}",
        description=f"Trials by the {search.trials.judge.title}.",
        facts=_facts(search),
        pictures=pictures,
        columns=[column.rpartition(".")[2] for column in columns],
        rows=[[text(value) for value in row] for row in rows],
        command=search.trials.command,
        yaml=yaml.safe_dump(asdict(search.plan), sort_keys=False),
    )
    replace(page, content.encode())
    return page


def _facts(search: Opened) -> dict[str, str]:
    """What the head of the page says."""
    counts = search.trials.counts
    facts = {
        "trials": f"{sum(counts.values())} of {search.plan.num_trials}",
        **{status: str(count) for status, count in counts.items()},
        "draws": search.plan.algorithm,
        "scheduler": search.plan.stops,
    }
    if takeovers := sum(len(trial.runs) - 1 for trial in search.trials.all.values()):
        facts["takeovers"] = str(takeovers)
    if (best := search.trials.best) and best.end.scores:
        facts[f"best {search.trials.judge.metrics[0]}"] = text(best.end.scores[0])
        facts["by trial"] = str(best.number)
    return facts
