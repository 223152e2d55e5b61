"""Tasks are a pure function of their keys: what is not is said to be the task source's fault."""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from maml_dist.config.experiment import Experiment
from maml_dist.core.outer.optimizers import SGD
from maml_dist.learners.maml import MAML
from maml_dist.models.gaussian_policy import GaussianPolicy
from maml_dist.models.mlp import MLP
from maml_dist.preflight.purity import refuse_impure, twice
from maml_dist.tasks.navigation import Navigation
from maml_dist.tasks.sinusoid import Sinusoid


def experiment(source):
    model = GaussianPolicy(obs_dim=2, action_dim=2) if source.on_policy else MLP()
    return Experiment(task=source, model=model, learner=MAML(), outer=SGD())


def refused(source):
    with pytest.raises(ValueError) as caught:
        refuse_impure(experiment(source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@dataclass(frozen=True)
class Noisy(Sinusoid):
    draw: Any = None

    def collect(self, tasks, *, steps, adapt=None):
        episodes = super().collect(tasks, steps=steps)
        query = episodes.query
        return episodes._replace(query=query._replace(y=query.y + self.draw()))


def counter():
    calls = []

    def count():
        calls.append(0)
        return len(calls)

    return count


@pytest.mark.parametrize(
    "draw",
    [
        lambda: float(np.random.rand()),
        lambda: torch.rand(()),
        random.random,
        np.random.default_rng(0).random,  # a generator of its own: not of the key either
        counter(),
    ],
    ids=["numpy", "torch", "random", "a generator", "a counter"],
)
def test_collecting_by_anything_but_the_key_is_refused(draw):
    said = refused(Noisy(draw=draw))
    assert said.startswith("task=Noisy gives another task for the same key (split train)")
    assert "key.rng()" in said


@dataclass(frozen=True)
class Sampled(Sinusoid):
    splits: tuple[str, ...] = ("train",)
    kept: list = field(default_factory=list)

    def sample(self, key):
        if key.split in self.splits:
            key = key._replace(index=int(np.random.randint(1 << 30)))
        return super().sample(key)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_sampling_from_a_global_generator_is_refused_in_every_split(split):
    assert f"(split {split})" in refused(Sampled(splits=(split,)))


class Centred(Sinusoid):
    def collect(self, tasks, *, steps, adapt=None):
        episodes = super().collect(tasks, steps=steps)
        query = episodes.query
        return episodes._replace(query=query._replace(y=query.y - query.y.mean()))


class Raises(Sinusoid):
    def collect(self, tasks, *, steps, adapt=None):
        return {}["missing"]


class Alone(Sinusoid):
    def collect(self, tasks, *, steps, adapt=None):
        if len(tasks) > 1:
            raise RuntimeError("stack expects each tensor to be equal size")
        return super().collect(tasks, steps=steps)


@dataclass(frozen=True)
class Windy(Navigation):
    def simulator(self, tasks, *, stage):
        moved = [
            task._replace(value=tuple(v + np.random.rand() for v in task.value)) for task in tasks
        ]
        return super().simulator(moved, stage=stage)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Centred(), "task=Centred.collect gives another task where it is collected with others"),
        (Raises(), "task=Raises: no tasks can be drawn: KeyError: 'missing'"),
        (Alone(), "task=Alone: no tasks can be drawn: stack expects each tensor to be equal"),
        (Windy(horizon=3, episodes=2), "task=Windy gives another task for the same key"),
    ],
)
def test_the_task_source_is_named(source, said):
    assert refused(source).startswith(said)


@pytest.mark.parametrize("source", [Sinusoid(), Navigation(horizon=3, episodes=2)])
def test_pure_sources_pass_and_global_generators_stay_as_they_are(source):
    tried = experiment(source)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    refuse_impure(tried)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_twice_is_in_two_states_and_ends_in_the_first():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two = twice(lambda: (random.random(), np.random.rand(), float(torch.rand(1))))
    assert not set(one) & set(two) and torch.rand(1) == expected
