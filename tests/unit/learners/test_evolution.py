import math
from dataclasses import replace

import pytest
import torch
from torch.func import vmap

from maml_dist.core.adaptation.inner_optimizers import Adam, Momentum
from maml_dist.core.adaptation.learner import StepContext
from maml_dist.core.data.episode import Batch, supervised
from maml_dist.core.random import keys
from maml_dist.learners.evolution import ESMAML

IT = torch.tensor(0.0)
KEY = keys(0, "train", 0, [3])[0]
PAIRS = 100_000


def numbers(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def curvature(seed, size=4):
    root = numbers(seed, size, size)
    return root @ root.T / size


def loss(params, batch):
    """Half of (w - centre)' curvature (w - centre), w being both parameters: a closed form."""
    away = torch.cat([params["body"], params["head"]]) - batch.y
    return 0.5 * away @ batch.x @ away


def flat(params):
    return torch.cat([params["body"], params["head"]], -1)


META = {"body": numbers(0, 3), "head": numbers(1, 1)}
SUPPORT, QUERY = Batch(curvature(2), numbers(3, 4)), Batch(curvature(4), numbers(5, 4))


def episode(steps, key=KEY):
    return supervised(SUPPORT, QUERY, steps=steps)._replace(key=key)


def estimate(learner, key=KEY):
    return learner.gradient(loss, loss, META, episode(learner.steps, key), IT)


def steps_(learner, batch, key=KEY):
    """The parameters after the inner step 0."""
    phi, state = learner.start(META)
    context = StepContext(loss, META, batch._replace(key=key), torch.tensor(0), IT)
    return learner.step(phi, state, context)[0]


def recorded(learner, **how):
    """The estimate, and all candidates in the order in which they were judged, flat."""
    seen = []

    def judge(params, batch):
        seen.append(flat(params))
        return loss(params, batch)

    gradient, _ = replace(learner, steps=0, chunk=1, **how).gradient(
        judge, judge, META, episode(0), IT
    )
    return flat(gradient), torch.stack(seen[: 2 * learner.num_perturbations])


def test_the_estimate_is_the_gradient_of_a_quadratic_within_its_standard_error():
    gradient, _ = estimate(ESMAML(steps=0, num_perturbations=PAIRS))
    exact = QUERY.x @ (flat(META) - QUERY.y)
    # A pair gives g (g . exact): its variance in a place is |exact|^2 + exact^2.
    error = ((exact @ exact + exact**2) / PAIRS).sqrt()
    assert (error < 0.02 * exact.norm()).all()
    assert ((flat(gradient) - exact).abs() < 3 * error).all()


def test_the_estimate_goes_through_the_adaptation():
    learner = ESMAML(alpha=0.3, steps=2, num_perturbations=PAIRS, num_inner_perturbations=4)
    gradient, _ = estimate(learner)

    def adapted(vector):
        phi = {"body": vector[:3], "head": vector[3:]}
        return flat(learner.adapt(loss, phi, (SUPPORT,) * 2, IT, KEY))

    # On a quadratic, adapting with given perturbations is affine: its matrix by columns.
    theta = flat(META)
    matrix = torch.stack([adapted(theta + one) - adapted(theta) for one in torch.eye(4).double()])
    exact = matrix @ QUERY.x @ (adapted(theta) - QUERY.y)
    error = ((exact @ exact + exact**2) / PAIRS).sqrt()
    assert not torch.allclose(matrix, torch.eye(4).double(), atol=0.1)
    assert ((flat(gradient) - exact).abs() < 3 * error).all()


def test_over_all_perturbations_it_is_the_gradient_of_the_smoothed_objective():
    # U(w) = w - alpha P A (w - a), P the mean of n h h': E P = I, E P B P = B + (B + tr B I) / n.
    n, alpha, tasks = 3, 0.3, 4000
    learner = ESMAML(alpha=alpha, steps=1, num_perturbations=25, num_inner_perturbations=n)
    drawn = flat(vmap(lambda key: estimate(learner, key)[0])(keys(7, "train", 0, range(tasks))))
    assert tasks * 25 >= PAIRS
    a, b, away = SUPPORT.x, QUERY.x, flat(META) - SUPPORT.y
    eye = torch.eye(4).double()
    exact = (eye - alpha * a) @ b @ (flat(META) - alpha * a @ away - QUERY.y)
    exact = exact + alpha**2 / n * a @ (b + b.trace() * eye) @ a @ away
    error = drawn.std(0) / math.sqrt(tasks)
    assert (error < 0.05 * exact.norm()).all()
    assert ((drawn.mean(0) - exact).abs() < 3 * error).all()


def test_candidates_come_in_pairs_around_the_centre_and_give_the_estimate():
    learner = ESMAML(sigma=0.2, num_perturbations=5)
    gradient, seen = recorded(learner)
    up, down = seen.chunk(2)
    torch.testing.assert_close(up + down, (2 * flat(META)).expand(5, 4))
    by_hand = torch.zeros(4).double()
    for one, other in zip(up, down, strict=True):
        losses = [0.5 * (w - QUERY.y) @ QUERY.x @ (w - QUERY.y) for w in (one, other)]
        by_hand += (losses[0] - losses[1]) * (one - flat(META)) / 0.2 / (2 * 5 * 0.2)
    torch.testing.assert_close(gradient, by_hand, rtol=1e-10, atol=1e-12)


def test_what_is_even_around_the_centre_gives_exactly_nothing():
    def even(params, batch):
        return ((flat(params) - flat(META)).abs() > 0.05).sum().double()

    gradient, _ = ESMAML(steps=0).gradient(even, even, META, episode(0), IT)
    assert flat(gradient).abs().max() == 0


@pytest.mark.parametrize("sigma", [0.01, 1.0])
def test_perturbations_are_as_large_as_sigma(sigma):
    _, seen = recorded(ESMAML(sigma=sigma, num_perturbations=2000))
    spread = (seen[:2000] - flat(META)).std()
    assert abs(spread / sigma - 1) < 5 / math.sqrt(2 * 8000)


@pytest.mark.parametrize("adaptation", ["es", "hill-climb"])
def test_it_is_a_pure_function_of_the_key(adaptation):
    learner = ESMAML(steps=2, adaptation=adaptation)
    other = keys(0, "train", 0, [4])[0]
    one, same, different = (flat(estimate(learner, key)[0]) for key in (KEY, KEY.clone(), other))
    assert torch.equal(one, same) and (one != different).all()
    one, same, different = (flat(steps_(learner, SUPPORT, k)) for k in (KEY, KEY.clone(), other))
    assert torch.equal(one, same) and (one != different).all()


def test_every_inner_step_draws_perturbations_of_its_own():
    def slope(params, batch):
        return flat(params).sum()

    path = ESMAML(steps=3).path(slope, META, (SUPPORT,) * 3, IT, KEY)
    weights = torch.stack([flat(phi) for phi in path])
    moves = weights[1:] - weights[:-1]
    assert (moves[0] != moves[1]).all() and (moves[1] != moves[2]).all()


def test_all_candidates_adapt_with_the_same_perturbations():
    # So what adaptation adds by chance cancels: where it adds the same to all, nothing is left.
    def support(params, batch):
        return flat(params) @ torch.arange(4.0).double()

    def query(params, batch):
        return flat(params).sum()

    adapts, does_not = (
        ESMAML(alpha=5.0, steps=steps).gradient(support, query, META, episode(steps), IT)[0]
        for steps in (3, 0)
    )
    torch.testing.assert_close(adapts, does_not, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rule", [Momentum(0.9), Adam()])
def test_the_inner_rule_takes_the_estimate_for_a_gradient(rule):
    plain, ruled = ESMAML(alpha=0.1), ESMAML(alpha=0.1, inner=rule)
    slope = {name: (META[name] - value) / 0.1 for name, value in steps_(plain, SUPPORT).items()}
    direction, _ = rule.direction(slope, rule.init(META), torch.tensor(0))
    expected = {name: META[name] - 0.1 * along for name, along in direction.items()}
    torch.testing.assert_close(steps_(ruled, SUPPORT), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("pairs", "least", "most"), [(1, 0, 4), (6, 0.5, 4), (600, 2.5, 4.5)])
def test_hill_climbing_takes_the_best_of_its_candidates(pairs, least, most):
    # On a linear loss a candidate gains sigma |slope| N(0, 1); the best of 1200 about 3.2 of it.
    slope = numbers(9, 4)

    def linear(params, batch):
        return flat(params) @ slope

    learner = ESMAML(adaptation="hill-climb", inner_sigma=0.2, num_inner_perturbations=pairs)
    phi, state = learner.start(META)
    batch = SUPPORT._replace(key=KEY)
    phi, _ = learner.step(phi, state, StepContext(linear, META, batch, torch.tensor(0), IT))
    gained = (flat(META) - flat(phi)) @ slope / (0.2 * slope.norm())
    assert least < gained < most


def test_hill_climbing_passes_by_what_diverges():
    def broken(params, batch):
        return torch.where(params["body"][0] > META["body"][0], torch.nan, loss(params, batch))

    learner = ESMAML(adaptation="hill-climb")
    phi, state = learner.start(META)
    batch = SUPPORT._replace(key=KEY)
    context = StepContext(broken, META, batch, torch.tensor(0), IT)
    phi, _ = learner.step(phi, state, context)
    assert broken(phi, SUPPORT) < loss(META, SUPPORT)
    context = context._replace(loss=lambda p, b: loss(p, b) * torch.nan)
    none = learner.step(META, (), context)[0]
    torch.testing.assert_close(none, META)


@pytest.mark.parametrize("adaptation", ["es", "hill-climb"])
def test_only_its_part_adapts_and_all_is_meta_learned(adaptation):
    learner = ESMAML(steps=1, adapted=("head",), adaptation=adaptation)
    phi = steps_(learner, SUPPORT)
    assert torch.equal(phi["body"], META["body"]) and not torch.equal(phi["head"], META["head"])
    gradient, _ = estimate(learner)
    assert flat(gradient).all()


def test_the_metrics_are_those_of_the_parameters_themselves():
    learner = ESMAML(steps=2)
    _, metrics = estimate(learner)
    phi = learner.adapt(loss, META, episode(2).support, IT, KEY)
    assert metrics["loss/before"] == loss(META, SUPPORT)
    assert metrics["loss/after"] == loss(phi, QUERY)


def test_without_a_key_nothing_can_be_drawn():
    with pytest.raises(ValueError, match="this one has none"):
        estimate(ESMAML(steps=0), key=None)
    with pytest.raises(ValueError, match="this one has none"):
        steps_(ESMAML(), SUPPORT, key=None)


@pytest.mark.parametrize(
    "bad",
    [
        {"alpha": 0.0},
        {"sigma": -0.1},
        {"inner_sigma": float("nan")},
        {"num_perturbations": 0},
        {"num_inner_perturbations": 0},
        {"chunk": 0},
        {"adaptation": "hill_climb"},
        {"steps": -1},
    ],
)
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=f"learner.{next(iter(bad))}="):
        ESMAML(**bad)


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match=r"'hed' matches no parameter; there are body, head"):
        ESMAML(adapted=("hed",)).init(META)
