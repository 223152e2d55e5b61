"""What is prepared at fixed tensors gives what the whole function gives, for many tensors."""

import pytest
import torch
from torch import Tensor

from maml_dist.core.compile.partial_eval import PartialEval, no_partial_eval
from maml_dist.core.compile.tracing import TracedFunction


def numbers(seed: int) -> Tensor:
    return torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)).double()


def function(tensor: Tensor, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """One result of both, one of the tensor alone, one that the tensor does not reach."""
    heavy = torch.linalg.solve(a @ a.T + 1, b).tanh()
    return {"both": heavy.T @ tensor + heavy, "tensor": tensor * 2, "fixed": a.T + b}


@pytest.mark.parametrize("room", [0, 1 << 20])
def test_many_tensors_and_many_fixed_ones_give_the_same_bits_as_the_whole(room):
    prepare, whole = PartialEval(function), TracedFunction(function)
    fixed = [(numbers(1), numbers(2)), (numbers(3), numbers(4))]
    made = [prepare(*pair, like=numbers(0), room=room)[0] for pair in fixed]
    for seed in (5, 6):
        for of, pair in zip(made, fixed, strict=True):
            found, expected = of(numbers(seed)), whole(numbers(seed), *pair)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in found)


def test_what_is_held_is_counted_and_no_more_than_there_is_room_for():
    def doubled(tensor: Tensor, a: Tensor) -> Tensor:
        held = a * 2
        return held.T * tensor + held @ tensor  # two views of what is held take as much as one

    prepare = PartialEval(doubled)
    size = numbers(1).nbytes
    assert prepare(numbers(1), like=numbers(0), room=size)[1] == size
    assert prepare(numbers(1), like=numbers(0), room=size - 1)[1] == 0
    views = PartialEval(lambda tensor, a: a.T * tensor)  # nor does one of an argument
    assert views(numbers(1), like=numbers(0), room=size)[1] == 0


def test_the_part_of_the_fixed_tensors_is_computed_once_for_all_tensors(monkeypatch):
    computed = []

    @torch.library.custom_op("maml_dist_test::heavy", mutates_args=())
    def heavy(x: Tensor) -> Tensor:
        computed.append(1)
        return x * 2

    heavy.register_fake(torch.empty_like)
    prepare = PartialEval(lambda tensor, a: heavy(a) + tensor)
    for room, times in ((1e9, 0), (0, 3)):
        product, _ = prepare(numbers(1), like=numbers(0), room=room)
        product(numbers(0))
        computed.clear()
        for seed in range(3):
            assert torch.equal(product(numbers(seed)), 2 * numbers(1) + numbers(seed))
        assert len(computed) == times


def test_unprepared_computes_all_of_it_each_time():
    held, taken = no_partial_eval(function)(numbers(1), numbers(2), like=numbers(0), room=0)
    assert taken == 0
    expected = function(numbers(3), numbers(1), numbers(2))
    assert all(torch.equal(value, expected[name]) for name, value in held(numbers(3)).items())
