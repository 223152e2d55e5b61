import json

import numpy as np
import pytest

from maml_dist.inference.meta_test import _statistics


def test_scores_near_the_end_of_float32_have_an_interval():
    found = _statistics(np.array([3e30, 1e30], np.float32))
    assert found["mean"] == pytest.approx(2e30) and found["median"] == pytest.approx(2e30)
    assert found["ci95"] == pytest.approx(1.96 * 1e30)  # std sqrt(2) 1e30, of two
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_where_a_task_diverged_there_is_no_mean():
    found = _statistics(np.array([1.0, np.inf, 3.0], np.float32))
    assert found == {"mean": None, "ci95": None, "median": 3.0}
