"""The side-by-side benchmark: everyone computes the same, and what it reads is what is there."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from maml_dist.core.engine.engine import Engine

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import (  # noqa: E402 - not installed
    equal_time,
    meta_rl,
    peer_cases,
    peer_ours,
    peer_process,
    peers,
    rollouts,
)

TINY = {
    "A": {"tasks": 3, "shots": 4, "query": 4},
    "B1": {"tasks": 2, "ways": 3, "query": 2, "filters": 4, "size": 16},
    "C": {"tasks": 2, "ways": 3, "query": 2, "filters": 4, "size": 16, "steps": 2},
    "D": {"tasks": 2, "ways": 3, "query": 2, "filters": 4, "size": 20, "steps": 2},
}


def first(library: str, workload: peer_cases.Workload) -> peer_process.First:
    threads = torch.get_num_threads()
    contender = peer_process.make(library, peer_cases.make(workload), 1)
    try:
        return peer_process.begin(contender)
    finally:
        contender.close()
        torch.set_num_threads(threads)


def assert_same(one: peer_process.First, other: peer_process.First) -> None:
    assert len(one.losses) == peer_process.CHECKED
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-4)
    distance = np.linalg.norm(one.gradient - other.gradient)
    assert np.linalg.norm(other.gradient) > max(1e-3, 1e4 * distance)


@pytest.mark.parametrize("name", TINY)
def test_ours_and_the_loop_by_hand_agree(name, monkeypatch):
    traced = Engine(running="traced")  # not compiled: that takes its time
    given = peer_ours.experiment
    monkeypatch.setattr(peer_ours, "experiment", lambda case: replace(given(case), engine=traced))
    workload = peer_cases.WORKLOADS[name]._replace(**TINY[name])
    assert_same(first("maml_dist", workload), first("pytorch", workload))


@pytest.mark.ray
@pytest.mark.slow
def test_ours_on_ray_goes_on_as_ours_does(monkeypatch):
    """Also while it is timed: the losses after that are those of as many iterations."""
    traced = Engine(running="traced")
    given = peer_ours.experiment
    monkeypatch.setattr(peer_ours, "experiment", lambda case: replace(given(case), engine=traced))
    case = peer_cases.make(peer_cases.WORKLOADS["D"]._replace(**TINY["D"]))
    alone, ray = (peer_process.make(library, case, 1) for library in ("maml_dist", "maml_dist-ray"))
    try:
        assert_same(peer_process.begin(ray), peer_process.begin(alone))
        times = ray.pace(0.1)
        assert times and min(times) > 0
        made = ray._it - peer_process.CHECKED
        assert made >= len(times)
        alone.iterate(made)
        np.testing.assert_allclose(ray.iterate(2), alone.iterate(2), rtol=1e-3)
    finally:
        ray.close()


@pytest.mark.parametrize("library", ["learn2learn", "higher", "torchopt", "jax"])
@pytest.mark.parametrize("name", TINY)
def test_a_peer_that_is_installed_agrees(library, name):
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    workload = peer_cases.WORKLOADS[name]._replace(**TINY[name])
    assert_same(first(library, workload), first("pytorch", workload))


def test_first_and_second_order_differ():
    workload = peer_cases.WORKLOADS["B1"]._replace(**TINY["B1"])
    one, two = (first("pytorch", workload._replace(first_order=order)) for order in (True, False))
    with pytest.raises(SystemExit, match="computes something else"):
        peers.check_agreement("B", "pytorch", one, two)


def test_the_waves_are_sines_of_one_amplitude_and_phase():
    case = peer_cases.make(peer_cases.WORKLOADS["A"]._replace(shots=40))
    x, y = (values[3, 7, :, 0].astype(np.float64) for values in case.support)
    design = np.stack([np.sin(x), np.cos(x)], 1)
    weights, residual, *_ = np.linalg.lstsq(design, y)
    assert residual < 1e-8
    assert 0.1 <= np.hypot(*weights) <= 5
    assert weights[1] <= 0  # -amplitude * sin(phase), the phase in [0, pi]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells it in /proc")
def test_memory_is_what_was_held_at_once():
    memory = peer_process.Memory([os.getpid()])
    held = np.ones(64 * peer_process.MIB, np.uint8)
    del held
    assert memory.extra() == pytest.approx(64, abs=8)
    memory.forget()
    assert memory.extra() < 8


def test_the_flops_are_those_of_the_matrix_products():
    workload = peer_cases.WORKLOADS["A"]._replace(tasks=3, steps=0, query=4, shots=4)
    by_hand = peer_process.make("pytorch", peer_cases.make(workload), 1)
    forward = 2 * 4 * (1 * 40 + 40 * 40 + 40 * 1)
    backward = 2 * forward - 2 * 4 * 40  # twice as much; none for the gradient of the inputs
    assert by_hand.flops() == 3 * (forward + backward)


def test_a_name_that_is_none_is_refused(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), "--workloads", "A,Z"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "'Z' is none of A, B, B1, C, D" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe", "ant-direction"], "must be a half-cheetah's, with task.profile=paper"),
        (["--recipe", "navigation"], "must be a half-cheetah's, with task.profile=paper"),
        (["task.profile=gymnasium"], "must be a half-cheetah's, with task.profile=paper"),
        (
            ["outer.class_path=Adam"],
            "outer=Adam: must be a TrustRegion",
        ),
        (["task.horizn=3"], "horizn"),
        (["--share", "0.5,2"], "'2': must be numbers above 0 and up to 1"),
        (["--share", "0.5/0"], "'0.5/0': must be numbers above 0 and up to 1"),
        (["--share", "all"], "'all': must be numbers above 0 and up to 1"),
        (["--rounds", "0"], "--rounds=0: must be 1 or more"),
    ],
)
def test_what_policy_search_cannot_be_measured_by_is_refused(words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["meta_rl.py", *words])
    with pytest.raises(SystemExit) as end:
        meta_rl.main()
    assert end.value.code not in (0, None)
    assert said in f"{end.value.code} {capsys.readouterr().err}"


def test_the_command_prints_its_rows_and_draws_them(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), "--json", "--threads", "1"]
    command += ["--workloads", "A", "--libraries", "pytorch", "--rounds", "1", "--seconds", "0.1"]
    command += ["--picture", str(tmp_path / "peers.png")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    (row,) = json.loads(done.stdout)["rows"]
    assert (row["workload"], row["library"]) == ("A", "pytorch")
    assert 0 < row["seconds"] < 10
    assert 0 < row["first_seconds"] < 60
    assert 0 < row["share_of_peak"] < 1
    assert row["peak_mb"] > 0
    assert (tmp_path / "peers.png").stat().st_size > 1000


@pytest.mark.slow
def test_learners_are_compared_at_equal_time_and_not_twice(tmp_path, monkeypatch, capfd):
    words = ["sinusoid", "iterations=3", "meta_batch=2", "validation_tasks=2", "test_tasks=5"]
    words += ["engine.running=eager"]
    row = equal_time.measure(words, tmp_path, 600)
    (file,) = tmp_path.glob("*/evaluation.json")
    said = json.loads(file.read_text())
    score = said["results"][0]["steps"][-1]
    assert row["recipe"] == " ".join(words) and row["iterations"] == 3
    assert row["default"] == {"mean": score["mean"], "ci95": score["ci95"]}

    def trains(words, path, seconds):
        raise SystemExit("it is trained")

    monkeypatch.setattr(equal_time, "train", trains)
    assert equal_time.measure(words, tmp_path, 600) == row
    for changed in (([*words, "alpha=0.02"], 600), (words, 660)):
        with pytest.raises(SystemExit, match="it is trained"):
            equal_time.measure(changed[0], tmp_path, changed[1])
    diverged = row | {"recipe": "other", "default": {"mean": None, "ci95": None}}
    more = row | {"running": score}
    capfd.readouterr()
    equal_time.show([more, diverged])
    shown = capfd.readouterr().out.splitlines()
    assert "running" not in shown[0] and f"{score['mean']:.4f}" in shown[1]
    assert shown[2].endswith("– ± –")
    equal_time.draw([more, diverged], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("said", "seconds"), [("01:02:03", 3723), ("1-00:00:01", 86401), ("", None)]
)
def test_processor_time_is_read_as_ps_says_it(said, seconds, monkeypatch):
    done = subprocess.CompletedProcess([], 0, stdout=f"  {said}\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert equal_time.processor_seconds(1) == seconds


def test_a_meta_iteration_is_split_into_its_parts(monkeypatch, capsys):
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    small = ["meta_batch=2", "task.episodes=2", "task.horizon=6"]
    arguments = ["meta_rl.py", "--rounds=1", "--share=1.0,0.5/1.0", "--json", *small]
    monkeypatch.setattr(sys, "argv", arguments)
    meta_rl.main()
    said = json.loads(capsys.readouterr().out)
    assert said["physics"] > 0 and said["seconds"].keys() == {"1.0", "0.5/1.0"}
    for parts in said["seconds"].values():
        whole = parts.pop("all")
        assert {"simulation", "gradient", "curvature", "line search"} <= parts.keys()
        assert all(part > 0 for part in parts.values()) and sum(parts.values()) <= whole


def test_rollouts_are_measured_beside_the_physics_and_gymnasium(monkeypatch, capsys):
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    sizes = ["--tasks=2", "--episodes=2", "--horizon=6", "--rounds=1", "--workers=2"]
    monkeypatch.setitem(sys.modules, "imageio", None)  # what stands in for it goes at the end
    del sys.modules["imageio"]
    monkeypatch.setattr(sys, "argv", ["rollouts.py", *sizes, "--json"])
    rollouts.main()
    said = json.loads(capsys.readouterr().out)
    rates = said["rounds"]
    assert rates.keys() == {"rollout", "physics", "gymnasium"}
    assert said["ratios"].keys() == {"physics", "gymnasium"}
    for name, ratio in said["ratios"].items():
        assert ratio == pytest.approx(rates["rollout"][0] / rates[name][0])
