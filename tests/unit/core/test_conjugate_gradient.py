import pytest
import torch
from torch.func import functionalize, grad, vmap
from torch.func import hessian as full_hessian
from torch.fx.experimental.proxy_tensor import make_fx

from maml_dist.core.conjugate_gradient import conjugate_gradient, hessian, solve

SIZE = 8


def normal(seed, *shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def positive(seed=0, size=SIZE):
    root = normal(seed, size, size)
    return root @ root.T + torch.eye(size).double()


def test_it_solves_the_system():
    matrix, b = positive(), normal(1, SIZE)
    x = conjugate_gradient(lambda v: matrix @ v, b, iterations=2 * SIZE)
    torch.testing.assert_close(x, torch.linalg.solve(matrix, b), rtol=1e-10, atol=1e-12)


def test_damping_is_added_to_the_diagonal():
    matrix, b = positive(), normal(1, SIZE)
    x = conjugate_gradient(lambda v: matrix @ v, b, iterations=2 * SIZE, damping=0.7)
    expected = torch.linalg.solve(matrix + 0.7 * torch.eye(SIZE).double(), b)
    torch.testing.assert_close(x, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_i_iterations_give_the_best_x_of_their_krylov_space(iterations):
    matrix, b = positive(), normal(1, SIZE)
    x = conjugate_gradient(lambda v: matrix @ v, b, iterations=iterations)
    krylov = torch.stack([torch.linalg.matrix_power(matrix, i) @ b for i in range(iterations)], 1)
    basis, _ = torch.linalg.qr(krylov)
    best = basis @ torch.linalg.solve(basis.T @ matrix @ basis, basis.T @ b)
    torch.testing.assert_close(x, best, rtol=1e-8, atol=1e-10)


def test_what_comes_after_the_tolerance_changes_nothing():
    matrix, b = positive(), normal(1, SIZE)
    solutions = [
        conjugate_gradient(lambda v: matrix @ v, b, iterations=i, tolerance=0.3)
        for i in range(1, SIZE + 1)
    ]
    reached = [bool((matrix @ x - b).norm() <= 0.3 * b.norm()) for x in solutions]
    first = reached.index(True)
    assert 0 < first < SIZE - 1
    for later in solutions[first:]:
        assert torch.equal(later, solutions[first])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_residual_of_zero_gives_no_nan(dtype):
    b = torch.tensor([1.0, 2.0, -4.0], dtype=dtype)
    exact = conjugate_gradient(lambda v: 2 * v, b, iterations=5)
    assert torch.equal(exact, b / 2)
    zero = conjugate_gradient(lambda v: 2 * v, torch.zeros_like(b), iterations=5)
    assert torch.equal(zero, torch.zeros_like(b))


def test_many_iterations_after_convergence_stay_there():
    matrix, b = positive().float(), normal(1, SIZE).float()
    x = conjugate_gradient(lambda v: matrix @ v, b, iterations=200)
    expected = torch.linalg.solve(matrix.double(), b.double()).float()
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)


def test_a_direction_without_positive_curvature_ends_it():
    matrix, b = torch.diag(torch.tensor([3.0, -1.0])).double(), torch.tensor([1.0, 0.5]).double()
    first = conjugate_gradient(lambda v: matrix @ v, b, iterations=1)
    torch.testing.assert_close(first, b * (b @ b) / (b @ matrix @ b))
    assert torch.equal(conjugate_gradient(lambda v: matrix @ v, b, iterations=9), first)
    assert torch.equal(conjugate_gradient(lambda v: -matrix @ v, b, iterations=9), b)


def test_what_is_not_finite_is_not_hidden():
    b = normal(1, SIZE)
    assert not conjugate_gradient(lambda v: v * torch.nan, b, iterations=3).isfinite().all()
    assert not conjugate_gradient(lambda v: v, b * torch.nan, iterations=3).isfinite().all()


def test_vmapped_and_traced_it_is_the_same():
    matrices = torch.stack([positive(seed, 3) for seed in range(3)] + [torch.eye(3).double()])
    b = normal(9, 4, 3)
    b[1] = 0

    def one(matrix, b):
        return conjugate_gradient(lambda v: matrix @ v, b, iterations=3, tolerance=1e-3)

    alone = torch.stack([one(*task) for task in zip(matrices, b, strict=True)])
    torch.testing.assert_close(vmap(one)(matrices, b), alone, rtol=1e-12, atol=1e-14)
    traced = make_fx(functionalize(vmap(one)))(
        torch.ones(4, 3, 3).double(), torch.ones(4, 3).double()
    )
    torch.testing.assert_close(traced(matrices, b), alone, rtol=1e-12, atol=1e-14)


def bowl(params):
    return (params["a"].sin() * params["b"].sum(0)).sum() + (params["b"] ** 3).sum()


def test_the_product_is_that_of_the_whole_hessian():
    at, vector = ({"a": normal(s, 2), "b": normal(s + 1, 3, 2)} for s in (0, 2))
    blocks = full_hessian(bowl)(at)
    product = hessian(bowl, at)(vector)
    for row in at:
        expected = sum(
            torch.tensordot(blocks[row][column], vector[column], vector[column].dim())
            for column in at
        )
        torch.testing.assert_close(product[row], expected, rtol=1e-12, atol=1e-12)


def test_named_tensors_are_solved_as_one_vector():
    matrix, b = positive(), normal(1, SIZE)

    def quadratic(params):
        x = torch.cat([params["a"], params["b"].reshape(-1)])
        return x @ matrix @ x / 2

    named = {"a": b[:2], "b": b[2:].reshape(3, 2)}
    x = solve(hessian(quadratic, named), named, iterations=2 * SIZE)
    torch.testing.assert_close(grad(quadratic)(x), named, rtol=1e-10, atol=1e-10)
