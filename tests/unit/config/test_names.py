"""Short names in recipes: which class they are, and that no run names a file of the package."""

from inspect import isabstract, isclass
from pathlib import Path

import pytest
import torch
import yaml

import maml_dist
from maml_dist.config.compose import build, compose, override
from maml_dist.config.names import PUBLIC
from maml_dist.core.adaptation import inner_optimizers
from maml_dist.core.outer import optimizers, schedules

KINDS = ("TaskSource", "ClassData", "Learner", "InnerOptimizer", "OuterOptimizer", "Schedule")
KINDS = tuple(getattr(maml_dist, name) for name in (*KINDS, "Baseline"))
RECIPES = Path(maml_dist.__file__).parent / "recipes"
TUNED = Path(__file__).parents[3] / "tune_configs"


@pytest.mark.parametrize("path", [*RECIPES.glob("*.yaml"), *TUNED.glob("*.yaml")], ids=str)
def test_no_recipe_names_a_file_of_the_package(path):
    assert "maml_dist" not in path.read_text()


def test_two_classes_of_one_short_name_are_never_of_one_kind():
    seen = set()
    for name in PUBLIC:
        found = getattr(maml_dist, name)
        if isclass(found) and not isabstract(found):
            for kind in (kind for kind in KINDS if issubclass(found, kind)):
                assert (kind, found.__name__) not in seen
                seen.add((kind, found.__name__))
    assert len(seen) > 25


def test_one_name_is_another_class_in_another_place():
    words = {"outer": "Adam", "inner": "Adam", "outer.schedule": "Linear"}
    words |= {"outer.schedule.until": 5, "policy_gradient.baseline": "Linear"}
    config = compose("navigation", words)
    made = build(config)
    assert type(made.outer) is optimizers.Adam
    assert type(made.learner.inner) is inner_optimizers.Adam
    assert made.outer.schedule == schedules.Linear(until=5)
    assert type(made.task.policy_gradient.baseline) is maml_dist.LinearBaseline


@pytest.mark.parametrize(
    "path", ["SGD", "maml_dist.OuterSGD", "maml_dist.core.outer.optimizers.SGD"]
)
def test_a_path_of_the_package_is_written_down_as_its_short_name(path):
    config = compose("sinusoid", {"outer": path, "outer.beta": 0.5})
    assert config["outer"]["class_path"] == "SGD"
    assert build(config).outer == optimizers.SGD(beta=0.5)
    assert "maml_dist" not in yaml.safe_dump(config) and override(config, {}) == config


def test_a_model_may_be_torchs_by_its_name():
    config = compose("sinusoid", {"model": "Identity"})
    assert config["model"]["class_path"] == "torch.nn.Identity"
    assert type(build(config).model) is torch.nn.Identity


def test_a_strangers_class_of_the_same_name_is_never_meant(tmp_path):
    class MLP(maml_dist.MLP):  # as if a module of theirs had been imported
        pass

    (tmp_path / "theirs.py").write_text(
        "import maml_dist\n\n\nclass MLP(maml_dist.MLP):\n    pass\n\n\n"
        "class MAML(maml_dist.MAML):\n    pass\n"
    )
    (tmp_path / "own.yaml").write_text(
        "{task: Sinusoid, model: theirs.MLP, learner: theirs.MAML, outer: Adam}"
    )
    config = compose(tmp_path / "own.yaml")
    assert config["model"]["class_path"] == "theirs.MLP"  # the whole path of a class of one's own
    assert type(build(config).model).__module__.endswith("theirs")
    named = override(config, {"model": "MLP", "learner": "MAML"})
    assert type(build(named).model) is maml_dist.MLP is not MLP
    assert type(build(named).learner) is maml_dist.MAML


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"outer": "MAML"}, "outer: there is no class 'MAML'"),
        ({"outer": "OuterAdam"}, "no class 'OuterAdam'; did you mean 'Adam'?"),
        ({"model": "load"}, "model: there is no class 'load'"),
        ({"model": "ReLu"}, "model: there is no class 'ReLu'; did you mean 'ReLU'?"),
        ({"outer": "Identity"}, "outer: there is no class 'Identity'"),
        ({"model": "maml_dist.load"}, "maml_dist.inference.load.load is refused"),
    ],
)
def test_other_names_are_one_clear_line(words, said):
    with pytest.raises(ValueError) as caught:
        build(compose("sinusoid", words))
    assert said in str(caught.value) and "\n" not in str(caught.value)
