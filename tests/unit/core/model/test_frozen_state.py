"""What is fixed of a model: found, kept, and put back so that the model predicts as before."""

import numpy as np
import pytest
import torch
from torch import nn

from maml_dist.core.model.frozen_state import frozen_state, restore, saveable, unsaveable


class Everything(nn.Module):
    """Drawn from nothing that can be seeded, in all the ways that a module can hold numbers."""

    def __init__(self):
        super().__init__()
        rng = np.random.default_rng()
        draw = lambda *shape: torch.from_numpy(rng.normal(size=shape))  # noqa: E731
        self.frozen, self.head = nn.Linear(3, 3).double(), nn.Linear(3, 1).double()
        self.frozen.requires_grad_(False)
        self.frozen.weight.copy_(draw(3, 3))
        self.register_buffer("scale", draw(3))
        self.register_buffer("shift", draw(3), persistent=False)
        self.register_buffer("again", self.scale)
        self.register_buffer("part", self.scale[:2])
        self.register_buffer("wide", draw(1).expand(3))
        self.register_buffer("turn", torch.complex(draw(3), draw(3)))
        self.register_buffer("mask", draw(3) > 0)
        self.plain, self.array = draw(3), rng.normal(size=3)
        self.several = [draw(3), {"in": (rng.normal(size=3),)}]
        self.hidden = [nn.Linear(3, 3).double()]  # not among the model's parameters
        nn.init.normal_(self.hidden[0].weight, std=float(rng.uniform(0.5, 1)))
        self.notes, self.nothing = "a text", None

    def forward(self, x):
        x = self.frozen(x) * self.scale + self.shift * self.mask + self.wide * self.again
        x = x + self.turn.real * x.cos() + self.turn.imag + self.part.sum() + self.plain
        x = x * torch.from_numpy(self.array) + self.several[0]
        return self.head(self.hidden[0](x) * torch.from_numpy(self.several[1]["in"][0]))


def test_a_model_drawn_anew_predicts_as_the_one_that_was_kept():
    one, two = Everything(), Everything()
    x = torch.linspace(-1, 1, 6).double().reshape(2, 3)
    two.head.load_state_dict(one.head.state_dict())  # that is learned
    assert not torch.allclose(one(x), two(x))
    saved = {name: value.clone() for name, value in saveable(frozen_state(one)).items()}
    restore(frozen_state(two), saved)
    assert torch.equal(one(x), two(x))


def test_what_is_held_twice_is_kept_once_and_stays_one():
    model = Everything()
    held = frozen_state(model)
    assert not {"again", "head.weight", "notes"} & held.keys()
    restore(held, {name: value.clone() for name, value in saveable(held).items()})
    assert model.again is model.scale


def test_tied_frozen_weights_stay_tied():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    model[1].weight = model[0].weight.requires_grad_(False)
    held = frozen_state(model)
    assert set(held) == {"0.weight"}
    restore(held, {"0.weight": torch.ones(2, 2)})
    assert model[1].weight is model[0].weight and model[1].weight.tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(2, 1),
        nn.LSTM(2, 3),  # lists its weights a second time
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)),  # its statistics follow the training
        nn.BatchNorm1d(2, momentum=None),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    ],
)
def test_what_is_learned_or_follows_the_training_is_not_fixed(model):
    assert not frozen_state(model)


def test_statistics_of_a_norm_that_stays_in_evaluation_are_fixed():
    class Still(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(2), nn.Linear(2, 1)

        def train(self, mode=True):
            super().train(mode)
            self.norm.eval()
            return self

    assert {"norm.running_mean", "norm.running_var"} <= frozen_state(Still()).keys()


def test_a_hooks_weight_computed_of_parameters_is_not_fixed():
    with pytest.warns(FutureWarning):
        model = nn.utils.weight_norm(nn.Linear(2, 2))
    assert not frozen_state(model)


def test_parts_that_hold_each_other_end():
    one, two = nn.Linear(1, 1), nn.Linear(1, 1)
    one.other, two.other = [two], [one]
    assert set(frozen_state(one)) == {"other.0.weight", "other.0.bias"}


def test_what_no_file_can_keep_is_named():
    model = nn.Linear(2, 2)
    model.register_buffer("adjacency", torch.eye(2).to_sparse())
    model.borrowed = np.frombuffer(b"12345678", np.float64)
    held = frozen_state(model)
    assert unsaveable(held) == ["adjacency", "borrowed"] and not saveable(held)


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ({}, r"b is missing there, \[2\] here"),
        ({"b": torch.ones(3)}, r"b is \[3\] there, \[2\] here"),
        ({"b": torch.ones(2), "c": torch.ones(1)}, r"c is \[1\] there, unknown here"),
    ],
)
def test_another_models_are_refused_and_nothing_is_put_in_place(saved, said):
    model = nn.Linear(1, 1)
    model.register_buffer("b", torch.zeros(2))
    with pytest.raises(ValueError, match=said):
        restore(frozen_state(model), saved)
    assert model.b.tolist() == [0, 0]
