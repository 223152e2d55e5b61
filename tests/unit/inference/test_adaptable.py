import pytest
import torch

import maml_dist
from maml_dist.core.data.task_source import TaskKey
from maml_dist.models.mlp import MLP


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return maml_dist.meta_train(
        "sinusoid",
        run=folder / "run",
        iterations=3,
        checkpoint_every=1,
        local=True,
        progress=False,
        **{"engine.running": "eager"},
    )


def test_a_loaded_model_is_the_users_own_class_with_its_names(run):
    model = maml_dist.load(run.path, checkpoint="last")
    assert isinstance(model, MLP)
    weights, _ = run.weights("last")
    assert {n: v.tolist() for n, v in model.state_dict().items()} == {
        name: value.tolist() for name, value in weights.items()
    }


def test_adapting_gives_the_scores_of_an_evaluation(run):
    mean = maml_dist.meta_test(run, tasks=2, steps=4)["results"][0]["steps"][4]["mean"]
    model = maml_dist.load(run.path)
    source = run.experiment.task
    tasks = [source.sample(TaskKey(0, "test", 0, index)) for index in range(2)]
    episode = source.collect(tasks, steps=1)
    (x, y, *_), query = episode.support[0], episode.query
    losses = [
        (model.adapt(x[i], y[i], steps=4)(query.x[i]) - query.y[i]).square().mean()
        for i in range(2)
    ]
    assert mean == pytest.approx(float(torch.stack(losses).mean().detach()), rel=1e-5)


def test_adapting_leaves_the_model_alone_and_can_go_on(run):
    model = maml_dist.load(run.path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = [[-1.0], [0.0], [2.0]]
    y = [[0.5], [0.0], [1.0]]
    twice = model.adapt(x, y, steps=2).adapt(x, y, steps=3)
    assert all(torch.equal(before[name], v) for name, v in model.state_dict().items())
    torch.testing.assert_close(twice.state_dict(), model.adapt(x, y, steps=5).state_dict())


def test_misfits_are_one_clear_line(run):
    model = maml_dist.load(run.path)
    with pytest.raises(ValueError, match="x and y must hold equally many examples"):
        model.adapt(torch.zeros(3, 1), torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"cannot adapt to x \[3, 2\]"):
        model.adapt(torch.zeros(3, 2), torch.zeros(3, 1))
    with pytest.raises(ValueError, match="is not a run"):
        maml_dist.load(run.path / "nowhere")
