import pytest
import torch
from torch.func import functionalize, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import mse_loss

from maml_dist.core.adaptation.inner_optimizers import SGD, Adam, Momentum
from maml_dist.core.data.episode import Batch, supervised
from maml_dist.learners.imaml import IMAML
from maml_dist.learners.maml import MAML

IT = torch.tensor(0.0)
SIZE = 5
TOLERANCE = 0.2


def normal(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def quadratic(params, batch):
    """w' A w / 2 - c' w with A = x, c = y, and w the parameters as one vector."""
    w = torch.cat([params["body"], params["head"]])
    return w @ batch.x @ w / 2 - batch.y @ w


def quadratic_setting(seed=0):
    def batch(seed):
        root = normal(seed, SIZE, SIZE)
        return Batch(root @ root.T / SIZE, normal(seed + 1, SIZE))

    meta = {"body": normal(seed, 2), "head": normal(seed + 1, 3)}
    return meta, batch(seed + 2), batch(seed + 4)


def mlp(params, x):
    return torch.tanh(x @ params["body.weight"] + params["body.bias"]) @ params["head.weight"]


def mlp_loss(params, batch):
    return mse_loss(mlp(params, batch.x), batch.y)


def mlp_setting(seed=0):
    shapes = {"body.weight": (2, 6), "body.bias": (6,), "head.weight": (6, 1)}
    meta = {name: normal(seed + n, *shape) for n, (name, shape) in enumerate(shapes.items())}
    x = normal(seed + 5, 12, 2)
    y = (x[:, :1] * 2).sin() + x[:, 1:]
    return meta, Batch(x[:6], y[:6]), Batch(x[6:], y[6:])


def vector(params):
    return torch.cat([value.reshape(-1) for value in params.values()])


def gradient_of(learner, loss, meta, support, query):
    episode = supervised(support, query, steps=learner.steps)
    return learner.gradient(loss, loss, meta, episode, IT)


def adapt(learner, loss, meta, support, steps):
    return learner.adapt(loss, meta, (support,) * steps, IT)


SOLVERS = {
    "descent": {"alpha": 0.2, "steps": 300},
    "momentum": {"alpha": 0.05, "steps": 500, "inner": Momentum(0.8)},
    "hessian-free": {"solver": "hessian-free", "solver_iterations": 8, "steps": 12},
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_quadratic_has_its_closed_form(solver):
    meta, support, query = quadratic_setting()
    strength = 0.7
    learner = IMAML(strength=strength, cg_iterations=8, **SOLVERS[solver])
    held = support.x + strength * torch.eye(SIZE).double()
    best = torch.linalg.solve(held, support.y + strength * vector(meta))
    phi = adapt(learner, quadratic, meta, support, learner.steps)
    torch.testing.assert_close(vector(phi), best, rtol=1e-9, atol=1e-9)
    gradient, metrics = gradient_of(learner, quadratic, meta, support, query)
    expected = strength * torch.linalg.solve(held, query.x @ best - query.y)
    assert list(gradient) == list(meta)
    torch.testing.assert_close(vector(gradient), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(metrics["loss/after"], quadratic(phi, query))


def test_damping_is_added_to_the_inverted_matrix():
    meta, support, query = quadratic_setting()
    learner = IMAML(alpha=0.2, steps=3, cg_iterations=8, damping=1.5)
    phi = vector(adapt(learner, quadratic, meta, support, 3))
    gradient, _ = gradient_of(learner, quadratic, meta, support, query)
    matrix = 2.5 * torch.eye(SIZE).double() + support.x / learner.strength
    expected = torch.linalg.solve(matrix, query.x @ phi - query.y)
    torch.testing.assert_close(vector(gradient), expected, rtol=1e-10, atol=1e-10)


def by_exact_differentiation(meta, support, query, *, strength, alpha, steps):
    """The meta-gradient by a hand-written loop with one graph through all its steps."""
    leaves = {name: value.clone().requires_grad_() for name, value in meta.items()}
    phi = leaves
    for _ in range(steps):
        far = sum(((phi[name] - leaves[name]) ** 2).sum() for name in phi)
        inner = mlp_loss(phi, support) + strength / 2 * far
        moves = torch.autograd.grad(inner, phi.values(), create_graph=True)
        phi = {name: phi[name] - alpha * g for name, g in zip(phi, moves, strict=True)}
    gradient = torch.autograd.grad(mlp_loss(phi, query), leaves.values())
    return dict(zip(leaves, gradient, strict=True))


def test_an_mlp_has_the_gradient_through_a_long_inner_loop():
    meta, support, query = mlp_setting()
    exact = by_exact_differentiation(meta, support, query, strength=0.5, alpha=0.1, steps=600)
    learner = IMAML(strength=0.5, alpha=0.1, steps=600, cg_iterations=40)
    gradient, _ = gradient_of(learner, mlp_loss, meta, support, query)
    torch.testing.assert_close(gradient, exact, rtol=1e-8, atol=1e-10)
    free = IMAML(
        strength=0.5, steps=30, cg_iterations=40, solver="hessian-free", solver_iterations=10
    )
    gradient, _ = gradient_of(free, mlp_loss, meta, support, query)
    torch.testing.assert_close(gradient, exact, rtol=1e-8, atol=1e-10)


def test_more_conjugate_gradient_iterations_are_nearer():
    meta, support, query = mlp_setting()
    exact = by_exact_differentiation(meta, support, query, strength=0.5, alpha=0.1, steps=600)
    errors = []
    for iterations in (1, 3, 5, 10):
        learner = IMAML(strength=0.5, alpha=0.1, steps=600, cg_iterations=iterations)
        gradient, _ = gradient_of(learner, mlp_loss, meta, support, query)
        errors.append((vector(gradient) - vector(exact)).norm().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 * errors[0]


def test_hessian_free_reaches_the_same_minimiser():
    meta, support, _ = mlp_setting()
    descent = adapt(IMAML(strength=0.5), mlp_loss, meta, support, 600)
    free = IMAML(strength=0.5, solver="hessian-free", solver_iterations=10)
    torch.testing.assert_close(
        adapt(free, mlp_loss, meta, support, 30), descent, rtol=1e-8, atol=1e-8
    )


def test_a_hessian_free_step_never_makes_the_inner_problem_worse():
    meta, support, _ = mlp_setting(20)
    meta = {name: 3 * value for name, value in meta.items()}
    learner = IMAML(strength=0.01, solver="hessian-free", halvings=12)

    def problem(phi):
        far = (vector(phi) - vector(meta)).square().sum()
        return (mlp_loss(phi, support) + learner.strength / 2 * far).item()

    path = [problem(phi) for phi in learner.path(mlp_loss, meta, (support,) * 20, IT)]
    assert all(later <= earlier for earlier, later in zip(path, path[1:], strict=False))
    assert path[-1] < 0.1 * path[0]


@pytest.mark.parametrize(
    "how",
    [
        {"inner": SGD()},
        {"inner": Adam(), "alpha": 0.05},
        {"solver": "hessian-free"},
    ],
    ids=["descent", "adam", "hessian-free"],
)
def test_below_the_tolerance_steps_change_nothing(how):
    meta, support, _ = mlp_setting()
    free = list(IMAML(**how).path(mlp_loss, meta, (support,) * 60, IT))
    stopping = IMAML(**how, tolerance=TOLERANCE)
    stopped = list(stopping.path(mlp_loss, meta, (support,) * 60, IT))

    def norm(phi):
        leaves = {name: value.clone().requires_grad_() for name, value in phi.items()}
        far = sum(((leaves[name] - meta[name]) ** 2).sum() for name in leaves)
        inner = mlp_loss(leaves, support) + stopping.strength / 2 * far
        return vector(dict(enumerate(torch.autograd.grad(inner, leaves.values())))).norm()

    first = [bool(norm(phi) <= TOLERANCE) for phi in free].index(True)
    assert 0 < first < 60
    for k, (one, other) in enumerate(zip(stopped, free, strict=True)):
        expected = other if k <= first else stopped[first]
        torch.testing.assert_close(one, expected, rtol=1e-14, atol=0)


def test_what_does_not_adapt_stays_and_moves_the_solution():
    meta, support, query = quadratic_setting()
    learner = IMAML(alpha=0.2, steps=300, cg_iterations=8, adapted=("head",))
    phi = adapt(learner, quadratic, meta, support, 300)
    assert torch.equal(phi["body"], meta["body"])
    held = support.x[2:, 2:] + 2 * torch.eye(3).double()
    pull = support.y[2:] - support.x[2:, :2] @ meta["body"] + 2 * meta["head"]
    torch.testing.assert_close(phi["head"], torch.linalg.solve(held, pull))
    gradient, _ = gradient_of(learner, quadratic, meta, support, query)
    direct = query.x @ vector(phi) - query.y
    solved = torch.linalg.solve(held, direct[2:])
    torch.testing.assert_close(gradient["body"], direct[:2] - support.x[:2, 2:] @ solved)
    torch.testing.assert_close(gradient["head"], 2 * solved)


def test_without_steps_it_is_joint_training():
    meta, support, query = mlp_setting()
    ours, _ = gradient_of(IMAML(steps=0), mlp_loss, meta, support, query)
    theirs, _ = gradient_of(MAML(steps=0), mlp_loss, meta, support, query)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "how",
    [{}, {"solver": "hessian-free", "solver_iterations": 2, "halvings": 1}],
    ids=["descent", "hessian-free"],
)
def test_vmapped_and_traced_it_is_the_same(how):
    learner = IMAML(steps=2, cg_iterations=3, tolerance=0.3, cg_tolerance=0.1, **how)
    meta, *_ = mlp_setting()
    tasks = [mlp_setting(10 * seed)[1:] for seed in range(3)]
    names = list(meta)

    def one(xs, ys, xq, yq, it, *values):
        episode = supervised(Batch(xs, ys), Batch(xq, yq), steps=2)
        params = dict(zip(names, values, strict=True))
        gradient, metrics = learner.gradient(mlp_loss, mlp_loss, params, episode, it)
        return *gradient.values(), metrics["loss/after"]

    data = [
        torch.stack(column)
        for column in zip(*((s.x, s.y, q.x, q.y) for s, q in tasks), strict=True)
    ]
    shared = [IT, *meta.values()]
    alone = [one(*task, *shared) for task in zip(*data, strict=True)]
    expected = [torch.stack(column) for column in zip(*alone, strict=True)]
    many = vmap(one, in_dims=(0,) * 4 + (None,) * len(shared))
    for actual in (
        many(*data, *shared),
        make_fx(functionalize(many))(*(torch.ones_like(t) for t in (*data, *shared)))(
            *data, *shared
        ),
    ):
        torch.testing.assert_close(list(actual), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "bad",
    [
        {"alpha": -1},
        {"strength": 0},
        {"strength": float("nan")},
        {"cg_iterations": 0},
        {"solver_iterations": 0},
        {"halvings": -1},
        {"tolerance": -0.1},
        {"damping": float("inf")},
        {"cg_tolerance": -1},
        {"solver": "newton"},
        {"steps": -1},
    ],
)
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=f"learner.{next(iter(bad))}="):
        IMAML(**bad)


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match=r"'hed\.\*' matches no parameter"):
        IMAML(adapted=("hed.*",)).init(quadratic_setting()[0])
