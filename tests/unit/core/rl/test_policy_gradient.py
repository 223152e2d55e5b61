"""Adapting and judging policies: against finite differences and the true Hessian, in float64."""

import pytest
import torch
from torch.func import hessian

from maml_dist.core.data.episode import Batch, Episode
from maml_dist.core.data.trajectories import PolicyTargets
from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.meta_gradient import MetaGradient
from maml_dist.core.engine.policy_terms import PolicyTerms
from maml_dist.core.model.objective import Objective
from maml_dist.core.params import flatten, layout
from maml_dist.core.rl.policy_gradient import PolicyGradient
from maml_dist.learners.maml import MAML
from maml_dist.models.gaussian_policy import GaussianPolicy
from maml_dist.tasks.navigation import Navigation

TASKS, EPISODES, TIMES = 3, 4, 5
IT = torch.tensor(0.0, dtype=torch.float64)


def policy():
    torch.manual_seed(0)
    return GaussianPolicy(2, 2, hidden=(4,)).double()


def source(**fields):
    return Navigation(policy_gradient=PolicyGradient(**fields))


def engine(**fields):
    return Engine(**{"batching": "task", "running": "traced", "precision": "float64", **fields})


def meta_of(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def on_policy(model, learner, given, *, steps=1):
    """Episodes [task, …] collected by the policies of the model as they adapt."""
    drawn = torch.Generator().manual_seed(1)
    made = given.distribution
    objective, meta = Objective(model, given), meta_of(model)
    adapted = PolicyTerms(engine(), learner, objective, into=layout(meta))
    key = torch.arange(TASKS)

    def batch(policies):
        x = torch.randn(TASKS, EPISODES, TIMES, 2, generator=drawn, dtype=torch.float64)
        noise = torch.randn(x.shape, generator=drawn, dtype=torch.float64)
        before = torch.stack(
            [objective.output({n: p[i] for n, p in policies.items()}, x[i]) for i in range(TASKS)]
        ).detach()
        mask = (torch.rand(x.shape[:3], generator=drawn) < 0.9).double()
        advantage = torch.randn(x.shape[:3], generator=drawn, dtype=torch.float64) * mask
        return Batch(x, PolicyTargets(made.sample(before, noise), advantage, mask, before))

    batches = []
    for _ in range(steps + 1):
        batches.append(batch(adapted.policies(flatten(meta), tuple(batches), key, IT)))
    return Episode(tuple(batches[:-1]), batches[-1], key)


def by_hand(model, given, learner, episodes, kind):
    """The outer loss, or the divergence, summed over tasks, as a function of flat parameters."""
    objective, meta = Objective(model, given), meta_of(model)

    def total(vector):
        start = dict(zip(meta, vector.split([p.numel() for p in meta.values()]), strict=True))
        start = {name: start[name].view(meta[name].shape) for name in meta}
        sums = 0
        for i in range(TASKS):

            def pick(batch, i=i):
                return Batch(batch.x[i], PolicyTargets(*(leaf[i] for leaf in batch.y)))

            phi = start
            for k, support in enumerate(episodes.support):
                loss = objective.loss
                slope = torch.func.grad(loss)(phi, pick(support))
                rate = learner.alpha * (learner.later_share if k else 1)
                phi = {name: phi[name] - rate * slope[name] for name in phi}
            query = pick(episodes.query)
            sums = sums + getattr(objective, kind)(phi, query)
        return sums

    return total


@pytest.mark.parametrize(
    ("inner", "batching"),
    [
        ("log-likelihood", "task"),
        ("low-variance", "vmap"),
        ("dice", "task"),
        ("ratio", "vmap"),
        pytest.param("log-likelihood", "vmap", marks=pytest.mark.slow),
        pytest.param("low-variance", "task", marks=pytest.mark.slow),
        pytest.param("dice", "vmap", marks=pytest.mark.slow),
        pytest.param("ratio", "task", marks=pytest.mark.slow),
    ],
)
def test_the_meta_gradient_equals_finite_differences(inner, batching):
    model, learner, given = policy(), MAML(alpha=0.3), source(inner_surrogate=inner)
    episodes = on_policy(model, learner, given)
    meta = flatten(meta_of(model))
    gradient = MetaGradient(
        engine(batching=batching), learner, Objective(model, given), into=layout(meta_of(model))
    )(meta, episodes, IT).gradient
    if inner in (
        "log-likelihood",
        "ratio",
    ):  # the others hold their own log-probability constant inside
        total = by_hand(model, given, learner, episodes, "query_loss")
        along = torch.randn(meta.shape, generator=torch.Generator().manual_seed(3)).double()
        step = 1e-6
        slope = (total(meta + step * along) - total(meta - step * along)) / (2 * step)
        assert torch.allclose(gradient @ along, slope, rtol=1e-7)
    total = by_hand(model, given, learner, episodes, "query_loss")
    assert torch.allclose(gradient, torch.func.grad(total)(meta), rtol=1e-10, atol=1e-12)


def importance_weighted(model, alpha, episodes):
    """-mean(pi_phi / pi_acted A), phi = theta - alpha d(-mean(pi_theta / pi_acted A)), written out.

    A function of flat parameters, summed over tasks.
    """
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def surrogate(vector, batch, i):
        sizes = [shape.numel() for shape in shapes.values()]
        parts = zip(shapes.items(), vector.split(sizes), strict=True)
        params = {name: part.view(shape) for (name, shape), part in parts}
        y = PolicyTargets(*(leaf[i] for leaf in batch.y))
        new, old = (
            torch.distributions.Normal(out[..., :2], out[..., 2:].exp()).log_prob(y.action).sum(-1)
            for out in (torch.func.functional_call(model, params, (batch.x[i],)), y.old_output)
        )
        return -((new - old).exp() * y.advantage * y.mask).sum() / y.mask.sum()

    def total(vector):
        sums = 0
        for i in range(TASKS):
            slope = torch.func.grad(lambda v, i=i: surrogate(v, episodes.support[0], i))(vector)
            sums = sums + surrogate(vector - alpha * slope, episodes.query, i)
        return sums

    return total


@pytest.mark.parametrize("batching", ["task", "vmap"])
def test_in_later_epochs_proximal_search_adapts_by_the_ratio_to_the_policy_that_acted(batching):
    model, learner = policy(), MAML(alpha=0.3)
    given, low = source(inner_surrogate="ratio"), source(inner_surrogate="low-variance")
    episodes = on_policy(model, learner, given)
    meta = flatten(meta_of(model))
    gradients = [
        MetaGradient(
            engine(batching=batching), learner, Objective(model, of), into=layout(meta_of(model))
        )
        for of in (given, low)
    ]
    first = [gradient(meta, episodes, IT).gradient for gradient in gradients]
    assert torch.allclose(*first, rtol=1e-10, atol=1e-12)
    there = meta + 0.05 * torch.sin(torch.arange(len(meta)).double())
    total, step = importance_weighted(model, 0.3, episodes), 1e-5
    slope = torch.stack(
        [
            (total(there + e) - total(there - e)) / (2 * step)
            for e in step * torch.eye(len(meta)).double()
        ]
    )
    later = [gradient(there, episodes, IT).gradient for gradient in gradients]
    assert torch.allclose(later[0], slope, rtol=1e-6, atol=1e-8)
    assert (later[1] - slope).norm() > 1e-3 * slope.norm()


@pytest.mark.parametrize(
    ("steps", "batching"),
    [
        (0, "task"),
        (1, "vmap"),
        (2, "task"),
        pytest.param(0, "vmap", marks=pytest.mark.slow),
        pytest.param(1, "task", marks=pytest.mark.slow),
        pytest.param(2, "vmap", marks=pytest.mark.slow),
    ],
)
def test_the_curvature_is_the_hessian_of_the_mean_divergence(steps, batching):
    model, given = policy(), source()
    learner = MAML(alpha=0.3, later_share=0.4, steps=steps)
    episodes = on_policy(model, learner, given, steps=steps)
    meta = flatten(meta_of(model))
    adapted = PolicyTerms(
        engine(batching=batching), learner, Objective(model, given), into=layout(meta_of(model))
    )
    vector = torch.randn(meta.shape, generator=torch.Generator().manual_seed(3)).double()
    product = adapted.curvature(meta, episodes, IT)(vector)
    true = hessian(by_hand(model, given, learner, episodes, "kl"))(meta) @ vector
    assert torch.allclose(product, true, rtol=1e-8, atol=1e-10 * true.abs().max())


@pytest.mark.parametrize("held", [0, 12_000, 1 << 20])
def test_the_curvature_is_the_same_however_much_is_held(held, monkeypatch):
    model, given, learner = policy(), source(), MAML(alpha=0.3, steps=1)
    episodes, meta = on_policy(model, learner, given), flatten(meta_of(model))

    def product():
        into = layout(meta_of(model))
        some = engine(batching="vmap", chunk=1)
        adapted = PolicyTerms(some, learner, Objective(model, given), into=into)
        return adapted.curvature(meta, episodes, IT)(meta.cos())

    expected = product()
    monkeypatch.setattr("maml_dist.core.engine.policy_terms.HELD", held)
    assert torch.allclose(product(), expected, rtol=1e-13)


def test_the_objective_elsewhere_and_the_departure_from_the_first_policy():
    model, learner, given = policy(), MAML(alpha=0.3), source()
    episodes = on_policy(model, learner, given)
    meta = flatten(meta_of(model))
    there = meta + 0.05 * torch.sin(torch.arange(len(meta)).double())
    adapted = PolicyTerms(engine(), learner, Objective(model, given), into=layout(meta_of(model)))
    found = adapted.objective(there, episodes, IT)
    for name, kind in (("loss/after", "query_loss"), ("kl", "kl")):
        total = by_hand(model, given, learner, episodes, kind)(there)
        assert torch.allclose(found[name].sum(), total, rtol=1e-10)
    none = MAML(alpha=0.3, steps=0)
    first = Episode((), episodes.support[0], episodes.key)
    total = by_hand(model, given, none, first, "kl")
    assert torch.allclose(
        adapted.kl_penalty_gradient(there, episodes, IT), torch.func.grad(total)(there), rtol=1e-9
    )


@pytest.mark.parametrize("inner", ["log-likelihood", "ratio"])
def test_what_a_line_search_looks_at_is_what_gradient_and_curvature_are_of(inner):
    """At other meta-parameters too: the boxes of low-variance and dice are 1 there."""
    model, learner, given = policy(), MAML(alpha=0.3), source(inner_surrogate=inner)
    episodes = on_policy(model, learner, given)
    meta, into = flatten(meta_of(model)), layout(meta_of(model))
    objective = Objective(model, given)
    adapted = PolicyTerms(engine(), learner, objective, into=into)
    along = torch.randn(meta.shape, generator=torch.Generator().manual_seed(3)).double()

    def looked(step):
        found = adapted.objective(meta + step * along, episodes, IT)
        return found["loss/after"].sum(), found["kl"].sum()

    step = 1e-4
    (more, far), (less, back), (_, here) = (looked(s) for s in (step, -step, 0.0))
    gradient = MetaGradient(engine(), learner, objective, into=into)(meta, episodes, IT).gradient
    assert torch.allclose(gradient @ along, (more - less) / (2 * step), rtol=1e-5)
    product = adapted.curvature(meta, episodes, IT)(along)
    assert torch.allclose(along @ product, (far + back - 2 * here) / step**2, rtol=1e-4)
