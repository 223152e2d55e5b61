"""What 0.1.0 called classes and keys, in recipes of today."""

import pytest
import yaml

import maml_dist
from maml_dist.config.aliases import _HELD, CLASSES, KEYS, import_now, updated
from maml_dist.config.compose import build, compose
from maml_dist.config.names import PUBLIC
from maml_dist.config.recipe import parse_overrides

OLD = """
task:
  class_path: maml_dist.tasks.navigation.Navigation
  init_args:
    policy_gradient: {decay: 0.9, baseline: {class_path: maml_dist.core.baseline.Linear}}
model:
  class_path: maml_dist.models.gaussian_policy.GaussianPolicy
  init_args: {observations: 2, actions: 2, hidden: [5]}
learner:
  class_path: maml_dist.learners.maml.MAML
  init_args: {inner: {class_path: maml_dist.core.inner.Descent}}
outer: {class_path: maml_dist.core.trust_region.TrustRegion, init_args: {bound: 0.02}}
ahead: 3
keep: 2
diverged: skip
environments: 7
"""
NEW = """
task:
  class_path: Navigation
  init_args: {policy_gradient: {gae_lambda: 0.9, baseline: {class_path: Linear}}}
model: {class_path: GaussianPolicy, init_args: {obs_dim: 2, action_dim: 2, hidden: [5]}}
learner: {class_path: MAML, init_args: {inner: {class_path: SGD}}}
outer: {class_path: TrustRegion, init_args: {bound: 0.02}}
pipeline_depth: 3
keep_checkpoints: 2
on_divergence: skip
max_parallel_envs: 7
"""


def test_a_recipe_of_before_is_one_of_today(tmp_path):
    assert updated(yaml.safe_load(OLD)) == yaml.safe_load(NEW)
    for name, text in (("old", OLD), ("new", NEW)):
        (tmp_path / f"{name}.yaml").write_text(text)
    old, new = (compose(tmp_path / f"{name}.yaml", {"name": "x"}) for name in ("old", "new"))
    assert old == new and build(old).max_parallel_envs == 7


def test_a_recipe_of_today_stays_as_it_is():
    assert updated(yaml.safe_load(NEW)) == yaml.safe_load(NEW)


def test_every_class_has_its_place_today():
    assert {*CLASSES.values()} <= PUBLIC.keys()
    for names in KEYS.values():
        assert not names.keys() & names.values()
    for kind, names in KEYS.items():
        known = getattr(maml_dist, kind).__init__.__annotations__ if kind else compose("sinusoid")
        assert {*names.values()} <= known.keys()


def test_a_key_of_the_users_own_class_is_not_renamed():
    own = {"model": {"class_path": "nets.Net", "init_args": {"actions": 2, "keep": 1, "decay": 3}}}
    assert updated(own) == own
    assert updated({"ahead": 1, "pipeline_depth": 2}) == {"ahead": 1, "pipeline_depth": 2}


SIREN = """
from torch import nn

class Siren(nn.Sequential):
    def __init__(self, policy_gradient: dict, first: nn.Module, kind: str = "maml_dist.MLP"):
        super().__init__(nn.Linear(1, 1))
        self.given = policy_gradient, kind
"""


def test_what_a_class_of_ones_own_is_given_is_not_changed(tmp_path):
    (tmp_path / "mine.py").write_text(SIREN)
    own = {"decay": 0.3, "kind": "maml_dist.learners.maml.MAML", "class_path": "maml_dist.MLP"}
    gaussian = {"observations": 2, "actions": 2}
    path = "maml_dist.models.gaussian_policy.GaussianPolicy"
    given = {
        "policy_gradient": own,
        "first": {"class_path": path, "init_args": gaussian},
        "kind": "maml_dist.learners.maml.MAML",
    }
    recipe = compose("sinusoid")
    recipe |= {"model": {"class_path": "mine.Siren", "init_args": given}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe))
    config = compose(tmp_path / "own.yaml")
    there = config["model"]["init_args"]
    assert (there["policy_gradient"], there["kind"]) == (own, given["kind"])
    first = there["first"]
    assert first["class_path"] == "GaussianPolicy" and first["init_args"]["obs_dim"] == 2
    assert build(config).model.given == (own, given["kind"])


def test_a_key_that_is_gone_is_left_out_where_nothing_has_changed():
    def recipe(kind, **arguments):
        return {"learner": {"class_path": kind, "init_args": arguments}}

    path = "maml_dist.learners.evolution.ESMAML"
    assert updated(recipe(path, shaping="none", sigma=1)) == recipe("ESMAML", sigma=1)
    assert updated(recipe(path, shaping="ranks")) == recipe("ESMAML", shaping="ranks")
    assert updated(recipe("mine.ES", shaping="none")) == recipe("mine.ES", shaping="none")


@pytest.mark.parametrize("odd", [None, 3, [1], {1: 2}, {"class_path": [1]}, {"class_path": {}}])
def test_what_is_no_recipe_is_left_to_the_checks_that_follow(odd):
    assert updated({"model": odd, "ahead": odd}) == {"model": odd, "pipeline_depth": odd}


@pytest.mark.parametrize(
    ("word", "now"),
    [
        ("ahead=1", "pipeline_depth"),
        ("keep=1", "keep_checkpoints"),
        ("diverged=skip", "on_divergence"),
        ("environments=1", "max_parallel_envs"),
        ("decay=1", "task.policy_gradient.gae_lambda"),
        ("task.policy_gradient.decay=1", "task.policy_gradient.gae_lambda"),
        ("model.observations=2", "model.obs_dim"),
        ("actions=2", "model.action_dim"),
    ],
)
def test_on_the_command_line_the_error_names_the_key_of_today(word, now):
    with pytest.raises(ValueError, match=f"unknown key .*; did you mean '{now}'"):
        compose("navigation", parse_overrides([word]))


@pytest.mark.parametrize("word", ["outer.decay=0.9", "task.keep=1", "learner.observations=1"])
def test_but_not_the_key_of_another(word):
    with pytest.raises(ValueError, match="unknown key") as caught:
        compose("navigation", parse_overrides([word]))
    said = str(caught.value)
    assert "gae_lambda" not in said and "keep_checkpoints" not in said and "obs_dim" not in said


def test_an_old_class_path_is_understood_there():
    config = compose("sinusoid", {"outer": "maml_dist.core.outer.SGD"})
    assert config["outer"]["class_path"] == "SGD"


@pytest.mark.parametrize(
    ("recipe", "key", "value", "said"),
    [
        ("navigation", "baseline", "Nothing", "there is no class 'Nothing'"),
        ("navigation", "baseline", "maml_dist.core.baseline.Network", "no class 'Network'"),
        ("sinusoid-es", "shaping", "ranks", "unknown key 'shaping'"),
        ("sinusoid-es", "learner.shaping", "ranks", "unknown key 'learner.shaping'"),
    ],
)
def test_what_was_removed_is_said_to_be(recipe, key, value, said):
    with pytest.raises(ValueError, match=f"{said}; it was removed in 0.2.0"):
        compose(recipe, {key: value})


def test_in_a_file_too(tmp_path):
    recipes = {"ES": compose("sinusoid-es"), "RL": compose("navigation")}
    recipes["ES"]["learner"]["init_args"]["shaping"] = "ranks"
    policy_gradient = recipes["RL"]["task"]["init_args"]["policy_gradient"]
    policy_gradient["baseline"] = {"class_path": "maml_dist.core.baseline.Nothing"}
    for name, recipe in recipes.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        with pytest.raises(ValueError, match="; it was removed in 0.2.0"):
            compose(tmp_path / f"{name}.yaml")


def test_an_old_short_name_is_understood_too():
    config = compose("sinusoid", {"learner.inner": "Descent"})
    assert config["learner"]["init_args"]["inner"] == {"class_path": "SGD", "init_args": {}}


@pytest.mark.parametrize(
    ("line", "now"),
    [
        ("from maml_dist.core.source import TaskSource", "Adapt, TaskKey, TaskSource"),
        ("from maml_dist.core.outer import Outer", "OuterAdam, OuterOptimizer, OuterSGD"),
        ("from maml_dist.tasks.ant import Ant", "Ant"),
    ],
)
def test_code_that_imports_from_where_a_class_was_is_told_how_now(tmp_path, line, now):
    (tmp_path / "before.py").write_text(f"{line}\n")
    recipe = {**compose("sinusoid"), "task": {"class_path": "before.Task"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match=rf"\(since 0.2.0: from maml_dist import {now}\)$"):
        compose(tmp_path / "own.yaml")


def test_what_is_imported_now_is_there():
    for module in {path.rpartition(".")[0] for path in CLASSES} | _HELD.keys():
        if module:
            names = import_now(module).removeprefix("from maml_dist import ").split(", ")
            assert all(hasattr(maml_dist, name) for name in names)
    assert import_now("maml_dist.core.params") is None and import_now(None) is None
