"""Every way to run a batch of tasks gives the meta-gradient of a hand-written autograd loop."""

from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import product

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad_and_value
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, mse_loss

from maml_dist.core.adaptation.inner_optimizers import SGD, Adam, Momentum
from maml_dist.core.data.episode import Batch, Episode, supervised
from maml_dist.core.data.task_source import TaskSource
from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.meta_gradient import MetaGradient, PathScores, task_bytes
from maml_dist.core.model.objective import Objective
from maml_dist.core.params import flatten, layout
from maml_dist.core.random import keys
from maml_dist.learners.maml import MAML
from maml_dist.learners.maml_plus_plus import MAMLPlusPlus
from maml_dist.models.conv4 import Conv4
from maml_dist.models.mlp import MLP

TASKS, ALPHA = 4, 0.1
IT = torch.tensor(4.0)
BATCHINGS = {"task": ("task", None), "vmap": ("vmap", None), "chunked": ("vmap", 2)}
ENGINES = {
    f"{name}-{running}-{memory}": Engine(batching, chunk, running=running, memory=memory)
    for name, (batching, chunk) in BATCHINGS.items()
    for running in ("eager", "traced")
    for memory in ("graph", "steps")
}
MODELS = ["conv-stride", "conv-pool", "transformer"]
SOME = [name for name in ENGINES if "eager" in name] + ["task-traced-graph", "chunked-traced-steps"]


class Regression(TaskSource):
    def sample(self, key):
        return None

    def collect(self, tasks, *, steps, adapt=None):
        raise AssertionError("not collected here")

    def loss(self, output, batch):
        return mse_loss(output, batch.y)


class Classification(Regression):
    def loss(self, output, batch):
        return cross_entropy(output, batch.y)


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(self.embed(x)).mean(1))


@cache
def case(name):
    """A model, its source and the two sets of stacked tasks."""
    torch.manual_seed(0)
    if name == "mlp":
        sets = (Batch(normal(TASKS, 6, 2), normal(TASKS, 6, 1)) for _ in range(2))
        return MLP(2, 1, hidden=(8, 8)).double(), Regression(), *sets
    if name == "transformer":
        sets = (Batch(normal(TASKS, n, 4, 3), classes(n)) for n in (3, 6))
        return Attentive().double(), Classification(), *sets
    sets = (Batch(normal(TASKS, n, 2, 16, 16), classes(n)) for n in (3, 6))
    model = Conv4(3, channels=2, filters=4, size=16, downsample=name.removeprefix("conv-"))
    return model.double(), Classification(), *sets


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


def classes(n):
    return torch.arange(3).repeat(TASKS, n // 3)


def by_hand(model, source, episode, *, rule="descent", rates=None, shares=None, through=True):
    """Gradient in the parameters and rates, losses before and after, phi; of each task alone."""
    names, weights = zip(*model.named_parameters(), strict=True)
    steps = len(episode.support)
    alphas = rates or [torch.full((steps,), ALPHA, dtype=torch.float64)] * len(names)
    alphas = [a.detach().requires_grad_() for a in alphas]
    results = []
    for task in range(len(episode.query.x)):

        def loss(phi, batch, task=task):
            with sdpa_kernel(SDPBackend.MATH):  # the fused one has no second derivative
                named = dict(zip(names, phi, strict=True))
                output = functional_call(model, named, batch.x[task])
            return source.loss(output, Batch(batch.x[task], batch.y[task]))

        phi, first, second = list(weights), [0.0] * len(names), [0.0] * len(names)
        query_losses = [loss(phi, episode.query)]
        for k, batch in enumerate(episode.support):
            gradient = torch.autograd.grad(loss(phi, batch), phi, create_graph=True)
            if rule == "descent":
                along = gradient
            elif rule == "adam":
                first = [0.9 * m + 0.1 * g for m, g in zip(first, gradient, strict=True)]
                second = [0.99 * v + 0.01 * g**2 for v, g in zip(second, gradient, strict=True)]
                along = [
                    m / (1 - 0.9 ** (k + 1)) / ((v / (1 - 0.99 ** (k + 1)) + 1e-6).sqrt() + 1e-3)
                    for m, v in zip(first, second, strict=True)
                ]
            else:
                first = [0.9 * v + g for v, g in zip(first, gradient, strict=True)]
                ahead = [g + 0.9 * v for v, g in zip(first, gradient, strict=True)]
                along = ahead if rule == "nesterov" else first
            phi = [p - a[k] * d for p, a, d in zip(phi, alphas, along, strict=True)]
            query_losses.append(loss(phi, episode.query))
        if through:
            weighted = query_losses if shares else query_losses[-1:]
            total = sum(s * at for s, at in zip(shares or [1.0], weighted, strict=True))
            inputs = [*weights, *alphas] if rates else weights
        else:
            phi = [p.detach().requires_grad_() for p in phi]
            total, inputs = loss(phi, episode.query), phi
        gradient = torch.autograd.grad(total, inputs)
        before = loss(weights, episode.support[0] if episode.support else episode.query)
        results.append(
            (
                torch.cat([g.flatten() for g in gradient]),
                before.item(),
                query_losses[-1].item(),
                dict(zip(names, phi, strict=True)),
            )
        )
    return results


@cache
def expected(name, steps, **settings):
    model, source, support, query = case(name)
    return by_hand(model, source, supervised(support, query, steps=steps), **settings)


def learned(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def episode_of(name, steps):
    _, _, support, query = case(name)
    return supervised(support, query, steps=steps)


def engine_gradient(engine, learner, model, source, meta):
    objective = Objective(model, source)
    return MetaGradient(ENGINES[engine], learner, objective, into=layout(meta))


@cache  # so that tests of equal shapes share their traces
def cached_gradient(engine, learner, name):
    model, source, *_ = case(name)
    return engine_gradient(engine, learner, model, source, learned(model))


def by_engine(engine, learner, name, episode):
    meta = flatten(learned(case(name)[0]))
    return cached_gradient(engine, learner, name)(meta, episode, IT)


def assert_equal(summed, tasks):
    total = sum(task[0] for task in tasks)
    assert (summed.gradient - total).norm() <= 1e-10 * total.norm()
    assert summed.finite.tolist() == [True] * len(tasks)
    assert summed.metrics["loss/before"].tolist() == pytest.approx([t[1] for t in tasks], rel=1e-10)
    assert summed.metrics["loss/after"].tolist() == pytest.approx([t[2] for t in tasks], rel=1e-10)


RULES = {
    "descent": SGD(),
    "momentum": Momentum(0.9),
    "nesterov": Momentum(0.9, nesterov=True),
    "adam": Adam((0.9, 0.99), eps=1e-3, floor=1e-6),
}
QUICK = {  # the others take minutes
    *(("mlp", 5, "descent", engine) for engine in [*SOME, "task-traced-steps"]),
    *(("mlp", 1, "descent", engine) for engine in ENGINES if "eager" in engine),
    ("mlp", 1, "descent", "vmap-traced-graph"),
    ("transformer", 1, "descent", "task-eager-graph"),
    *((name, 5, "descent", "vmap-eager-steps") for name in MODELS),
    ("conv-stride", 5, "descent", "task-traced-steps"),
    ("conv-pool", 1, "descent", "task-traced-graph"),
    ("transformer", 5, "descent", "task-traced-steps"),
    *(("mlp", 5, rule, "vmap-eager-steps") for rule in RULES),
    *(("mlp", 5, rule, "task-eager-graph") for rule in RULES),
    ("mlp", 5, "adam", "vmap-traced-steps"),
    ("mlp", 11, "adam", "vmap-traced-steps"),  # carries made again
    ("mlp", 11, "momentum", "task-eager-steps"),
}
ALL = {
    *product(["mlp", *MODELS], (1, 5), ["descent"], ENGINES),
    *product(["mlp"], (1, 5), RULES, ENGINES),
    *product(MODELS, (1, 5), RULES, ["task-eager-graph", "vmap-traced-steps"]),
}


@pytest.mark.parametrize(
    ("name", "steps", "rule", "engine"),
    [
        pytest.param(*each, marks=[] if each in QUICK else pytest.mark.slow)
        for each in sorted(ALL | QUICK)
    ],
)
def test_every_engine_gives_the_meta_gradient_of_a_hand_written_loop(name, steps, rule, engine):
    learner = MAML(steps, ALPHA, inner=RULES[rule])
    assert_equal(
        by_engine(engine, learner, name, episode_of(name, steps)), expected(name, steps, rule=rule)
    )


@pytest.mark.parametrize("engine", SOME)
def test_without_steps_it_is_the_gradient_of_the_query_loss(engine):
    summed = by_engine(engine, MAML(0, ALPHA), "mlp", episode_of("mlp", 0))
    assert_equal(summed, expected("mlp", 0))


def over(engines):
    """Engines with the multi-layer perceptron, and, slowly, with the other models."""
    return pytest.mark.parametrize(
        ("name", "engine"),
        [
            *(("mlp", engine) for engine in engines),
            *(
                pytest.param(name, engine, marks=pytest.mark.slow)
                for name in MODELS
                for engine in ENGINES
            ),
        ],
    )


def test_losses_after_every_one_of_many_steps_of_which_some_are_taken_again():
    model, source, *_ = case("mlp")
    learner = MAMLPlusPlus(10, ALPHA, multi_step_iterations=10)
    episode, meta = episode_of("mlp", 10), learner.init(learned(model))
    summed = engine_gradient("vmap-eager-steps", learner, model, source, meta)(
        flatten(meta), episode, IT
    )
    shares = [0.0, *9 * [0.06], 0.46]  # at iteration 4 of 10
    assert_equal(summed, by_hand(model, source, episode, shares=shares))


@over(SOME)
def test_learned_rates_and_losses_after_every_step(name, engine):
    model, source, *_ = case(name)
    learner = MAMLPlusPlus(3, ALPHA, learned_rates=True, multi_step_iterations=10)
    generator = torch.Generator().manual_seed(1)
    meta = {
        name: torch.rand(3, generator=generator).double() if name.startswith("alpha.") else value
        for name, value in learner.init(learned(model)).items()
    }
    rates = [value for name, value in meta.items() if name.startswith("alpha.")]
    episode = episode_of(name, 3)
    summed = engine_gradient(engine, learner, model, source, meta)(flatten(meta), episode, IT)
    shares = [0.0, 0.2, 0.2, 0.6]  # at iteration 4 of 10
    assert_equal(summed, by_hand(model, source, episode, rates=rates, shares=shares))


@dataclass(frozen=True)
class AtTheEnd(MAML):
    """The query gradient at phi_K."""

    differentiation = "from_adapted"

    def gradient_from_adapted(self, loss, query_loss, meta, phi, episode, it):
        return grad_and_value(lambda phi: query_loss(phi, episode.query))(phi)


@pytest.mark.parametrize("engine", SOME)
def test_a_meta_gradient_taken_at_the_end(engine):
    summed = by_engine(engine, AtTheEnd(2, ALPHA), "mlp", episode_of("mlp", 2))
    assert_equal(summed, expected("mlp", 2, through=False))


@over(SOME)
def test_support_and_query_may_be_the_very_same_tensors(name, engine):
    model, source, support, _ = case(name)
    episode = supervised(support, support, steps=5)
    assert_equal(by_engine(engine, MAML(5, ALPHA), name, episode), by_hand(model, source, episode))


@pytest.mark.parametrize("engine", SOME)
def test_every_step_may_have_a_support_set_of_its_own(engine):
    model, source, support, query = case("mlp")
    own = (Batch(support.x + shift, support.y - shift) for shift in (0.0, 0.1))
    episode = Episode(tuple(own), query)
    assert_equal(by_engine(engine, MAML(2, ALPHA), "mlp", episode), by_hand(model, source, episode))


@pytest.mark.parametrize("engine", SOME)
def test_a_task_that_is_not_finite_is_left_out_and_flagged(engine):
    _, _, support, query = case("mlp")
    poisoned = support._replace(x=support.x.clone())
    poisoned.x[1, 0] = torch.nan
    gradient, fine, metrics = by_engine(
        engine, MAML(5, ALPHA), "mlp", supervised(poisoned, query, steps=5)
    )
    total = sum(task[0] for number, task in enumerate(expected("mlp", 5)) if number != 1)
    torch.testing.assert_close(gradient, total, rtol=1e-10, atol=1e-12)
    assert fine.tolist() == [True, False, True, True]
    assert metrics["loss/after"].isfinite().tolist() == fine.tolist()


@pytest.mark.parametrize("engine", SOME)
def test_running_statistics_follow_the_queries_at_the_adapted_parameters(engine):
    torch.manual_seed(0)
    _, source, *_ = case("mlp")
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).double()
    plain = deepcopy(model)  # with torch's own batch norm, in training
    before = {"1.running_mean": torch.ones(4).double(), "1.running_var": torch.ones(4).double()}
    episode = episode_of("mlp", 2)
    total = 0.0
    for task, (gradient, *_, phi) in enumerate(by_hand(plain, source, episode)):
        kept = {name: value.clone() for name, value in before.items()}
        functional_call(plain, {**phi, **kept}, episode.query.x[task])  # changes `kept`
        total = total + torch.cat([gradient, *kept.values()]).detach()
    meta = {**learned(model), **before}
    of_engine = engine_gradient(engine, MAML(2, ALPHA), model, source, meta)
    summed = of_engine(flatten(meta), episode, IT)
    torch.testing.assert_close(summed.gradient, total, rtol=1e-10, atol=1e-12)
    assert model[1].running_mean.tolist() == [0.0] * 4


@pytest.mark.parametrize("memory", ["graph", "steps"])
def test_dropout_is_that_of_the_task_whatever_the_engine(memory):
    torch.manual_seed(0)
    _, source, *_ = case("mlp")
    model = nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 1)).double()
    meta = learned(model)

    def summed(engine, it):
        episode = episode_of("mlp", 2)._replace(key=keys(0, "train", it, range(TASKS)))
        of_engine = engine_gradient(engine, MAML(2, ALPHA), model, source, meta)
        return of_engine(flatten(meta), episode, IT)

    gradient, _, metrics = summed("task-eager-graph", 0)
    for engine in SOME:
        if memory in engine:
            ours = summed(engine, 0)
            torch.testing.assert_close(ours.gradient, gradient, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(ours.metrics, metrics, rtol=1e-10, atol=1e-12)
    other = summed("vmap-eager-graph", 1).gradient
    assert (other - gradient).norm() > 0.1 * gradient.norm()


@pytest.mark.parametrize("engine", ["task-eager-graph", "chunked-eager-graph", "vmap-traced-graph"])
def test_scores_of_the_whole_path(engine):
    model, source, *_ = case("mlp")
    meta, objective = learned(model), Objective(model, source)
    scores = PathScores(ENGINES[engine], MAML(1, ALPHA), objective, into=layout(meta))
    told = scores(flatten(meta), episode_of("mlp", 5), IT)
    assert told["loss"].shape == (TASKS, 6)
    for steps in (0, 1, 5):
        after = [task[2] for task in expected("mlp", steps)]
        assert told["loss"][:, steps].tolist() == pytest.approx(after, rel=1e-10)


def test_the_bytes_of_a_task_grow_with_its_examples_and_hardly_with_its_steps():
    model, source, support, query = case("mlp")
    meta = learned(model)

    def bytes_of(memory, steps, examples):
        many = Batch(query.x.repeat(1, examples // 6, 1), query.y.repeat(1, examples // 6, 1))
        return task_bytes(
            Engine("vmap", running="traced", memory=memory),
            MAML(steps, ALPHA),
            Objective(model, source),
            flatten(meta),
            supervised(support, many, steps=steps),
            layout(meta),
        )

    an_example = 8 * (8 + 8 + 1)  # the float64 numbers that its backward pass needs at the least
    assert an_example <= (bytes_of("graph", 1, 600) - bytes_of("graph", 1, 300)) / 300
    one, five = (bytes_of("steps", steps, 6) for steps in (1, 5))
    assert five - one == 4 * flatten(meta).nbytes
