import json

import pytest
import torch

from maml_dist.runtime.checkpoint import Checkpoints


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
    full = lambda *_: (_ for _ in ()).throw(OSError("full"))
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
