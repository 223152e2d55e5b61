"""A score by numpy, from training to the evaluation: the same numbers as by torch."""

import pytest
import yaml

import maml_dist

STRIPES = """
from dataclasses import dataclass

import numpy as np
import torch

from maml_dist.tasks.few_shot import ClassData, FewShot


class Stripes(ClassData):
    def classes(self, split):
        rng = np.random.default_rng({"train": 0, "val": 1, "test": 2}[split])
        y, x = np.mgrid[:12, :12]
        made = []
        for _ in range(6):
            a, b = rng.normal(size=2)
            base = 0.5 + 0.4 * np.sin(a * x + b * y)
            made.append((base + 0.1 * rng.normal(size=(8, 1, 12, 12))).astype(np.float32))
        return made


@dataclass(frozen=True)
class ByNumpy(FewShot):
    def score(self, output, batch):
        guess, truth = output.argmax(-1).detach().cpu().numpy(), batch.y.cpu().numpy()
        f1 = []
        for c in range(self.ways):
            hit = ((guess == c) & (truth == c)).sum()
            f1.append(2 * hit / max(1, (guess == c).sum() + (truth == c).sum()))
        return {"accuracy": float(np.mean(f1))}


@dataclass(frozen=True)
class ByTorch(FewShot):
    def score(self, output, batch):
        guess, f1 = output.argmax(-1), []
        for c in range(self.ways):
            hit = ((guess == c) & (batch.y == c)).sum()
            both = (guess == c).sum() + (batch.y == c).sum()
            f1.append(2 * hit / both.clamp(min=1))
        return {"accuracy": torch.stack(f1).mean()}
"""


@pytest.fixture
def trained(tmp_path, monkeypatch):
    (tmp_path / "stripes_scored.py").write_text(STRIPES)
    monkeypatch.syspath_prepend(str(tmp_path))

    def train(kind):
        data = {"class_path": "stripes_scored.Stripes"}
        own = {"data": data, "ways": 3, "shots": 1, "query": 4}
        model = {"outputs": 3, "channels": 1, "filters": 4}
        recipe = {
            "task": {"class_path": f"stripes_scored.{kind}", "init_args": own},
            "model": {"class_path": "Conv4", "init_args": model},
            "learner": {
                "class_path": "MAML",
                "init_args": {"alpha": 0.4, "steps": 1},
            },
            "outer": {"class_path": "Adam"},
        }
        small = {"iterations": 4, "meta_batch": 2, "checkpoint_every": 2, "validation_tasks": 8}
        small |= {"test_tasks": 8, "test_steps": 2, "local": True, "progress": False}
        (tmp_path / "stripes.yaml").write_text(yaml.safe_dump(recipe))
        return maml_dist.meta_train(tmp_path / "stripes.yaml", run=tmp_path / kind, **small)

    return train


def test_training_validating_and_evaluating_by_numpy_gives_the_numbers_of_torch(trained):
    by_numpy, by_torch = trained("ByNumpy"), trained("ByTorch")
    told = [
        [
            [row[name] for name in ("val/accuracy", "val/accuracy/before", "val/accuracy/path")]
            for row in run.metrics
            if "val/accuracy" in row
        ]
        for run in (by_numpy, by_torch)
    ]
    assert len(told[0]) == 2 and told[0][0] != told[0][1]
    for ours, theirs in zip(*told, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    found, expected = (maml_dist.meta_test(run)["results"] for run in (by_numpy, by_torch))
    for ours, theirs in zip(found, expected, strict=True):
        means = [step["mean"] for step in ours["steps"]]
        assert means == pytest.approx([step["mean"] for step in theirs["steps"]], abs=1e-6)
        assert len(set(means)) == 3 and all(step["ci95"] for step in ours["steps"])
