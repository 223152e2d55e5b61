import pytest
import torch
from torch.func import vmap

from maml_dist.core.compile.tracing import TracedFunction, peak_bytes, trace


def test_a_trace_made_on_equal_tensors_is_right_on_distinct_ones():
    run = TracedFunction(lambda a, b: a * 2 + b * 3)
    one, ten = torch.ones(2), torch.full((2,), 10.0)
    assert run(one, one).tolist() == [5, 5]
    assert run(one, ten).tolist() == [32, 32]


def test_parts_of_a_larger_tensor_may_be_replayed():
    run = TracedFunction(lambda a: a.reshape(-1) * 2)
    whole = torch.arange(8.0).reshape(2, 4)
    assert run(whole.chunk(2, dim=1)[0]).tolist() == [0, 2, 8, 10]
    assert run(whole.T[:2].T).tolist() == [0, 2, 8, 10]


def test_a_new_shape_or_dtype_is_traced_anew_and_no_other_call():
    calls = []

    def function(a):
        calls.append(a.shape)
        return a.sum() / len(a)

    run = TracedFunction(function)
    assert run(torch.ones(2)) == 1
    assert run(torch.arange(4.0)) == 1.5
    assert run(torch.arange(4).double()).dtype == torch.float64
    assert len(calls) == 3
    assert run(torch.tensor([1.0, 3.0])) == 2
    assert len(calls) == 3


def test_results_are_a_tree_without_autograd():
    weights = torch.ones(3, requires_grad=True)
    results = TracedFunction(lambda a: {"sum": (a * weights).sum(), "both": (a, [a + 1])})(weights)
    assert results["sum"] == 3 and not results["sum"].requires_grad
    assert results["both"][1][0].tolist() == [2, 2, 2]


@pytest.mark.parametrize("drawn", [torch.rand_like, lambda a: torch.dropout(a, 0.5, True)])
def test_a_function_that_draws_random_numbers_is_refused(drawn):
    with pytest.raises(ValueError, match="draw random numbers"):
        TracedFunction(lambda a: a + drawn(a))(torch.zeros(8))


READS = {
    "a branch": lambda a: a if a.sum() > 0 else -a,
    "item": lambda a: a * a.sum().item(),
    "float": lambda a: a * float(a.sum()),
    "tolist": lambda a: a * a.tolist()[0],
    "a mask": lambda a: a[a > 0].sum(),
    "nonzero": lambda a: a.nonzero(),
}


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("reads", READS)
def test_what_depends_on_values_is_refused_in_one_line(reads, batched):
    function = READS[reads]
    if batched:
        function = lambda stacked: vmap(READS[reads])(stacked)  # noqa: E731 - of one argument
    values = torch.tensor([1.0, -2.0, 3.0])
    with pytest.raises(ValueError, match="read a tensor as a number or decide by it") as raised:
        TracedFunction(function)(values.expand(2, 3) if batched else values)
    assert "\n" not in str(raised.value)


def test_an_error_of_the_function_is_handed_on():
    with pytest.raises(RuntimeError, match="must match the size"):
        TracedFunction(lambda a: a + torch.ones(4))(torch.ones(3))


def test_places_and_constant_masks_may_index():
    places, mask = torch.tensor([0, 2]), torch.tensor([True, False, True])
    run = TracedFunction(lambda a, b: (a[places] + a[mask]) * a[b])
    assert run(torch.tensor([1.0, 2, 3]), torch.tensor([1, 1])).tolist() == [4, 12]
    assert run(torch.tensor([1.0, 2, 3]), torch.tensor([0, 2])).tolist() == [2, 18]


def test_simplifying_a_trace_changes_no_result():
    constant = torch.arange(3.0)

    def function(a, b):
        views = constant.view(1, 3).expand(2, 3) * 1 + a.view(2, 3).t().t()
        return views, (a * 1.0).sum(), torch.zeros(3).add_(a[0]) + torch.zeros(3).add_(b[0]), b * 1

    one, two = torch.randn(2, 3), torch.arange(6).reshape(2, 3)
    for ours, eager in zip(TracedFunction(function)(one, two), function(one, two), strict=True):
        assert ours.dtype == eager.dtype and torch.equal(ours, eager)


def test_simplifying_leaves_out_what_changes_nothing_or_repeats():
    def function(a):
        same = a.view(4).view(2, 2).t().t().expand(2, 2) * 1
        return a.sin() + a.sin() + same.detach() + same.cos().t() * 0 + (a.exp() - a.exp())

    graph, _ = trace(function, [torch.randn(2, 2)])
    names = [node.target.__name__ for node in graph.graph.nodes if node.op == "call_function"]
    assert [names.count(name) for name in ("sin.default", "exp.default")] == [1, 1]
    assert "detach.default" not in names


def peak_of(function, *tensors):
    return peak_bytes(trace(function, list(tensors))[0].graph)


def test_the_peak_is_that_of_a_hand_count():
    a = torch.ones(100)  # 400 bytes, not counted: it is the caller's
    assert peak_of(lambda a: a + 1, a) == 400
    assert peak_of(lambda a: ((a + 1) * 2).exp(), a) == 800  # the one read, the one written
    assert peak_of(lambda a: (a + 1).sum(), a) == 404
    both = lambda a: (lambda b, c: b.sin() * c)(a + 1, a + 2)  # noqa: E731
    assert peak_of(both, a) == 1200  # b, c and sin b; then sin b, c and the product


def test_a_view_takes_no_bytes_and_keeps_its_owner():
    a = torch.ones(100)
    assert peak_of(lambda a: (a + 1).view(10, 10).t().exp(), a) == 800
    kept = lambda a: (lambda part: (a * 2).sum() + part.sum())((a + 1)[:1])  # noqa: E731
    assert peak_of(kept, a) == 804  # a + 1 lives as long as its part; a * 2 and its sum


def test_results_of_many_tensors_are_counted():
    values = torch.arange(100.0)
    assert peak_of(lambda a: a.sort(), values) == 400 + 800  # float32 and int64
    assert peak_of(lambda a: torch.var_mean(a, 0), values) == 8
