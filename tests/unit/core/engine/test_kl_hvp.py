"""The curvature and the meta-gradient of MAML's policy gradient, against slow and plain answers."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, functionalize, grad, hessian, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from maml_dist.core.data.trajectories import PolicyTargets
from maml_dist.core.engine.kl_hvp import curvature, linearised
from maml_dist.core.params import flatten, layout, unflatten
from maml_dist.core.rl.distribution import Categorical, Gaussian
from maml_dist.core.rl.surrogate import dice, log_likelihood, low_variance, ratio
from maml_dist.models.categorical_policy import CategoricalPolicy
from maml_dist.models.gaussian_policy import GaussianPolicy

ALPHA = 0.3
POLICIES = {
    "gaussian": (Gaussian(), lambda: GaussianPolicy(2, 2, hidden=(4,), log_std=-0.2)),
    "categorical": (Categorical(), lambda: CategoricalPolicy(2, 3, hidden=(4,))),
}


class Task(NamedTuple):
    support: tuple[tuple[Tensor, PolicyTargets], ...]
    query: tuple[Tensor, PolicyTargets]


def equal(ours, expected, rtol=1e-9):
    torch.testing.assert_close(ours, expected, rtol=rtol, atol=1e-11)


class Problem:
    """A small policy, and one task's batches: random data, the last steps of an episode masked."""

    def __init__(self, kind: str, surrogate: Callable, steps: int = 1) -> None:
        torch.manual_seed(0)
        self.distribution, make = POLICIES[kind]
        self.policy = make().double()
        self.surrogate = surrogate
        self.meta = {name: value.detach() for name, value in self.policy.named_parameters()}
        self.task = self.drawn(steps)

    def drawn(self, steps: int) -> Task:
        batches = []
        for _ in range(steps + 1):
            observations = torch.randn(3, 5, 2).double()
            before = self.output(self.meta, observations)
            noise = (torch.randn(3, 5, 2) if before.shape[-1] == 4 else torch.rand(3, 5)).double()
            mask = (torch.arange(5) < torch.tensor([[5], [2], [4]])).double()
            action = self.distribution.sample(before, noise)
            batches.append(
                (
                    observations,
                    PolicyTargets(action, torch.randn(3, 5).double() * mask, mask, before),
                )
            )
        return Task(tuple(batches[:-1]), batches[-1])

    def output(self, params, observations):
        return functional_call(self.policy, params, (observations,))

    def adapt(self, theta, task):
        phi = theta
        for observations, acted in task.support:
            slope = grad(
                lambda p, o=observations, a=acted: self.surrogate(
                    self.distribution, self.output(p, o), a
                )
            )(phi)
            phi = {name: phi[name] - ALPHA * slope[name] for name in phi}
        return phi

    def adapted(self, theta, task):
        """The outputs of the adapted policy on the query batch."""
        return self.output(self.adapt(theta, task), task.query[0])

    def outer(self, theta, task):
        return ratio(self.distribution, self.adapted(theta, task), task.query[1])

    def kl(self, task):
        mask = task.query[1].mask
        return lambda old, new: (self.distribution.kl(old, new) * mask).sum() / mask.sum()

    def arguments(self, task):
        return (
            lambda theta: self.adapt(theta, task),
            lambda phi: self.output(phi, task.query[0]),
            self.kl(task),
        )

    def along(self, seed=1):
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.randn(value.shape, generator=generator).double()
            for name, value in self.meta.items()
        }


def whole_hessian(problem):
    """Of the mean KL from the policy adapted at theta_old to that adapted at theta [size, size]."""
    old = problem.adapted(problem.meta, problem.task)
    into = layout(problem.meta)

    def kl(vector):
        return problem.kl(problem.task)(old, problem.adapted(unflatten(vector, into), problem.task))

    at = flatten(problem.meta)
    equal(grad(kl)(at), torch.zeros_like(at))
    return hessian(kl)(at)


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("surrogate", [log_likelihood, low_variance, dice])
@pytest.mark.parametrize("kind", POLICIES)
def test_it_is_the_hessian_of_the_kl_between_adapted_policies(kind, surrogate, steps):
    problem = Problem(kind, surrogate, steps)
    expected = whole_hessian(problem) @ flatten(problem.along())
    assert expected.norm() > 1e-3
    product = curvature(*problem.arguments(problem.task), problem.meta, problem.along())
    equal(flatten(product), expected)


def test_linearised_once_it_multiplies_any_vector():
    problem = Problem("gaussian", low_variance)
    matrix = whole_hessian(problem)
    product = linearised(*problem.arguments(problem.task), problem.meta)
    for seed in (1, 2, 3):
        equal(flatten(product(problem.along(seed))), matrix @ flatten(problem.along(seed)))
    reordered = dict(reversed(problem.along().items()))
    assert list(product(reordered)) == list(problem.meta)
    equal(product(reordered), product(problem.along()))


@pytest.mark.parametrize("kind", POLICIES)
def test_it_is_symmetric_and_never_negative(kind):
    problem = Problem(kind, low_variance)
    product = linearised(*problem.arguments(problem.task), problem.meta)
    into = layout(problem.meta)
    rows = torch.eye(sum(into.sizes)).double()
    matrix = torch.stack([flatten(product(unflatten(row, into))) for row in rows])
    equal(matrix, matrix.T)
    values = torch.linalg.eigvalsh(matrix)
    assert values.min() > -1e-12 and values.max() > 1e-2


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kind", POLICIES)
def test_the_meta_gradient_is_that_of_finite_differences(kind, steps):
    problem = Problem(kind, log_likelihood, steps)
    into, at = layout(problem.meta), flatten(problem.meta)
    ours = flatten(grad(problem.outer)(problem.meta, problem.task))
    expected = torch.empty_like(at)
    for place in range(len(at)):
        step = torch.zeros_like(at)
        step[place] = 1e-5
        above, below = (
            problem.outer(unflatten(at + sign * step, into), problem.task) for sign in (1, -1)
        )
        expected[place] = (above - below) / 2e-5
    assert expected.norm() > 1e-2
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", POLICIES)
def test_vmapped_and_traced_it_is_the_same(kind):
    problem = Problem(kind, low_variance)
    tasks = [problem.task, problem.drawn(1), problem.drawn(1)]

    def product(meta, vector, task):
        return curvature(*problem.arguments(task), meta, vector)

    expected = [product(problem.meta, problem.along(), task) for task in tasks]
    stacked = torch.utils._pytree.tree_map(lambda *parts: torch.stack(parts), *tasks)
    over_tasks = vmap(product, in_dims=(None, None, 0))
    others = torch.utils._pytree.tree_map(lambda part: part.flip(0), stacked)
    traced = make_fx(functionalize(over_tasks))(problem.along(7), problem.along(8), others)
    for function in (over_tasks, traced):
        together = function(problem.meta, problem.along(), stacked)
        for task, alone in enumerate(expected):
            equal({name: value[task] for name, value in together.items()}, alone)
