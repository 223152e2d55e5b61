"""Whose custom functions are looked at: those of this thread, of torch's nothing stays replaced."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from torch.autograd import function

from maml_dist.preflight.double_backward import wrong_second_derivative


class Right(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


class Wrong(Right):
    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].detach()


def test_threads_are_told_of_their_own_functions():
    before, meeting = function.custom_function_call, Barrier(4)

    def told(kind):
        meeting.wait()
        x = torch.linspace(0, 1, 5)
        return {wrong_second_derivative(lambda x: kind.apply(x).sum(), x) for _ in range(3)}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(told, (Right, Wrong) * 2)) == [{None}, {"Wrong"}] * 2
    assert function.custom_function_call is before
