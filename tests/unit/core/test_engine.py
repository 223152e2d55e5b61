"""Every way to run a batch of tasks gives the meta-gradient of a hand-written autograd loop."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss

from maml_dist.core.engine import Engine, MetaGradient, Replay
from maml_dist.core.episode import Batch, Episode, supervised
from maml_dist.core.objective import Objective
from maml_dist.core.params import flatten, layout
from maml_dist.core.source import TaskSource
from maml_dist.learners.maml import MAML
from maml_dist.models.conv4 import Conv4
from maml_dist.models.mlp import MLP

TASKS, ALPHA = 2, 0.1


class Regression(TaskSource):
    def sample(self, key):
        return None

    def collect(self, tasks, *, steps, adapt=None):
        raise AssertionError("not collected here")

    def loss(self, output, batch):
        return mse_loss(output, batch.y)


class Classification(Regression):
    def loss(self, output, batch):
        return cross_entropy(output, batch.y)


def mlp() -> tuple[nn.Module, TaskSource, Batch, Batch]:
    support, query = (
        Batch(torch.randn(TASKS, n, 2).double(), torch.randn(TASKS, n, 1).double()) for n in (5, 7)
    )
    return MLP(2, 1, hidden=(8, 8)).double(), Regression(), support, query


def conv(downsample: str) -> tuple[nn.Module, TaskSource, Batch, Batch]:
    support, query = (
        Batch(torch.randn(TASKS, n, 2, 16, 16).double(), torch.arange(3).repeat(TASKS, n // 3))
        for n in (6, 9)
    )
    model = Conv4(3, channels=2, filters=4, size=16, downsample=downsample)
    return model.double(), Classification(), support, query


CASES = {"mlp": mlp, "conv-stride": lambda: conv("stride"), "conv-pool": lambda: conv("pool")}


def by_hand(model, source, support, query, *, steps, first_order=False) -> torch.Tensor:
    """The meta-gradient summed over tasks, by autograd through an explicit loop."""
    names, weights = zip(*model.named_parameters(), strict=True)
    total = 0.0
    for task in range(len(support.x)):
        phi = list(weights)
        for _ in range(steps):
            output = functional_call(model, dict(zip(names, phi, strict=True)), support.x[task])
            inner = source.loss(output, Batch(support.x[task], support.y[task]))
            gradients = torch.autograd.grad(inner, phi, create_graph=not first_order)
            phi = [p - ALPHA * g for p, g in zip(phi, gradients, strict=True)]
        output = functional_call(model, dict(zip(names, phi, strict=True)), query.x[task])
        outer = source.loss(output, Batch(query.x[task], query.y[task]))
        total = total + torch.cat([g.flatten() for g in torch.autograd.grad(outer, weights)])
    return total


def by_engine(model, source, support, query, *, steps, engine, first_order=False) -> torch.Tensor:
    objective = Objective(model, source)
    params = {name: p.detach() for name, p in model.named_parameters()}
    learner = MAML(alpha=ALPHA, steps=steps, first_order=first_order)
    gradient = MetaGradient(engine, learner, objective, into=layout(params))
    episode = supervised(support, query, steps=steps)
    return gradient(flatten(params), episode, torch.tensor(0.0))[0]


@pytest.mark.parametrize(
    ("case", "steps", "batching", "traced"),
    [
        *((case, 1, "vmap", True) for case in CASES),
        *((case, 5, "task", False) for case in CASES),
        ("mlp", 1, "task", False),
        ("mlp", 5, "vmap", True),
        ("conv-stride", 1, "task", True),
        ("conv-pool", 5, "task", True),
    ],
)
def test_meta_gradient_is_that_of_a_hand_written_loop(case, steps, batching, traced):
    torch.manual_seed(0)
    model, source, support, query = CASES[case]()
    ours = by_engine(
        model, source, support, query, steps=steps, engine=Engine(batching, traced=traced)
    )
    theirs = by_hand(model, source, support, query, steps=steps)
    assert (ours - theirs).norm() <= 1e-10 * theirs.norm()


@pytest.mark.parametrize("traced", [False, True])
def test_first_order_is_that_of_a_hand_written_loop(traced):
    torch.manual_seed(0)
    case = mlp()
    engine = Engine("vmap", traced=traced)
    ours = by_engine(*case, steps=3, engine=engine, first_order=True)
    theirs = by_hand(*case, steps=3, first_order=True)
    assert (ours - theirs).norm() <= 1e-10 * theirs.norm()


@pytest.mark.parametrize("batching", ["task", "vmap"])
def test_support_and_query_may_be_the_very_same_tensors(batching):
    torch.manual_seed(0)
    model, source, support, _ = mlp()
    ours = by_engine(model, source, support, support, steps=2, engine=Engine(batching))
    theirs = by_hand(model, source, support, support, steps=2)
    assert (ours - theirs).norm() <= 1e-10 * theirs.norm()


def test_a_trace_made_on_equal_tensors_is_right_on_distinct_ones():
    replay = Replay(lambda a, b: a * 2 + b * 3)
    one, ten = torch.ones(2), torch.full((2,), 10.0)
    assert replay(one, one).tolist() == [5, 5]
    assert replay(one, ten).tolist() == [32, 32]


def test_parts_of_a_larger_tensor_may_be_replayed():
    replay = Replay(lambda a: a.reshape(-1) * 2)
    whole = torch.arange(8.0).reshape(2, 4)
    assert replay(whole.chunk(2, dim=1)[0]).tolist() == [0, 2, 8, 10]
    assert replay(whole.T[:2].T).tolist() == [0, 2, 8, 10]


def test_a_new_shape_is_traced_anew():
    replay = Replay(lambda a: a.sum() / len(a))
    assert replay(torch.ones(2)) == 1
    assert replay(torch.arange(4.0)) == 1.5


def test_a_function_that_draws_random_numbers_is_refused():
    with pytest.raises(ValueError, match="draw random numbers"):
        Replay(lambda a: a + torch.rand_like(a))(torch.zeros(8))


def test_simplifying_a_trace_changes_no_result():
    constant = torch.arange(3.0)

    def function(a, b):
        views = constant.view(1, 3).expand(2, 3) * 1 + a.view(2, 3).t().t()
        return views, (a * 1.0).sum(), torch.zeros(3).add_(a[0]) + torch.zeros(3).add_(b[0]), b * 1

    one, two = torch.randn(2, 3), torch.arange(6).reshape(2, 3)
    for ours, eager in zip(Replay(function)(one, two), function(one, two), strict=True):
        assert ours.dtype == eager.dtype and torch.equal(ours, eager)


def test_auto_takes_convolutions_on_a_cpu_task_by_task_and_the_rest_in_one_vmap():
    assert Engine().resolve(Conv4(), "cpu").batching == "task"
    assert Engine().resolve(Conv4(), "cuda").batching == "vmap"
    assert Engine().resolve(MLP(), "cpu").batching == "vmap"
    assert Engine("vmap").resolve(Conv4(), "cpu").batching == "vmap"


def test_results_come_back_with_the_task_axis_first():
    double = Engine("task", traced=False).over_tasks(lambda shared, batch: shared + batch.x.sum())
    episode = Batch(torch.arange(6.0).reshape(3, 2), torch.zeros(3, 2))
    assert double(torch.tensor(100.0), episode).tolist() == [101, 105, 109]


def test_an_episode_repeats_its_support_for_every_step():
    batch = Batch(torch.zeros(1, 2), torch.zeros(1, 2))
    assert supervised(batch, batch, steps=3) == Episode((batch, batch, batch), batch)
