import pytest
import torch
from torch import nn

from maml_dist.core.episode import Batch, supervised
from maml_dist.core.objective import Objective, normalises, prepare
from maml_dist.models.mlp import MLP
from maml_dist.tasks.sinusoid import Sinusoid


class Outputs(Sinusoid):
    """Scores are the outputs themselves."""

    def score(self, output, batch):
        return {"mse": output}


def model_with_statistics() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)).double()


def test_inductive_scores_normalise_queries_by_the_support_set_alone():
    model = model_with_statistics()
    params = {name: p.detach() for name, p in model.named_parameters()}
    x, queries = torch.randn(6, 1).double(), torch.randn(5, 1).double()
    episode = supervised(Batch(x, x), Batch(queries, queries), steps=1)
    scores = Objective(model, Outputs()).scores(params, episode, inductive=True)

    hidden = x @ params["0.weight"].T + params["0.bias"]
    mean, var = hidden.mean(0), hidden.var(0, correction=0)
    one_by_one = []
    for query in queries:
        h = (query @ params["0.weight"].T + params["0.bias"] - mean) / (var + 1e-5).sqrt()
        h = torch.relu(h * params["1.weight"] + params["1.bias"])
        one_by_one.append(h @ params["3.weight"].T + params["3.bias"])
    torch.testing.assert_close(scores["mse"], torch.stack(one_by_one), rtol=1e-12, atol=1e-12)


def test_transductive_scores_normalise_queries_by_themselves():
    model = model_with_statistics()
    params = {name: p.detach() for name, p in model.named_parameters()}
    queries = torch.randn(5, 1).double()
    episode = supervised(Batch(queries, queries), Batch(queries, queries), steps=1)
    scores = Objective(model, Outputs()).scores(params, episode, inductive=False)
    torch.testing.assert_close(scores["mse"], model_with_statistics()(queries).detach())


def test_batch_norm_takes_the_current_batch_even_in_evaluation_mode():
    model = prepare(model_with_statistics())
    x = torch.randn(6, 1).double()
    trained, evaluated = model.train()(x), model.eval()(x)
    assert torch.equal(trained, evaluated)


def test_batch_norm_is_noticed():
    assert normalises(MLP(batch_norm=True))
    assert not normalises(MLP())


def test_dropout_is_refused_by_name():
    with pytest.raises(ValueError, match=r"model\.1 is dropout with p=0\.5"):
        prepare(nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5)))
    prepare(nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.0)))
