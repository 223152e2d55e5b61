import pytest
import torch

from maml_dist.core.adaptation.inner_optimizers import SGD, Adam, Momentum
from maml_dist.core.data.episode import Batch, supervised
from maml_dist.learners.maml import MAML

IT = torch.tensor(0.0)
RULES = {
    "descent": SGD(),
    "momentum": Momentum(0.8),
    "nesterov": Momentum(0.8, nesterov=True),
    "adam": Adam(decays=(0.7, 0.9), eps=1e-3, floor=1e-30),
}


def loss(params, batch):
    """Quadratic, so that everything has a closed form: half of |w - x|^2 + |b - y|^2."""
    return 0.5 * ((params["w"] - batch.x) ** 2).sum() + 0.5 * ((params["b"] - batch.y) ** 2).sum()


def setting():
    meta = {"w": torch.tensor([1.0, -2.0]).double(), "b": torch.tensor([3.0]).double()}
    support = Batch(torch.tensor([0.5, 0.0]).double(), torch.tensor([1.0]).double())
    query = Batch(torch.tensor([2.0, 1.0]).double(), torch.tensor([-1.0]).double())
    return meta, support, query


def test_adaptation_has_its_closed_form():
    meta, support, query = setting()
    learner = MAML(alpha=0.1, steps=4)
    phi = learner.adapt(loss, meta, (support,) * 4, IT)
    torch.testing.assert_close(phi["w"], support.x + 0.9**4 * (meta["w"] - support.x))


@pytest.mark.parametrize(("first_order", "factor"), [(False, 0.9**4), (True, 1.0)])
def test_the_meta_gradient_has_its_closed_form(first_order, factor):
    meta, support, query = setting()
    learner = MAML(alpha=0.1, steps=4, first_order=first_order)
    episode = supervised(support, query, steps=4)
    gradient, metrics = learner.gradient(loss, loss, meta, episode, IT)
    phi = support.x + 0.9**4 * (meta["w"] - support.x)
    torch.testing.assert_close(gradient["w"], factor * (phi - query.x))
    torch.testing.assert_close(metrics["loss/before"], loss(meta, support))


def test_anil_adapts_its_part_alone_and_meta_learns_all():
    meta, support, query = setting()
    learner = MAML(alpha=0.1, steps=2, adapted=("b",))
    episode = supervised(support, query, steps=2)
    phi = learner.adapt(loss, meta, episode.support, IT)
    assert torch.equal(phi["w"], meta["w"])
    torch.testing.assert_close(phi["b"], support.y + 0.9**2 * (meta["b"] - support.y))
    gradient, _ = learner.gradient(loss, loss, meta, episode, IT)
    torch.testing.assert_close(gradient["w"], meta["w"] - query.x)
    torch.testing.assert_close(gradient["b"], 0.9**2 * (phi["b"] - query.y))


def test_without_steps_it_is_joint_training():
    meta, support, query = setting()
    episode = supervised(support, query, steps=0)
    gradient, metrics = MAML(steps=0).gradient(loss, loss, meta, episode, IT)
    torch.testing.assert_close(gradient["w"], meta["w"] - query.x)
    assert metrics["loss/before"] == metrics["loss/after"] == loss(meta, query)


def test_another_number_of_steps_at_test():
    meta, support, _ = setting()
    path = list(MAML(alpha=0.1, steps=1).path(loss, meta, (support,) * 7, IT))
    assert len(path) == 8
    torch.testing.assert_close(path[7]["w"], support.x + 0.9**7 * (meta["w"] - support.x))


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_later_steps_have_their_share_of_alpha(alpha):
    meta, support, _ = setting()
    path = list(MAML(alpha=alpha, later_share=0.5).path(loss, meta, (support,) * 3, IT))
    for k, rate in enumerate([alpha, alpha / 2, alpha / 2]):
        step = path[k]["w"] - rate * (path[k]["w"] - support.x)
        torch.testing.assert_close(path[k + 1]["w"], step, rtol=1e-12, atol=0)


BAD = [{"alpha": -1}, {"alpha": float("nan")}, {"steps": -1}, {"later_share": 0}]


@pytest.mark.parametrize("bad", BAD)
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=f"learner.{next(iter(bad))}="):
        MAML(**bad)


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match=r"'hed\.\*' matches no parameter; there are w, b"):
        MAML(adapted=("hed.*",)).init(setting()[0])


def curved(params, batch):
    """A loss whose every derivative matters, of a small network."""
    hidden = torch.tanh(batch.x @ params["body"]).sin()
    return ((hidden @ params["head"] + params["bias"] - batch.y) ** 2).mean()


def curved_setting():
    torch.manual_seed(0)
    shapes = {"body": (2, 4), "head": (4, 1), "bias": ()}
    meta = {name: torch.randn(shape).double() for name, shape in shapes.items()}
    return meta, *(Batch(torch.randn(n, 2).double(), torch.randn(n, 1).double()) for n in (5, 6))


def directions_by_hand(rule):
    """For one parameter: a function of its gradient of each step in turn."""
    first, second, k = 0.0, 0.0, 0

    def direction(g):
        nonlocal first, second, k
        k += 1
        if rule == "descent":
            return g
        if rule == "adam":
            first, second = 0.7 * first + 0.3 * g, 0.9 * second + 0.1 * g**2
            return first / (1 - 0.7**k) / ((second / (1 - 0.9**k)).sqrt() + 1e-3)
        first = 0.8 * first + g
        return first if rule == "momentum" else g + 0.8 * first

    return direction


def gradient_by_hand(rule, *, steps, adapted, first_order):
    meta, support, query = curved_setting()
    leaves = {name: value.requires_grad_() for name, value in meta.items()}
    phi, rules = dict(leaves), {name: directions_by_hand(rule) for name in adapted}
    for _ in range(steps):
        inner = curved(phi, support)
        adapting = [phi[name] for name in adapted]
        gradients = torch.autograd.grad(inner, adapting, create_graph=not first_order)
        for name, g in zip(adapted, gradients, strict=True):
            phi[name] = phi[name] - 0.1 * rules[name](g)
    gradient = torch.autograd.grad(curved(phi, query), leaves.values())
    return dict(zip(leaves, gradient, strict=True))


@pytest.mark.parametrize("adapted", [("body", "head", "bias"), ("head", "bias")])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("rule", RULES)
def test_through_every_inner_rule_it_is_a_hand_written_loop(rule, steps, first_order, adapted):
    how = {"adapted": adapted, "first_order": first_order}
    learner = MAML(alpha=0.1, steps=steps, inner=RULES[rule], **how)
    meta, support, query = curved_setting()
    episode = supervised(support, query, steps=steps)
    gradient, _ = learner.gradient(curved, curved, meta, episode, IT)
    expected = gradient_by_hand(rule, steps=steps, **how)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
