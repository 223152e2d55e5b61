"""What a user's part raised is one line that names the part and the place."""

import numpy as np
import pytest
from torch import nn

from maml_dist.core.engine.engine import Engine
from maml_dist.core.params import layout
from maml_dist.learners.maml import MAML
from maml_dist.runtime.messages import ShardSpec
from maml_dist.runtime.shard import TaskShard
from maml_dist.runtime.user_errors import user_errors_located
from maml_dist.tasks.sinusoid import Sinusoid


class Scores(Sinusoid):
    def score(self, output, batch):
        return {"mse": 1 / 0}


class Collects(Sinusoid):
    def collect(self, tasks, *, steps, adapt=None):
        return {}["absent"]


class Samples(Sinusoid):
    def sample(self, key):
        raise RuntimeError("two\nlines")


class Loses(Sinusoid):
    def loss(self, output, batch):
        return helper(output)


def helper(output):
    raise AttributeError("no such thing")


class Forward(nn.Linear):
    def forward(self, x):
        raise TypeError("x")


@pytest.mark.parametrize(
    ("source", "model", "said"),
    [
        (
            Scores(),
            nn.Linear(1, 1),
            r"the score \(.*test_user_errors.py, line \d+, in score\) raised ZeroDivision",
        ),
        (Collects(), nn.Linear(1, 1), r"the task source \(.*\) raised KeyError: 'absent'"),
        (Samples(), nn.Linear(1, 1), r"the task source \(.*\) raised RuntimeError: two lines"),
        (
            Loses(),
            nn.Linear(1, 1),
            r"the loss \(.*test_user_errors.py, line \d+, in helper\) raised AttributeError",
        ),
        (
            Sinusoid(),
            Forward(1, 1),
            r"the model \(.*test_user_errors.py, line \d+, in forward\) raised TypeError: x",
        ),
        (Sinusoid(), nn.Linear(3, 1), r"the model raised RuntimeError: "),
    ],
)
def test_the_part_is_named(source, model, said):
    params = {name: p.detach() for name, p in model.named_parameters()}
    size = sum(value.numel() for value in params.values())
    engine = Engine("task", running="eager", memory="graph")
    spec = ShardSpec(source, model, MAML(), engine, layout(params), 0, 2, size)
    with pytest.raises(ValueError, match=said) as error:
        TaskShard(spec).scores(np.zeros(size, np.float32), 0, split="val", tasks=2, steps=1)
    assert "\n" not in str(error.value) and error.value.__cause__ is not None


@pytest.mark.parametrize(
    "error", [OSError("gone"), FloatingPointError("task 3"), KeyboardInterrupt()]
)
def test_machines_numbers_and_the_user_speak_for_themselves(error):
    with pytest.raises(type(error)) as raised, user_errors_located():
        raise error
    assert raised.value is error


def test_a_long_text_ends():
    with pytest.raises(ValueError) as raised, user_errors_located():
        raise TypeError("x" * 10_000)
    assert len(str(raised.value)) < 300 + 200  # the text, and where
