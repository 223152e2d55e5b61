"""benchmarks/gpu.py: its parts survive each other, and all of it runs in small on a CPU."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import gpu, gpu_by_hand, gpu_cases, gpu_process, gpu_table  # noqa: E402
from benchmarks.gpu_process import Part  # noqa: E402
from benchmarks.peer_cases import module  # noqa: E402

WRITE = "import json, sys, time; file = open(sys.argv[2], 'a'); "
WRITE += "print(json.dumps({'shards': 1}), file=file, flush=True); "
FAKES = {
    "well": WRITE,
    "wrong": WRITE + "print('Traceback'); print('ValueError: legs'); sys.exit(1)",
    "endless": WRITE + "file.write('{\"cut'); file.flush(); time.sleep(600)",
    "stubborn": "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    + WRITE
    + "time.sleep(600)",
    "after": WRITE,
}


def fake(name):
    return Part(name, (sys.executable, "-c", FAKES[name]), 1)


@pytest.fixture
def quick(monkeypatch):
    """Parts have seconds, not minutes."""
    monkeypatch.setattr(gpu_process, "GRACE", 1.0)
    monkeypatch.setattr(gpu, "LEAST", 0.5)


def test_a_part_survives_the_failure_of_another(tmp_path, quick, capsys):
    results = {"machine": {"device": "none"}, "parts": []}
    gpu.measure([fake(name) for name in FAKES], results, tmp_path, time.monotonic() + 20)
    found = {part["part"]: part for part in results["parts"]}
    assert {name: part["status"] for name, part in found.items()} == {
        **{"well": "done", "wrong": "failed", "endless": "out of time"},
        **{"stubborn": "out of time", "after": "done"},
    }
    assert all(part["rows"] == [{"shards": 1}] for part in found.values())  # what was cut is left
    assert found["wrong"]["said"] == ["Traceback", "ValueError: legs"]
    assert json.loads((tmp_path / "gpu.json").read_text()) == results
    shown = "\n".join(gpu_table.lines(results))
    assert "endless: out of time" in shown and "  | ValueError: legs" in shown


def test_what_a_part_leaves_goes_to_those_after_it(tmp_path, quick, monkeypatch):
    clock, limits = [0.0], []
    takes = {"late": 1.5, "early": 0.5, "rest": 1.0}

    def run(part, folder, *, limit, environment):
        limits.append(limit)
        clock[0] += takes[part.name]
        return {"part": part.name, "status": "done", "rows": []}

    monkeypatch.setattr(gpu, "run", run)
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    chosen = [Part("late", (), 1), Part("early", (), 1), Part("rest", (), 2)]
    results = {"parts": []}
    gpu.measure(chosen, results, tmp_path, 4.0)
    assert limits == pytest.approx([1, 2.5 / 3, 2])
    gpu.measure(chosen, results, tmp_path, clock[0] + 0.3)
    assert [part["status"] for part in results["parts"][3:]] == ["left out"] * 3


@pytest.mark.parametrize("name", gpu_cases.CASES)
def test_by_hand_is_what_autograd_says(name):
    """torch (2.13) differentiates a vmap over the gradient of a weighted norm wrongly."""
    case = gpu_cases.case(name, small=True)
    workload = case.workload
    net = module(workload).double()
    loss = cross_entropy if workload.ways else mse_loss
    total = 0
    for task in range(gpu_by_hand.CHECKED):
        episode = [torch.from_numpy(part[0, task]) for part in (*case.support, *case.query)]
        sx, sy, qx, qy = (t.double() if t.is_floating_point() else t for t in episode)
        meta = {n: torch.tensor(v).double().requires_grad_() for n, v in case.meta.items()}
        phi = meta
        for _ in range(workload.steps):
            inner = loss(torch.func.functional_call(net, phi, (sx,)), sy)
            slopes = torch.autograd.grad(inner, list(phi.values()), create_graph=True)
            pairs = zip(phi.items(), slopes, strict=True)
            phi = {n: value - workload.alpha * slope for (n, value), slope in pairs}
        outer = loss(torch.func.functional_call(net, phi, (qx,)), qy)
        found = torch.autograd.grad(outer, list(meta.values()))
        total = total + torch.cat([part.flatten() for part in found])
    assert gpu_by_hand.apart(gpu_by_hand.exact(case), total) < 1e-6


def dry_run(out, *words):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--dry-run", *words]
    done = subprocess.run(
        [*command, "--out", str(out)], capture_output=True, text=True, cwd=out.parent, check=True
    )
    results = json.loads(done.stdout.splitlines()[0])
    assert results == json.loads((out / "gpu.json").read_text())
    assert {part["status"] for part in results["parts"]} == {"done"}, done.stdout
    assert not any("failed" in row for part in results["parts"] for row in part["rows"])
    return results, done.stdout


def test_a_workload_and_training_run_in_small(tmp_path):
    results, shown = dry_run(tmp_path / "out", "--parts", "data,A,omniglot")
    data, measured, omniglot = (part["rows"] for part in results["parts"])
    assert data == [{"images": "generated", "characters": 90}]
    timed = {row["who"]: row for row in measured[1:]}
    assert timed.keys() == {
        *("maml_dist vmap/traced/auto", "maml_dist task/eager/graph", "torch.func vmap"),
        *("torch.func, a loop over tasks", "torch.func vmap, torch.compile"),
    }
    assert all(row["ms"] > 0 for row in timed.values())
    errors = [row["error"] for row in timed.values() if "error" in row]
    assert len(errors) == 3 and max(errors) < 1e-5
    assert omniglot[0]["iterations"] == 4 and len(omniglot[0]["validation"]) == 2
    assert 0 <= omniglot[1]["mean"] <= 1 and omniglot[1]["steps"] == 3
    assert "A: done" in shown and "maml_dist vmap/traced/auto" in shown


@pytest.mark.ray
@pytest.mark.slow
def test_all_of_it_runs_in_small(tmp_path):
    results, _ = dry_run(tmp_path / "out", "--minutes", "15")
    rows = {part["part"]: part["rows"] for part in results["parts"]}
    assert list(rows) == list(gpu.SHARES)
    assert [row["shards"] for row in rows["shards"]] == [1, 2]
    assert all(row["iterations"] == 4 for row in rows["shards"])
    assert all(row.get("error", 0) < 1e-3 for name in "ABCDT" for row in rows[name])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--parts", "A,Z"], "--parts: 'Z' is none of data, tests, A"),
        (["--minutes", "0"], "--minutes=0: must be more than 0"),
        (["--omniglot", "nowhere"], "--omniglot=nowhere: is no folder"),
    ],
)
def test_what_cannot_be_measured_is_refused(words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    with pytest.raises(SystemExit) as end:
        gpu.main()
    assert end.value.code == 2 and said in capsys.readouterr().err
