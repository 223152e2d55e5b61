"""Tried: draws of a search that are tried on a task before anything starts."""

from typing import Any

from maml_dist.tuning import distributions
from maml_dist.tuning.search_space import Search, equal


def tried(plan: Search) -> list[dict[str, Any]]:
    """Draws that hold every end, and a value inside, of every distribution."""
    values = {key: distributions.tried(each) for key, each in plan.search.items()}
    left = {key: list(range(len(each))) for key, each in values.items()}
    found: list[dict[str, Any]] = []
    while any(left.values()):
        first = next(key for key in plan.order if left[key])
        before = len(left[first])
        wanted = _conditions_of(plan, first)
        drawn: dict[str, Any] = {}
        for key in plan.order:
            if not plan.applies(key, drawn):
                continue
            if key in wanted:
                drawn[key] = wanted[key]
                matching = [i for i in left[key] if equal(values[key][i], drawn[key])]
            else:
                matching = left[key][:1]
                drawn[key] = values[key][matching[0] if matching else 0]
            left[key] = [i for i in left[key] if i not in matching]
        if len(left[first]) == before:
            raise ValueError(f"search.{first}.when: no draw of the others fulfils it")
        found.append(drawn)
    return found


def _conditions_of(plan: Search, key: str) -> dict[str, Any]:
    """Values of other keys with which a key is drawn, and those with which they are."""
    wanted: dict[str, Any] = {}
    for parent, allowed in plan.conditions(key).items():
        wanted |= _conditions_of(plan, parent)
        if not any(equal(wanted.get(parent), each) for each in allowed):
            wanted[parent] = allowed[0]
    return wanted
