"""Tasks as records: the rows of one task (a user, a sensor, a molecule) in Parquet or Arrow files.

The rows of a task stand next to each other in one row group (Parquet) or record batch (Arrow);
here both are a "row group". Only the task-id column is read to find the tasks. To read few row
groups, task `index` stays in one of them for `visit` meta-iterations; the row group is drawn in
proportion to its tasks, then a task of it uniformly, so that every draw is uniform over tasks.
"""

import difflib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from maml_dist.core.data.episode import Batch, Episode, supervised
from maml_dist.core.data.task_source import Adapt, TaskKey, TaskSource
from maml_dist.core.validation import check_minimum, check_range, check_size
from maml_dist.tasks.record_files import find_files, hash_ids, open_file, runs_of_ids, value_type

Place = tuple[str, int]  # a file, and the number of a row group within it


class Rows(NamedTuple):
    """One task, by the rows drawn from it."""

    group: int  # row group, counted through all files in order of their paths
    rows: np.ndarray  # [shots + query], within the row group; the support rows first


@dataclass(frozen=True)
class Records(TaskSource):
    """Rows of features and a target: x [task, n, features], y [task, n, 1], mean squared error;
    with `classes` y [task, n], cross entropy.

    Tasks with under shots + query rows are never drawn. A task's split depends on its id alone:
    new files move none. Row groups are read whole: some thousand tasks in each serve best.
    In a folder, files and folders whose names begin with a dot or an underscore are passed over.
    """

    path: str  # file, or folder of them: a local path or a URI (file://, s3://, gs://)
    features: tuple[str, ...]  # columns of numbers
    target: str  # column of numbers, or of integers 0 … classes - 1
    task_id: str = "task_id"  # column of integers or strings
    classes: int | None = None  # None: regression
    shots: int = 10  # support rows a task
    query: int = 10  # query rows a task
    val: float = 0.1  # fraction of the tasks
    test: float = 0.1  # fraction of the tasks
    visit: int = 64  # meta-iterations of training an index stays in a row group
    cache: int = 64  # row groups kept in memory; best no fewer than the tasks of one shard

    def __post_init__(self) -> None:
        check_minimum(self, "task", shots=1, query=1, visit=1, cache=1, classes=2)
        check_range(self, "task", val=(0, 1), test=(0, 1))
        if self.val + self.test > 1:
            raise ValueError(f"task.val={self.val}, task.test={self.test}: must add up to 0 … 1")
        if isinstance(self.features, str) or not self.features:
            raise ValueError(f"task.features={self.features!r}: must be a list of column names")
        if not all(isinstance(name, str) for name in (*self.features, self.target, self.task_id)):
            raise ValueError("task.features, task.target and task.task_id must be names of columns")
        numbers = (self.shots + self.query) * (len(self.features) + 1)
        check_size(self, "task", "shots", "query", numbers=numbers)

    @property
    def metric(self) -> str:  # type: ignore[override]  # a field decides what the base class fixes
        """What is reported: "mse", or "accuracy" with classes."""
        return "accuracy" if self.classes else "mse"

    @property
    def maximize(self) -> bool:  # type: ignore[override]  # as above
        """Whether more of the metric is better."""
        return bool(self.classes)

    @property
    def classifies(self) -> bool:  # type: ignore[override]  # as above
        """Whether the target is a class."""
        return bool(self.classes)

    @cached_property
    def index(self) -> "RecordIndex":
        """Where the tasks are: built at the first draw; ValueError if the files do not serve."""
        return RecordIndex(self)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # no index

    def sample(self, key: TaskKey) -> Rows:
        """A task of the split and shots + query of its rows, without replacement."""
        tasks = self.index.tasks(key.split)
        visit = self.visit if key.split == "train" else 1  # evaluation wants independent tasks
        block = key._replace(it=(key.it + key.index) // visit)  # indices switch one by one
        drawn = block.rng(1).integers(tasks.ends[-1])
        group = int(np.searchsorted(tasks.ends, drawn, side="right")) - 1
        rng = key.rng()
        task = rng.integers(tasks.ends[group], tasks.ends[group + 1])
        chosen = rng.choice(tasks.length[task], self.shots + self.query, replace=False)
        return Rows(group, tasks.first[task] + chosen)

    def collect(self, tasks: Sequence[Rows], *, steps: int, adapt: Adapt | None = None) -> Episode:
        """The rows of each task, `shots` of them for support; ValueError if a value is unusable."""
        groups = np.array([task.group for task in tasks])
        rows = np.stack([task.rows for task in tasks])
        values = np.empty((*rows.shape, len(self.features) + 1), np.float32)
        for group in np.unique(groups):
            mine = groups == group
            values[mine] = self.index.read(int(group))[rows[mine]]
        points = torch.from_numpy(values)
        x, y = points[..., :-1], points[..., -1].long() if self.classes else points[..., -1:]
        cut = self.shots
        support = Batch(x[:, :cut].contiguous(), y[:, :cut].contiguous())
        query = Batch(x[:, cut:].contiguous(), y[:, cut:].contiguous())
        return supervised(support, query, steps=steps)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean squared error, or cross entropy with classes."""
        return (cross_entropy if self.classes else mse_loss)(output, batch.y)

    def score(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The loss, or with classes the fraction classified right."""
        if not self.classes:
            return super().score(output, batch)
        return {"accuracy": (output.argmax(-1) == batch.y).to(output.dtype).mean()}


class SplitTasks(NamedTuple):
    """The tasks of one split that have rows enough, in order of row group."""

    ends: np.ndarray  # [groups + 1]: row group g holds tasks ends[g] … ends[g + 1] - 1
    first: np.ndarray  # [tasks]: first row within the row group
    length: np.ndarray  # [tasks]: rows


class RecordIndex:
    """Which rows of which row group belong to which task; reads and keeps decoded row groups."""

    def __init__(self, source: Records) -> None:
        self._source = source
        self._files, paths = find_files(source.path)
        with ThreadPoolExecutor(8) as pool:  # several files at once: remote ones take their time
            scans = list(pool.map(self._scan, paths))
        self._refuse_mixed(paths, [whole for whole, _ in scans])
        groups = [group for _, found in scans for group in found]
        if not groups:
            raise ValueError(f"task.path={source.path!r}: no rows")
        self.groups, hashes, lengths = zip(*groups, strict=True)  # groups: file, number within it
        self.read = lru_cache(maxsize=source.cache)(self._read)

        group = np.repeat(np.arange(len(groups)), [len(runs) for runs in lengths])
        self._refuse_scattered(np.concatenate(hashes), group)
        first = np.concatenate([np.cumsum(runs, dtype=np.int32) - runs for runs in lengths])
        length = np.concatenate(lengths)
        enough = length >= source.shots + source.query
        self.num_tasks = len(length)
        self.too_short = int((~enough).sum())  # tasks never drawn
        unit = (np.concatenate(hashes) >> 11) * 2.0**-53  # [0, 1)
        split = np.searchsorted([source.test, source.test + source.val], unit, side="right")
        self._tasks = {}
        for number, name in enumerate(("test", "val", "train")):
            mine = np.flatnonzero(enough & (split == number))
            ends = np.cumsum(np.bincount(group[mine] + 1, minlength=len(groups) + 1))
            self._tasks[name] = SplitTasks(ends, first[mine], length[mine])

    def tasks(self, split: str) -> SplitTasks:
        """The tasks of a split that can be drawn; ValueError if there are none."""
        if split not in self._tasks:
            raise ValueError(f"split={split!r}: must be one of {', '.join(self._tasks)}")
        if not len(self._tasks[split].first):
            source, need = self._source, self._source.shots + self._source.query
            raise ValueError(
                f"task.path={source.path!r}: no {split} task to draw (val={source.val}, test="
                f"{source.test}); {self.too_short} of {self.num_tasks} tasks have < {need} rows"
            )
        return self._tasks[split]

    def _read(self, group: int) -> np.ndarray:
        """The features and the target of a row group: float32 [rows, features + 1]."""
        (path, number), source = self.groups[group], self._source
        names = [*source.features, source.target]
        with open_file(self._files, path, names) as (_, _, read):
            table = read(number)
        with np.errstate(over="ignore"):  # becomes infinite: refused below
            columns = [table[name].to_numpy() for name in names]
            values = np.stack(columns, -1, dtype=np.float32, casting="unsafe")
        finite, target = np.isfinite(values).all(0), values[:, -1]
        where = f"{path}, row group {number}"
        if not finite.all():
            raise ValueError(
                f"{where}: {names[finite.argmin()]!r} has a missing or infinite value, or "
                "one too large for float32"
            )
        if source.classes and not ((target >= 0) & (target < source.classes)).all():
            found = f"{target.min():.0f} … {target.max():.0f}"
            raise ValueError(
                f"{where}: {source.target!r} is {found}, task.classes={source.classes}"
            )
        return values

    def _scan(self, path: str) -> tuple[bool, list[tuple[Place, np.ndarray, np.ndarray]]]:
        """Whether a file's task ids are whole numbers; and of each row group its place, the hashes
        of its tasks and their lengths."""
        groups = []
        with open_file(self._files, path, [self._source.task_id]) as (schema, num_groups, read):
            self._check(path, schema)
            for number in range(num_groups):
                ids, length = runs_of_ids(read(number).column(0))
                if ids.null_count:
                    raise ValueError(f"{path}, row group {number}: a row without a task id")
                groups.append(((path, number), hash_ids(ids), length))
            whole = pa.types.is_integer(value_type(schema.field(self._source.task_id).type))
        return whole, groups

    def _check(self, path: str, schema: pa.Schema) -> None:
        """Raise if a column is not there or cannot be used."""
        source, whole = self._source, ["integer", "boolean"]
        wanted = [("features", name, [*whole, "floating"]) for name in source.features]
        wanted.append(("target", source.target, whole if source.classes else [*whole, "floating"]))
        wanted.append(("task_id", source.task_id, ["integer", "string", "large_string"]))
        for field, name, kinds in wanted:
            if name not in schema.names:
                nearest = "".join(difflib.get_close_matches(name, schema.names, n=1, cutoff=0))
                raise ValueError(f"task.{field}: no column {name!r} in {path}; nearest: {nearest}")
            if schema.names.count(name) > 1:
                raise ValueError(f"task.{field}: {path} has more than one column {name!r}")
            kind = value_type(schema.field(name).type)
            if not any(getattr(pa.types, f"is_{allowed}")(kind) for allowed in kinds):
                raise ValueError(
                    f"task.{field}: column {name!r} in {path} is {kind}, not {' or '.join(kinds)}"
                )

    def _refuse_mixed(self, paths: Sequence[str], whole: Sequence[bool]) -> None:
        """Raise if the task ids are numbers in one file and text in another: 1 is not "1"."""
        kinds = ["integer" if each else "string" for each in whole]
        for path, kind in zip(paths, kinds, strict=True):
            if kind != kinds[0]:
                raise ValueError(
                    f"task.task_id: column {self._source.task_id!r} is {kinds[0]} in {paths[0]} and"
                    f" {kind} in {path}: must be one of them in all files"
                )

    def _refuse_scattered(self, hashes: np.ndarray, group: np.ndarray) -> None:
        """Raise if one task has two runs of rows."""
        order = np.argsort(hashes)
        twice = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        if twice.size:
            one, two = sorted(order[twice[0] : twice[0] + 2])
            (path, number), other = self.groups[group[one]], self.groups[group[two]]
            with open_file(self._files, path, [self._source.task_id]) as (_, _, read):
                task = runs_of_ids(read(number).column(0))[0][
                    one - np.searchsorted(group, group[one])
                ]
            raise ValueError(
                f"task {task} has rows in two places ({path}, row group {number}; {other[0]}, row"
                f" group {other[1]}): they must stand next to each other in one row group"
            )
