"""Many tasks at once are each as it is alone: all learners, models with state, ragged lengths."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import maml_dist
from maml_dist.config.experiment import Experiment
from maml_dist.config.meta_parameters import meta_parameters
from maml_dist.core.params import cast
from maml_dist.inference import many_tasks
from maml_dist.inference.live_bytes import live_bytes
from maml_dist.inference.load import adaptable

LEARNERS = {
    "MAML": maml_dist.MAML(steps=2),
    "momentum": maml_dist.MAML(steps=3, inner=maml_dist.InnerMomentum()),
    "adam": maml_dist.MAML(steps=3, inner=maml_dist.InnerAdam(), later_share=0.5),
    "head": maml_dist.MAML(steps=2, adapted=("head.*",)),
    "MetaSGD": maml_dist.MetaSGD(steps=2, each="layer-step"),
    "Reptile": maml_dist.Reptile(steps=4, minibatch=3),
    "MAML++": maml_dist.MAMLPlusPlus(steps=2, learned_rates=True, per_step=("body.0.*",)),
    "IMAML": maml_dist.IMAML(steps=3, tolerance=0.01),
    "newton": maml_dist.IMAML(steps=2, solver="hessian-free", strength=0.5),
    "ESMAML": maml_dist.ESMAML(steps=2),
    "climb": maml_dist.ESMAML(steps=2, adaptation="hill-climb"),
}


def loaded(learner=LEARNERS["MAML"], module=None, task=None, dtype=torch.float64):
    """A model as `load` gives it, untrained."""
    torch.manual_seed(0)
    module = maml_dist.MLP(hidden=(8, 8)) if module is None else module
    cast(module, dtype)
    task = task or maml_dist.Sinusoid()
    experiment = Experiment(task=task, model=module, learner=learner, outer=maml_dist.OuterAdam())
    values = {name: v.clone() for name, v in meta_parameters(experiment).values.items()}
    for name, value in values.items():  # as if trained: rows of steps differ
        if name.startswith("step.") or "running" in name:
            value += 0.1 * torch.rand(value.shape, dtype=value.dtype)
    return adaptable(experiment, values, 7)


def data(*shape, seed=0):
    x = torch.rand(*shape, 1, generator=torch.Generator().manual_seed(seed)).double() * 4 - 2
    return x, torch.sin(3 * x)


def alone(model, x, y, query, **options):
    return torch.stack(
        [model.adapt(x[i], y[i], **options)(query[i]).detach() for i in range(len(x))]
    )


@pytest.mark.parametrize("name", LEARNERS)
def test_each_task_is_as_alone(name):
    model = loaded(LEARNERS[name])
    (x, y), (query, _) = data(5, 7), data(5, 4, seed=1)
    expected = alone(model, x, y, query)
    assert not torch.allclose(expected[0], model(query[0]), rtol=0, atol=1e-6)
    adapted = model.adapt_many(x, y)
    exact = {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(adapted.predict(query), expected, **exact)
    torch.testing.assert_close(model.predict_many(x, y, query), expected, **exact)
    one = model.adapt(x[3], y[3])
    torch.testing.assert_close(adapted[3].state_dict(), one.state_dict(), **exact)
    again = adapted[3].adapt(x[3], y[3], steps=3)  # goes on as the one does
    torch.testing.assert_close(
        again.state_dict(), one.adapt(x[3], y[3], steps=3).state_dict(), **exact
    )


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_of_so_many_steps(steps):
    (x, y), (query, _) = data(3, 6), data(3, 4, seed=1)
    for name in ("MAML", "MAML++"):
        model = loaded(LEARNERS[name])
        expected = alone(model, x, y, query, steps=steps)
        adapted = model.adapt_many(x, y, steps=steps)
        torch.testing.assert_close(adapted.predict(query), expected, rtol=0, atol=1e-10)
        found = model.predict_many(x, y, query, steps=steps)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_in_float32_to_a_millionth():
    model = loaded(dtype=torch.float32)
    x, y, query = (t.float() for t in (*data(50, 10), data(50, 4, seed=1)[0]))
    found = model.adapt_many(x.numpy(), y).predict(query)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, alone(model, x, y, query), rtol=0, atol=1e-6)


def test_ragged_tasks_are_lists_and_come_back_in_order():
    model = loaded()
    lengths = [3, 5, 3, 1, 5]
    sets = [data(n, seed=n + i) for i, n in enumerate(lengths)]
    queries = [data(n, seed=n)[0] for n in (2, 2, 6, 2, 1)]
    expected = [model.adapt(x, y)(q).detach() for (x, y), q in zip(sets, queries, strict=True)]
    xs, ys = [x.numpy() for x, _ in sets], [y.tolist() for _, y in sets]
    for found in (model.adapt_many(xs, ys).predict(queries), model.predict_many(xs, ys, queries)):
        assert isinstance(found, list)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    stacked = torch.stack([q[:1] for q in queries])
    torch.testing.assert_close(
        model.predict_many(xs, ys, stacked), torch.stack([e[:1] for e in expected])
    )


def test_chunks_change_nothing(monkeypatch):
    model = loaded()
    (x, y), (query, _) = data(11, 6), data(11, 3, seed=1)
    whole = model.predict_many(x, y, query)
    torch.testing.assert_close(model.predict_many(x, y, query, chunk=4), whole, rtol=0, atol=1e-12)
    sizes = []
    monkeypatch.setattr(
        many_tasks, "vmap", lambda f: lambda *t: sizes.append(len(t[0])) or torch.vmap(f)(*t)
    )
    adapted = model.adapt_many(x, y, chunk=4)
    torch.testing.assert_close(adapted.predict(query), whole, rtol=0, atol=1e-12)
    assert sizes[:3] == [4, 4, 3]
    monkeypatch.setattr(many_tasks, "BUDGET", 1e-9)  # what a task takes is more
    sizes.clear()
    torch.testing.assert_close(model.predict_many(x, y, query), whole, rtol=0, atol=1e-12)
    assert sizes == [1] * 11


def test_live_bytes_are_of_the_most_that_was_held():
    def call():
        first = torch.ones(1000)
        second = first + 1
        del first
        return second.view(10, 100) * 2  # no more than two at once

    assert live_bytes(call) == 8000


class Normed(nn.Module):
    def __init__(self, running=True, width=6):
        super().__init__()
        self.up, self.down = nn.Linear(1, width), nn.Linear(width, 1)
        self.norm = nn.BatchNorm1d(width, track_running_stats=running)
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        return self.down(self.drop(torch.tanh(self.norm(self.up(x)))))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        block = nn.Linear(5, 5)
        self.net = nn.Sequential(
            nn.Linear(1, 5), block, nn.Tanh(), block, nn.Tanh(), nn.Linear(5, 1)
        )
        self.whole = nn.Sequential(self.net, nn.Identity())

    def forward(self, x):
        return self.whole(x)


class Spectral(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(1, 8), nn.Linear(8, 1)
        self.weight = nn.Parameter(torch.randn(5, dtype=torch.cfloat))

    def forward(self, x):
        return self.down(torch.tanh(torch.fft.irfft(torch.fft.rfft(self.up(x)) * self.weight, n=8)))


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(1, 8).requires_grad_(False), nn.Linear(8, 1)
        self.register_buffer("scale", torch.rand(8))

    def forward(self, x):
        return self.head(torch.relu(self.body(x)) * self.scale)


class Hooked(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.utils.weight_norm(nn.Linear(1, 8)), nn.Linear(8, 1)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


class Reading(nn.Module):
    """Has no vmap."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, x):
        return self.line(x) * (2.0 if x.sum() > 0 else 3.0)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(1, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.cell(x[..., None])[0][:, -1])


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize("kind", [Normed, Tied, Spectral, Frozen, Hooked, Recurrent])
def test_models_with_state_of_all_kinds(kind):
    model = loaded(module=kind())
    before = copy.deepcopy(model.state_dict())
    (x, y), (query, _) = data(4, 6), data(4, 5, seed=1)
    for mode in (False, True):
        model.train(mode)
        if mode and kind is Normed:
            model.drop.p = 0.0  # what the module itself draws is its own
        adapted = model.adapt_many(x, y)
        expected = alone(model, x, y, query)
        torch.testing.assert_close(adapted.predict(query), expected, rtol=0, atol=1e-10)
        found = model.predict_many(x, y, query)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(adapted.eval().predict(query), alone(model.eval(), x, y, query))
        assert adapted[1].training is mode
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_running_statistics_are_those_of_the_step():
    model = loaded(maml_dist.MAMLPlusPlus(steps=2, step_statistics=True), Normed()).eval()
    (x, y), (query, _) = data(4, 6), data(4, 5, seed=1)
    found = []
    for steps in (0, 1, 2, 4):
        expected = alone(model, x, y, query, steps=steps)
        for each in (
            model.adapt_many(x, y, steps=steps).predict(query),
            model.predict_many(x, y, query, steps=steps),
        ):
            torch.testing.assert_close(each, expected, rtol=0, atol=1e-10)
        found.append(expected)
    assert not torch.allclose(found[1], found[2], atol=1e-4)


def test_nothing_is_dropped_out_of_predictions_but_of_adapting_what_it_drops_alone():
    model = loaded(module=Normed())
    (x, y), (query, _) = data(4, 6), data(4, 5, seed=1)
    found = model.predict_many(x, y, query)
    assert torch.equal(found, model.predict_many(x, y, query))
    model.drop.p = 0.0
    assert not torch.allclose(found, model.predict_many(x, y, query), atol=1e-6)


def test_what_has_no_vmap_goes_one_by_one_and_says_so():
    model = loaded(module=Reading())
    (x, y), (query, _) = data(4, 6), data(4, 5, seed=1)
    with pytest.warns(UserWarning, match="one by one"):
        found = model.predict_many(x, y, query)
    torch.testing.assert_close(found, alone(model, x, y, query), rtol=0, atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # from then on in silence
        model.adapt_many(x, y)


def test_classes_and_images():
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
    )
    model = loaded(module=module, task=maml_dist.FewShot(data=None, ways=4))
    x = torch.rand(3, 8, 1, 6, 6).double()
    y = torch.arange(4).repeat_interleave(2).repeat(3, 1)
    expected = alone(model, x, y, x)
    torch.testing.assert_close(model.predict_many(x, y, x), expected, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match=r"task 1: .*(out of bounds|out of range)"):
        model.adapt_many(x, torch.stack([y[0], y[0] + 4, y[0]]))
    with pytest.raises(ValueError, match="must be the class of each example"):
        model.adapt_many(x, y.double())
    with pytest.raises(ValueError, match="task 2: .*class of each example"):
        model.adapt_many([*x], [y[0], y[0], -y[0]])


def test_only_what_adapting_changes_is_kept_for_each():
    model = loaded(LEARNERS["head"])
    adapted = model.adapt_many(*data(1000, 4))
    assert {name for name in adapted._changed} == {"head.weight", "head.bias"}
    params = adapted.params
    assert params.keys() == dict(model.named_parameters()).keys()
    assert params["body.0.weight"].shape == (1000, 8, 1)
    assert params["body.0.weight"].untyped_storage().nbytes() == 8 * 8
    spectral = loaded(module=Spectral()).adapt_many(*data(3, 4))
    assert spectral.params["weight"].dtype == torch.complex128
    torch.testing.assert_close(spectral.params["weight"][2], spectral[2].weight.detach())


def test_some_of_the_models_copies_and_pickles():
    model = loaded()
    (x, y), (query, _) = data(6, 5), data(6, 4, seed=1)
    adapted = model.adapt_many(x, y)
    every = adapted.predict(query)
    assert len(adapted) == len([*adapted]) == 6 and "6 adapted models of MLP" in repr(adapted)
    assert torch.equal(adapted[-1](query[5]), adapted[5](query[5]))
    for some in (slice(1, 4), [4, 1], np.array([5, 0]), torch.tensor([2])):
        torch.testing.assert_close(
            adapted[some].predict(query[some]), every[some], rtol=0, atol=1e-12
        )
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()  # the model's later life is its own
    for back in (pickle.loads(pickle.dumps(adapted)), copy.deepcopy(adapted)):
        assert torch.equal(back.predict(query), every)
    with pytest.raises(IndexError):
        adapted[6]


def test_a_loss_that_is_given_takes_the_place_of_the_sources():
    model = loaded()
    (x, y), (query, _) = data(4, 6), data(4, 5, seed=1)
    same = model.predict_many(x, y, query, loss=F.mse_loss)
    torch.testing.assert_close(same, model.predict_many(x, y, query), rtol=0, atol=1e-12)
    other = model.adapt_many(x, y, loss=F.l1_loss).predict(query)
    torch.testing.assert_close(other, alone(model, x, y, query, loss=F.l1_loss), rtol=0, atol=1e-10)
    assert not torch.allclose(same, other, atol=1e-6)


X, Y = data(3, 4)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda m: m.adapt_many(X[:0], Y[:0]),
            "x of 0, y of 0 tasks: must be of equally many, at least one",
        ),
        (lambda m: m.adapt_many([], []), "at least one"),
        (lambda m: m.adapt_many(X, Y[:2]), "x of 3, y of 2 tasks"),
        (
            lambda m: m.adapt_many(X, Y[:, :2]),
            r"adapt\(x \[4, 1\], y \[2, 1\]\): x and y must hold",
        ),
        (lambda m: m.adapt_many(X[:, :0], Y[:, :0]), "at least one"),
        (lambda m: m.adapt_many(X[0, :, 0], Y[0, :, 0]), "equally many examples"),
        (
            lambda m: m.adapt_many([*X], [Y[0], Y[1], Y[2][:2]]),
            r"task 2: adapt\(x \[4, 1\], y \[2, 1\]",
        ),
        (
            lambda m: m.adapt_many([X[0], X[1] * float("nan"), X[2]], Y),
            r"x\[1\] holds what is not finite",
        ),
        (lambda m: m.adapt_many(X / 0, Y), "x holds what is not finite"),
        (lambda m: m.adapt_many([*X], ["a", 1, 2]), r"y\[0\] must be an array of numbers, not str"),
        (lambda m: m.adapt_many("abc", Y), "x must be an array of numbers, not str"),
        (lambda m: m.adapt_many(3, Y), "x must hold the data of many tasks"),
        (lambda m: m.adapt_many(None, Y), "not NoneType"),
        (lambda m: m.adapt_many({"a": 1}, Y), "x of 1"),
        (
            lambda m: m.adapt_many(X.expand(3, 4, 2), Y),
            r"task 0: cannot adapt to x \[4, 2\] float64",
        ),
        (lambda m: m.adapt_many(X.long(), Y), r"task 0: cannot adapt to x \[4, 1\] int64"),
        (lambda m: m.adapt_many(X, Y[..., 0]), "task 0: cannot adapt to .*Using a target size"),
        (lambda m: m.adapt_many(X, Y, steps=-1), "steps=-1"),
        (lambda m: m.adapt_many(X, Y, steps=10**9), "steps=1000000000"),
        (lambda m: m.adapt_many(X, Y, chunk=0), "chunk=0"),
        (lambda m: m.adapt_many(X, Y, loss=3), "loss=3: must be a function"),
        (lambda m: m.adapt_many(X, Y, loss=lambda out, y: out - y), "must give a scalar tensor"),
        (lambda m: m.predict_many(X, Y, X[:2]), "x of 3, y of 3, query of 2 tasks"),
        (lambda m: m.predict_many(X, Y, X.expand(3, 4, 2)), r"query \[4, 2\] float64"),
        (lambda m: m.predict_many(X, Y, [X[0], X[1], [[float("inf")]]]), r"query\[2\] holds what"),
        (lambda m: m.adapt_many(X, Y).predict(X[:2]), "x of 2 tasks: must be of 3"),
        (
            lambda m: m.adapt_many(X, Y).predict(X.expand(3, 4, 2)),
            r"task 0: cannot predict at x \[4, 2\]",
        ),
        (
            lambda m: m.adapt_many(X, torch.stack([Y[0], Y[1] * 1e200, Y[2]])),
            "task 1: adapting has diverged",
        ),
        (lambda m: m.adapt(X[0], Y[0] * 1e200), "adapting has diverged"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_that_names_the_task(call, said):
    with pytest.raises(ValueError, match=said) as error:
        call(loaded(maml_dist.MAML(steps=3)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_numbers_of_other_precisions_are_taken_in_the_models(dtype):
    model = loaded()
    x, y = X.to(dtype), Y.to(dtype)
    expected = model.predict_many(x.double(), y.double(), x.double())
    assert torch.equal(model.predict_many(x, y, x), expected)
    assert torch.equal(model.predict_many([*x], [*y], [*x])[1], expected[1])


def test_policies_have_no_many_tasks():
    task, module = maml_dist.Navigation(), maml_dist.GaussianPolicy(2, 2)
    policy = loaded(module=module, task=task)
    for call in (policy.adapt_many, policy.predict_many):
        with pytest.raises(ValueError, match="a policy adapts by acting"):
            call(X, Y)
