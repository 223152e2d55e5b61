"""Sparse parameters in this process: the dense result, whatever learns it."""

import numpy as np
import pytest
import torch

import maml_dist
from maml_dist.runtime import sparse_collector
from maml_dist.training.trainer import prepare

RECIPE = {"task.items": 40, "model.rows": 40, "model.dim": 4, "model.hidden": [8]}
RECIPE |= {"iterations": 25, "checkpoint_every": 10, "log_every": 5, "meta_batch": 3, "slices": 2}
RECIPE |= {"validation_tasks": 5, "test_steps": 2, "test_tasks": 4, "outer.beta": 0.02}
RECIPE |= {"engine.running": "eager", "engine.precision": "float64"}
LOCAL = {"local": True, "progress": False}
FALLING = {"outer.schedule": "Cosine", "outer.schedule.until": 20, "outer.schedule.warm_up": 3}

USERS = """
from dataclasses import dataclass

import torch
from torch import nn

from maml_dist.core.outer.optimizers import SGD, Adam, OuterOptimizer
from maml_dist.learners.maml import MAML
from maml_dist.models.embedding_mlp import EmbeddingMLP
from maml_dist.tasks.ratings import Ratings


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        self.items = nn.Embedding(40, 3, padding_idx=0)
        self.table = nn.Parameter(torch.randn(40, 2))
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        other = nn.functional.embedding(39 - x, self.table, padding_idx=-1)
        both = [self.items(x), self.items((x + 7) % 40), other]
        return self.head(torch.cat(both, -1).flatten(1))


@dataclass(frozen=True)
class Sometimes(Ratings):
    def loss(self, output, batch):
        return super().loss(output, batch) / (batch.x[0, 0] != 0)


class Tied(EmbeddingMLP):
    def __init__(self, by):
        super().__init__(40, 4)
        self.by = by

    def forward(self, x):
        weight = self.embedding.weight
        outputs = super().forward(x).to(weight.device, weight.dtype)
        used = getattr(weight, self.by)
        used = used() if callable(used) else used
        return outputs + (used.detach().mean() if torch.is_tensor(used) else sum(used))


class Hop(nn.Module):
    # Other ids than x: by what is looked up, by what is drawn, or once the head has moved.

    def __init__(self, by):
        super().__init__()
        self.embedding, self.head, self.by = nn.Embedding(40, 4), nn.Linear(4, 1), by
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        found = self.embedding(x)
        if self.by == "found":
            on = found.sum(-1) > 0
        elif self.by == "drawn":
            on = nn.functional.dropout(torch.ones_like(x, dtype=found.dtype)) == 0
        else:
            on = self.head.bias.abs() > 0.15
        found = self.embedding((x + 1 + on.long()) % 40)
        return self.head(torch.nan_to_num(found).flatten(1))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(40, 3, max_norm=1.0), nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.embed(x).flatten(1))


class Factors(nn.Module):
    def __init__(self):
        super().__init__()
        self.items, self.bias = nn.Embedding(40, 3), nn.Embedding(40, 1)

    def forward(self, x):
        both = self.items(x) * self.items((x + 1) % 40)
        return both.sum(-1) + self.bias(x).flatten(1)


class Placed(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.place = nn.Embedding(40, 4), nn.Embedding(10, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.embedding(x).flatten(1) * self.place(torch.arange(len(x))))


class Turned(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(40, 4), nn.Linear(4, 1)
        self.turn = nn.Parameter(torch.randn(4, dtype=torch.complex64))

    def forward(self, x):
        return self.head((self.embedding(x).flatten(1) * self.turn).real)


class Zeros(EmbeddingMLP):
    def __init__(self):
        super().__init__(16, 4)
        nn.init.zeros_(self.embedding.weight)


@dataclass(frozen=True)
class Shrinking(MAML):
    own_gradient = True

    def gradient(self, loss, query_loss, meta, episode, it):
        gradient, metrics = super().gradient(loss, query_loss, meta, episode, it)
        return {name: value + 0.1 * meta[name] for name, value in gradient.items()}, metrics


@dataclass(frozen=True)
class Growing(Ratings):
    # The first task touches one item, others as many as they like.
    def collect(self, tasks, *, steps, adapt=None):
        episodes = super().collect(tasks, steps=steps, adapt=adapt)
        for number, task in enumerate(tasks):
            if task.key[1:] == ("train", 0, 0):
                for batch in (*episodes.support, episodes.query):
                    batch.x[number] = 3
        return episodes


@dataclass(frozen=True)
class Whole(OuterOptimizer):
    def moments(self, meta):
        return {}

    def step(self, meta, gradient, state, *, rate, count):
        return meta - rate * gradient / gradient.norm(), {}


@dataclass(frozen=True)
class Signed(SGD):
    by_elements = True

    def clipped(self, gradient):
        return gradient.sign()


@dataclass(frozen=True)
class Shrunk(SGD):
    by_elements = True

    def update(self, meta, gradient, state, *, gather=None):
        return super().update(meta, gradient + 0.3 * meta, state, gather=gather)


@dataclass(frozen=True)
class Slowing(Adam):
    by_elements = True

    def rate(self, state):
        return self.beta / (1 + float(state["first"].abs().max()))


@dataclass(frozen=True)
class L2(Adam):
    by_elements = True

    def step(self, meta, gradient, state, *, rate, count):
        return super().step(meta, gradient + 0.3 * meta, state, rate=rate, count=count)
"""
# A row of each of two tables is never learned; they are looked up twice, and in two ways.
PADDED = {"model": "embedded_users.Padded", "sparse": ["items.*", "table"]}
FACTORS = {"model": "embedded_users.Factors", "sparse": ["items.*", "bias.*"]}
BRIEF = {"iterations": 6}
EVERY = {"task.items": 16, "task.shots": 200, "task.query": 200}  # a task touches every row
CASES = {
    "adam": FALLING,
    "adamw": {"outer.weight_decay": 0.3, "outer.clip": 0.05, **FALLING},
    "descent": {"outer": "SGD"},
    "momentum": {"outer": "SGD", "outer.momentum": 0.9, **FALLING},
    "adagrad": {"outer": "Adagrad"},
    "one at a time, step by step": {"engine.batching": "task", "learner.steps": 3},
    "of the user's own": {"outer": "embedded_users.L2", **FALLING},
    "head only": {"learner.adapted": ["mlp.head.*"]},
    "rates by layer": {"learner": "MetaSGD", "learner.each": "layer"},
    "rates by weight of a layer as large": {
        **{"learner": "MetaSGD", "learner.adapted": ["mlp.*"], "task.items": 8, "model.rows": 8},
    },
    "reptile": {"learner": "Reptile", "learner.pooled": True, "learner.minibatch": 5},
    "imaml": {"learner": "IMAML", "learner.steps": 3},
    "complex": {"model": "embedded_users.Turned", **BRIEF},
    "places": {"model": "embedded_users.Placed", "sparse": ["e*.weight", "place.*"], **BRIEF},
    "skips": {"on_divergence": "skip", "task": "embedded_users.Sometimes"},
}


def trained(folder, name="run", **settings):
    given = {"sparse": "embedding.*", **RECIPE, **settings}
    if isinstance(given.get("model"), str):
        given = {key: given[key] for key in given if key in settings or "model." not in key}
    own = folder / "embedded_users.py"
    return maml_dist.meta_train("ratings", run=folder / name, trust=own, **given, **LOCAL)


def weights(run):
    return run.weights("last")[0]


def refused(folder, **settings):
    with pytest.raises(ValueError) as caught:
        trained(folder, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def users(tmp_path):
    """A module of a user's own."""
    (tmp_path / "embedded_users.py").write_text(USERS)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_dense_result(tmp_path, name):
    settings = CASES[name]
    one = trained(tmp_path, "sparse", **settings)
    other = trained(tmp_path, "dense", **{**settings, "sparse": []})
    for key, value in weights(other).items():
        torch.testing.assert_close(weights(one)[key], value, rtol=1e-11, atol=1e-12)
    moved = weights(one)["embedding.weight"] != one.seeded.values["embedding.weight"]
    assert moved.any(1).sum() > 5
    for mine, theirs in zip(one.metrics, other.metrics, strict=True):
        assert mine.get("skipped/tasks") == theirs.get("skipped/tasks")
        assert ("skipped" in mine) == (name == "skips")
        if name == "skips":  # and some of the validation's tasks diverge
            continue
        assert mine.get("val/mse", 0) == pytest.approx(theirs.get("val/mse", 0), rel=1e-9)
    if name == "skips":
        return
    scores = [maml_dist.meta_test(run)["results"][0]["steps"] for run in (one, other)]
    for mine, theirs in zip(*scores, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("name", ["adamw", "places", "imaml", "skips"])
def test_so_it_is_where_tasks_are_not_computed_together(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sparse_collector, "TOGETHER", 1)
    test_it_is_the_dense_result(tmp_path, name)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_model_may_have_nothing_but_tables(tmp_path, precision):
    settings = {**FACTORS, **CASES["adamw"], "engine.precision": precision}
    whole = trained(tmp_path, "whole", **settings)
    trained(tmp_path, "half", **{**settings, "iterations": 13})
    again = maml_dist.meta_train(resume=tmp_path / "half", iterations=25, **LOCAL)
    dense = trained(tmp_path, "dense", **{**settings, "sparse": []})
    near = {"rtol": 1e-11, "atol": 1e-12} if precision == "float64" else {}
    for key, value in weights(dense).items():
        assert value.dtype == weights(whole)[key].dtype
        assert torch.equal(weights(again)[key], weights(whole)[key])
        torch.testing.assert_close(weights(whole)[key], value, **near)
    assert whole.initial_vector.shape == (0,)
    loaded = maml_dist.load(whole.path, checkpoint="last")
    assert torch.equal(loaded.bias.weight, weights(whole)["bias.weight"])
    scores = [maml_dist.meta_test(run)["results"][0]["steps"] for run in (whole, dense)]
    assert scores[0][-1] == pytest.approx(scores[1][-1], rel=1e-4)


def test_tasks_may_touch_more_rows_than_the_first(tmp_path):
    few = {"iterations": 2, "task.shots": 40, "task": "embedded_users.Growing"}
    one, other = trained(tmp_path, "sparse", **few), trained(tmp_path, "dense", **few, sparse=[])
    for key, value in weights(other).items():
        torch.testing.assert_close(weights(one)[key], value, rtol=1e-11, atol=1e-12)


def test_ids_that_come_to_depend_on_weights_are_no_divergence(tmp_path):
    moves = {"outer.beta": 0.2, "learner.alpha": 0.001, "iterations": 4, "on_divergence": "skip"}
    model = {"model": "embedded_users.Hop", "model.by": "moved", "engine.running": "traced"}
    with pytest.raises(ValueError, match="is looked up, which the data alone do not say"):
        trained(tmp_path, **model, **moves)
    assert (tmp_path / "run").exists()


def test_padding_and_two_tables_are_those_of_torch(tmp_path):
    one = trained(tmp_path, "sparse", **PADDED)
    other = trained(tmp_path, "dense", **{**PADDED, "sparse": []})
    for key, value in weights(other).items():
        torch.testing.assert_close(weights(one)[key], value, rtol=1e-11, atol=1e-12)
    assert {table.name for table in one.seeded.tables} == {"items.weight", "table"}
    moved = weights(one)["items.weight"] != one.seeded.values["items.weight"]
    assert not moved[0].any() and moved.any(1).sum() > 5


def test_a_run_that_is_resumed_has_the_bits_of_one_that_was_not(tmp_path):
    settings = {**CASES["adamw"], "engine.precision": "float32"}
    whole = trained(tmp_path, "whole", **settings)
    half = trained(tmp_path, "half", **{**settings, "iterations": 13})
    again = maml_dist.meta_train(resume=half.path, iterations=25, **LOCAL)
    for key, value in weights(whole).items():
        assert torch.equal(weights(again)[key], value)


def test_what_is_trained_is_loaded_and_goes_on_elsewhere(tmp_path):
    run = trained(tmp_path, **CASES["momentum"])
    loaded = maml_dist.load(run.path, checkpoint="last")
    assert torch.equal(loaded.embedding.weight, weights(run)["embedding.weight"])
    x, y = torch.tensor([[3], [5]]), torch.tensor([[1.0], [0.5]])
    adapted = loaded.adapt(x, y)
    apart = (adapted.embedding.weight != loaded.embedding.weight).any(1)
    assert apart.nonzero().flatten().tolist() == [3, 5]
    started = prepare("ratings", {**RECIPE, "init": str(run.path)}, run=tmp_path / "next")
    best = run.weights("best")[0]["embedding.weight"]
    assert np.array_equal(started.initial_tables["embedding.weight"], best.numpy())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sparse": "embeding.weight"}, "matches no parameter; did you mean 'embedding.weight'?"),
        ({"sparse": "*.bias"}, "is [8]: a table has rows"),
        ({"sparse": ["embedding.*", "mlp.head.weight"]}, "computes with it by linear"),
        ({"model": "embedded_users.Tied", "model.by": "sum"}, "computes with it by sum"),
        ({"model": "embedded_users.Tied", "model.by": "T"}, "computes with it by T,"),
        ({"model": "embedded_users.Tied", "model.by": "mT"}, "computes with it by mT,"),
        ({"model": "embedded_users.Tied", "model.by": "data"}, "computes with it by data,"),
        ({"model": "embedded_users.Tied", "model.by": "shape"}, "computes with it by shape,"),
        ({"model": "embedded_users.Normed", "sparse": "embed.*"}, "max_norm=1.0 is not learned by"),
        (
            {"model": "embedded_users.Hop", "model.by": "found", "on_divergence": "skip"},
            "is looked up, which the data alone do not say: ids may not depend on",
        ),
        ({"model": "embedded_users.Hop", "model.by": "drawn"}, "which the data alone do not say"),
        (
            {"model": "embedded_users.Zeros", "learner": "embedded_users.Shrinking", **EVERY},
            "rows that a task does not touch have a gradient of it, by learner=Shrinking",
        ),
        ({"task.items": 60}, "embedding.weight: id"),
        ({"learner": "MetaSGD"}, "has an element for each of the table's"),
        ({"outer.average": 0.9}, "outer.average=0.9 is of all rows; leave it out"),
        ({"outer.clip_norm": 1.0}, "outer.clip_norm=1.0: use outer.clip"),
        ({"outer.epochs": 2}, "use outer.epochs=1"),
        ({"outer": "embedded_users.Whole"}, "outer=Whole is not said to be by elements"),
        ({"outer": "embedded_users.Signed"}, "outer=Signed has its own clipped, and rows are"),
        ({"outer": "embedded_users.Shrunk"}, "outer=Shrunk has its own update, and rows are"),
        ({"outer": "embedded_users.Slowing"}, "a rate of more than the count of updates"),
        ({"max_staleness": 2}, "max_staleness and backup need one server"),
        ({"server": "one"}, "server=one owns no rows; use spread or split"),
        ({"learner": "ESMAML"}, "learner=ESMAML perturbs every parameter"),
    ],
)
def test_what_cannot_be_exact_is_refused_at_the_start(tmp_path, settings, said):
    assert said in refused(tmp_path, **settings)
    assert not (tmp_path / "run").exists()
