import pytest
import torch
from torch.func import functionalize, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from maml_dist.core.adaptation.inner_optimizers import Adam, Momentum
from maml_dist.core.adaptation.learner import StepContext
from maml_dist.core.data.episode import Batch, supervised
from maml_dist.learners.maml import MAML
from maml_dist.learners.meta_sgd import MetaSGD

STEPS = 3
IT = torch.tensor(0.0)
EACH = ("weight", "layer", "layer-step")
SHAPES = {
    "weight": {"alpha.body": (2, 4), "alpha.head": (4, 1)},
    "layer": {"alpha.body": (), "alpha.head": ()},
    "layer-step": {"alpha.body": (STEPS,), "alpha.head": (STEPS,)},
}


def loss(params, batch):
    return ((torch.tanh(batch.x @ params["body"]).sin() @ params["head"] - batch.y) ** 2).mean()


def normal(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def params():
    return {"body": normal(0, 2, 4), "head": normal(1, 4, 1)}


def batch(seed, n):
    return Batch(normal(seed, n, 2), normal(seed + 1, n, 1))


def episode():
    return supervised(batch(10, 5), batch(20, 6), steps=STEPS)


def path_by_hand(leaves, support, steps, *, each, first_order=False, momentum=0.0):
    """phi after `steps` steps, from meta-parameters that need gradients."""
    phi = {name: leaves[name] for name in params()}
    velocity = dict.fromkeys(phi, 0.0)
    for k in range(steps):
        gradient = torch.autograd.grad(loss(phi, support), phi.values(), create_graph=True)
        for name, g in zip(list(phi), gradient, strict=True):
            alpha = leaves.get(f"alpha.{name}")
            if alpha is None:
                continue
            velocity[name] = momentum * velocity[name] + (g.detach() if first_order else g)
            rate = alpha[min(k, STEPS - 1)] if each == "layer-step" else alpha
            phi[name] = phi[name] - rate * velocity[name]
    return phi


def gradient_by_hand(meta, **how):
    leaves = {name: value.clone().requires_grad_() for name, value in meta.items()}
    phi = path_by_hand(leaves, episode().support[0], STEPS, **how)
    gradient = torch.autograd.grad(loss(phi, episode().query), leaves.values())
    return dict(zip(leaves, gradient, strict=True))


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("each", EACH)
def test_the_meta_gradient_is_that_of_a_hand_written_loop(each, momentum, first_order):
    learner = MetaSGD(steps=STEPS, each=each, inner=Momentum(momentum), first_order=first_order)
    meta = learner.init(params())
    gradient, _ = learner.gradient(loss, loss, meta, episode(), IT)
    assert list(gradient) == list(meta)
    close(gradient, gradient_by_hand(meta, each=each, momentum=momentum, first_order=first_order))


@pytest.mark.parametrize("inner", [Momentum(0.5, nesterov=True), Adam()])
@pytest.mark.parametrize("each", EACH)
def test_the_gradient_of_every_rate_is_that_of_finite_differences(each, inner):
    learner = MetaSGD(steps=STEPS, each=each, inner=inner)
    meta, (support, query) = learner.init(params()), (episode().support, episode().query)
    gradient, _ = learner.gradient(loss, loss, meta, episode(), IT)

    def after(name, place, change):
        moved = meta[name].clone()
        moved.view(-1)[place] += change
        return loss(learner.adapt(loss, {**meta, name: moved}, support, IT), query)

    small = 1e-5
    for name, shape in SHAPES[each].items():
        slopes = [
            (after(name, place, small) - after(name, place, -small)) / (2 * small)
            for place in range(meta[name].numel())
        ]
        expected = torch.stack(slopes).reshape(shape)
        torch.testing.assert_close(gradient[name], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("each", EACH)
def test_with_equal_rates_it_adapts_as_maml_does(each):
    learner, maml = MetaSGD(alpha=0.1, each=each), MAML(alpha=0.1)
    support = (batch(10, 5),) * STEPS
    adapted = learner.adapt(loss, learner.init(params()), support, IT)
    close(adapted, maml.adapt(loss, params(), support, IT))


@pytest.mark.parametrize("each", EACH)
def test_each_weight_layer_or_step_has_a_rate_between_the_bounds(each):
    learner = MetaSGD(steps=STEPS, alpha=(0.02, 0.03), each=each)
    meta = learner.init(params())
    rates = {name: value for name, value in meta.items() if name.startswith("alpha.")}
    assert {name: tuple(value.shape) for name, value in rates.items()} == SHAPES[each]
    drawn = torch.cat([value.flatten() for value in rates.values()])
    assert drawn.dtype == torch.float64
    assert drawn.min() > 0.02 and drawn.max() < 0.03 and len(drawn.unique()) == len(drawn)
    assert {name: meta[name] for name in params()}.keys() == learner.start(meta)[0].keys()


def test_the_rates_at_the_start_are_a_pure_function_of_the_seed():
    one, same, other = (MetaSGD(seed=seed).init(params())["alpha.body"] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_drawn_rates_are_uniform():
    low, high = 0.005, 0.1
    drawn = MetaSGD(alpha=(low, high)).init({"w": torch.zeros(100_000)})["alpha.w"]
    shares = torch.histc(drawn, 10, low, high) / len(drawn)
    torch.testing.assert_close(shares, torch.full((10,), 0.1), rtol=0, atol=0.004)  # 4 deviations


def test_more_steps_at_test_go_on_with_the_last_rates():
    learner = MetaSGD(steps=STEPS, each="layer-step")
    meta, support = learner.init(params()), batch(10, 5)
    leaves = {name: value.clone().requires_grad_() for name, value in meta.items()}
    expected = path_by_hand(leaves, support, 7, each="layer-step")
    close(learner.adapt(loss, meta, (support,) * 7, IT), expected)


@pytest.mark.parametrize("each", EACH)
def test_what_does_not_adapt_has_no_rate_and_is_meta_learned(each):
    learner = MetaSGD(steps=STEPS, each=each, adapted=("head",))
    meta = learner.init(params())
    assert list(meta) == ["body", "head", "alpha.head"]
    assert torch.equal(learner.adapt(loss, meta, episode().support, IT)["body"], meta["body"])
    gradient, _ = learner.gradient(loss, loss, meta, episode(), IT)
    close(gradient, gradient_by_hand(meta, each=each))


@pytest.mark.parametrize(
    ("each", "inner"),
    [
        ("weight", Momentum()),
        ("layer", Adam(eps=1e-3)),
        ("layer-step", Momentum()),
        pytest.param("weight", Adam(eps=1e-3), marks=pytest.mark.slow),
        pytest.param("layer", Momentum(), marks=pytest.mark.slow),
        pytest.param("layer-step", Adam(eps=1e-3), marks=pytest.mark.slow),
    ],
)
def test_one_trace_over_all_tasks_is_each_task_alone(each, inner):
    learner = MetaSGD(steps=STEPS, each=each, inner=inner)
    meta = learner.init(params())

    def one(meta, *data):
        both = supervised(Batch(*data[:2]), Batch(*data[2:]), steps=STEPS)
        return learner.gradient(loss, loss, meta, both, IT)[0]

    def stacked(*seeds):
        tasks = [[*batch(seed, 5)[:2], *batch(seed + 2, 6)[:2]] for seed in seeds]
        return [torch.stack(tensors) for tensors in zip(*tasks, strict=True)]

    many = vmap(one, in_dims=(None, 0, 0, 0, 0))
    other = {name: 2 * value for name, value in meta.items()}
    traced = make_fx(functionalize(many))(other, *stacked(80, 90))
    gradients = traced(meta, *stacked(30, 40))
    for row, data in enumerate(zip(*stacked(30, 40), strict=True)):
        close({name: value[row] for name, value in gradients.items()}, one(meta, *data))


def test_one_trace_of_a_step_serves_all_steps():
    learner = MetaSGD(steps=STEPS, each="layer-step")
    meta, support = learner.init(params()), batch(10, 5)

    def step(phi, k):
        return learner.step(phi, (), StepContext(loss, meta, support, k, IT))[0]

    traced = make_fx(functionalize(step))(learner.start(meta)[0], torch.tensor(0))
    path = learner.path(loss, meta, (support,) * 6, IT)
    phi = next(path)
    for k, expected in enumerate(path):
        phi = traced(phi, torch.tensor(k))
        close(phi, expected)


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match=r"model\.alpha\.w: "):
        MetaSGD().init({**params(), "alpha.w": torch.zeros(1)})


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match=r"adapted='hed' matches no parameter; there are body"):
        MetaSGD(adapted=("hed",)).init(params())


@pytest.mark.parametrize(
    "bad",
    [
        {"alpha": 0.0},
        {"alpha": float("nan")},
        {"alpha": (0.1, 0.01)},
        {"alpha": (0.0, 0.1)},
        {"each": "filter"},
        {"seed": -1},
        {"steps": 0},
    ],
)
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=f"learner.{next(iter(bad))}="):
        MetaSGD(**bad)
