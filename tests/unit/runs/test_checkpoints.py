import json

import pytest
import torch

from maml_dist.runs.checkpoint_header import Kind
from maml_dist.runs.checkpoints import Checkpoints
from maml_dist.runs.folder import Folder


def write(checkpoints, iteration, score=None, *, maximize=False):
    tensors = {"meta/w": torch.full((3,), float(iteration))}
    checkpoints.save(tensors, iteration=iteration, recipe="{}", maximize=maximize)
    checkpoints.judge(score)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_few_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for iteration, score in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5)):
        write(checkpoints, iteration, score)
    assert files(tmp_path) == [
        "00000002.safetensors", "00000003.safetensors", "00000004.safetensors", "index.json"
    ]  # fmt: skip
    again = Checkpoints(tmp_path)
    assert again.load("best")[0]["meta/w"].tolist() == [2, 2, 2]
    assert again.load("last")[1].iteration == 4


def test_more_is_better_where_the_metric_says_so(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for iteration, score in ((1, 0.5), (2, 0.9), (3, 0.7)):
        write(checkpoints, iteration, score, maximize=True)
    assert checkpoints.best.iteration == 2


def test_what_diverged_is_never_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for iteration, score in ((1, float("nan")), (2, 5.0), (3, float("inf")), (4, 4.0), (5, None)):
        write(checkpoints, iteration, score)
    assert checkpoints.best.iteration == 4


def test_a_run_that_goes_back_writes_over_what_came_later(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=5)
    for iteration in (1, 2, 3, 2):
        write(checkpoints, iteration)
    assert [entry.iteration for entry in checkpoints.entries] == [1, 2]


def test_a_file_opens_by_its_path_and_knows_its_iteration(tmp_path):
    write(Checkpoints(tmp_path), 7)
    tensors, entry = Checkpoints(tmp_path / "none").load(str(tmp_path / "00000007.safetensors"))
    assert tensors["meta/w"].tolist() == [7, 7, 7]
    assert entry.iteration == 7


def test_a_file_system_may_be_named_by_uri(tmp_path):
    write(Checkpoints(tmp_path.as_uri() + "/deep/er"), 1)
    assert Checkpoints(tmp_path / "deep" / "er").last.iteration == 1


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:20], lambda b: b[:-1] + b"x"])
def test_damage_is_noticed(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 1)
    path = tmp_path / "00000001.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="is damaged"):
        checkpoints.load("last")


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 1)

    def full(*_):
        raise OSError("full")

    monkeypatch.setattr(checkpoints.folder, "write", full)
    with pytest.raises(OSError, match="full"):
        write(checkpoints, 2)
    again = Checkpoints(tmp_path)
    assert again.load("last")[0]["meta/w"].tolist() == [1, 1, 1]


def test_none_yet_and_not_there_are_said(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint in"):
        Checkpoints(tmp_path).load("last")
    with pytest.raises(ValueError, match="no checkpoint at .*nothing.safetensors"):
        Checkpoints(tmp_path).load(str(tmp_path / "nothing.safetensors"))
    with pytest.raises(ValueError, match="checkpoints=gopher://x"):
        Checkpoints("gopher://x")


def test_the_index_is_plain_json(tmp_path):
    write(Checkpoints(tmp_path), 1, 0.5)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["best"]["score"] == 0.5


def spoil(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def four(folder, **options):
    """Checkpoints of iterations 1 to 4, the second of them the best."""
    checkpoints = Checkpoints(folder, keep=3, **options)
    for iteration, score in ((1, 4.0), (2, 1.0), (3, 3.0), (4, 2.0)):
        write(checkpoints, iteration, score)
    return checkpoints


def test_a_checkpoint_is_there_before_it_is_judged(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 1, 0.5)
    checkpoints.save({"meta/w": torch.ones(3)}, iteration=2, recipe="{}", maximize=False)
    again = Checkpoints(tmp_path)
    assert again.last.iteration == 2 and not again.last.validated and again.best.iteration == 1
    again.judge(0.25)
    assert Checkpoints(tmp_path).best.iteration == 2 and Checkpoints(tmp_path).last.validated


@pytest.mark.parametrize(
    "harm", [spoil, lambda path: path.unlink(), lambda path: path.write_text("")]
)
def test_a_damaged_newest_gives_way_to_the_one_before_with_a_word(tmp_path, capsys, harm):
    four(tmp_path)
    harm(tmp_path / "00000004.safetensors")
    again = Checkpoints(tmp_path)
    assert again.last.iteration == 3 and again.load("last")[0]["meta/w"].tolist() == [3, 3, 3]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{tmp_path}/00000004.safetensors" in said and "taking 00000003.safetensors" in said
    write(again, 4, 2.0)  # the run goes on
    assert Checkpoints(tmp_path).last.iteration == 4 and not capsys.readouterr().err


def test_a_damaged_best_gives_way_to_the_best_of_the_others(tmp_path, capsys):
    four(tmp_path)
    spoil(tmp_path / "00000002.safetensors")
    assert Checkpoints(tmp_path).best.iteration == 4
    assert "00000002.safetensors is damaged" in capsys.readouterr().err


def test_where_none_is_whole_the_run_does_not_start_again(tmp_path):
    four(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        spoil(path)
    again = Checkpoints(tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError, match="none is whole"):
            print(again.last)


SCORES = {1: 4.0, 2: 1.0, 3: 3.0, 4: 2.0}


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text(""),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_text("[1]"),
        lambda path: path.write_bytes(b"\xff\xfe\0"),
    ],
)
def test_a_lost_index_is_made_again_from_the_files(tmp_path, capsys, harm):
    four(tmp_path)
    harm(tmp_path / "index.json")
    spoil(tmp_path / "00000003.safetensors")
    again = Checkpoints(tmp_path, scores=lambda: SCORES)
    said = capsys.readouterr().err
    assert "made again from 2 checkpoints, the last of iteration 4, the best of iteration 2" in said
    assert "00000003.safetensors is damaged" in said and said.count("\n") == 1
    assert [entry.score for entry in again.entries] == [1.0, 2.0]
    assert (again.last.iteration, again.best.iteration) == (4, 2) and again.last.validated
    write(again, 5, 0.5)
    assert Checkpoints(tmp_path).best.iteration == 5


def entry(**changes):
    known = {"file": "00000004.safetensors", "iteration": 4, "score": 2.0, "sha256": "0" * 64}
    return {**known, **changes}


@pytest.mark.parametrize(
    "index",
    [
        {"last": [entry(file="../../victim.txt")], "best": entry()},
        {"last": [entry()], "best": entry(file="../../victim.txt")},
        {"last": [entry(file="/etc/passwd")], "best": entry()},
        {"last": [entry(file="00000004.safetensors/../../victim.txt")], "best": entry()},
        {"last": [entry(iteration=-4, file="-0000004.safetensors")], "best": entry()},
        {"last": [entry(iteration="4")], "best": entry()},
        {"last": [entry(iteration=4.0)], "best": entry()},
        {"last": [entry(score=[1])], "best": entry()},
        {"last": [entry(), entry()], "best": entry()},
        {"last": [], "best": entry()},
        {"last": [entry()], "best": None},
        {"last": [entry()], "best": entry(), "more": 1},
        {"last": entry(), "best": entry()},
        {"last": [[]], "best": entry()},
        {"last": [entry(iteration=10**400)], "best": entry()},
        {"last": [entry(sha256=None)], "best": entry()},
        {"last": [entry()] * 50_000, "best": entry()},
    ],
)
def test_an_index_of_another_form_deletes_and_reads_nothing_else(tmp_path, capsys, index):
    folder = tmp_path / "runs" / "checkpoints"
    four(folder)
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    (folder / "index.json").write_text(json.dumps(index))
    again = Checkpoints(folder, keep=1, scores=lambda: SCORES)
    said = capsys.readouterr().err
    assert "index.json is damaged (" in said and said.count("\n") == 1 and len(said) < 600
    write(again, 5, 0.5)
    assert files(folder) == ["00000005.safetensors", "index.json"]
    assert victim.read_text() == "mine"


def test_a_lost_index_without_a_whole_file_is_refused(tmp_path):
    four(tmp_path)
    (tmp_path / "index.json").unlink()
    for path in tmp_path.glob("*.safetensors"):
        spoil(path)
    with pytest.raises(ValueError, match="is lost, and no checkpoint is whole to make it again"):
        Checkpoints(tmp_path)


def test_checkpoints_of_another_run_do_not_come_into_the_index(tmp_path, capsys):
    def belongs(metadata):
        if metadata.recipe != {"seed": 0}:
            raise ValueError("it is of another run")

    checkpoints = Checkpoints(tmp_path)
    for iteration, seed in ((1, 0), (2, 1)):
        tensors = {"meta/w": torch.ones(3)}
        recipe = json.dumps({"seed": seed})
        checkpoints.save(tensors, iteration=iteration, recipe=recipe, maximize=False)
    with pytest.raises(ValueError, match="00000002.safetensors: it is of another run"):
        Checkpoints(tmp_path, belongs=belongs).load("last")
    (tmp_path / "index.json").unlink()
    assert Checkpoints(tmp_path, belongs=belongs).last.iteration == 1
    assert "it is of another run" in capsys.readouterr().err


@pytest.mark.parametrize("place", [-1, -5, 300])
def test_a_file_by_its_path_is_checked_too(tmp_path, place):
    checkpoints = Checkpoints(tmp_path)
    recipe = json.dumps({"a text that is long enough": "x" * 300})
    checkpoints.save({"meta/w": torch.ones(3)}, iteration=1, recipe=recipe, maximize=False)
    path = tmp_path / "00000001.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1  # of a weight, or of the recipe
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its checksum differs"):
        Checkpoints(tmp_path / "none").load(str(path))


def headed(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        (1 << 62).to_bytes(8, "little") + b"{}",
        headed(b"[" * 100_000),
        headed([1]),
        headed({"w": 1}),
        headed({"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"0123"),
        headed({"w": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 4]}}, b"0123"),
        headed({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 50]}}, b"0123"),
        headed({"w": {"dtype": "P3", "shape": [1], "data_offsets": [0, 4]}}, b"0123"),
        headed({"w": {"dtype": "F32", "shape": [1], "data_offsets": []}}, b"0123"),
        headed({"__metadata__": {"iteration": 1}}),
        headed({"__metadata__": {"iteration": "x", "recipe": "{}"}}),
        headed({"__metadata__": {"iteration": "-1", "recipe": "{}"}}),
        headed({"__metadata__": {"iteration": "1", "recipe": "[]"}}),
        headed({"__metadata__": {"iteration": "1"}}),
        headed({}),
    ],
)
def test_a_file_that_is_no_checkpoint_is_said_in_one_line(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="x.safetensors") as error:
        Checkpoints(tmp_path / "none").load(str(tmp_path / "x.safetensors"))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_what_is_unexpected_is_refused_before_it_is_read(tmp_path):
    """A file that claims a terabyte, all of it holes."""
    size = 1 << 40
    header = {"meta/w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    header["__metadata__"] = {"iteration": "1", "recipe": "{}"}
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write(headed(header))
        file.truncate(file.tell() + size)
    kinds = {"meta/w": Kind(torch.float32, (3,))}
    with pytest.raises(ValueError, match=r"float32 \[274877906944\] there, float32 \[3\] here"):
        Checkpoints(tmp_path / "none").load(
            str(tmp_path / "x.safetensors"), expect=lambda header: header.expect(kinds, "this")
        )


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ({}, "meta/w is float32 .3. there, unknown here"),
        ({"meta/w": Kind(torch.float64, (3,))}, "meta/w is float32 .3. there, float64 .3. here"),
        (
            {"meta/w": Kind(torch.float32, (1, 3))},
            "meta/w is float32 .3. there, float32 .1, 3. here",
        ),
        (
            {"meta/w": Kind(torch.float32, (3,)), "outer/first": Kind(torch.float32, (3,))},
            "outer/first is missing there, float32 .3. here",
        ),
    ],
)
def test_another_dtype_another_shape_and_lost_moments_are_said(tmp_path, kinds, said):
    checkpoints = Checkpoints(tmp_path)
    write(checkpoints, 1)
    with pytest.raises(ValueError, match=f"does not fit this: {said}"):
        checkpoints.load("last", expect=lambda header: header.expect(kinds, "this"))


def test_what_is_fixed_is_written_once_and_checked(tmp_path):
    shared = torch.arange(4.0)
    fixed = {"b": shared, "part": shared[:2], "turn": torch.ones(2, dtype=torch.bool)}
    kinds = {name: Kind.of(value) for name, value in fixed.items()}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_fixed(fixed)
    four(tmp_path)
    write(checkpoints, 9, 1.0)
    again = Checkpoints(tmp_path)
    loaded = again.load_fixed(lambda header: header.expect(kinds, "this"))
    assert all(torch.equal(loaded[name], value) for name, value in fixed.items())
    (tmp_path / "index.json").unlink()
    assert Checkpoints(tmp_path).fixed == again.fixed
    with pytest.raises(ValueError, match="does not fit this: b is"):
        again.load_fixed(lambda header: header.expect({}, "this"))
    spoil(tmp_path / "fixed.safetensors")
    with pytest.raises(ValueError, match="fixed.safetensors is damaged.*put back the run's own"):
        again.load_fixed(lambda header: None)
    (tmp_path / "fixed.safetensors").unlink()
    with pytest.raises(ValueError, match="fixed.safetensors is not there.*put back the run's own"):
        again.load_fixed(lambda header: None)


def test_weights_beside_another_fixed_file_are_refused(tmp_path):
    for name, value in (("a", 1.0), ("b", 2.0)):
        checkpoints = Checkpoints(tmp_path / name)
        checkpoints.save_fixed({"b": torch.tensor([value])})
        write(checkpoints, 1)
    path = str(tmp_path / "b" / "00000001.safetensors")
    with pytest.raises(ValueError, match="trained with another fixed.safetensors than this run's"):
        Checkpoints(tmp_path / "a").load(path)
    assert Checkpoints(tmp_path / "b").load(path)[1].iteration == 1


def test_a_place_that_is_not_local_is_kept_the_same_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Folder, "local", None)  # as of object stores
    four(tmp_path)
    spoil(tmp_path / "00000004.safetensors")
    assert Checkpoints(tmp_path).last.iteration == 3
    assert "taking 00000003.safetensors" in capsys.readouterr().err
    (tmp_path / "index.json").unlink()
    assert Checkpoints(tmp_path, scores=lambda: SCORES).best.iteration == 2


def test_a_file_that_cannot_be_removed_is_the_next_time(tmp_path, monkeypatch):
    checkpoints, delete = Checkpoints(tmp_path, keep=1), Folder.delete
    write(checkpoints, 1, 3.0)
    write(checkpoints, 2, 2.0)

    def refusing(place, name):
        raise OSError("busy")

    monkeypatch.setattr(Folder, "delete", refusing)
    write(checkpoints, 3, 1.0)
    monkeypatch.setattr(Folder, "delete", delete)
    write(checkpoints, 4, 0.5)
    assert files(tmp_path) == ["00000004.safetensors", "index.json"]
