import pytest
import torch
from torch import nn
from torch.func import functionalize, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from maml_dist.config.recipe import read_recipe
from maml_dist.core.adaptation.inner_optimizers import Momentum
from maml_dist.core.adaptation.learner import StepContext
from maml_dist.core.data.episode import Batch, supervised
from maml_dist.learners.maml import MAML
from maml_dist.learners.maml_plus_plus import MAMLPlusPlus
from maml_dist.models.conv4 import Conv4

STEPS = 3
PARTS = {
    "none": {},
    "multi-step": {"multi_step_iterations": 10},
    "rates": {"learned_rates": True},
    "first order": {"first_order_iterations": 5},
    "norms": {"per_step": ("norm.*",)},
    "all": {
        "multi_step_iterations": 10,
        "learned_rates": True,
        "first_order_iterations": 5,
        "per_step": ("norm.*",),
    },
}


def loss(params, batch):
    hidden = torch.tanh(batch.x @ params["body"]) * params["norm.scale"] + params["norm.shift"]
    return ((hidden.sin() @ params["head"] - batch.y) ** 2).mean()


def normal(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def params():
    shapes = {"body": (2, 4), "norm.scale": (4,), "norm.shift": (4,), "head": (4, 1)}
    return {name: normal(seed, *shape) for seed, (name, shape) in enumerate(shapes.items())}


def batches(task=0):
    return [Batch(normal(10 * task + n, 5, 2), normal(10 * task + n + 5, 5, 1)) for n in (20, 21)]


def meta_of(learner):
    """Meta-parameters whose rows differ: as they are after some meta-learning."""
    meta = learner.init(params())
    return {
        name: value + 0.01 * normal(50 + seed, *value.shape)
        for seed, (name, value) in enumerate(meta.items())
    }


def learner_of(part, **more):
    return MAMLPlusPlus(**{"alpha": 0.1, "steps": STEPS, **PARTS[part], **more})


def tensor(it):
    return torch.tensor(float(it))


def path_by_hand(leaves, support, steps, rows, *, first_order=False, momentum=0.0):
    """The model's parameters after 0 … `steps` steps, from meta-parameters that need gradients."""
    phi = {name: leaves[name] for name in params() if name in leaves}
    velocity = dict.fromkeys(phi, 0.0)

    def model(k):
        norms = {n[5:]: v[min(k, rows)] for n, v in leaves.items() if n.startswith("step.")}
        return {**phi, **norms}

    yield model(0)
    for k in range(steps):
        gradient = torch.autograd.grad(loss(model(k), support), phi.values(), create_graph=True)
        for name, g in zip(list(phi), gradient, strict=True):
            velocity[name] = momentum * velocity[name] + (g.detach() if first_order else g)
            learned = leaves.get(f"alpha.{name}")
            alpha = 0.1 if learned is None else learned[min(k, rows - 1)]
            phi[name] = phi[name] - alpha * velocity[name]
        yield model(k + 1)


def gradient_by_hand(meta, support, query, shares, **how):
    leaves = {name: value.clone().requires_grad_() for name, value in meta.items()}
    path = path_by_hand(leaves, support, STEPS, STEPS, **how)
    total = sum(share * loss(model, query) for share, model in zip(shares, path, strict=True))
    gradient = torch.autograd.grad(total, leaves.values(), allow_unused=True)
    return {
        name: torch.zeros_like(meta[name]) if g is None else g
        for name, g in zip(meta, gradient, strict=True)
    }


def shares_by_hand(part, it):
    if "multi_step_iterations" not in PARTS[part]:
        return [0, 0, 0, 1]
    return {0: [0, 1 / 3, 1 / 3, 1 / 3], 6: [0, 2 / 15, 2 / 15, 11 / 15], 10: [0, 0, 0, 1]}[it]


def close(actual, expected):
    assert list(actual) == list(expected)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("it", [0, 6, 10])
@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_its_hand_written_loop(part, it, momentum):
    learner = learner_of(part, inner=Momentum(momentum))
    meta, (support, query) = meta_of(learner), batches()
    episode = supervised(support, query, steps=STEPS)
    gradient, _ = learner.gradient(loss, loss, meta, episode, tensor(it))
    first_order = "first_order_iterations" in PARTS[part] and it < 5
    shares = shares_by_hand(part, it)
    how = {"first_order": first_order, "momentum": momentum}
    close(gradient, gradient_by_hand(meta, support, query, shares, **how))


def test_with_all_parts_off_it_is_maml():
    support, query = batches()
    episode = supervised(support, query, steps=STEPS)
    ours, theirs = (
        learner.gradient(loss, loss, params(), episode, tensor(0))[0]
        for learner in (learner_of("none"), MAML(alpha=0.1, steps=STEPS))
    )
    close(ours, theirs)


def test_before_meta_learning_rates_and_norms_change_nothing():
    support, _ = batches()
    learner = learner_of("all", adapted=("body", "head"))
    adapted = learner.adapt(loss, learner.init(params()), (support,) * STEPS, tensor(0))
    maml = MAML(alpha=0.1, steps=STEPS, adapted=("body", "head"))
    expected = maml.adapt(loss, params(), (support,) * STEPS, tensor(0))
    close({name: adapted[name] for name in expected}, expected)


@pytest.mark.parametrize(
    ("it", "shares"),
    [
        (0, [0, 0.2, 0.2, 0.2, 0.2, 0.2]),
        (50, [0, 0.1, 0.1, 0.1, 0.1, 0.6]),
        (100, [0, 0, 0, 0, 0, 1]),
        (1000, [0, 0, 0, 0, 0, 1]),
    ],
)
def test_the_loss_moves_from_all_steps_to_the_last(it, shares):
    judged = MAMLPlusPlus(steps=5, multi_step_iterations=100).step_loss_weights(tensor(it))
    expected = torch.tensor(shares, dtype=torch.float64)
    torch.testing.assert_close(judged, expected, rtol=1e-10, atol=1e-15)
    assert judged[0] == 0 and MAMLPlusPlus(steps=5).step_loss_weights(tensor(it)) is None


def test_first_order_before_and_second_order_after():
    learner = learner_of("first order")
    support, query = batches()
    episode = supervised(support, query, steps=STEPS)
    for it, first_order in ((4, True), (5, False)):
        gradient, _ = learner.gradient(loss, loss, params(), episode, tensor(it))
        maml = MAML(alpha=0.1, steps=STEPS, first_order=first_order)
        close(gradient, maml.gradient(loss, loss, params(), episode, tensor(it))[0])


def test_what_has_a_value_for_each_step_is_only_there_in_rows():
    meta = learner_of("all", adapted=("body",)).init(params())
    shapes = {name: tuple(value.shape) for name, value in meta.items()}
    assert shapes == {
        "body": (2, 4),
        "head": (4, 1),
        "step.norm.scale": (STEPS + 1, 4),
        "step.norm.shift": (STEPS + 1, 4),
        "alpha.body": (STEPS,),
    }
    assert torch.equal(meta["step.norm.scale"][2], params()["norm.scale"])


def test_more_steps_at_test_than_rows():
    learner = learner_of("all")
    meta, (support, _) = meta_of(learner), batches()
    leaves = {name: value.clone().requires_grad_() for name, value in meta.items()}
    *_, expected = path_by_hand(leaves, support, 7, STEPS)
    close(learner.adapt(loss, meta, (support,) * 7, tensor(99)), expected)


@pytest.mark.parametrize("part", ["none", "all"])
def test_one_trace_over_all_tasks_serves_all_iterations(part):
    learner = learner_of(part)
    meta, names = meta_of(learner), list(meta_of(learner))

    def one(it, values, *data):
        support, query = Batch(*data[:2]), Batch(*data[2:])
        episode = supervised(support, query, steps=STEPS)
        meta = dict(zip(names, values, strict=True))
        return learner.gradient(loss, loss, meta, episode, it)[0]

    def stacked(*numbers):
        tasks = [[tensor for batch in batches(n) for tensor in batch[:2]] for n in numbers]
        return [torch.stack(tensors) for tensors in zip(*tasks, strict=True)]

    many = vmap(one, in_dims=(None, None, 0, 0, 0, 0))
    other = [2 * value for value in meta.values()]
    traced = make_fx(functionalize(many))(tensor(0), other, *stacked(8, 9))
    for it in (0, 6, 10):
        gradients = traced(tensor(it), list(meta.values()), *stacked(1, 2))
        for row, task in enumerate((1, 2)):
            episode = supervised(*batches(task), steps=STEPS)
            eager, _ = learner.gradient(loss, loss, meta, episode, tensor(it))
            close({name: value[row] for name, value in gradients.items()}, eager)


def test_one_trace_of_a_step_serves_all_steps():
    learner = learner_of("all")
    meta, (support, _) = meta_of(learner), batches()

    def step(phi, k):
        return learner.step(phi, (), StepContext(loss, meta, support, k, tensor(9)))[0]

    traced = make_fx(functionalize(step))(learner.start(meta)[0], torch.tensor(0))
    path = learner.path(loss, meta, (support,) * 6, tensor(9))
    phi = next(path)
    for k, expected in enumerate(path):
        phi = traced(phi, torch.tensor(k))
        close(phi, expected)


def test_the_recipe_names_every_norm_of_its_model():
    recipe = read_recipe("omniglot-5way-1shot-maml-plus-plus")
    model = Conv4(**recipe["model"]["init_args"])
    learner = MAMLPlusPlus(**recipe["learner"]["init_args"])
    meta = learner.init({name: p.detach() for name, p in model.named_parameters()})
    norms = [name for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)]
    stepped = {name for name in meta if name.startswith("step.")}
    assert stepped == {f"step.{norm}.{kind}" for norm in norms for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("field", "patterns", "said"),
    [
        ("per_step", ("nrom.*",), r"per_step='nrom\.\*' matches no parameter; there are body"),
        ("adapted", ("hed",), "adapted='hed' matches no parameter; there are body, head"),
        ("adapted", ("norm.*",), r"adapted='norm\.\*' matches no parameter; there are body, head"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(field, patterns, said):
    with pytest.raises(ValueError, match=said):
        learner_of("norms", **{field: patterns}).init(params())


@pytest.mark.parametrize(("part", "name"), [("rates", "alpha.w"), ("norms", "step.w")])
def test_a_name_that_is_taken_is_refused(part, name):
    model = {**params(), name: torch.zeros(1)}
    with pytest.raises(ValueError, match=f"model.{name}: "):
        learner_of(part).init(model)
    assert name in learner_of("none").start(learner_of("none").init(model))[0]


@pytest.mark.parametrize(
    "bad",
    [
        {"alpha": 0.0},
        {"steps": 0},
        {"steps": -1},
        {"multi_step_iterations": -1},
        {"first_order_iterations": -1},
    ],
)
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=f"learner.{next(iter(bad))}="):
        MAMLPlusPlus(**bad)
