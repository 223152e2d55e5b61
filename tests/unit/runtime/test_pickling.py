"""What cannot travel to Ray's actors is found, by the name of the attribute."""

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from maml_dist.models.mlp import MLP
from maml_dist.runtime.pickling import unpicklable
from maml_dist.tasks.few_shot import Arrays, FewShot
from maml_dist.tasks.sinusoid import Sinusoid


@dataclass(frozen=True)
class Holding(Sinusoid):
    held: Any = field(default=None)


class Refuses:
    def __getstate__(self):
        raise RuntimeError("not for others")


@pytest.mark.parametrize(
    ("make", "where", "said"),
    [
        (threading.Lock, ".held", "lock"),
        (lambda: [1, (threading.Lock(),)], ".held[1][0]", "lock"),
        (lambda: Holding(held=(i for i in range(3))), ".held.held", "generator"),
        (Refuses, ".held", "not for others"),
    ],
)
def test_the_attribute_is_named(make, where, said):
    found = unpicklable(Holding(held=make()))
    assert found is not None
    assert found[0] == where and said in found[1] and "\n" not in found[1]


def test_an_open_file_is_named():
    with open(__file__, "rb") as file:
        where, said = unpicklable(Holding(held={"file": file}))
    assert where == ".held['file']" and "_io.BufferedReader" in said


def test_a_module_of_a_model_is_named():
    model = nn.Sequential(nn.Linear(1, 1), nn.Tanh())
    model[1].lock = threading.Lock()
    assert unpicklable(model)[0] == "._modules['1'].lock"


@pytest.mark.parametrize(
    "value",
    [
        Sinusoid(),
        MLP(),
        Holding(held=lambda x: x + 1),
        FewShot(Arrays({"train": [np.zeros((3, 2), np.float32)]})),
        torch.ones(3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_can_travel_passes(value):
    assert unpicklable(value) is None
