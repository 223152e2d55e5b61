"""Whole runs in this process."""

import json
import signal

import numpy as np
import pytest
import torch

import maml_dist
from maml_dist.config.recipe import recipes
from maml_dist.runs.run import Run
from maml_dist.tasks.sinusoid import Sinusoid
from maml_dist.train import main
from maml_dist.training.recorder import _summary

SMALL = {"iterations": 6, "checkpoint_every": 2, "log_every": 1, "meta_batch": 3, "local": True}
SMALL |= {"validation_tasks": 3, "test_tasks": 4, "test_steps": 2, "progress": False}
SMALL |= {"engine.running": "eager"}  # the traces take longer than the iterations


def weights(run: Run) -> np.ndarray:
    return torch.cat([value.flatten() for value in run.weights("last")[0].values()]).numpy()


def initial(run: Run) -> np.ndarray:
    return torch.cat([value.flatten() for _, value in sorted(run.initial.items())]).numpy()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "undisturbed"
    return maml_dist.meta_train("sinusoid", run=folder, **SMALL)


def test_a_run_learns_and_keeps_its_numbers(undisturbed):
    assert undisturbed.finished
    assert [row["iteration"] for row in undisturbed.metrics] == [1, 2, 3, 4, 5, 6]
    assert "val/mse" in undisturbed.metrics[1] and "val/mse" not in undisturbed.metrics[0]
    assert not np.array_equal(weights(undisturbed), initial(undisturbed))


def test_an_evaluation_has_the_promised_form(undisturbed):
    evaluation = maml_dist.meta_test(undisturbed, tasks=5, steps=3)
    assert evaluation == json.loads((undisturbed.path / "evaluation.json").read_text())
    (result,) = evaluation.pop("results")
    assert evaluation == {"recipe": "sinusoid", "split": "test", "tasks": 5, "metric": "mse"}
    assert result["mode"] == "default"
    assert [row["step"] for row in result["steps"]] == [0, 1, 2, 3]
    assert set(result["steps"][0]) == {"step", "mean", "ci95", "median"}


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_killed_and_resumed_is_undisturbed(tmp_path, undisturbed, monkeypatch, at):
    from maml_dist.runtime.server import ParameterServer

    update = ParameterServer.update

    def dies(self, *parts):
        if self._it == at:
            raise Killed
        return update(self, *parts)

    monkeypatch.setattr(ParameterServer, "update", dies)
    with pytest.raises(Killed):
        maml_dist.meta_train("sinusoid", run=tmp_path / "killed", pipeline_depth=1, **SMALL)
    monkeypatch.undo()
    resumed = maml_dist.meta_train(resume=tmp_path / "killed", local=True, progress=False)
    assert np.array_equal(weights(resumed), weights(undisturbed))
    assert [row["iteration"] for row in resumed.metrics] == [1, 2, 3, 4, 5, 6]


def test_an_extended_run_is_a_longer_one(tmp_path, undisturbed):
    run = maml_dist.meta_train("sinusoid", run=tmp_path / "a", **{**SMALL, "iterations": 2})
    longer = maml_dist.meta_train(resume=run.path, iterations=6, local=True, progress=False)
    assert np.array_equal(weights(longer), weights(undisturbed))
    assert Run.open(run.path).config["iterations"] == 6


def test_averaged_weights_are_validated_kept_and_resumed(tmp_path, undisturbed):
    settings = {**SMALL, "outer.average": 0.5}
    run = maml_dist.meta_train("sinusoid", run=tmp_path / "whole", **settings)
    raw, average = run.saved()[1], run.saved()[2]["average"]
    assert np.array_equal(raw, undisturbed.saved()[1])  # training does not see the average
    assert not np.array_equal(average, raw)
    (result,) = maml_dist.meta_test(run, split="val", tasks=3, checkpoint="last")["results"]
    assert result["steps"][-1]["mean"] == pytest.approx(run.metrics[-1]["val/mse"])
    loaded = maml_dist.load(run.path, checkpoint="last").parameters()
    assert np.array_equal(torch.cat([p.detach().flatten() for p in loaded]), average)
    half = maml_dist.meta_train("sinusoid", run=tmp_path / "h", **{**settings, "iterations": 3})
    whole = maml_dist.meta_train(resume=half.path, iterations=6, local=True, progress=False)
    assert np.array_equal(weights(whole), weights(run))
    assert np.array_equal(whole.saved()[1], raw)


def test_a_finished_run_is_left_alone(undisturbed):
    before = (undisturbed.path / "metrics.jsonl").stat().st_mtime_ns
    assert maml_dist.meta_train(resume=undisturbed.path, local=True, progress=False).finished
    assert (undisturbed.path / "metrics.jsonl").stat().st_mtime_ns == before


def test_a_run_is_not_written_over_and_keeps_its_settings(undisturbed):
    with pytest.raises(ValueError, match="already holds a run"):
        maml_dist.meta_train("sinusoid", run=undisturbed.path, **SMALL)
    with pytest.raises(ValueError, match="key 'diverged'; did you mean 'on_divergence'"):
        maml_dist.meta_train(resume=undisturbed.path, diverged="skip")
    with pytest.raises(ValueError, match="a resumed run keeps its 'alpha'"):
        maml_dist.meta_train(resume=undisturbed.path, alpha=0.5)
    with pytest.raises(ValueError, match="is not a run"):
        maml_dist.meta_train(resume=undisturbed.path.parent)


def test_an_interrupted_run_leaves_a_checkpoint_and_goes_on(tmp_path, undisturbed):
    def interrupt(row):
        if row["iteration"] == 2:
            signal.raise_signal(signal.SIGINT)

    settings = {**SMALL, "pipeline_depth": 1, "on_validation": interrupt, "run": tmp_path / "i"}
    run = maml_dist.meta_train("sinusoid", on_interrupt="return", **settings)
    assert not run.finished
    assert 2 < run.checkpoints.last.iteration < 6
    resumed = maml_dist.meta_train(resume=run.path, local=True, progress=False)
    assert np.array_equal(weights(resumed), weights(undisturbed))


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_an_interruption_ends_the_program_after_the_checkpoint(tmp_path, number, raised):
    def interrupt(row):
        if row["iteration"] == 2:
            signal.raise_signal(number)

    settings = {**SMALL, "pipeline_depth": 1, "on_validation": interrupt, "run": tmp_path / "i"}
    with pytest.raises(raised) as ended:
        maml_dist.meta_train("sinusoid", **settings)
    assert str(tmp_path) in str(ended.value) or ended.value.code == 128 + number
    assert 2 < maml_dist.Run.open(tmp_path / "i").checkpoints.last.iteration < 6
    # The signal is of that run alone.
    assert maml_dist.meta_train(resume=tmp_path / "i", local=True, progress=False).finished


def test_callbacks_see_each_iteration_and_may_stop_the_run(tmp_path, undisturbed):
    seen = []
    settings = {**SMALL, "pipeline_depth": 1}
    run = maml_dist.meta_train(
        "sinusoid",
        run=tmp_path / "i",
        on_iteration=seen.append,
        on_validation=lambda row: row["iteration"] == 2,
        **settings,
    )
    assert not run.finished and 2 < run.checkpoints.last.iteration < 6
    assert [row["iteration"] for row in seen] == [*range(1, run.checkpoints.last.iteration + 1)]
    assert all(row["loss/after"] > 0 for row in seen)
    resumed = maml_dist.meta_train(resume=run.path, local=True, progress=False)
    assert np.array_equal(weights(resumed), weights(undisturbed))
    with pytest.raises(ValueError, match="on_iteration=3: must be a function of a row"):
        maml_dist.meta_train("sinusoid", on_iteration=3)
    with pytest.raises(ValueError, match="on_interrupt='stop': must be 'raise' or 'return'"):
        maml_dist.meta_train("sinusoid", on_interrupt="stop")


def test_no_iterations_keep_the_untrained_weights(tmp_path):
    run = maml_dist.meta_train("sinusoid", run=tmp_path / "none", **{**SMALL, "iterations": 0})
    assert np.array_equal(weights(run), initial(run))
    assert maml_dist.meta_test(run, tasks=2)["tasks"] == 2


def test_a_warm_start_begins_with_the_other_runs_weights(tmp_path, undisturbed):
    settings = {**SMALL, "iterations": 0, "init": str(undisturbed.path)}
    run = maml_dist.meta_train("sinusoid", run=tmp_path / "warm", **settings)
    best = undisturbed.weights("best")[0]
    assert all(torch.equal(best[name], value) for name, value in run.weights()[0].items())
    with pytest.raises(ValueError, match="body.0.weight is .40, 1. there, .8, 1. here"):
        maml_dist.meta_train("sinusoid", run=tmp_path / "x", hidden=[8], **settings)
    assert not (tmp_path / "x").exists()


def test_two_runs_do_not_share_checkpoints(tmp_path):
    settings = {**SMALL, "checkpoints": str(tmp_path / "shared")}
    maml_dist.meta_train("sinusoid", run=tmp_path / "a", **settings)
    with pytest.raises(ValueError, match="holds the checkpoints of another run"):
        maml_dist.meta_train("sinusoid", run=tmp_path / "b", **settings)


def test_a_folder_is_claimed_by_one_run(undisturbed):
    with pytest.raises(ValueError, match="already holds a run"):
        Run(undisturbed.path, undisturbed.config).write_recipe(new=True)


def test_a_checkpoint_of_another_model_is_refused(tmp_path, undisturbed):
    other = maml_dist.meta_train("sinusoid", run=tmp_path / "o", hidden=[8], **SMALL)
    with pytest.raises(ValueError, match=r"another run: model.hidden is \[8\] there"):
        undisturbed.weights(str(other.path / "checkpoints" / "00000006.safetensors"))


def test_rows_are_kept_where_their_checkpoint_cannot_be_written(tmp_path, monkeypatch):
    def dies(*_):
        raise Killed

    monkeypatch.setattr(Run, "save", dies)
    with pytest.raises(Killed):
        maml_dist.meta_train("sinusoid", run=tmp_path / "run", **SMALL)
    assert [row["iteration"] for row in Run.open(tmp_path / "run").metrics] == [1, 2]


def test_frozen_parameters_stay_and_a_users_buffers_and_masks_work(tmp_path, monkeypatch):
    (tmp_path / "masked.py").write_text(MASKED)
    (tmp_path / "masked.yaml").write_text(
        "model: {class_path: masked.Masked}\n"
        "task: {class_path: Sinusoid}\n"
        "learner: {class_path: MAML}\n"
        "outer: {class_path: Adam}\n"
    )
    run = maml_dist.meta_train(tmp_path / "masked.yaml", run=tmp_path / "run", **SMALL)
    before, after = run.experiment.model, maml_dist.load(run.path, checkpoint="last")
    assert torch.equal(before.frozen.weight, after.frozen.weight)
    assert set(run.weights()[0]) == {"head.weight", "head.bias"}


MASKED = """
import torch
from torch import nn

class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(1, 4).requires_grad_(False)
        self.head = nn.Linear(4, 1)
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 1.0]))

    def forward(self, x):
        return self.head(torch.sin(self.frozen(x)) * self.mask.view(1, -1))
"""


def test_the_command_prints_its_recipes_and_its_configuration(capsys):
    assert main(["--list"]) == 0
    assert set(recipes()) == {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert main(["sinusoid", "--print-config", "alpha=0.5"]) == 0
    assert "alpha: 0.5" in capsys.readouterr().out


COLLECT = Sinusoid.collect


class Breaks(Sinusoid):
    """Not a number from iteration 13 on."""

    def collect(self, tasks, *, steps, adapt=None):
        episodes = COLLECT(self, tasks, steps=steps)
        broken = [key.split == "train" and key.it >= 13 for key, _ in tasks]
        episodes.query.y[broken] = float("nan")
        return episodes


def test_a_run_that_diverges_keeps_what_it_had(tmp_path, monkeypatch):
    monkeypatch.setattr("maml_dist.tasks.sinusoid.Sinusoid.collect", Breaks.collect)
    settings = {**SMALL, "iterations": 20, "checkpoint_every": 4}
    with pytest.raises(FloatingPointError, match="iteration 13 is not finite"):
        maml_dist.meta_train("sinusoid", run=tmp_path / "run", **settings)
    run = Run.open(tmp_path / "run")
    assert [row["iteration"] for row in run.metrics] == list(range(1, 14))
    assert run.checkpoints.last.iteration == 13
    assert run.checkpoints.best.iteration in (4, 8, 12)


def test_or_goes_on_without_the_tasks_that_diverge(tmp_path, monkeypatch):
    monkeypatch.setattr("maml_dist.tasks.sinusoid.Sinusoid.collect", Breaks.collect)
    settings = {**SMALL, "iterations": 15, "on_divergence": "skip", "checkpoint_every": 15}
    run = maml_dist.meta_train("sinusoid", run=tmp_path / "run", **settings)
    assert run.finished
    assert [row.get("skipped") for row in run.metrics[-3:]] == [None, 3, 3]
    assert run.metrics[-1]["skipped/tasks"] == "14:0 14:1 14:2"


def test_a_row_takes_what_only_some_of_its_iterations_tell():
    left_out = {"loss/after": float("nan"), "skipped/tasks": "1:0 1:1"}
    made = [{"loss/after": 1.0, "kl": kl, "skipped/tasks": ""} for kl in (0.2, 0.4)]
    for window in ([left_out, *made], [*made, left_out]):
        row = _summary(window)
        assert row["kl"] == pytest.approx(0.3) and row["loss/after"] == 1.0 and row["skipped"] == 2
