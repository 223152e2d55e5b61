"""The Grafana dashboard: each metric that it asks for is one that the code tells."""

import ast
import json
import re
from pathlib import Path

import maml_dist
from maml_dist.runtime.meter import METRICS
from maml_dist.runtime.prometheus import column

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "grafana" / "maml_dist.json").read_text())
PREFIX = "ray_maml_dist_"


def queries():
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def columns(tmp_path):
    """The columns of two runs, and all texts of the package, which name the others."""
    small = {"local": True, "progress": False, "iterations": 1, "validation_tasks": 2}
    small |= {"meta_batch": 2, "engine.running": "eager", "test_steps": 1}
    for recipe, more in (("sinusoid", {}), ("navigation", {"horizon": 3, "episodes": 2})):
        run = maml_dist.meta_train(recipe, run=tmp_path / recipe, **small, **more)
        yield from run.metrics[-1]
    for path in (ROOT / "maml_dist").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_metric_is_told(tmp_path):
    told = {f"{each.name}{'_total' * each.counts}": each.labels for each in METRICS}
    known = {column(key).name for key in columns(tmp_path)}
    for query in queries():
        for name in re.findall(rf"{PREFIX}(\w+)\{{", query):
            assert name in {*told, *known}, name
        for pattern in re.findall(r'__name__=~"(.+?)"', query):
            assert any(re.fullmatch(pattern, PREFIX + name) for name in known), pattern
        labels = {"run", *(label for name in told if name in query for label in told[name])}
        by = {each.strip() for one in re.findall(r"by \((.+?)\)", query) for each in one.split(",")}
        assert by <= labels, query
    missing = [name for name in told if not any(PREFIX + name in query for query in queries())]
    assert not missing  # each is shown


def test_panels_have_their_own_places_and_a_word():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels) and all(panel["description"] for panel in panels)
    names = {each["name"] for each in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w+)", json.dumps(panels)))
    assert used == names
