"""What a trial takes up, and what it runs."""

import pytest

import maml_dist
from maml_dist.config.compose import compose, override
from maml_dist.config.trust import own, trusted
from maml_dist.runs.lock import Locked
from maml_dist.tuning import trial_run
from maml_dist.tuning.judge import Judge
from maml_dist.tuning.trial_run import begun, told_before, when_free

SMALL = {
    "iterations": 4, "checkpoint_every": 2, "log_every": 1, "validation_tasks": 2, "shards": 1,
    "test_tasks": 2, "meta_batch": 2, "test_steps": 2, "engine.running": "eager",
    "gpus_per_shard": 0,
}  # fmt: skip


def test_a_run_that_was_begun_is_gone_on_with_and_no_other(tmp_path):
    config = compose("sinusoid", SMALL)
    assert not begun(tmp_path / "0", config).begun
    run = maml_dist.meta_train("sinusoid", run=tmp_path / "0", local=True, progress=False, **SMALL)
    assert begun(tmp_path / "0", config).checkpoints.last.iteration == 4
    for other in ({"alpha": 0.5}, {"seed": 3}, {"learner": "MetaSGD"}):
        with pytest.raises(ValueError, match="holds a run of other values than were drawn"):
            begun(run.path, override(config, other))


@pytest.mark.parametrize("linked", ["trials", "trials/0", "trials/0/checkpoints"])
def test_a_run_to_which_a_link_leads_is_refused(tmp_path, linked):
    (tmp_path / "mine").mkdir()
    link = tmp_path / linked
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match=f"{link} is a link to {tmp_path / 'mine'}"):
        begun(tmp_path / "trials" / "0", compose("sinusoid", SMALL))


def test_what_it_has_told_is_read_off_its_rows(tmp_path):
    judge = Judge(("val/mse/path",), (False,))
    assert told_before(tmp_path / "0", judge) == []
    run = maml_dist.meta_train("sinusoid", run=tmp_path / "0", local=True, progress=False, **SMALL)
    told = told_before(run.path, judge)
    scores = {row["iteration"]: row["val/mse/path"] for row in run.metrics if "val/mse" in row}
    assert [row["iteration"] for row in told] == [2, 4] == [*scores]
    assert told[-1]["score"] == min(scores.values())


def test_only_folders_that_the_searchs_process_trusts_are_the_trials(tmp_path):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    own(mine)
    assert trusted([str(theirs), str(mine)]) == [str(mine)]


def test_a_run_that_seems_to_be_held_is_waited_for(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(trial_run.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(trial_run.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))

    def held():
        calls.append(now[0])
        if now[0] < 100:
            raise Locked("held")

    when_free(held)
    assert calls[-1] == 100 and len(calls) == 21
    with pytest.raises(Locked):
        when_free(lambda: (_ for _ in ()).throw(Locked("held")))
    assert now[0] < 1000
