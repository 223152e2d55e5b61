import numpy as np
import pytest

from maml_dist.core.outer.optimizers import SGD, Adam
from maml_dist.runtime.messages import Contribution
from maml_dist.runtime.server import ParameterServer


def contribution(*values):
    return Contribution(np.array(values), 1, {})


@pytest.fixture(autouse=True)
def seeded():
    np.random.seed(0)


def test_what_is_judged_is_the_weighted_mean_of_all_that_came_statistics_included():
    start = np.random.randn(6)
    server, raw = (
        ParameterServer(start, Adam(beta=0.1, average=average), learned=4)
        for average in (0.9, None)
    )
    assert np.array_equal(server.eval_parameters(), start)
    total, weights = 0.0, 0.0
    for count in range(20):
        told = contribution(*np.random.randn(6))
        meta, _ = server.update(told)
        assert np.array_equal(meta, raw.update(told)[0])  # training does not see the average
        assert np.array_equal(meta[4:], told.gradient[4:])
        total, weights = 0.9 * total + meta, 0.9 * weights + 1
        np.testing.assert_allclose(server.eval_parameters(), total / weights, rtol=1e-12)
        if count == 0:
            assert np.array_equal(server.eval_parameters(), meta)  # not the initial weights
        if count == 9:
            saved = server.state()
            server = ParameterServer(0 * start, Adam(beta=0.1, average=0.9), learned=4)
            server.restore(saved)


def test_of_an_update_in_epochs_where_it_ends_is_averaged():
    server = ParameterServer(np.zeros(2), SGD(beta=1.0, average=0.5, epochs=2), learned=1)
    for first in (contribution(-1.0, 5.0), contribution(-3.0, 7.0)):
        (what, _), at = server.next_request(first)
        assert what == "gradient"
        assert not server.next_request(contribution(at[0] - 10, 0.0))[0][0]
        server.finish_update()
    assert server.meta().tolist() == [10, 7]
    # each with the weight of its two updates of four: 0.5^3 + 0.5^2 and 0.5 + 1
    assert server.eval_parameters().tolist() == pytest.approx([10, (0.375 * 5 + 1.5 * 7) / 1.875])


def test_without_an_average_the_meta_parameters_are_judged():
    server = ParameterServer(np.zeros(2), SGD(beta=1.0))
    server.update(contribution(-1.0, -2.0))
    assert server.eval_parameters().tolist() == server.meta().tolist() == [1, 2]
