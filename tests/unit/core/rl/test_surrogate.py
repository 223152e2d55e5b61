import math
from functools import partial
from itertools import product

import pytest
import torch
from torch.func import functionalize, grad, hessian, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from maml_dist.core.data.trajectories import PolicyTargets
from maml_dist.core.rl.distribution import Categorical, Gaussian
from maml_dist.core.rl.surrogate import clipped, dice, log_likelihood, low_variance, ratio

INNER = [log_likelihood, low_variance, dice]
GAUSSIAN, CATEGORICAL = Gaussian(), Categorical()


def normal(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def equal(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def acted(seed=0, episodes=3, horizon=4):
    mask = (torch.arange(horizon) < torch.tensor([[4], [2], [3]])).double()
    return PolicyTargets(
        action=normal(seed, episodes, horizon, 2),
        advantage=normal(seed + 1, episodes, horizon) * mask,
        mask=mask,
        old_output=normal(seed + 2, episodes, horizon, 4) / 3,
    )


def log_density(output, action):
    """Of one action, written out."""
    total = 0.0
    for d in range(2):
        mean, log_std = float(output[d]), float(output[2 + d])
        off = (float(action[d]) - mean) / math.exp(log_std)
        total -= off**2 / 2 + log_std + math.log(2 * math.pi) / 2
    return total


def written_out(term, output, data):
    """-mean of term(log pi, log before, A) over the unmasked steps."""
    terms = [
        term(
            log_density(output[e, t], data.action[e, t]),
            log_density(data.old_output[e, t], data.action[e, t]),
            float(data.advantage[e, t]),
        )
        for e, t in product(range(3), range(4))
        if data.mask[e, t]
    ]
    return torch.tensor(-sum(terms) / len(terms), dtype=torch.float64)


def test_values_are_their_definitions():
    data, output = acted(), normal(9, 3, 4, 4) / 3
    for surrogate, term in (
        (log_likelihood, lambda new, old, a: new * a),
        (low_variance, lambda new, old, a: a),
        (dice, lambda new, old, a: 0.0),
        (ratio, lambda new, old, a: math.exp(new - old) * a),
        (
            partial(clipped, eps=0.2),
            lambda new, old, a: min(
                math.exp(new - old) * a, min(max(math.exp(new - old), 0.8), 1.2) * a
            ),
        ),
    ):
        equal(surrogate(GAUSSIAN, output, data), written_out(term, output, data))


def test_first_gradients_agree():
    data, output = acted(), normal(9, 3, 4, 4) / 3
    expected = grad(lambda x: log_likelihood(GAUSSIAN, x, data))(output)
    assert (expected[data.mask > 0].abs().amax(-1) > 0).all()
    for surrogate in INNER[1:]:
        equal(grad(lambda x, of=surrogate: of(GAUSSIAN, x, data))(output), expected)
    # At the policy that acted the ratios are 1: there the outer ones have that gradient too.
    at = data.old_output
    expected = grad(lambda x: log_likelihood(GAUSSIAN, x, data))(at)
    for surrogate in (ratio, clipped):
        equal(grad(lambda x, of=surrogate: of(GAUSSIAN, x, data))(at), expected)


def test_the_ratio_is_low_variance_with_all_its_derivatives_where_it_acted():
    data = acted()

    def of(surrogate):
        return lambda output: surrogate(GAUSSIAN, output, data)

    at, along = data.old_output, normal(9, 3, 4, 4)
    equal(of(ratio)(at), of(low_variance)(at))
    equal(grad(of(ratio))(at), grad(of(low_variance))(at))
    equal(hessian(of(ratio))(at), hessian(of(low_variance))(at))
    third = [
        jvp(lambda x, s=s: jvp(grad(of(s)), (x,), (along,))[1], (at,), (along,))[1]
        for s in (ratio, low_variance)
    ]
    equal(third[0], third[1])
    # Elsewhere it is not: the likelier action counts for more.
    there = at + 0.1 * along
    weights = [
        -log_density(at[0, 0], data.action[0, 0]),
        log_density(there[0, 0], data.action[0, 0]),
    ]
    slopes = [grad(of(s))(there)[0, 0] for s in (ratio, low_variance)]
    equal(slopes[0], slopes[1] * math.exp(sum(weights)))


def test_clipped_gains_nothing_beyond_its_bounds():
    data = acted()
    output = data.old_output + 3 * normal(7, 3, 4, 4)
    ratios = (
        GAUSSIAN.log_prob(output, data.action) - GAUSSIAN.log_prob(data.old_output, data.action)
    ).exp()
    a = data.advantage
    beyond = ((a > 0) & (ratios > 1.3)) | ((a < 0) & (ratios < 0.7))
    slopes = grad(lambda x: clipped(GAUSSIAN, x, data))(output).abs().amax(-1)
    assert beyond.any() and (slopes[beyond] == 0).all()
    assert (slopes[~beyond & (data.mask > 0)] > 0).all()


@pytest.mark.parametrize("surrogate", [*INNER, ratio, clipped])
def test_what_is_masked_changes_nothing(surrogate):
    data, output = acted(), normal(9, 3, 4, 4) / 3
    other = data._replace(
        action=torch.where(data.mask.unsqueeze(-1) > 0, data.action, 5.0),
        advantage=torch.where(data.mask > 0, data.advantage, 7.0),
    )

    def loss(x, data):
        return surrogate(GAUSSIAN, x, data)

    equal(loss(output, other), loss(output, data))
    assert (grad(loss)(output, other)[data.mask == 0] == 0).all()
    equal(hessian(loss)(output, other), hessian(loss)(output, data))


# A decision process that can be enumerated: two steps, two states, three actions; the policy's
# logits are a table theta [state, action]. Step 0 is in state 0; action 0 stays there, others lead
# to state 1. Its episodes stand in a batch with their probabilities as weights.
REWARD = normal(40, 2, 2, 3)  # [time, state, action]
EPISODES = list(product(range(3), range(3)))


def states(episode):
    return 0, min(episode[0], 1)


def probability(theta, episode):
    first, second = (
        theta.softmax(-1)[state, action]
        for state, action in zip(states(episode), episode, strict=True)
    )
    return first, second


def expected_return(theta, horizon):
    total = 0.0
    for episode in EPISODES:
        first, second = probability(theta, episode)
        rewards = [REWARD[t, states(episode)[t], episode[t]] for t in range(horizon)]
        total = total + first * second * sum(rewards)
    return total


def enumerated(theta, horizon):
    """All episodes, their returns-to-go weighted so that a mean over steps is an expectation."""
    to_go = torch.tensor(
        [
            [
                sum(float(REWARD[u, states(e)[u], e[u]]) for u in range(t, horizon))
                for t in range(horizon)
            ]
            for e in EPISODES
        ],
        dtype=torch.float64,
    )
    weights = torch.stack([torch.stack(probability(theta, e)).prod() for e in EPISODES]).detach()
    mask = torch.ones(9, horizon).double()
    action = torch.tensor(EPISODES)[:, :horizon]
    where = torch.tensor([states(e) for e in EPISODES])[:, :horizon]
    return where, PolicyTargets(
        action=action,
        advantage=to_go * weights.unsqueeze(1) * mask.sum(),
        mask=mask,
        old_output=theta[where].detach(),
    )


def hessians(horizon):
    """The exact Hessian of the negative expected return, and a function for a surrogate's."""
    theta = normal(50, 2, 3)
    where, data = enumerated(theta, horizon)
    equal(
        grad(lambda x: log_likelihood(CATEGORICAL, x[where], data))(theta),
        -grad(expected_return)(theta, horizon),
    )
    exact = -hessian(expected_return)(theta, horizon)
    return exact, lambda of: hessian(lambda x: of(CATEGORICAL, x[where], data))(theta)


def test_a_bandits_curvature_is_whole_but_for_the_log_likelihoods():
    exact, of = hessians(horizon=1)
    for surrogate in (low_variance, dice, ratio):
        equal(of(surrogate), exact)
    assert (of(log_likelihood) - exact).abs().max() > 0.05


def test_over_time_dice_alone_has_the_whole_curvature():
    exact, of = hessians(horizon=2)
    equal(of(dice), exact)
    theta = normal(50, 2, 3)
    # What each lacks is the expectation of A_t times products of scores: low_variance those of
    # two times, log_likelihood those of one time as well.
    cross, own = torch.zeros(6, 6).double(), torch.zeros(6, 6).double()
    for episode in EPISODES:
        s = states(episode)
        g = [
            grad(lambda x, t=t, e=episode, s=s: x.log_softmax(-1)[s[t], e[t]])(theta).flatten()
            for t in range(2)
        ]
        p = torch.stack(probability(theta, episode)).prod()
        rewards = [REWARD[t, s[t], episode[t]] for t in range(2)]
        own -= p * (sum(rewards) * torch.outer(g[0], g[0]) + rewards[1] * torch.outer(g[1], g[1]))
        cross -= p * rewards[1] * (torch.outer(g[0], g[1]) + torch.outer(g[1], g[0]))
    assert cross.abs().max() > 0.02 and own.abs().max() > 0.02
    equal(of(low_variance).reshape(6, 6), exact.reshape(6, 6) - cross)
    equal(of(log_likelihood).reshape(6, 6), exact.reshape(6, 6) - cross - own)


@pytest.mark.parametrize("surrogate", [*INNER, ratio, clipped])
def test_forward_mode_is_reverse_mode(surrogate):
    data, output, along = acted(), normal(9, 3, 4, 4) / 3, normal(10, 3, 4, 4)

    def loss(x):
        return surrogate(GAUSSIAN, x, data)

    slope = jvp(loss, (output,), (along,))[1]
    equal(slope, (grad(loss)(output) * along).sum())
    product_of = jvp(grad(loss), (output,), (along,))[1]
    equal(product_of, grad(lambda x: (grad(loss)(x) * along).sum())(output))


@pytest.mark.parametrize("surrogate", [*INNER, ratio, clipped])
def test_vmapped_and_traced_it_is_the_same(surrogate):
    def gradient(output, data):
        return grad(lambda x: surrogate(GAUSSIAN, x, data))(output)

    tasks = [acted(seed) for seed in (0, 20)]
    stacked = PolicyTargets(*(torch.stack(parts) for parts in zip(*tasks, strict=True)))
    outputs = normal(9, 2, 3, 4, 4) / 3
    expected = torch.stack([gradient(*task) for task in zip(outputs, tasks, strict=True)])
    equal(vmap(gradient)(outputs, stacked), expected)
    others = PolicyTargets(*(part.flip(0) for part in stacked))
    traced = make_fx(functionalize(vmap(gradient)))(outputs.flip(0), others)
    equal(traced(outputs, stacked), expected)
