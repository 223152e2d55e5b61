"""Forms of what is read back: what fits is given, what does not is said in one line."""

from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import pytest

from maml_dist.core.schema import checked, from_json


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.0

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("x must be 0 or more")


class Named(TypedDict):
    name: str
    points: list[Point]


def test_what_fits_is_made_of_its_types():
    found = from_json('{"name": "a", "points": [{"x": 1, "y": 2}, {"x": 3}]}', Named, "f")
    assert found == {"name": "a", "points": [Point(1, 2.0), Point(3)]}
    assert type(found["points"][0].y) is float
    assert checked([1, 2], tuple[int, ...], "f") == (1, 2)
    assert checked({1: None}, dict[int | str, float | None], "f") == {1: None}
    assert checked("a", Literal["a", "b"], "f") == "a"
    assert checked({"any": [1]}, Any, "f") == {"any": [1]}


@pytest.mark.parametrize(
    ("text", "form", "said"),
    [
        ("", Named, "f is not JSON"),
        ("[" * 100_000, Named, "f is not JSON"),
        ("1" * 5000, int, "f is not JSON"),
        ("NaN", float, "NaN is no number of JSON"),
        ("1e999", float, "f must be a finite number"),
        ("true", int, "f must be a whole number, not True"),
        ("1", bool, "f must be true or false, not 1"),
        ("1.0", int, "f must be a whole number, not 1.0"),
        ("null", list[int], "f must be a list of a whole number, not null"),
        ('"12"', list[int], "f must be a list"),
        ("[1, null]", list[int], r"f\[1\] must be a whole number, not null"),
        ("[]", Named, "f must be keys and values"),
        ('{"name": "a"}', Named, "f lacks points"),
        ('{"name": "a", "points": [{}]}', Named, r"f.points\[0\] lacks x"),
        ('{"name": "a", "points": [{"x": -1}]}', Named, r"f.points\[0\]: x must be 0 or more"),
        ('{"name": 1, "points": []}', Named, "f.name must be a text, not 1"),
        ('{"name": "a", "points": [], "z": 1}', Named, "f has 'z'; there are name, points"),
        ('"c"', Literal["a", "b"], "f must be a or b, not 'c'"),
        ('{"a": [1]}', dict[str, str | int | None], "f.a must be a text or a whole number or null"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(text, form, said):
    with pytest.raises(ValueError, match=said) as error:
        from_json(text, form, "f")
    assert "\n" not in str(error.value) and len(str(error.value)) < 200
