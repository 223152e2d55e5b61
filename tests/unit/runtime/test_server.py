import numpy as np
import pytest

from maml_dist.core.outer import SGD
from maml_dist.runtime.server import ParameterServer
from maml_dist.runtime.shard import Contribution


def contribution(*values):
    return Contribution(np.array(values), 1, {})


def test_what_is_judged_is_averaged_and_training_goes_on_from_what_is_not():
    server = ParameterServer(np.zeros(3), SGD(beta=1.0, average=0.5), learned=2)
    assert server.judged().tolist() == [0, 0, 0]
    server.update(contribution(-1.0, -2.0, 5.0))
    server.update(contribution(-1.0, -2.0, 7.0))
    assert server.meta().tolist() == [2, 4, 7]
    # (0.5 * first + second) / 1.5; what is kept is the last mean, as in training
    assert server.judged().tolist() == pytest.approx([5 / 3, 10 / 3, 7])


def test_without_an_average_the_meta_parameters_are_judged():
    server = ParameterServer(np.zeros(2), SGD(beta=1.0))
    server.update(contribution(-1.0, -2.0))
    assert server.judged().tolist() == server.meta().tolist() == [1, 2]
