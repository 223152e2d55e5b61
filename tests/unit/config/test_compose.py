from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import yaml

from maml_dist.config.compose import build, compose, override
from maml_dist.config.recipe import parse_overrides, recipes
from maml_dist.core.adaptation import inner_optimizers as inner_rules
from maml_dist.core.outer.optimizers import SGD
from maml_dist.core.outer.schedules import Linear
from maml_dist.learners.maml import MAML
from maml_dist.learners.reptile import Reptile
from maml_dist.models.conv4 import Conv4


def test_overrides_reach_their_objects():
    words = ["learner.alpha=1e-2", "steps=3", "model.hidden=[8, 8]", "iterations=7", "query=4"]
    experiment = build(compose("sinusoid", parse_overrides(words)))
    assert experiment.learner.alpha == 0.01 and experiment.learner.steps == 3
    assert experiment.iterations == 7 and experiment.task.query == 4
    assert experiment.model.head.in_features == 8


def test_a_configuration_composed_again_is_itself():
    config = compose("omniglot-5way-1shot", {"alpha": 0.3})
    assert override(config, {}) == config


def test_a_class_can_be_exchanged_with_its_arguments():
    changes = {"outer.class_path": "SGD", "outer.beta": 0.5}
    assert build(compose("sinusoid", changes)).outer == SGD(beta=0.5)


@pytest.mark.parametrize("inner", ["inner", "learner.inner", "learner.inner.class_path"])
@pytest.mark.parametrize(
    "named", ["Adam", "maml_dist.InnerAdam", "maml_dist.core.adaptation.inner_optimizers.Adam"]
)
def test_a_class_within_a_class_too_by_its_name_or_path(inner, named):
    words = [f"{inner}={named}", f"{inner.removesuffix('.class_path')}.eps=0.1", "alpha=0.3"]
    assert build(compose("sinusoid", parse_overrides(words))).learner == MAML(
        alpha=0.3, inner=inner_rules.Adam(eps=0.1)
    )


@pytest.mark.parametrize("turn", [1, -1])
def test_in_whatever_order_the_outer_class_comes_before_what_is_in_it(turn):
    words = ["schedule.until=50", "schedule=Linear", "inner=Momentum", "outer=SGD"]
    words += ["learner=Reptile", "outer.beta=0.5", "minibatch=3", "model=Conv4", "task.shots=7"]
    experiment = build(compose("sinusoid", parse_overrides(words[::turn])))
    assert experiment.learner == Reptile(inner=inner_rules.Momentum(), minibatch=3)
    assert experiment.outer == SGD(beta=0.5, schedule=Linear(until=50))
    assert isinstance(experiment.model, Conv4) and experiment.task.shots == 7


def test_a_recipe_may_name_the_packages_classes_alone(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "{task: Sinusoid, model: MLP, learner: {class_path: MAML, init_args: {inner: Adam}},"
        "outer: SGD}"
    )
    config = compose(tmp_path / "mine.yaml")
    assert build(config).learner == MAML(inner=inner_rules.Adam())
    assert config["task"]["class_path"] == "Sinusoid"


def test_the_seed_decides_the_initial_weights():
    one, same, other = (build(compose("sinusoid", {"seed": seed})).model for seed in (1, 1, 2))
    assert torch.equal(one.head.weight, same.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_threads_build_as_one_after_the_other():
    def weights(seed):
        model = build(compose("sinusoid", {"seed": seed, "model.hidden": [8 + seed]})).model
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    alone = [weights(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(weights, range(4)), alone))


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_is_complete_and_cites_the_paper(recipe):
    if recipe.startswith("metaworld"):
        pytest.importorskip("metaworld", reason="Meta-World pins a mujoco of its own")
    config = compose(recipe)
    assert config["name"] == recipe and config["description"]
    build(config)


def test_untrained_weights_are_not_compared_with_the_paper():
    assert build(compose("sinusoid")).published == {1: 0.38}
    assert build(compose("sinusoid", {"iterations": 0})).published == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["alhpa=1"], "unknown key 'alhpa'; did you mean 'alpha'?"),
        (["learner.alhpa=1"], "did you mean 'learner.alpha'?"),
        (["iterationz=1"], "did you mean 'iterations'?"),
        (["alpha=x"], "learner.alpha: Expected a float. Got value: x"),
        (["iterations=1.5"], "iterations: Expected a int. Got value: 1.5"),
        (["alpha=-1"], "learner.alpha=-1.0: must be a positive number"),
        (["beta=0"], "outer.beta=0.0: must be a positive number"),
        (["shots=0"], "task.shots=0"),
        (["meta_batch=0"], "meta_batch=0: must be 1 or more"),
        (["shards=26"], "shards=26: more than the 25 tasks"),
        (["engine.batching=all"], "Expected a Literal['auto', 'task', 'vmap']. Got value: all"),
        (["learner.class_path=os.system"], "os.system is refused: a recipe may not name it"),
        (["learner=maml_dist.learners.maml.MALM"], "no attribute 'MALM'; did you mean 'MAML'?"),
        (["learner=Reptil"], "learner: there is no class 'Reptil'; did you mean 'Reptile'?"),
        (["learner.inner=Adm"], "learner.inner: there is no class 'Adm'; did you mean 'Adam'?"),
        (["outer=SGD", "outer.schedule=Cosin"], "no class 'Cosin'; did you mean 'Cosine'?"),
        (["learne=Reptile"], "unknown key 'learne'; did you mean 'learner'?"),
        (["inner=Adam", "eps=1"], "key 'eps' could be any of learner.inner.eps, outer.eps"),
        (["schedule=Linear"], "outer.schedule: its class requires outer.schedule.until"),
        (["schedule=Linear", "until=5"], "its class requires outer.schedule.until"),
        (["engine=fast"], "key 'engine' is set by its parts: engine.batching, engine.chunk"),
        (["engine.chunk=x"], "engine.chunk: Expected one of int, null. Got value: x"),
        (["learner=MetaSGD", "alpha=[x]"], "learner.alpha: Expected one of float, tuple[float"),
        (["learner.class_path=nowhere.MAML"], "No module named 'nowhere'"),
        (["alpha"], "'alpha': expected key=value"),
    ],
)
def test_a_wrong_override_is_one_clear_line(words, said):
    with pytest.raises(ValueError) as caught:
        build(compose("sinusoid", parse_overrides(words)))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold keys and values"),
        ("just words", "must hold keys and values"),
        ("a: [1", "is not a plain YAML file"),
        ("a: !!python/object/apply:os.system ['touch hacked']", "is not a plain YAML file"),
        ("task: {}", "the recipe lacks model, learner, outer"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=said):
        compose(tmp_path / "mine.yaml")
    assert not (tmp_path / "hacked").exists()


def test_a_wrong_key_in_a_file_names_the_nearest(tmp_path):
    config = compose("sinusoid")
    config["learner"]["init_args"]["alhpa"] = 1
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="unknown key 'learner.alhpa'; did you mean 'alpha'"):
        compose(tmp_path / "mine.yaml")


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="no recipe 'sinusoidd'; did you mean 'sinusoid'"):
        compose("sinusoidd")
    with pytest.raises(ValueError, match="no such file"):
        compose("nowhere/mine.yaml")


def test_a_users_own_class_beside_its_recipe(tmp_path):
    (tmp_path / "my_learner_file.py").write_text(
        "from dataclasses import dataclass\n"
        "from maml_dist.learners.maml import MAML\n"
        "@dataclass(frozen=True)\n"
        "class Mine(MAML):\n"
        "    gamma: float = 0.5\n"
    )
    config = compose("sinusoid")
    config["learner"] = {"class_path": "my_learner_file.Mine", "init_args": {"gamma": 0.25}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    composed = compose(tmp_path / "mine.yaml")
    assert build(composed).learner.gamma == 0.25
    assert composed["code"] == [str(tmp_path)]
    assert composed["learner"]["class_path"] == "my_learner_file.Mine"

    (tmp_path / "run").mkdir()  # a recipe elsewhere that names the folder in `code`
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(composed))
    again = compose(tmp_path / "run" / "recipe.yaml")
    assert build(again).learner.gamma == 0.25
    assert again["code"] == [str(tmp_path / "run"), str(tmp_path)]


def test_what_may_be_null_and_has_no_default_is_null_where_left_out(tmp_path):
    (tmp_path / "heads.py").write_text(
        "from torch import nn\n\n\nclass Head(nn.Linear):\n"
        "    def __init__(self, path: str | None, rows: int | None):\n"
        "        super().__init__(1, 1)\n        self.left_out = path, rows\n"
    )
    (tmp_path / "heads.yaml").write_text(
        yaml.safe_dump({**compose("sinusoid"), "model": {"class_path": "heads.Head"}})
    )
    config = compose(tmp_path / "heads.yaml")
    assert override(config, {}) == config
    assert build(config).model.left_out == (None, None)
    given = compose(tmp_path / "heads.yaml", {"model.path": "here"})
    assert build(given).model.left_out == ("here", None)


def test_a_class_is_exchanged_together_with_what_it_requires():
    changed = {
        "outer.schedule.class_path": "Linear",
        "outer.schedule.until": 50,
        "outer.beta": 0.01,
        "alpha": 0.2,
    }
    experiment = build(compose("sinusoid", changed))
    assert experiment.outer.schedule == Linear(until=50)
    assert (experiment.outer.beta, experiment.learner.alpha) == (0.01, 0.2)
    with pytest.raises(ValueError, match="unknown key 'outer.schedule.untill'"):
        compose("sinusoid", {**changed, "outer.schedule.untill": 3})


def test_a_class_of_ones_own_may_call_its_argument_kind(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n"
        "class Net(nn.Linear):\n"
        "    def __init__(self, kind: str):\n"
        "        super().__init__(1, 1)\n"
        "        self.kind = kind\n"
    )
    model = {"class_path": "net.Net", "init_args": {"kind": "a"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**compose("sinusoid"), "model": model}))
    assert build(compose(tmp_path / "own.yaml")).model.kind == "a"
