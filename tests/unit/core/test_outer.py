import pytest
import torch

from maml_dist.core.outer import SGD, Adam


def test_adam_is_torch_adam():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6).double())
    theirs = torch.optim.Adam([weight], lr=0.01)
    ours, meta = Adam(beta=0.01), weight.detach().clone()
    state = ours.init(meta)
    for _ in range(20):
        gradient = torch.randn(6).double()
        weight.grad = gradient.clone()
        theirs.step()
        meta, state = ours.update(meta, gradient, state)
    torch.testing.assert_close(meta, weight.detach(), rtol=1e-12, atol=0)


def test_sgd_steps_against_the_gradient():
    meta, state = SGD(beta=0.5).update(torch.tensor([1.0, 2.0]), torch.tensor([2.0, -2.0]), {})
    assert meta.tolist() == [0, 3]
    assert state == {}


def test_clip_bounds_each_element():
    meta, _ = SGD(beta=1.0, clip=3.0).update(torch.zeros(3), torch.tensor([-9.0, 2.0, 9.0]), {})
    assert meta.tolist() == [3, -2, -3]


def test_an_update_changes_none_of_its_arguments():
    meta, gradient = torch.ones(2), torch.ones(2)
    rule = Adam()
    state = rule.init(meta)
    rule.update(meta, gradient, state)
    assert meta.tolist() == gradient.tolist() == [1, 1]
    assert state["first"].tolist() == [0, 0] and float(state["count"]) == 0


@pytest.mark.parametrize(
    "bad", [{"beta": 0}, {"beta": float("nan")}, {"clip": -1}, {"eps": 0}, {"decays": (1, 0)}]
)
def test_impossible_rates_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=f"outer.{next(iter(bad))}="):
        Adam(**bad)
