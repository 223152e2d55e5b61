"""A run that goes on from another's checkpoint with other values."""

import numpy as np
import pytest

import maml_dist
from maml_dist.runs.fork import FORKED, fork
from maml_dist.runs.run import Run
from maml_dist.runtime.server import ParameterServer
from maml_dist.runtime.shard import TaskShard

SMALL = {
    "iterations": 4, "checkpoint_every": 2, "log_every": 1, "meta_batch": 2, "validation_tasks": 2,
    "test_tasks": 2, "test_steps": 1, "engine.running": "eager", "loggers": ["jsonl"],
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "run"
    return maml_dist.meta_train("sinusoid", run=folder, local=True, progress=False, **SMALL)


def by_hand(run, saved, *, until):
    """The server's state after iterations that are made one by one, without a run."""
    shard = TaskShard(run.shard_spec, device="cpu")
    server = ParameterServer(saved[1], run.experiment.outer, learned=run.seeded.learned)
    server.restore(saved)
    for it in range(saved[0], until):
        server.update(shard.gradient(server.meta(), it, slice=0))
    return server.state()


def same(one, other):
    return (
        one[0] == other[0]
        and np.array_equal(one[1], other[1])
        and one[2].keys() == other[2].keys()
        and all(np.array_equal(value, other[2][name]) for name, value in one[2].items())
    )


def test_it_goes_on_from_the_others_bits_with_its_own_rates(source, tmp_path):
    changes = {"learner.alpha": 0.03, "outer.beta": 0.0005}
    new = fork(source, tmp_path / "new", changes)
    assert same(Run.open(new.path).saved(), source.saved()) and source.saved()[0] == 4
    assert new.metrics == [{"iteration": 4, FORKED: str(source.path)}]
    trained = maml_dist.meta_train(resume=new.path, iterations=6, local=True, progress=False)
    assert same(trained.saved(), by_hand(trained, source.saved(), until=6))
    assert not same(trained.saved(), by_hand(source, source.saved(), until=6))
    first, *later = trained.metrics
    assert first["iteration"] == 4 and first[FORKED] == str(source.path)
    assert "loss/after" not in first  # that row is the other's
    before = next(row for row in source.metrics if row["iteration"] == 4)
    assert first["val/mse/path"] != before["val/mse/path"]  # with the new alpha
    assert [row["iteration"] for row in later] == [5, 6]
    assert len(source.metrics) == 4 and source.checkpoints.last.iteration == 4


def test_made_again_it_stays_and_a_half_made_one_is_made(source, tmp_path):
    new = fork(source, tmp_path / "new", {"learner.alpha": 0.03})
    (new.path / "recipe.yaml").unlink()  # written last
    assert same(fork(source, new.path, {"learner.alpha": 0.03}).saved(), source.saved())
    trained = maml_dist.meta_train(resume=new.path, iterations=5, local=True, progress=False)
    assert fork(source, new.path, {"learner.alpha": 0.03}).saved()[0] == 5
    assert trained.config["learner"]["init_args"]["alpha"] == 0.03


@pytest.mark.parametrize("changes", [{"outer": "SGD"}, {"learner": "MetaSGD"}, {"hidden": [3]}])
def test_what_does_not_fit_is_one_line_and_no_run(source, tmp_path, changes):
    with pytest.raises(ValueError, match="does not fit") as caught:
        fork(source, tmp_path / "new", changes)
    assert "\n" not in str(caught.value) and not (tmp_path / "new" / "recipe.yaml").exists()


def test_a_run_without_a_checkpoint_has_nothing_to_go_on_from(source, tmp_path):
    with pytest.raises(ValueError, match="no checkpoint in"):
        fork(Run(tmp_path / "none", source.config), tmp_path / "new", {})


def names(folder):
    return sorted(path.name for path in folder.rglob("*"))


@pytest.mark.parametrize("linked", ["trials", "trials/2-4", "trials/2-4/checkpoints"])
def test_nothing_is_written_through_a_link(source, tmp_path, linked):
    mine = maml_dist.meta_train(
        "sinusoid", run=tmp_path / "mine", local=True, progress=False, **SMALL, keep_checkpoints=1
    )
    before = names(mine.path)
    link = tmp_path / "search" / linked
    link.parent.mkdir(parents=True)
    target = mine.path / "checkpoints" if linked.endswith("checkpoints") else mine.path
    link.symlink_to(target)
    with pytest.raises(ValueError, match=f"{link} is a link to {target}") as caught:
        fork(source, tmp_path / "search/trials/2-4", {"keep_checkpoints": 1})
    assert "\n" not in str(caught.value) and names(mine.path) == before
    assert Run.open(mine.path).checkpoints.last.iteration == 4


def test_the_place_of_another_runs_checkpoints_is_refused(source, tmp_path):
    before = names(source.path)
    with pytest.raises(ValueError, match="is the place of another run"):
        fork(source, tmp_path / "new", {"checkpoints": str(source.path / "checkpoints")})
    assert names(source.path) == before and not (tmp_path / "new").exists()


def test_one_that_is_being_trained_is_refused(source, tmp_path):
    with (
        Run(tmp_path / "new", source.config).locked(),
        pytest.raises(ValueError, match="is being trained"),
    ):
        fork(source, tmp_path / "new", {})
