"""The fault drill tells a run that differs from one that does not."""

import argparse
import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import maml_dist

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import drill  # noqa: E402 - not installed

SMALL = {"iterations": 4, "checkpoint_every": 2, "log_every": 1, "meta_batch": 3, "local": True}
SMALL |= {"validation_tasks": 3, "test_steps": 2, "progress": False, "engine.running": "eager"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return maml_dist.meta_train("sinusoid", run=tmp_path_factory.mktemp("drill") / "a", **SMALL)


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run.path, tmp_path / "b"))


def test_a_run_does_not_differ_from_itself(run, copy):
    assert drill.differences(copy, run.path) == []


def test_one_bit_is_a_difference(run, copy):
    file = drill.last(copy)
    tensors = load_file(file)
    tensors[min(tensors)].view(-1)[0] += 1e-6
    save_file(tensors, file)
    (wrong,) = drill.differences(copy, run.path)
    assert wrong.startswith("other bits: ")


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda lines: [lines[0], *lines[2:]], "row 2: "),
        (lambda lines: [*lines[:3], lines[0]], "row 4: "),
        (
            lambda lines: [lines[0].replace('"loss/after": ', '"loss/after": 1'), *lines[1:]],
            "row 1",
        ),
        (lambda lines: [lines[0], lines[1], lines[0], *lines[2:]], "a row stands twice"),
    ],
)
def test_so_is_a_row(run, copy, change, wrong):
    file = copy / "metrics.jsonl"
    lines = [json.dumps(row) for row in run.metrics]
    file.write_text("\n".join(change(lines)) + "\n")
    assert any(each.startswith(wrong) for each in drill.differences(copy, run.path))


def test_a_seed_has_its_faults():
    options = argparse.Namespace(
        kind="rollouts", strikes=6, each=False, faults=drill.applicable("rollouts")
    )
    drawn = [drill.schedule(seed, options) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [each.iteration for each in drawn[0]] == sorted(each.iteration for each in drawn[0])
    assert not any("rollout" in name for name in drill.applicable("supervised"))
