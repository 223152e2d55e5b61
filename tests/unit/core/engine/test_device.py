"""Device errors found without a device: a tensor made on the wrong device is an error here."""

import pkgutil
from dataclasses import dataclass, fields
from importlib import import_module
from typing import get_args

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy

import maml_dist.learners
from maml_dist.core.adaptation import inner_optimizers
from maml_dist.core.adaptation.learner import Learner
from maml_dist.core.data.episode import Batch, supervised
from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.meta_gradient import MetaGradient, PathScores
from maml_dist.core.model.objective import Mode, Objective
from maml_dist.core.outer import optimizers
from maml_dist.core.params import flatten, layout
from maml_dist.learners.maml import MAML
from maml_dist.tasks.sinusoid import Sinusoid


def finals(module, parent):
    """The classes of `module` that inherit from `parent` and are used as they are."""
    return [
        thing
        for thing in vars(module).values()
        if isinstance(thing, type)
        and issubclass(thing, parent)
        and thing is not parent
        and thing.__module__ == module.__name__
    ]


MODULES = [
    import_module(m.name)
    for m in pkgutil.iter_modules(maml_dist.learners.__path__, "maml_dist.learners.")
]
LEARNERS = {kind.__name__: kind for module in MODULES for kind in finals(module, Learner)}
RULES = finals(inner_optimizers, inner_optimizers.InnerOptimizer)
OUTER = finals(optimizers, optimizers.OuterOptimizer)
OPTIONS = [  # of which a learner gets those that it has
    {},
    {"first_order": True},
    {"learned_rates": True, "per_step": ("1.*",), "first_order_iterations": 5},
    {"each": "layer-step"},
    {"solver": "hessian-free", "tolerance": 0.1},
    {"minibatch": 2, "pooled": True},
    {"adaptation": "hill-climb"},
]
SMALL = {"num_perturbations": 2, "num_inner_perturbations": 2, "cg_iterations": 2, "halvings": 1}


def variants():
    """Every learner run both ways, and once with each of its options."""
    for name, kind in LEARNERS.items():
        has = {field.name for field in fields(kind)}
        small = {key: value for key, value in SMALL.items() if key in has}
        for options in (options for options in OPTIONS if set(options) <= has):
            learner = kind(steps=1, **small, **options)
            memory = "graph" if kind.own_gradient else "steps"
            yield pytest.param(learner, "vmap", memory, id=" ".join([name, *options]))
            if not options:
                yield pytest.param(learner, "task", "graph", id=f"{name} task by task")
    yield MAML(steps=2), "vmap", "graph"
    yield MAML(steps=2), "task", "steps"
    for rule in RULES:
        yield pytest.param(MAML(steps=2, inner=rule()), "vmap", "steps", id=rule.__name__)


class Labels(Sinusoid):
    def loss(self, output, batch):
        return cross_entropy(output, batch.y)


def on_meta(*more):
    """A model, an episode of two stacked tasks, and it: fake tensors of device meta."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("meta"):
        layers = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), *more, nn.Flatten()]
        model = nn.Sequential(*layers, nn.Linear(32, 5))
        data = Batch(torch.empty(2, 5, 1, 6, 6), torch.zeros(2, 5, dtype=torch.int64))
        key = torch.zeros(2, dtype=torch.int64)
        episode = supervised(data, data, steps=2)._replace(key=key)
        return model, episode, torch.zeros(())


def meta_of(model, learner):
    buffers = dict(model.named_buffers())
    params = learner.init({name: p.detach() for name, p in model.named_parameters()})
    return params | {name: buffers[name] for name in Objective(model, Labels()).kept}


def gradient_of(setting, learner, engine):
    model, episode, it = setting
    with it.fake_mode:
        meta = meta_of(model, learner)
        gradient = MetaGradient(engine, learner, Objective(model, Labels()), into=layout(meta))
        support = episode.support[: learner.steps]
        return flatten(meta), gradient(flatten(meta), episode._replace(support=support), it)


@pytest.fixture(scope="module")
def setting():
    return on_meta()


@pytest.mark.parametrize(("learner", "batching", "memory"), [*variants()])
def test_a_learner_makes_everything_where_the_parameters_are(setting, learner, batching, memory):
    engine = Engine(batching, running="eager", memory=memory).resolve(setting[0], learner, "meta")
    meta, (gradient, fine, metrics) = gradient_of(setting, learner, engine)
    assert gradient.shape == meta.shape and fine.shape == (2,)
    devices = {value.device.type for value in (gradient, fine, *metrics.values())}
    assert devices == {"meta"}


def test_every_learner_is_found():
    assert {"MAML", "MAMLPlusPlus", "MetaSGD", "Reptile", "IMAML", "ESMAML"} <= set(LEARNERS)


@dataclass(frozen=True)
class Elsewhere(MAML):
    """Makes a tensor on the default device."""

    def step(self, phi, state, context):
        phi, state = super().step(phi, state, context)
        return {name: value * torch.ones(value.shape) for name, value in phi.items()}, state


@pytest.mark.parametrize("memory", ["graph", "steps"])
def test_a_tensor_made_elsewhere_is_an_error(setting, memory):
    engine = Engine("vmap", running="eager", memory=memory)
    with pytest.raises((RuntimeError, TypeError), match="device"):
        gradient_of(setting, Elsewhere(1), engine)


@pytest.mark.parametrize("dropout", [nn.Dropout(0.5), nn.Dropout2d(0.5), nn.Dropout(1.0)])
def test_dropout_is_drawn_where_the_parameters_are(dropout):
    engine = Engine("vmap", running="eager", memory="graph")
    _, (gradient, *_) = gradient_of(on_meta(dropout), MAML(1), engine)
    assert gradient.device.type == "meta"


def test_scores_are_made_where_the_parameters_are(setting):
    model, episode, it = setting
    learner, engine = MAML(2), Engine("vmap", running="eager")
    with it.fake_mode:
        meta = meta_of(model, learner)
        for mode in get_args(Mode):
            objective = Objective(model, Labels())
            scores = PathScores(engine, learner, objective, into=layout(meta))
            told = scores(flatten(meta), episode, it, mode=mode)
            assert {name: by.device.type for name, by in told.items()} == {"mse": "meta"}


@pytest.mark.parametrize("rule", [*(kind() for kind in OUTER), optimizers.SGD(momentum=0.9)])
def test_outer_rules_make_everything_where_the_parameters_are(rule):
    with FakeTensorMode(), torch.device("meta"):
        meta, gradient = torch.ones(3), torch.ones(3)
    with meta.fake_mode:
        updated, moments = rule.step(meta, gradient, rule.moments(meta), rate=0.1, count=1.0)
    assert {tensor.device.type for tensor in (updated, *moments.values())} == {"meta"}
