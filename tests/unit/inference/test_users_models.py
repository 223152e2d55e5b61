"""Users' own models from training to what is loaded, adapted, copied, pickled and served."""

import copy
import multiprocessing
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import yaml
from torch.nn import functional as F

import maml_dist
from maml_dist.core.params import real_of
from maml_dist.reporting.page import report

USERS = """
import torch
from torch import nn
from torch.nn.utils import prune


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(1, 8), nn.Linear(8, 1)

    def middle(self, h):
        return torch.tanh(h)

    def forward(self, x):
        return self.down(self.middle(torch.tanh(self.up(x))))


class Twice(Hidden):
    def __init__(self):
        super().__init__()
        block = nn.Linear(8, 8)
        self.blocks = nn.Sequential(block, nn.Tanh(), block)
        self.whole = nn.Sequential(self.up, nn.Tanh(), self.blocks, self.down)

    def forward(self, x):
        return self.whole(x)


class WeightNormed(Hidden):
    def __init__(self):
        super().__init__()
        self.up = nn.utils.weight_norm(self.up)


class Parametrized(Hidden):
    def __init__(self):
        super().__init__()
        self.up = nn.utils.parametrizations.weight_norm(self.up)


class Pruned(Hidden):
    def __init__(self):
        super().__init__()
        prune.l1_unstructured(self.up, "weight", 0.4)


class Keeping(Hidden):
    def __init__(self):
        super().__init__()
        self.seen = []
        self.function = lambda h: h * self.up.weight[:, 0]
        self.up.register_forward_hook(self.keep)

    def keep(self, part, args, out):
        self.seen.append(out)

    def middle(self, h):
        self.last = h
        return self.function(self.seen[-1]) + self.last


class Spectral(Hidden):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, dtype=torch.cfloat))
        self.register_buffer("turn", torch.randn(5, dtype=torch.cfloat))

    def middle(self, h):
        return torch.fft.irfft(torch.fft.rfft(h) * self.weight * self.turn, n=8)


class Normed(Hidden):
    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.2)

    def middle(self, h):
        return self.drop(self.norm(h))
"""
KINDS = ["Twice", "WeightNormed", "Pruned", "Keeping", "Spectral", "Normed"]
SMALL = {
    "iterations": 2,
    "meta_batch": 2,
    "validation_tasks": 2,
    "test_tasks": 2,
    "test_steps": 2,
}
TRACED = ["Keeping", "Normed"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains a model of the user's, once each."""
    folder = tmp_path_factory.mktemp("users")
    (folder / "users_models.py").write_text(USERS)
    runs = {}

    def train(kind, again=0):
        name = f"{kind}{again}"
        if name not in runs:
            recipe = {
                "model": {"class_path": f"users_models.{kind}"},
                "task": {"class_path": "Sinusoid"},
                "learner": {"class_path": "MAML"},
                "outer": {"class_path": "Adam"},
            }
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
            runs[name] = maml_dist.meta_train(
                folder / f"{name}.yaml",
                run=folder / name,
                local=True,
                progress=False,
                **SMALL,
                **{"engine.running": "traced" if kind in TRACED else "eager"},
            )
        return runs[name]

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # that hooks are deprecated
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder))  # of spawned processes
        yield train


def data(number=0):
    draw = torch.Generator().manual_seed(number)
    return torch.randn(6, 1, generator=draw), torch.randn(6, 1, generator=draw)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("kind", KINDS)
def test_adapting_is_gradient_descent_on_a_copy_and_leaves_the_model_alone(trained, kind):
    run = trained(kind)
    model = maml_dist.load(run.path)
    before, (x, y) = state(model), data()
    drops = kind == "Normed"  # whose dropout a formula of torch's cannot draw
    for _ in range(3):
        model(x)  # keeps what it computes
        by_hand = copy.deepcopy(model)
        adapted = model.adapt(x, y, steps=1)
        assert kind == "Normed" or same(state(model), before)
        if drops:
            continue
        params = dict(by_hand.named_parameters())
        slopes = torch.autograd.grad(F.mse_loss(by_hand(x), y), list(params.values()))
        for p, g in zip(params.values(), slopes, strict=True):
            p.data -= run.experiment.learner.alpha * g
        torch.testing.assert_close(state(adapted), state(by_hand))
        torch.testing.assert_close(adapted(x), by_hand(x))
    assert not same(state(adapted), before)
    further = adapted.adapt(x, y, steps=1)
    if not drops:
        torch.testing.assert_close(state(further), state(model.adapt(x, y, steps=2)))


def test_all_that_is_learned_of_a_complex_weight_has_moved(trained):
    run = trained("Spectral")
    loaded, initial = maml_dist.load(run.path, checkpoint="last"), run.experiment.model
    assert (real_of(loaded.weight.detach()) != real_of(initial.weight.detach())).all()
    assert loaded.turn.is_complex()


def test_the_report_of_a_complex_weight_is_drawn(trained):
    assert report(trained("Spectral")).exists()


def test_weight_norm_by_hooks_is_that_by_parametrization(trained):
    hooked, other = (trained(kind) for kind in ("WeightNormed", "Parametrized"))
    (a, _), (b, _) = hooked.weights("last"), other.weights("last")
    for old, new in (("up.weight_g", "original0"), ("up.weight_v", "original1")):
        assert torch.equal(a[old], b[f"up.parametrizations.weight.{new}"])
    results = [maml_dist.meta_test(run, tasks=3, steps=2)["results"] for run in (hooked, other)]
    assert results[0] == results[1]


def through_a_file(model, folder):
    torch.save(model, folder / "model.pt")
    return torch.load(folder / "model.pt", weights_only=False)


@pytest.mark.parametrize("adapts", [False, True], ids=["loaded", "adapted"])
@pytest.mark.parametrize("kind", ["Twice", "WeightNormed", "Spectral", "Normed"])
def test_models_are_copied_pickled_and_saved(trained, kind, adapts, tmp_path):
    model, (x, y) = maml_dist.load(trained(kind).path), data()
    model = model.adapt(x, y, steps=1) if adapts else model
    model(x)  # leaves in `weight` what autograd has computed
    expected, further = model.eval()(x), state(model.adapt(x, y, steps=1))
    for back in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        through_a_file(model, tmp_path),
        copy.deepcopy(pickle.loads(pickle.dumps(model))),
    ):
        assert type(back) is type(model) and back is not model
        assert torch.equal(back(x), expected) and same(state(back), state(model))
        assert same(state(back.adapt(x, y, steps=1)), further)
        with torch.no_grad():
            next(back.parameters()).add_(1)
        assert torch.equal(model(x), expected)


def serve(model, x, y, answers):
    torch.set_num_threads(1)
    answers.put(model.adapt(x, y, steps=1)(x).detach().numpy())


def test_an_adapted_model_travels_to_a_spawned_process(trained):
    model, (x, y) = maml_dist.load(trained("WeightNormed").path).adapt(*data(), steps=1), data(1)
    model(x)
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    process = spawn.Process(target=serve, args=(model, x, y, answers))
    process.start()
    answer = torch.from_numpy(answers.get(timeout=120))
    process.join()
    torch.testing.assert_close(answer, model.adapt(x, y, steps=1)(x).detach())


def test_a_deep_copy_in_a_tree_of_others_keeps_what_they_share(trained):
    model = maml_dist.load(trained("Keeping").path)
    both = copy.deepcopy({"model": model, "part": model.up})
    assert both["part"] is both["model"].up and both["part"] is not model.up


@pytest.mark.parametrize("kind", ["Normed", "Keeping"])
def test_threads_adapt_as_one_after_the_other(trained, kind):
    model = maml_dist.load(trained(kind).path)
    own = {name: value for name, value in vars(F).items() if callable(value)}
    before, users, (query, _) = state(model), [data(n) for n in range(40)], data(99)

    def served(user):
        with torch.no_grad():
            return model.adapt(*user, steps=2).eval()(query)

    alone = [served(user) for user in users]
    with ThreadPoolExecutor(8) as pool:
        pooled = list(pool.map(served, users))
    assert all(map(torch.equal, alone, pooled))
    assert same(state(model), before)
    assert {name: value for name, value in vars(F).items() if callable(value)} == own


def test_two_trainings_in_threads_are_those_of_each_alone(trained):
    alone = [trained(kind).weights("last")[0] for kind in TRACED]
    with ThreadPoolExecutor(2) as pool:
        both = pool.map(lambda kind: trained(kind, again=1).weights("last")[0], TRACED)
    assert all(map(same, both, alone))


def test_a_report_is_drawn_of_a_model_with_hooks(trained):
    assert report(trained("WeightNormed")).is_file()
