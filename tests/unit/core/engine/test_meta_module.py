"""The imperative form is the functional one: gradients in float64."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

import maml_dist
from maml_dist import MAML, Batch, InnerAdam, Learner, MetaModule, MetaSGD


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def data(seed: int = 1) -> tuple[Batch, Batch]:
    rng = torch.Generator().manual_seed(seed)
    return tuple(Batch(*torch.randn(2, 6, 2, generator=rng, dtype=torch.float64)) for _ in "sq")


def loss_of(model, batch):
    return mse_loss(model(batch.x), batch.y[:, :1])


@pytest.mark.parametrize(
    "learner",
    [
        MAML(alpha=0.1, steps=3),
        MAML(alpha=0.1, steps=3, first_order=True),
        MAML(alpha=0.1, steps=3, inner=InnerAdam()),
        MAML(alpha=0.1, steps=3, adapted=("2.*",)),
        MetaSGD(alpha=0.1, steps=3),
        MetaSGD(alpha=0.1, steps=3, each="layer-step"),
    ],
)
@pytest.mark.parametrize("as_function", [False, True])
def test_clones_have_the_gradient_of_the_functional_form(learner, as_function):
    support, query = data()
    model = net()
    maml = MetaModule(model, learner)
    clone = maml.clone()
    for _ in range(learner.steps):
        clone.adapt((lambda m: loss_of(m, support)) if as_function else loss_of(clone, support))
    loss_of(clone, query).backward()

    other = net()
    own = dict(other.named_parameters())
    meta = learner.init({name: p.detach() for name, p in own.items()})
    meta = {name: value.clone().requires_grad_() for name, value in meta.items()}

    def loss(params, batch):
        return loss_of(lambda x: functional_call(other, params, x), batch)

    it = torch.tensor(0.0)
    phi = learner.adapt(loss, meta, (support,) * learner.steps, it)
    loss(phi, query).backward()
    mine = {**dict(model.named_parameters()), **dict(zip(maml._added, maml.added, strict=True))}
    assert mine.keys() == meta.keys() and len(list(maml.parameters())) == len(meta)
    for name, value in meta.items():
        torch.testing.assert_close(mine[name].grad, value.grad, rtol=1e-12, atol=1e-14)


def test_the_model_itself_is_unchanged_and_a_test_clone_leads_nowhere():
    support, query = data()
    model = net()
    before = [p.clone() for p in model.parameters()]
    maml = MetaModule(model, MAML(alpha=0.1))
    torch.testing.assert_close(maml(query.x), model(query.x))
    clone = maml.clone(differentiable=False)
    for _ in range(3):
        clone.adapt(loss_of(clone, support))
    assert clone.steps == 3 and loss_of(clone, support) < loss_of(model, support)
    assert clone.weights.keys() == dict(model.named_parameters()).keys()
    loss_of(clone, query).backward()
    assert all(p.grad is None for p in maml.parameters())
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


class LookAhead(Learner):  # asks for the loss where the parameters are not
    def step(self, phi, state, context):
        from torch.func import grad

        ahead = {name: value + 0.1 for name, value in phi.items()}
        return {n: phi[n] - g for n, g in grad(context.loss)(ahead, context.batch).items()}, state


def test_what_cannot_be_is_refused():
    support, _ = data()
    model = net()
    clone = MetaModule(model, LookAhead()).clone()
    with pytest.raises(ValueError, match="LookAhead asks for the loss elsewhere"):
        clone.adapt(loss_of(clone, support))
    clone.adapt(lambda m: loss_of(m, support))
    clone = MetaModule(model, MAML()).clone()
    stale = loss_of(clone, support)
    clone.adapt(loss_of(clone, support))
    with pytest.raises(ValueError, match="not computed with this clone as it is now"):
        clone.adapt(loss_of(net(2), support))
    with pytest.raises(ValueError, match="must be a scalar"):
        clone.adapt(clone(support.x))
    with pytest.raises(ValueError, match="must be a loss, or a function"):
        clone.adapt(3)
    with pytest.raises(ValueError, match="Reptile has a meta-gradient of its own"):
        MetaModule(model, maml_dist.Reptile())
    with pytest.raises(ValueError, match="must be given an nn.Module and a Learner"):
        MetaModule(MAML(), model)
    clone.adapt(loss_of(clone, support))
    assert stale.requires_grad
