"""Records: every row tells where it comes from (a = task, b = row of the task, y = 1000 a + b)."""

import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import ipc

from maml_dist.core.data.episode import Batch
from maml_dist.core.data.task_source import TaskKey
from maml_dist.tasks.records import Records

Groups = list[list[tuple[int, int]]]  # of each row group: (task, rows) of each task
TEN = [[(task, 6) for task in range(start, start + 5)] for start in range(0, 50, 5)]


def tables(groups: Groups, ids: Any = None) -> list[pa.Table]:
    """A table for each row group; `ids` turns the tasks' numbers into the id column."""
    result = []
    for group in groups:
        task = np.repeat([task for task, _ in group], [rows for _, rows in group])
        row = np.concatenate([np.arange(rows) for _, rows in group])
        columns = {"task_id": ids(task) if ids else task, "a": task, "unused": row * 0.5, "b": row}
        result.append(pa.table(columns | {"y": 1000.0 * task + row}))
    return result


def write(path: Path, parts: list[pa.Table]) -> Path:
    """One file with a row group for each part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        with pq.ParquetWriter(path, parts[0].schema) as writer:
            for part in parts:
                writer.write_table(part)
    else:
        with ipc.new_file(path, parts[0].schema) as writer:
            for part in parts:
                writer.write_table(part)
    return path


def records(path: Path | str, **changes: Any) -> Records:
    """A source of 2 + 3 rows that trains on every task."""
    columns: dict[str, Any] = {"features": ("b", "a"), "target": "y"}
    return Records(str(path), **(columns | {"shots": 2, "query": 3, "val": 0, "test": 0} | changes))


def keys(count: int, *, it: int = 0, split: str = "train") -> list[TaskKey]:
    return [TaskKey(7, split, it, index) for index in range(count)]


def ids(source: Records, drawn: list[TaskKey]) -> list[int]:
    """The task that each key draws."""
    x = source.collect([source.sample(key) for key in drawn], steps=1).query.x
    return [int(task) for task in x[:, 0, 1]]


@pytest.mark.parametrize("name", ["part.parquet", "part.arrow", "part.feather"])
def test_an_episode_holds_distinct_rows_of_one_task(tmp_path: Path, name: str) -> None:
    source = records(write(tmp_path / name, tables(TEN)))
    episode = source.collect([source.sample(key) for key in keys(40)], steps=3)
    assert len(episode.support) == 3
    for batch, rows in ((episode.support[0], 2), (episode.query, 3)):
        assert batch.x.shape == (40, rows, 2) and batch.x.dtype == torch.float32
        assert batch.y.shape == (40, rows, 1) and batch.y.dtype == torch.float32
    x = torch.cat([episode.support[0].x, episode.query.x], 1)
    y = torch.cat([episode.support[0].y, episode.query.y], 1)
    assert torch.equal(y[..., 0], 1000 * x[..., 1] + x[..., 0])
    assert all(len(set(task.tolist())) == 5 for task in x[..., 0])
    assert all(len(set(task.tolist())) == 1 for task in x[..., 1])


def test_all_formats_folders_and_ids_give_the_same_episode(tmp_path: Path) -> None:
    one = write(tmp_path / "one.parquet", tables(TEN))
    write(tmp_path / "many" / "a" / "0.parquet", tables(TEN[:4]))
    write(tmp_path / "many" / "b.arrow", tables(TEN[4:]))
    (tmp_path / "many" / "_SUCCESS").touch()
    drawn = [ids(records(place), keys(20)) for place in (one, one.as_uri(), tmp_path / "many")]
    assert drawn[0] == drawn[1] == drawn[2]


def test_text_ids_may_be_dictionaries(tmp_path: Path) -> None:
    def names(tasks: np.ndarray) -> pa.Array:
        return pa.array([f"user {task}" for task in tasks])

    plain = write(tmp_path / "plain.parquet", tables(TEN, names))
    coded = write(tmp_path / "coded.arrow", tables(TEN[:1], lambda t: names(t).dictionary_encode()))
    half = {"val": 0.5}
    training = set(ids(records(plain, **half), keys(500)))
    assert set(ids(records(coded, **half), keys(50))) == training & set(range(5))


def test_a_draw_depends_on_its_key_alone(tmp_path: Path) -> None:
    source = records(write(tmp_path / "part.parquet", tables(TEN)))
    forward = [source.sample(key) for key in keys(20, it=3)]
    again = pickle.loads(pickle.dumps(source))
    backward = [again.sample(key) for key in reversed(keys(20, it=3))][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert one.group == other.group and np.array_equal(one.rows, other.rows)
    alone = torch.cat([again.collect([task], steps=1).query.x for task in backward])
    assert torch.equal(source.collect(forward, steps=1).query.x, alone)


def test_neither_the_index_nor_much_of_a_task_is_pickled(tmp_path: Path) -> None:
    source = records(write(tmp_path / "part.parquet", tables(TEN)))
    before = pickle.dumps(source)
    task = source.sample(keys(1)[0])
    source.collect([task], steps=1)
    assert pickle.dumps(source) == before
    assert len(pickle.dumps(task)) < 500


def test_splits_are_disjoint_and_new_files_move_no_task(tmp_path: Path) -> None:
    def split(name: str) -> set[int]:
        source = records(tmp_path, val=0.3, test=0.3)
        return set(ids(source, keys(1500, split=name)))

    names = ("train", "val", "test")
    write(tmp_path / "1.parquet", tables(TEN[:5]))
    few = {name: split(name) for name in names}
    write(tmp_path / "0.parquet", tables(TEN[5:]))
    many = {name: split(name) for name in names}
    assert sum(map(len, few.values())) == len(set().union(*few.values())) == 25
    assert sum(map(len, many.values())) == len(set().union(*many.values())) == 50
    assert all(few[name] == many[name] & set(range(25)) for name in names)


@pytest.mark.parametrize(
    ("held_out", "of"),
    [
        ([3, 10, 18], lambda tasks: tasks),
        ([3, 10, 18], lambda tasks: tasks.astype(np.int16)),
        ([3, 6, 9, 14, 16], lambda tasks: pa.array([str(task) for task in tasks])),
    ],
)
def test_splits_stay_the_same_for_ever(tmp_path: Path, held_out: list[int], of: Any) -> None:
    path = write(tmp_path / "part.parquet", tables([[(task, 5) for task in range(20)]], of))
    assert sorted(set(ids(records(path, test=0.3), keys(300, split="test")))) == held_out


def test_fractions_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "part.parquet", tables([[(task, 5) for task in range(10_000)]]))
    index = records(path, val=0.1, test=0.25).index
    sizes = [len(index.tasks(split).first) for split in ("train", "val", "test")]
    assert sum(sizes) == 10_000
    assert np.allclose(sizes, [6500, 1000, 2500], atol=200)  # four standard deviations


def test_tasks_with_too_few_rows_are_never_drawn(tmp_path: Path) -> None:
    groups = [[(0, 4), (1, 5), (2, 1)], [(3, 9), (4, 4)]]
    source = records(write(tmp_path / "part.parquet", tables(groups)))
    assert set(ids(source, keys(200))) == {1, 3}
    assert (source.index.num_tasks, source.index.too_short) == (5, 3)


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_task_is_equally_likely(tmp_path: Path, split: str) -> None:
    groups = [[(0, 5)], [(task, 5) for task in range(1, 8)], [(8, 7), (9, 30)]]
    source = records(write(tmp_path / "part.parquet", tables(groups)), val=float(split == "val"))
    counts = Counter(ids(source, keys(10_000, split=split)))
    assert sorted(counts) == list(range(10))
    assert all(abs(count - 1000) < 120 for count in counts.values())  # four standard deviations


def test_an_index_stays_in_a_row_group_and_indices_switch_one_by_one(tmp_path: Path) -> None:
    source = records(write(tmp_path / "part.parquet", tables(TEN)), visit=16)
    groups = np.array([[source.sample(key).group for key in keys(8, it=it)] for it in range(64)])
    switched = groups[1:] != groups[:-1]
    assert switched.sum(0).max() <= 4 and switched.sum(0).min() >= 1  # of 64 / 16 visits
    assert switched.sum(1).max() == 1
    evaluated = [source.sample(key).group for key in (keys(1, it=it)[0] for it in range(16))]
    assert len(set(evaluated)) <= 2


def test_a_shard_reads_only_the_columns_and_row_groups_of_its_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[int, list[str]]] = []
    read_row_group = pq.ParquetFile.read_row_group

    def recorded(file: Any, number: int, columns: list[str]) -> pa.Table:
        reads.append((number, columns))
        return read_row_group(file, number, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", recorded)
    source = records(write(tmp_path / "part.parquet", tables(TEN)), visit=100)
    tasks = [source.sample(key) for it in range(30) for key in keys(8, it=it)[1::4]]
    assert reads == [(number, ["task_id"]) for number in range(10)]
    reads.clear()
    for task in tasks:
        source.collect([task], steps=1)
    assert reads == [(group, ["b", "a", "y"]) for group in dict.fromkeys(t.group for t in tasks)]
    assert len(reads) <= 4


def test_the_cache_is_bounded(tmp_path: Path) -> None:
    source = records(write(tmp_path / "part.parquet", tables(TEN)), cache=2)
    for group in (0, 1, 0, 2, 1):  # 2 puts out 1
        source.index.read(group)
    assert source.index.read.cache_info()[:2] == (1, 4)  # hits, misses


def test_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "part.parquet", tables(TEN))
    source = records(path, target="b", features=["a"], classes=6)
    query = source.collect([source.sample(key) for key in keys(4)], steps=1).query
    assert query.y.shape == (4, 3) and query.y.dtype == torch.int64
    assert (source.metric, source.maximize) == ("accuracy", True)
    assert (records(path).metric, records(path).maximize) == ("mse", False)

    batch = Batch(torch.zeros(4, 1), torch.tensor([0, 1, 2, 2]))
    output = torch.log(torch.tensor([[0.5, 0.25, 0.25]])).expand(4, 3)
    assert source.score(output, batch)["accuracy"] == 0.25
    torch.testing.assert_close(source.loss(output, batch), torch.tensor(np.log(2) * 7 / 4).float())


def test_the_loss_is_the_mean_squared_error() -> None:
    batch = Batch(torch.zeros(2, 1), torch.tensor([[1.0], [2.0]]))
    output = torch.tensor([[1.0], [5.0]])
    assert records("nowhere").loss(output, batch) == 4.5
    assert records("nowhere").score(output, batch) == {"mse": 4.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "nowhere"}, "task.path='nowhere': no such file or folder"),
        ({"path": "what://is/this"}, "what://is/this: cannot be read"),
        ({"features": ["a", "bb"]}, "task.features: no column 'bb' in .*nearest: b$"),
        ({"target": "yy"}, "task.target: no column 'yy' in .*nearest: y$"),
        ({"task_id": "taskid"}, "task.task_id: no column 'taskid' in .*nearest: task_id$"),
        ({"features": ["text"]}, "column 'text' in .* is string, not integer or boolean or float"),
        ({"task_id": "unused"}, "column 'unused' in .* is double, not integer or string"),
        ({"classes": 5}, "column 'y' in .* is double, not integer or boolean$"),
        ({"classes": 5, "target": "b"}, "row group 0: 'b' is 0 … 5, task.classes=5"),
        ({"target": "holes"}, "row group 0: 'holes' has a missing or infinite value"),
        ({"features": ["nan"]}, "row group 0: 'nan' has a missing or infinite value"),
        ({"features": ["huge"]}, "row group 0: 'huge' has a missing or infinite value"),
        ({"task_id": "holes"}, "row group 0: a row without a task id"),
        ({"query": 5}, "no train task to draw .*; 5 of 5 tasks have < 7 rows"),
        ({"test": 1.0}, "no train task to draw .*test=1.0.*; 0 of 5 tasks"),
        ({"shots": 0}, "task.shots=0: must be 1 or more"),
        ({"cache": 0}, "task.cache=0: must be 1 or more"),
        ({"val": 0.6, "test": 0.6}, "task.val=0.6, task.test=0.6: must add up"),
        ({"classes": 1}, "task.classes=1: must be 2 or more"),
        ({"features": []}, r"task.features=\[\]: must be a list"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    table = tables(TEN[:1])[0]
    holes = [None, *range(1, table.num_rows)]
    for name, values in {
        "text": ["word"] * table.num_rows,
        "holes": holes,
        "nan": np.where(table["b"].to_numpy() == 3, np.nan, 1.0),
        "huge": np.full(table.num_rows, 1e300),
    }.items():
        table = table.append_column(name, pa.array(values))
    path = write(tmp_path / "part.parquet", [table])
    with pytest.raises(ValueError, match=message):
        source = records(**({"path": path} | change))
        source.collect([source.sample(key) for key in keys(5)], steps=1)


@pytest.mark.parametrize("groups", [[[(3, 6), (4, 6), (3, 6)]], [[(4, 6), (3, 6)], [(3, 6)]]])
def test_a_task_in_two_places_is_named(tmp_path: Path, groups: Groups) -> None:
    source = records(write(tmp_path / "part.parquet", tables(groups)))
    with pytest.raises(ValueError, match="task 3 has rows in two places .*part.parquet, row group"):
        source.sample(keys(1)[0])


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("keep", [0, 100, -20])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, keep: int) -> None:
    path = write(tmp_path / f"part{suffix}", tables(TEN))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="part.*: cannot be read: "):
        records(tmp_path).sample(keys(1)[0])


def test_a_folder_without_data_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="no file ending in .parquet, .arrow, .feather"):
        records(tmp_path).sample(keys(1)[0])


def test_an_unknown_split_is_named(tmp_path: Path) -> None:
    source = records(write(tmp_path / "part.parquet", tables(TEN)))
    with pytest.raises(ValueError, match="split='dev': must be one of test, val, train"):
        source.sample(TaskKey(0, "dev", 0, 0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda n: pa.nulls(n), "column 'b' in .* is null, not integer"),
        (lambda n: pa.array([[1.0]] * n), "is list"),
        (lambda n: pa.array([{"x": 1}] * n), "is struct"),
        (lambda n: pa.array([b"\xff"] * n), "is binary"),
        (lambda n: pa.array([0] * n, pa.date32()), "is date32"),
        (lambda n: pa.array([1] * n).cast(pa.decimal128(30, 2)), "is decimal128"),
        (lambda n: pa.array(["1"] * n).dictionary_encode(), "is string"),
        (lambda n: pa.array([float("inf")] * n), "'b' has a missing or infinite value"),
    ],
)
def test_columns_of_other_types_are_named(tmp_path: Path, values: Any, message: str) -> None:
    table = tables(TEN[:1])[0]
    table = table.set_column(table.schema.names.index("b"), "b", values(table.num_rows))
    source = records(write(tmp_path / "part.parquet", [table]))
    with pytest.raises(ValueError, match=message):
        source.collect([source.sample(key) for key in keys(5)], steps=1)


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    table = tables(TEN)[0]
    path = write(tmp_path / "part.parquet", [table.append_column("b", table["b"])])
    with pytest.raises(ValueError, match="task.features: .* has more than one column 'b'"):
        records(path).sample(keys(1)[0])


def test_task_ids_are_of_one_kind_in_all_files(tmp_path: Path) -> None:
    one, other = tables(TEN)[:2]
    text = pa.array([f"x{number}" for number in other["task_id"].to_pylist()])
    write(tmp_path / "a.parquet", [one])
    write(tmp_path / "b.parquet", [other.set_column(0, "task_id", text)])
    with pytest.raises(ValueError, match="is integer in .*a.parquet and string in .*b.parquet"):
        records(tmp_path).sample(keys(1)[0])


def test_files_of_other_programs_are_passed_by(tmp_path: Path) -> None:
    write(tmp_path / "part.parquet", tables(TEN))
    alone = [records(tmp_path).sample(key) for key in keys(5)]
    for name in ("._part.parquet", "_temporary.parquet", ".ipynb_checkpoints/part.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"rubbish")
    (tmp_path / "folder.parquet").mkdir()
    os.mkfifo(tmp_path / "pipe.parquet")
    for one, other in zip(alone, [records(tmp_path).sample(key) for key in keys(5)], strict=True):
        assert one.group == other.group and np.array_equal(one.rows, other.rows)


def test_a_damaged_page_is_named_where_the_file_has_checksums(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    table = tables(TEN)[0]
    pq.write_table(
        table, path, write_page_checksum=True, compression="none", use_dictionary=False
    )  # fmt: skip
    records(path).collect([records(path).sample(key) for key in keys(1)], steps=1)
    content = bytearray(path.read_bytes())
    number = np.float64(table["y"].to_numpy()[15]).tobytes()
    at = content.find(number)
    assert at > 0
    content[at] ^= 1  # another number, as good as any
    path.write_bytes(content)
    with pytest.raises(ValueError, match="part.parquet: cannot be read: .*[Cc][Rr][Cc]"):
        source = records(path)
        source.collect([source.sample(key) for key in keys(3)], steps=1)


def test_what_others_leave_beside_the_data_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "set" / "part" / "a.parquet", tables(TEN))
    before = ids(records(tmp_path / "set"), keys(8))
    for name in (
        "_temporary.parquet",
        "._a.parquet",
        ".ipynb_checkpoints/a-checkpoint.parquet",
        "_temporary/0/b.parquet",
        "part/_metadata.parquet",
        "part/.a.parquet.crc",
    ):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"not whole")
    (tmp_path / "set" / "_SUCCESS").write_bytes(b"")
    assert ids(records(tmp_path / "set"), keys(8)) == before


def test_a_file_that_is_named_is_read_whatever_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "_hidden" / ".a.parquet", tables(TEN))
    assert len(ids(records(path), keys(8))) == 8
    write(tmp_path / "_hidden" / "b.arrow", tables(TEN))
    assert len(ids(records(tmp_path / "_hidden"), keys(8))) == 8
