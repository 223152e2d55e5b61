"""Opened: a search that has been run, read from its folder; nothing in it is executed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maml_dist.config.plain_yaml import check_path
from maml_dist.config.recipe import Config, read_yaml
from maml_dist.runs.identity import complete
from maml_dist.tuning.draws import Draws
from maml_dist.tuning.judge import Judge
from maml_dist.tuning.recorded import read_record
from maml_dist.tuning.search_space import Search, read
from maml_dist.tuning.trials import Trials, draw_again

PLAN, BASE = "search.yaml", "base.yaml"  # what is searched, and the recipe


@dataclass(frozen=True)
class Opened:
    """A search and its trials."""

    plan: Search
    trials: Trials
    draws: Draws  # told of all of them


def opened(path: str | Path) -> Opened:
    """The search in a folder.

    Raises:
        ValueError: there is none, or a file of it is damaged.
    """
    folder = folder_of(path)
    plan, base = plan_and_base(folder)
    judge = judge_of(plan)
    lines = read_record(folder, plan)
    trials = Trials(folder, judge, base, lines)
    draws = Draws(plan, maximize=judge.maximize, study=folder.name)
    draw_again(draws, trials, lines)
    return Opened(plan, trials, draws)


def judge_of(plan: Search) -> Judge:
    """The judge of a search that has begun, whose file names metrics and modes."""
    modes = plan.mode if isinstance(plan.mode, list) else [plan.mode] * len(plan.metrics)
    if not plan.metrics or None in modes:
        raise ValueError(f"{PLAN}: metric and mode: must both be there once a search has begun")
    return Judge(tuple(plan.metrics), tuple(mode == "max" for mode in modes))


def folder_of(path: str | Path) -> Path:
    """The folder of a search; raises ValueError where it holds none."""
    check_path(path, "the search's folder")
    folder = Path(path).absolute()
    if not (folder / PLAN).is_file():
        raise ValueError(f"{folder} is not a search: it holds no {PLAN}")
    return folder


def plan_and_base(folder: Path, changes: Mapping[str, Any] | None = None) -> tuple[Search, Config]:
    """What is searched, with `changes`, and the recipe that is searched; raises ValueError."""
    plan = read(folder / PLAN, changes)
    return plan, complete(read_yaml(folder / BASE), str(folder / BASE))
