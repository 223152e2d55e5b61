"""Status: where a run stands, by what lies in its folder or where its checkpoints are.

Nothing is executed, trusted or written, no weight is read, and torch is not imported.
"""

import shlex
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from maml_dist.config.aliases import updated
from maml_dist.config.plain_yaml import check_path
from maml_dist.config.recipe import read_yaml
from maml_dist.core.schema import checked, from_json
from maml_dist.runs.checkpoint_index import INDEX, INDEX_BYTES, Entry, Index
from maml_dist.runs.folder import Folder
from maml_dist.runs.owner import Owner, read_owner
from maml_dist.runs.safetensors_file import read_contents

TAIL = 1 << 18  # bytes of metrics.jsonl that are read, from its end


@dataclass
class Status:
    """Where a run stands; None: that is not known."""

    run: str | None  # its folder
    checkpoints: str  # their place
    state: Literal["training", "silent", "stopped", "finished"] = "stopped"
    recipe: str | None = None
    iterations: int | None = None  # that it is to have
    iteration: int | None = None  # of the last checkpoint
    checkpoint_age: float | None = None  # seconds
    validated: bool | None = None  # whether the last checkpoint is
    best_iteration: int | None = None
    best_score: float | None = None
    metric: str | None = None  # whose score that is
    row: int | None = None  # iteration of the last row of metrics
    row_age: float | None = None  # seconds
    driver: str | None = None  # who trains it, or did
    driver_silence: float | None = None  # seconds since it was heard
    evaluated: bool | None = None
    code: list[str] = field(default_factory=list)  # folders of modules of one's own
    faults: list[str] = field(default_factory=list)


def status(where: str) -> Status:
    """Where the run of a folder stands, or that whose checkpoints are at a URI.

    Raises:
        ValueError: it is neither.
        OSError: it cannot be read.
    """
    check_path(where, "the run")
    if "://" in where:
        return _of_checkpoints(Folder(where), where)
    path = Path(where).absolute()
    if (path / "recipe.yaml").is_file():
        return _of_run(path)
    if (path / INDEX).is_file():
        return _of_checkpoints(Folder(path), str(path))
    raise ValueError(f"{path} is not a run: it holds no recipe.yaml")


def _of_run(path: Path) -> Status:
    config = updated(read_yaml(path / "recipe.yaml"))
    elsewhere = checked(config.get("checkpoints"), str | None, "recipe.yaml: checkpoints")
    found = Status(str(path), elsewhere or str(path / "checkpoints"))
    _take_recipe(found, config, f"{path}/recipe.yaml")
    _take_rows(found, Folder(path))
    try:
        _take_index(found, Folder(found.checkpoints))
    except OSError as error:
        found.faults.append(f"{found.checkpoints}: {error}")
    found.evaluated = (path / "evaluation.json").exists()
    _take_driver(found, Folder(path))
    return found


def _of_checkpoints(folder: Folder, where: str) -> Status:
    """By the checkpoints alone, whose files carry the recipe."""
    found = Status(None, where)
    index = _take_index(found, folder)
    if index is None:
        raise ValueError(f"{where} holds no checkpoints" + "".join(f": {f}" for f in found.faults))
    if index.run and (Path(index.run) / "recipe.yaml").is_file():
        found.run = index.run
    with suppress(ValueError):  # it is noted already
        name = index.last[-1].file
        texts = read_contents(folder, name).texts
        recipe = from_json(texts.get("recipe", ""), dict[str, Any], f"{where}/{name}: its recipe")
        _take_recipe(found, updated(recipe), f"{where}/{name}: its recipe")
    _take_driver(found, folder)
    return found


def _take_recipe(found: Status, config: dict[str, Any], where: str) -> None:
    found.recipe = checked(config.get("name", "?"), str, f"{where}: name")
    found.iterations = checked(config.get("iterations"), int | None, f"{where}: iterations")
    found.code = checked(config.get("code", []), list[str], f"{where}: code")


def _take_index(found: Status, folder: Folder) -> Index | None:
    """What the index says, and whether the last file that it names is whole, but for its sum."""
    content = folder.read(INDEX, most=INDEX_BYTES)
    if content is None:
        if lost := [name for name in folder.names() if name[:8].isdigit()]:
            found.faults.append(f"{folder.path}/{INDEX} is lost; {lost[-1]} is the last file")
        return None
    try:
        index: Index = from_json(content, Index, f"{folder.path}/{INDEX}")
    except ValueError as error:
        found.faults.append(f"{error}; --resume makes it again from the files")
        return None
    last: Entry = index.last[-1]
    found.iteration, found.validated = last.iteration, last.validated
    if index.best.validated:
        found.best_iteration, found.best_score = index.best.iteration, index.best.score
    try:
        read_contents(folder, last.file)
    except ValueError as error:
        found.faults.append(f"{error}; --resume goes on from the one before")
    found.checkpoint_age = _age(folder, last.file)
    return index


def _take_rows(found: Status, folder: Folder) -> None:
    """The last row of metrics, and the name of the score."""
    size = folder.size("metrics.jsonl")
    if not size:
        return
    text = folder.read("metrics.jsonl", most=TAIL, start=max(0, size - TAIL)) or b""
    lines = text.split(b"\n")[bool(size > TAIL) : -1]  # whole ones
    where = f"{folder.path}/metrics.jsonl"
    for line in reversed(lines):
        try:
            row = from_json(line, dict[str, str | int | float | None], where)
        except ValueError as error:
            found.faults.append(str(error))
            return
        if found.row is None and type(row.get("iteration")) is int:
            found.row, found.row_age = row["iteration"], _age(folder, "metrics.jsonl")
        for name in row:
            if name.startswith("val/") and name.endswith("/path"):
                found.metric = name
                return


def _take_driver(found: Status, folder: Folder) -> None:
    """Who trains it, and by that its state."""
    owner: Owner | None = None
    try:
        owner = read_owner(folder)
    except ValueError as error:
        found.faults.append(str(error))
    if owner is not None:
        found.driver, found.driver_silence = str(owner), owner.silence
    if owner is not None and not owner.ended:
        found.state = "silent" if owner.stale or owner.silence is None else "training"
    elif found.iteration is not None and found.iterations is not None and found.validated:
        found.state = "finished" if found.iteration >= found.iterations else "stopped"


def _age(folder: Folder, name: str) -> float | None:
    written = folder.modified(name)
    return None if written is None else max(0.0, time.time() - written)


def lines(found: Status) -> list[str]:
    """For people, one fact a line, without what would change their terminal."""
    return ["".join(c if c.isprintable() else "?" for c in line) for line in _lines(found)]


def _lines(found: Status) -> Iterator[str]:
    yield f"{found.run or found.checkpoints}: {found.recipe or 'recipe unknown'}, {found.state}"
    if found.iteration is None:
        yield f"checkpoint: {'unknown' if found.faults else 'none yet'}"
    else:
        of = "" if found.iterations is None else f" of {found.iterations}"
        when = _ago(found.checkpoint_age) + ("" if found.validated else ", not validated yet")
        yield f"checkpoint: iteration {found.iteration}{of}, {when}"
    if found.best_iteration is not None:
        score = "diverged" if found.best_score is None else f"{found.best_score:.4g}"
        yield f"best: iteration {found.best_iteration}, {found.metric or 'score'} {score}"
    if found.row is not None:
        yield f"metrics: iteration {found.row}, {_ago(found.row_age)}"
    if found.driver:
        heard = "" if found.driver_silence is None else f", last heard {_ago(found.driver_silence)}"
        end = {"training": "", "silent": ": perhaps it has ended"}
        yield f"driver: {found.driver}{heard}{end.get(found.state, ': it has ended')}"
    for fault in found.faults:
        yield f"damaged: {' '.join(fault.split())}"
    yield f"next: {_next(found)}"


def _next(found: Status) -> str:
    run = shlex.quote(found.run or found.checkpoints)
    resume = f"python -m maml_dist.train --resume {run}"
    trust = "".join(f" --trust {shlex.quote(folder)}" for folder in found.code)
    own = f" (and{trust}, if it uses modules there and they are yours)" if trust else ""
    if found.state == "training":
        return "it is being trained"
    if found.state == "finished" and found.evaluated is False:
        return f"it is trained, not evaluated: {resume}{own}"
    if found.state == "finished":
        return f"nothing; iterations=N beyond {found.iterations} extends it: {resume} …{own}"
    if found.state == "silent":
        return f"{resume}, which takes it over if it is still silent{own}"
    return f"{resume}{own}"


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "at a time unknown"
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
