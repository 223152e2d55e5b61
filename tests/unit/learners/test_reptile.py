import pytest
import torch
from torch import nn
from torch.func import functionalize, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from maml_dist.core.adaptation import inner_optimizers
from maml_dist.core.adaptation.inner_optimizers import Adam, Momentum
from maml_dist.core.adaptation.learner import StepContext
from maml_dist.core.data.episode import Batch, keyed, supervised
from maml_dist.core.engine.engine import Engine
from maml_dist.core.engine.meta_gradient import MetaGradient
from maml_dist.core.model.objective import Objective
from maml_dist.core.outer.optimizers import SGD
from maml_dist.core.params import flatten, layout
from maml_dist.core.random import keys
from maml_dist.learners.reptile import Reptile
from maml_dist.tasks.sinusoid import Sinusoid

STEPS, ALPHA = 5, 0.05
RULES = {
    "descent": (inner_optimizers.SGD(), lambda leaves: torch.optim.SGD(leaves, ALPHA)),
    "momentum": (Momentum(), lambda leaves: torch.optim.SGD(leaves, ALPHA, momentum=0.9)),
    "adam": (
        Adam(decays=(0.0, 0.999), floor=1e-30),
        lambda leaves: torch.optim.Adam(leaves, ALPHA, betas=(0.0, 0.999)),
    ),
}
IT = torch.tensor(0.0)
KEY, *OTHER_KEYS = keys(0, "train", 0, range(4))


def loss(params, batch):
    return ((torch.tanh(batch.x @ params["body"]).sin() @ params["head"] - batch.y) ** 2).mean()


def normal(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def params():
    return {"body": normal(0, 2, 4), "head": normal(1, 4, 1)}


def batch(seed, n):
    return Batch(normal(seed, n, 2), normal(seed + 1, n, 1))


def numbered(first, n):
    """Examples that can be told apart: x is the number of each, y ten times it."""
    x = torch.arange(first, first + n, dtype=torch.float64).unsqueeze(1)
    return Batch(x, 10 * x)


def seen(learner, support, *, key, steps, query=None):
    """The numbers of the examples that each inner step learns from."""
    batches = []

    def record(params, batch):
        assert torch.equal(batch.y, 10 * batch.x)
        batches.append(batch.x.flatten().tolist())
        return (params["w"] * batch.x).sum()

    meta = {"w": torch.ones((), dtype=torch.float64)}
    if query is None:
        learner.adapt(record, meta, (support,) * steps, IT, key)
        return batches
    episode = supervised(support, query, steps=steps)._replace(key=key)
    learner.gradient(record, lambda params, batch: params["w"], meta, episode, IT)
    return batches[:steps]  # after them, the loss at the start


def optimised(optimiser, batches):
    leaves = {name: value.clone().requires_grad_() for name, value in params().items()}
    rule = optimiser(list(leaves.values()))
    for batch in batches:
        rule.zero_grad()
        loss(leaves, batch).backward()
        rule.step()
    return {name: leaf.detach() for name, leaf in leaves.items()}


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_the_gradient_leads_to_where_torchs_optimiser_ends(rule):
    inner, optimiser = RULES[rule]
    support, query = batch(10, 6), batch(20, 7)
    learner = Reptile(steps=STEPS, alpha=ALPHA, inner=inner)
    episode = supervised(support, query, steps=STEPS)
    gradient, metrics = learner.gradient(loss, loss, params(), episode, IT)
    phi = optimised(optimiser, [support] * STEPS)
    close(gradient, {name: value - phi[name] for name, value in params().items()})
    close(metrics["loss/before"], loss(params(), support))
    close(metrics["loss/after"], loss(phi, query))


@pytest.mark.parametrize("rule", RULES)
def test_on_mini_batches_too(rule):
    inner, optimiser = RULES[rule]
    support, query = batch(10, 6), batch(20, 7)
    learner = Reptile(steps=STEPS, alpha=ALPHA, inner=inner, minibatch=2)
    episode = supervised(support, query, steps=STEPS)._replace(key=KEY)
    gradient, _ = learner.gradient(loss, loss, params(), episode, IT)
    rows = [[int(x) for x in some] for some in seen(learner, numbered(0, 6), key=KEY, steps=STEPS)]
    phi = optimised(optimiser, [Batch(support.x[some], support.y[some]) for some in rows])
    close(gradient, {name: value - phi[name] for name, value in params().items()})


def test_outer_descent_with_rate_one_goes_all_the_way():
    support, query = batch(10, 6), batch(20, 7)
    learner = Reptile(steps=STEPS, alpha=ALPHA)
    episode = supervised(support, query, steps=STEPS)
    gradient, _ = learner.gradient(loss, loss, params(), episode, IT)
    outer, meta = SGD(beta=1.0), flatten(params())
    updated, _ = outer.update(meta, flatten(gradient), outer.init(meta))
    close(updated, flatten(learner.adapt(loss, params(), episode.support, IT)))


def test_a_pass_takes_no_example_twice_and_the_next_has_another_order():
    batches = seen(Reptile(minibatch=2), numbered(0, 8), key=KEY, steps=12)
    assert {len(some) for some in batches} == {2}
    passes = [sum(batches[start : start + 4], []) for start in (0, 4, 8)]
    assert all(sorted(order) == [*range(8)] for order in passes)
    assert len({tuple(order) for order in passes}) == 3


def test_what_does_not_fill_a_mini_batch_is_left_to_other_passes():
    batches = seen(Reptile(minibatch=3), numbered(0, 7), key=KEY, steps=20)
    passes = [{*first, *second} for first, second in zip(batches[::2], batches[1::2], strict=True)]
    assert {len(numbers) for numbers in passes} == {6}
    assert set.union(*passes) == {*range(7)}


def test_mini_batches_are_a_pure_function_of_the_key():
    learner, support = Reptile(minibatch=2), numbered(0, 8)
    once, again = (seen(learner, support, key=KEY, steps=6) for _ in range(2))
    assert once == again == seen(learner, support, key=KEY, steps=9)[:6]
    others = [seen(learner, support, key=key, steps=6) for key in OTHER_KEYS]
    assert all(other != once for other in others)


@pytest.mark.parametrize("minibatch", [None, 8, 10])
def test_with_few_examples_every_step_sees_all_of_them(minibatch):
    batches = seen(Reptile(minibatch=minibatch), numbered(0, 8), key=None, steps=3)
    assert batches == [[*range(8)]] * 3


def test_pooled_it_learns_from_all_examples_while_meta_training_alone():
    learner = Reptile(minibatch=5, pooled=True)
    support, query = numbered(0, 5), numbered(5, 10)
    first, second, third, fourth = seen(learner, support, query=query, key=KEY, steps=4)
    assert sorted(first + second + third) == [*range(15)] and len(fourth) == 5
    assert seen(learner, support, key=KEY, steps=2) == [[*range(5)]] * 2


@pytest.mark.parametrize(
    ("running", "pooled"),
    [
        ("eager", False),
        ("eager", True),
        ("traced", True),
        pytest.param("traced", False, marks=pytest.mark.slow),
    ],
)
def test_running_statistics_are_of_queries_that_were_not_learned_from(running, pooled):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)).double()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    held = {f"1.running_{kind}": normal(7, 4) ** 2 for kind in ("mean", "var")}
    tasks = [(batch(seed, 6), batch(seed + 2, 7)) for seed in (10, 20)]
    expected = 0.0
    for support, query in tasks:
        joined = [torch.cat(pair) for pair in zip(support[:2], query[:2], strict=True)]
        by_torch(model, joined if pooled else support[:2], start, held)
        moved = [(start[name] - p).flatten() for name, p in model.named_parameters()]
        by_torch(model, support[:2], start, held)
        model(query.x)
        new = model[1].running_mean, model[1].running_var
        expected = expected + torch.cat([*moved, *new]).detach()
    supports, queries = (
        Batch(*(torch.stack([each[place] for each in side]) for place in (0, 1)))
        for side in zip(*tasks, strict=True)
    )
    learner = Reptile(steps=STEPS, alpha=ALPHA, pooled=pooled)
    meta, objective = {**start, **held}, Objective(model, Sinusoid())
    gradient = MetaGradient(Engine("vmap", running=running), learner, objective, into=layout(meta))
    episodes = supervised(supports, queries, steps=STEPS)
    close(gradient(flatten(meta), episodes, IT).gradient, expected)


def by_torch(model, examples, start, held):
    """Descend from `start` and `held` with torch's optimiser; the statistics stay held."""
    model.load_state_dict({**start, **held}, strict=False)
    rule = torch.optim.SGD(model.parameters(), ALPHA)
    x, y = examples
    for _ in range(STEPS):
        rule.zero_grad()
        ((model(x) - y) ** 2).mean().backward()
        rule.step()
    model.load_state_dict(held, strict=False)


def test_without_a_key_nothing_is_drawn():
    with pytest.raises(ValueError, match="learner.minibatch=2: the batch has no key"):
        seen(Reptile(minibatch=2), numbered(0, 8), key=None, steps=1)


@pytest.mark.parametrize(("rule", "pooled"), [("momentum", False), ("adam", True)])
def test_one_trace_over_all_tasks_is_each_task_alone(rule, pooled):
    size, steps = (6, 3) if pooled else (3, 3)  # more than one pass
    learner = Reptile(steps=steps, alpha=ALPHA, inner=RULES[rule][0], minibatch=size, pooled=pooled)

    def one(meta, key, *data):
        episode = supervised(Batch(*data[:2]), Batch(*data[2:]), steps=steps)._replace(key=key)
        return learner.gradient(loss, loss, meta, episode, IT)

    def stacked(*seeds):
        tasks = [[*batch(seed, 6)[:2], *batch(seed + 2, 7)[:2]] for seed in seeds]
        return [torch.stack(tensors) for tensors in zip(*tasks, strict=True)]

    many = vmap(one, in_dims=(None, 0, 0, 0, 0, 0))
    drawn = torch.stack([KEY, OTHER_KEYS[0]])
    other = {name: 2 * value for name, value in params().items()}
    traced = make_fx(functionalize(many))(other, drawn + 1, *stacked(80, 90))
    gradients, metrics = traced(params(), drawn, *stacked(30, 40))
    for row, data in enumerate(zip(*stacked(30, 40), strict=True)):
        eager, scalars = one(params(), drawn[row], *data)
        close({name: value[row] for name, value in gradients.items()}, eager)
        close({name: value[row] for name, value in metrics.items()}, scalars)


def test_one_trace_of_a_step_serves_all_steps_in_float32():
    learner = Reptile(alpha=ALPHA, minibatch=2)
    meta = {name: value.float() for name, value in params().items()}
    support = Batch(*(tensor.float() for tensor in batch(10, 6)[:2]))

    def step(phi, state, key, k):
        batch = support._replace(key=key)
        return learner.step(phi, state, StepContext(loss, meta, batch, k, IT))

    phi, state = learner.start(meta)
    traced = make_fx(functionalize(step))(phi, state, KEY.clone(), torch.tensor(0))
    *_, expected = learner.path(loss, meta, (support,) * 8, IT, KEY)
    for k in range(8):
        key = keyed(support, KEY, torch.tensor(k)).key
        phi, state = traced(phi, state, key, torch.tensor(k))
    torch.testing.assert_close(phi, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [{"alpha": 0.0}, {"steps": 0}, {"minibatch": 0}])
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=f"learner.{next(iter(bad))}="):
        Reptile(**bad)
