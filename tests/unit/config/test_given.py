"""Objects from Python in the place of class paths: written as configuration, or held by value."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import maml_dist
from maml_dist import (
    MAML,
    MLP,
    Arrays,
    CosineSchedule,
    Engine,
    FewShot,
    InnerAdam,
    OuterAdam,
    Sinusoid,
    TaskSource,
)
from maml_dist.config.compose import build, compose
from maml_dist.config.given import again, holds


@dataclass(frozen=True)
class Scaled(Sinusoid):
    scale: float = 2.0


class Holding(Sinusoid):
    def __init__(self, table):
        super().__init__()
        object.__setattr__(self, "table", table)


def objects(**changed):
    given = {
        "task": Sinusoid(shots=3),
        "model": partial(MLP, hidden=(8,)),
        "learner": MAML(alpha=0.2),
    }
    return {
        **given,
        "outer": OuterAdam(beta=0.01, schedule=CosineSchedule(until=100, warm_up=5)),
        **changed,
    }


def test_what_can_be_written_as_configuration_is():
    learner = MAML(alpha=0.2, inner=InnerAdam(eps=1e-3))
    found = compose(None, objects(iterations=10, learner=learner))
    written = compose(
        None,
        {
            "task": "Sinusoid",
            "task.shots": 3,
            "model": "MLP",
            "hidden": [8],
            "learner": "MAML",
            "alpha": 0.2,
            "learner.inner": "Adam",
            "learner.inner.eps": 1e-3,
            "outer": "Adam",
            "beta": 0.01,
            "schedule": "Cosine",
            "schedule.warm_up": 5,
            "schedule.until": 100,
            "iterations": 10,
        },
    )
    assert found == written and holds(found) == [] and found["name"] == "sinusoid"


def test_a_part_of_a_recipe_is_exchanged():
    found = compose("sinusoid", {"inner": InnerAdam(), "engine": Engine(running="eager")})
    assert found["learner"]["init_args"]["inner"]["class_path"] == "Adam"
    assert found["engine"]["running"] == "eager" and found["task"]["class_path"] == "Sinusoid"


def test_a_module_keeps_its_weights_and_is_left_alone():
    net = nn.Linear(1, 1)
    config = compose(None, objects(model=net))
    weights = net.weight.detach().clone()
    assert holds(config) == ["model"]
    assert config["model"]["init_args"]["what"] == "torch.nn.modules.linear.Linear"
    nn.init.zeros_(net.weight)
    one, two = build(config).model, build(config).model
    assert one is not two and torch.equal(one.weight, weights) and torch.equal(two.weight, weights)
    nn.init.zeros_(one.weight)
    assert torch.equal(build(config).model.weight, weights)


def test_a_function_makes_the_model_of_the_seed():
    one, same, other = (
        build(compose(None, objects(model=lambda: nn.Linear(1, 1), seed=seed))).model.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_what_no_file_tells_is_held_by_value():
    class Local(Sinusoid):
        pass

    for task in (Local(), Local, Holding(np.ones(3)), lambda: Local()):
        config = compose(None, objects(task=task))
        assert holds(config) == ["task"]
        made = build(config).task
        assert isinstance(made, Sinusoid) and (made is task or not isinstance(task, TaskSource))
    arrays = [np.zeros((4, 2), np.float32)] * 3
    few = FewShot(data=Arrays({"train": arrays, "val": arrays, "test": arrays}), ways=2, query=1)
    assert build(compose(None, objects(task=few))).task is few


def test_an_object_is_given_again_to_another_process():
    class Local(Scaled):
        pass

    config = compose(None, objects(task=Local(), model=nn.Linear(1, 1)))
    for key in ("task", "model"):
        config[key]["init_args"]["id"] = "of another process"
    with pytest.raises(ValueError, match=r"task was an object given from Python, .*Local, which"):
        build(config)
    with pytest.raises(ValueError, match="model: it was .*Linear that the run was given, not"):
        again(config, {"model": MLP()})
    with pytest.raises(ValueError, match=r"learner=.*: the run has its own, leave it out"):
        again(config, {"learner": MAML()})
    with pytest.raises(ValueError, match="modle: cannot be given; did you mean 'model'"):
        again(config, {"modle": nn.Linear(1, 1)})
    task = Local(scale=4.0)
    assert build(again(config, {"task": task, "model": nn.Linear(1, 1)})).task is task


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"task": nn.Linear(1, 1)}, r"task=Linear\(.*: must be a TaskSource, a class of such"),
        ({"task": OuterAdam}, "must be a TaskSource"),
        ({"model": 3}, "model: Expected a Module"),
        ({"model": lambda: 3}, "must make a Module, not 3"),
        ({"learner": OuterAdam()}, "must be a Learner"),
        ({"learner": torch.optim.Adam}, "must be a Learner"),
        ({"outer": object()}, "must be a OuterOptimizer"),
        ({"alpha": object()}, "alpha: must be plain data"),
        ({"inner": replace(Scaled(), scale=float("nan"))}, "cannot be written as configuration"),
        ({"task": None}, "task: Expected a TaskSource"),
    ],
)
def test_other_objects_are_refused(changed, said):
    with pytest.raises(ValueError, match=said) as raised:
        build(compose(None, objects(**changed)))
    assert "\n" not in str(raised.value)


def test_without_a_recipe_all_four_are_needed():
    with pytest.raises(ValueError, match="lacks model, learner, outer"):
        maml_dist.meta_train(task=Sinusoid())


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (
            "forward",
            r"the model does not take .*'no_such' \(.*test_given.py, line \d+, in forward\)",
        ),
        (
            "loss",
            r"the loss does not take .*KeyError: 'no_such' \(.*test_given.py, line \d+, in loss",
        ),
    ],
)
def test_a_mistake_in_an_object_is_said_with_its_line(tmp_path, part, said):
    class Mistaken(nn.Linear):
        def forward(self, x):
            return self.no_such if part == "forward" else super().forward(x)

    class Wrong(Sinusoid):
        def loss(self, output, batch):
            return {}["no_such"] if part == "loss" else super().loss(output, batch)

    given = {"task": Wrong(), "model": Mistaken(1, 1), "learner": MAML(), "outer": OuterAdam()}
    with pytest.raises(ValueError, match=said) as raised:
        maml_dist.meta_train(**given, run=tmp_path / "run", local=True, progress=False)
    assert raised.value.__cause__ is not None and not (tmp_path / "run").exists()


def test_a_model_serves_where_its_task_object_is_not(tmp_path):
    class Local(Sinusoid):
        pass

    settings = {"iterations": 0, "validation_tasks": 2, "test_steps": 1, "local": True}
    given = {"task": Local(), "model": MLP(), "learner": MAML(), "outer": OuterAdam()}
    run = maml_dist.meta_train(**given, **settings, run=tmp_path / "run", progress=False)
    text = (run.path / "recipe.yaml").read_text()
    for key in ("task", "model"):  # as another process finds it
        text = text.replace(run.config[key]["init_args"]["id"], "of another process")
    (run.path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match="model was an object given from Python, .*MLP, which no"):
        maml_dist.load(run.path)
    x = torch.ones(3, 1)
    model = maml_dist.load(run.path, model=MLP())
    with pytest.raises(
        ValueError, match=r"Local, which no file holds.*give a loss, adapt\(x, y, l"
    ):
        model.adapt(x, x)
    by_hand = model.adapt(x, x, loss=nn.functional.mse_loss)
    served = maml_dist.load(run.path, model=MLP(), task=Local()).adapt(x, x)
    assert torch.equal(by_hand(x), served(x)) and not torch.equal(model(x), served(x))
