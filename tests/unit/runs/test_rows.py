"""The rows of a run as a list, a data frame, a picture."""

import math

import pytest

from maml_dist.runs.rows import Rows

ROWS = Rows(
    [
        {"iteration": 10, "loss/after": 0.5, "it_per_s": 3.0, "warnings": "none"},
        {"iteration": 20, "loss/after": 0.25, "val/mse": 0.125, "it_per_s": None},
    ]
)


def test_they_are_a_list_with_a_short_repr():
    assert ROWS[1]["val/mse"] == 0.125 and len(ROWS) == 2 and list(ROWS) == ROWS
    assert repr(ROWS) == "<2 rows of metrics, iterations 10 to 20>"
    assert repr(Rows()) == "<no rows of metrics yet>" and not Rows().plot().axes[0].lines


def test_as_a_frame_what_is_absent_is_nan():
    frame = ROWS.frame()
    assert list(frame.index) == [10, 20] and frame.index.name == "iteration"
    assert frame["loss/after"].tolist() == [0.5, 0.25]
    assert math.isnan(frame["val/mse"][10]) and frame["val/mse"][20] == 0.125
    assert Rows().frame().empty


def test_a_picture_shows_losses_and_scores_or_what_is_named():
    lines = {line.get_label(): line.get_xydata().tolist() for line in ROWS.plot().axes[0].lines}
    assert lines == {"loss/after": [[10, 0.5], [20, 0.25]], "val/mse": [[20, 0.125]]}
    steps = Rows([{"iteration": 1, "val/mse": 9.0, "val/mse/1": 5.0, "val/mse/path": 0.5}])
    (axes,) = steps.plot().axes  # those of single steps are too many to tell apart
    assert [line.get_label() for line in axes.lines] == ["val/mse", "val/mse/path"]
    assert axes.get_yscale() == "log" and ROWS.plot().axes[0].get_yscale() == "linear"
    (only,) = ROWS.plot("it_per_s").axes[0].lines
    assert only.get_xydata().tolist() == [[10, 3.0]]
    assert ROWS.plot()._repr_png_().startswith(b"\x89PNG")  # what a notebook asks for
    with pytest.raises(ValueError, match="'warnings': there are loss/after, it_per_s, val/mse"):
        ROWS.plot("warnings")


def test_in_a_notebook_they_are_a_table():
    table = Rows([{"iteration": 1000, "a<b": 0.5}])._repr_html_()
    assert "<th>a&lt;b</th>" in table and "<td>1,000</td><td>0.5</td>" in table
