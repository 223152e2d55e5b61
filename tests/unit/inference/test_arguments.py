"""Python's face: what is of the wrong kind is a ValueError in one sentence, no wrong number."""

import gymnasium
import numpy as np
import pytest
import torch

import maml_dist
from maml_dist.tasks.few_shot import FewShot
from maml_dist.tasks.sinusoid import Sinusoid

UNTRAINED = {"iterations": 0, "engine.running": "eager", "local": True, "progress": False}
UNTRAINED |= {"validation_tasks": 2}
X, Y = torch.linspace(-1, 1, 5)[:, None], torch.ones(5, 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return maml_dist.meta_train(
        "sinusoid", run=tmp_path_factory.mktemp("run") / "sinusoid", **UNTRAINED
    )


@pytest.fixture(scope="module")
def model(trained):
    return maml_dist.load(trained.path)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "navigation"
    small = {"episodes": 1, "horizon": 3, "test_tasks": 2}
    return maml_dist.load(maml_dist.meta_train("navigation", run=run, **UNTRAINED, **small).path)


def refused(call, said):
    with pytest.raises(ValueError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        ("abc", "x must be an array of numbers, not str"),
        (b"abc", "not bytes"),
        (None, "not NoneType"),
        ({"a": 1}, "not dict"),
        (object(), "not object"),
        ([[1.0], [1.0, 2.0]], "not list"),
        (np.array([None] * 5), "not ndarray"),
        ([[10**400]] * 5, "not list"),
        (X * float("nan"), "x holds what is not finite"),
        (X / 0, "x holds what is not finite"),
        (np.full((5, 1), 1e300), "too large for torch.float32"),
        (X + 0j, "cannot adapt to x .* complex64"),
        (X.to_sparse(), "must be dense"),
        (torch.zeros(5, 3), r"cannot adapt to x \[5, 3\] float32"),
        (torch.zeros(5, 1, dtype=torch.int64), r"cannot adapt to x \[5, 1\] int64"),
        (X[:0], "at least one"),
        (X[:4], "equally many"),
        (torch.tensor(1.0), "equally many"),
    ],
)
def test_adapt_takes_arrays_of_finite_numbers(model, x, said):
    refused(lambda: model.adapt(x, Y), said)


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (None, "y must be an array of numbers, not NoneType"),
        ("abc", "y must be"),
        (Y[:, 0], "Using a target size"),
        (Y * float("nan"), "y holds what is not finite"),
        (Y + 0j, "cannot adapt to .* y .* complex64"),
        (Y[:3], "equally many"),
    ],
)
def test_and_targets_of_the_right_shape(model, y, said):
    refused(lambda: model.adapt(X, y), said)
    refused(lambda: model.adapt(X), "y must be")


def test_numbers_of_steps(model, policy):
    for steps in (-1, 1.5, True, "3", 10**12, float("nan"), [1]):
        for call in (model.adapt, policy.learn):
            refused(lambda call=call, steps=steps: call(X, Y, steps=steps)
                    if call == model.adapt else call(None, steps=steps), "steps=")  # fmt: skip
    assert type(model.adapt(X, Y, steps=np.int64(2))) is type(model.adapt(X, Y, steps=0))


class Own(Sinusoid):
    """A loss that broadcasts in silence."""

    def loss(self, output, batch):
        return ((output - batch.y) ** 2).mean()


def test_a_loss_of_ones_own_does_not_broadcast_the_targets(model, monkeypatch):
    monkeypatch.setattr(model, "_source", Own())
    refused(lambda: model.adapt(X, Y[:, 0]), r"broadcasts \[5, 1\] and \[5\] to \[5, 5\]")
    assert not torch.equal(next(model.adapt(X, Y).parameters()), next(model.parameters()))


class OfAPart(Sinusoid):
    """Another, by what is made of the targets."""

    def loss(self, output, batch):
        return ((output - 2 * batch.y[:, 0].float()) ** 2).mean()


class Ranking(Sinusoid):
    """A loss of pairs, which is meant so."""

    def loss(self, output, batch):
        (out,), (y,) = output.T, batch.y.T
        return ((out[:, None] - out - (y[:, None] - y)) ** 2).mean()


def test_nor_what_is_made_of_the_targets(model, monkeypatch):
    monkeypatch.setattr(model, "_source", OfAPart())
    refused(lambda: model.adapt(X, Y), r"broadcasts \[5, 1\] and \[5\] to \[5, 5\]")
    monkeypatch.setattr(model, "_source", Ranking())
    assert not torch.equal(next(model.adapt(X, Y).parameters()), next(model.parameters()))


def test_classes_are_whole_numbers_from_0(model, monkeypatch):
    monkeypatch.setattr(model, "_source", FewShot(data=None, ways=2))
    monkeypatch.setattr(model, "head", torch.nn.Linear(40, 2))
    for y in (
        torch.tensor([0, 1, -100, 0, 1]),  # cross entropy would leave it out
        torch.tensor([0, 1, -1, 0, 1]),
        torch.zeros(5),
        torch.rand(5, 2),  # which it would take for probabilities
        torch.zeros(5, 1, dtype=torch.int64),
    ):
        refused(lambda y=y: model.adapt(X, y), "must be the class of each example")
    refused(lambda: model.adapt(X, torch.tensor([0, 1, 2, 0, 1])), "cannot adapt")


@pytest.mark.parametrize(
    ("obs", "said"),
    [
        ([0.0] * 3, r"act\(obs \[3\]\): must be \[2\], or \[n, …, 2\]"),
        (np.zeros((1, 2, 1)), r"act\(obs \[1, 2, 1\]\)"),
        (1.0, r"act\(obs \[\]\)"),
        ("ab", "obs must be an array"),
        (None, "obs must be an array"),
        ([[1.0], [1.0, 2.0]], "obs must be an array"),
        ([float("nan"), 0.0], "obs holds what is not finite"),
    ],
)
def test_act_takes_observations_of_its_size(policy, obs, said):
    refused(lambda: policy.act(obs), said)
    assert policy.act([0, 0]).shape == (2,) and policy.act(np.zeros((3, 2))).shape == (3, 2)


def test_policies_adapt_in_environments_and_learn_tasks(policy):
    for env in (None, "CartPole-v1", gymnasium.make, X):
        refused(lambda env=env: policy.adapt(env), "env must be a Gymnasium environment")
    refused(lambda: policy.adapt(gymnasium.make("CartPole-v1")), "the environment takes Discrete")
    env = gymnasium.make("Pendulum-v1")
    for seed in (-1, 1.5, "3", None, True):
        refused(lambda seed=seed: policy.adapt(env, seed=seed), "seed=")
    for task in (None, 3, "goal", (0, 1)):
        refused(lambda task=task: policy.learn(task), "task must be one")
    refused(lambda: policy.act([0.0, 0.0], generator=3), "generator must be")


@pytest.mark.parametrize(
    "options",
    [
        *({"tasks": 1}, {"tasks": 2.5}, {"tasks": True}, {"tasks": 10**12}, {"steps": -1}),
        *({"steps": "3"}, {"split": ["test"]}, {"split": None}, {"checkpoint": ""}),
        *({"checkpoint": 3}, {"checkpoint": "\0"}, {"checkpoint": None}, {"checkpoint": "nowhere"}),
    ],
)
def test_an_evaluation_of_what_there_is_not(trained, options):
    refused(lambda: maml_dist.meta_test(trained, **options), next(iter(options)))
    assert not (trained.path / "evaluation.json").exists()


@pytest.mark.parametrize("run", ["", " ", None, 3, "\0", "nowhere", b"x", [], "\ud800", True])
def test_load_takes_a_runs_folder(run):
    refused(lambda: maml_dist.load(run), "run")
    refused(lambda: maml_dist.meta_train(resume=run or "", local=True), "run")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipe": 3}, "the recipe must be a path"),
        ({"recipe": ""}, "the recipe is empty"),
        ({"recipe": ["sinusoid"]}, "the recipe must be a path"),
        ({"run": ""}, "the run's folder is empty"),
        ({"run": 3}, "the run's folder must be a path"),
        ({"address": ""}, "address=''"),
        ({"local": "yes"}, "local='yes': must be True or False"),
        ({"progress": 1}, "progress=1"),
        ({"on_validation": 3}, "on_validation=3"),
        ({"alpha": torch.tensor(1.0)}, "alpha: must be plain data .*, not Tensor"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"hidden": np.zeros(2)}, "hidden: must be plain data .*, not ndarray"),
        ({"iterations": True}, "iterations: Expected a int"),
        ({"iterations": 10**400}, "iterations: a number of 1329 bits"),
        ({"init": ""}, "init is empty"),
        ({"checkpoints": " "}, "checkpoints is empty"),
        ({"model": object()}, "model=<object .*>: must be a Module, a class of such"),
        ({"hidden": torch.nn.Linear(1, 1)}, "hidden: must be plain data .*, not Linear"),
        ({"name": "../../x"}, "name='../../x'"),
        ({"name": "x" * 300}, "name='xxx"),
        ({"paper": {-1: 2.0}}, "paper="),
        ({"seed": 2**64}, "seed: 18446744073709551616"),
        ({"cpus_per_shard": float("inf")}, "cpus_per_shard=inf"),
        ({"query": 10**11}, "task.query=100000000000"),
        ({"meta_batch": 10**9}, "meta_batch=1000000000: must be 1 … 1000000"),
        ({"learner": {"class_path": "MAML", "init_args": 3}}, "learner.init_args=3"),
        ({"learner": {"class_path": 3}}, "learner.class_path=3"),
    ],
)
def test_meta_train_takes_plain_values(tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    refused(lambda: maml_dist.meta_train(**{"local": True, "progress": False, **options}), said)
    assert list(tmp_path.iterdir()) == []
