import copy

import pytest
import torch
from torch import nn
from torch.func import grad
from torch.nn import functional as F

from maml_dist.core.compile.tracing import TracedFunction
from maml_dist.core.data.episode import Batch, supervised
from maml_dist.core.model.objective import Objective, modes, running_statistics
from maml_dist.core.random import keys
from maml_dist.models.mlp import MLP
from maml_dist.tasks.sinusoid import Sinusoid


class Outputs(Sinusoid):
    """Scores are the outputs themselves."""

    def score(self, output, batch):
        return {"mse": output}


def model_with_statistics(norm=nn.BatchNorm1d, **options) -> nn.Module:
    torch.manual_seed(0)
    norm = norm(4, **options)
    return nn.Sequential(nn.Linear(1, 4), norm, nn.ReLU(), nn.Linear(4, 1)).double()


def parameters(model):
    return {name: p.detach() for name, p in model.named_parameters()}


def kept(model):
    return {name: value.clone() for name, value in running_statistics(model).items()}


def by_hand(params, queries, mean, var):
    """The outputs one by one, with given statistics."""
    outputs = []
    for query in queries:
        h = (query @ params["0.weight"].T + params["0.bias"] - mean) / (var + 1e-5).sqrt()
        h = torch.relu(h * params["1.weight"] + params["1.bias"])
        outputs.append(h @ params["3.weight"].T + params["3.bias"])
    return torch.stack(outputs)


def test_inductive_scores_normalise_queries_by_the_support_set_alone():
    model = model_with_statistics()
    params = parameters(model)
    x, queries = torch.randn(6, 1).double(), torch.randn(5, 1).double()
    episode = supervised(Batch(x, x), Batch(queries, queries), steps=1)
    answer = Objective(model, Outputs()).answer(params, episode, mode="inductive")
    hidden = x @ params["0.weight"].T + params["0.bias"]
    expected = by_hand(params, queries, hidden.mean(0), hidden.var(0, correction=0))
    torch.testing.assert_close(answer, expected, rtol=1e-12, atol=1e-12)


def test_running_scores_normalise_queries_by_what_is_kept():
    model = model_with_statistics()
    queries = torch.randn(5, 1).double()
    episode = supervised(Batch(queries, queries), Batch(queries, queries), steps=1)
    held = {"1.running_mean": torch.randn(4).double(), "1.running_var": torch.rand(4).double()}
    params = parameters(model)
    answer = Objective(model, Outputs()).answer(params, episode, mode="running", kept=held)
    expected = by_hand(params, queries, held["1.running_mean"], held["1.running_var"])
    torch.testing.assert_close(answer, expected, rtol=1e-12, atol=1e-12)


def test_transductive_scores_normalise_queries_by_themselves():
    model = model_with_statistics()
    queries = torch.randn(5, 1).double()
    episode = supervised(Batch(queries, queries), Batch(queries, queries), steps=1)
    answer = Objective(model, Outputs()).answer(parameters(model), episode)
    torch.testing.assert_close(answer, model_with_statistics()(queries).detach())


def test_the_modes_are_those_of_the_batch_norms():
    assert modes(MLP()) == ()
    assert modes(MLP(batch_norm=True)) == ("transductive", "inductive")
    assert modes(model_with_statistics()) == ("transductive", "inductive", "running")


@pytest.mark.parametrize(
    ("norm", "options"),
    [
        (nn.BatchNorm1d, {}),
        (nn.BatchNorm1d, {"momentum": 0.3, "affine": False}),
        (nn.BatchNorm1d, {"momentum": None}),
        (nn.SyncBatchNorm, {}),
        (nn.BatchNorm2d, {}),
        (nn.BatchNorm2d, {"momentum": None}),
    ],
)
def test_statistics_follow_as_torchs_own_do(norm, options):
    images = norm is nn.BatchNorm2d
    first = nn.Conv2d(1, 4, 3) if images else nn.Linear(1, 4)
    model = nn.Sequential(first, norm(4, **options)).double()
    theirs, objective = copy.deepcopy(model), Objective(model, Outputs())
    held, params = kept(model), parameters(model)
    for _ in range(3):
        x = torch.randn((5, 1, 6, 6) if images else (5, 1)).double() + 2
        held = objective.statistics(params, held, Batch(x, x))
        expected = theirs.train()(x)
        torch.testing.assert_close(objective.output(params, x), expected.detach())
    for name, value in held.items():
        there = theirs.state_dict()[name].double()
        torch.testing.assert_close(value.double(), there, rtol=1e-12, atol=1e-12)


def test_a_norm_that_is_used_twice_follows_both_batches():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(self.norm(x) * 2 + 1)

    model = Twice().double()
    theirs, x = copy.deepcopy(model), torch.randn(7, 3).double()
    held = Objective(model, Outputs()).statistics(parameters(model), kept(model), Batch(x, x))
    theirs.train()(x)
    for name, value in held.items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-12, atol=1e-12)


def test_the_users_module_keeps_its_modes_and_its_buffers():
    model = model_with_statistics().append(nn.Dropout(0.5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, (key,) = torch.randn(6, 1).double(), keys(0, "train", 0, [0])
    outputs = []
    for training in (True, False):
        model.train(training)
        model[1].train()
        model[0].eval()
        was = [part.training for part in model.modules()]
        objective = Objective(model, Outputs())
        outputs.append(objective.output(parameters(model), x, key=key))
        assert [part.training for part in model.modules()] == was
    assert torch.equal(*outputs) and (outputs[0] == 0).any()
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert int(after["1.num_batches_tracked"]) == 0


def test_a_part_that_its_model_holds_in_evaluation_stays_there():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
            self.head = nn.Linear(4, 1)

        def forward(self, x):
            return self.head(self.backbone(x))

        def train(self, mode=True):
            super().train(mode)
            self.backbone.eval()
            return self

    torch.manual_seed(0)
    model, x = Frozen().double(), torch.randn(6, 1).double()
    model.backbone[1].running_mean += 0.5
    (key,) = keys(0, "train", 0, [0])
    objective = Objective(model, Outputs())
    assert objective.kept == () and modes(model) == ()
    torch.testing.assert_close(objective.output(parameters(model), x, key=key), model.eval()(x))


def test_dropout_is_drawn_in_the_losses_and_left_out_of_the_scores():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 50), nn.Dropout(0.5), nn.Linear(50, 1)).double()
    one, other = keys(0, "train", 0, [0, 1])
    objective, params = Objective(model, Outputs()), parameters(model)
    x, y = torch.randn(6, 1).double(), torch.randn(6, 1).double()
    losses = [objective.loss(params, Batch(x, y, key)) for key in (one, one, other)]
    assert losses[0] == losses[1] != losses[2]
    answer = objective.answer(params, supervised(Batch(x, y), Batch(x, y, one), steps=1))
    torch.testing.assert_close(answer, model.eval()(x))


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.attend = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        h = self.body(x).flatten(2).transpose(1, 2)
        return self.head(F.dropout(self.attend(h, h, h)[0].mean(1), 0.1))


class Labels(Sinusoid):
    def loss(self, output, batch):
        return F.cross_entropy(output, batch.y)


def test_bfloat16_passes_give_float32_losses_and_gradients_near_the_float32_ones():
    torch.manual_seed(0)
    model = Everything()
    params, held = parameters(model), kept(model)
    (key,) = keys(0, "train", 0, [0])
    batch = Batch(torch.randn(12, 1, 6, 6), torch.arange(12) % 3, key)
    exact, rough = (Objective(model, Labels(), bfloat16=low) for low in (False, True))
    gradient = grad(rough.loss)(params, batch)
    assert {g.dtype for g in gradient.values()} == {torch.float32}
    loss = rough.loss(params, batch)
    assert loss.dtype == torch.float32 and loss != exact.loss(params, batch)
    torch.testing.assert_close(loss, exact.loss(params, batch), rtol=0.02, atol=0)
    ours, theirs = (
        torch.cat([g.flatten() for g in part.values()])
        for part in (gradient, grad(exact.loss)(params, batch))
    )
    assert 0 < (ours - theirs).norm() < 0.05 * theirs.norm()
    traced = TracedFunction(lambda x, y, key: grad(rough.loss)(params, Batch(x, y, key)))(
        *batch[:3]
    )
    same = torch.cat([traced[name].flatten() for name in gradient])
    assert (same - ours).norm() < 0.02 * ours.norm()  # a trace's convolutions round otherwise
    episode = supervised(batch, batch, steps=1)
    for mode in modes(model):
        near, score = (o.answer(params, episode, mode=mode, kept=held) for o in (exact, rough))
        torch.testing.assert_close(near, score, rtol=0.03, atol=0.03)
    after, near = (o.statistics(params, held, batch) for o in (rough, exact))
    torch.testing.assert_close(after, near, rtol=0.02, atol=0.02)
