"""What a search would do: told without a search, and without its folder."""

import json
import sys
from contextlib import nullcontext

import pytest

from maml_dist.cli import guarded
from maml_dist.runtime.backend import ResourceRequest, Resources
from maml_dist.tune import main
from maml_dist.tuning import dry_run

SEARCH = """
recipe: sinusoid
search:
  learner.alpha: {loguniform: [0.001, 0.1]}
  learner.steps: {choice: [1, 2]}
overrides: {iterations: 1200, engine.running: eager}
num_samples: 5
"""


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Asks the command with these words, where two trials fit and an iteration takes 0.5 s."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search.yaml").write_text(SEARCH)
    monkeypatch.setattr(dry_run, "RayBackend", lambda address: nullcontext())
    one = Resources(1, 0.0, ResourceRequest(1, 0.0))
    monkeypatch.setattr(dry_run, "resources_of", lambda backend, experiment: one)
    monkeypatch.setattr(dry_run, "_at_once", lambda resources: 2)
    monkeypatch.setattr(dry_run, "iteration_seconds", lambda run, request: 0.5)

    def tell(*words):
        monkeypatch.setattr(sys, "argv", ["tune", "search.yaml", "--dry-run", *words])
        assert guarded(main) == 0
        assert [path.name for path in tmp_path.iterdir()] == ["search.yaml"]
        return capsys.readouterr().out

    return tell


@pytest.mark.parametrize(
    ("words", "does"),
    [
        ([], "asha stops trials"),
        (["scheduler=fifo"], "fifo stops no trial"),
        (
            ["scheduler=pbt", "perturbation_interval=300"],
            "pbt has the worst take over the best each 300 iterations",
        ),
    ],
)
def test_it_says_what_is_searched_what_a_trial_takes_and_how_long(told, words, does):
    said = told(*words)
    assert "loguniform [0.001, 0.1]" in said and "choice [1, 2]" in said
    assert f"judged by the lowest val/mse/path; {does}" in said
    assert "a trial: up to 1200 iterations, shards: 1, 1 CPUs; 2 at once" in said
    # three turns of 1,200 iterations
    assert "about 500 ms on one core; all trials to their ends: about 30 min" in said


def test_in_json_each_key_is_an_object(told):
    lines = [json.loads(line) for line in told("--log-format", "json").splitlines()]
    assert [line["key"] for line in lines if "key" in line] == ["learner.alpha", "learner.steps"]


def test_a_search_that_goes_on_is_not_told_of(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tune", "--resume", "there", "--dry-run"])
    assert guarded(main) == 2
    assert "not with --resume" in capsys.readouterr().err
