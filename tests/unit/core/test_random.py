"""Statistics of the random numbers: every bound is 5 standard deviations of the true answer."""

import math

import pytest
import torch
from torch.func import functionalize, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from maml_dist.core.random import choice, fold, keys, normal, uniform

N = 1 << 18
F64 = torch.float64


def key(value=20260131):
    return torch.tensor(value)


def drawn(key, shape=(N,)):
    return uniform(key, shape, dtype=F64)


def independent(rows):
    """Rows [row, n] of numbers of variance 1: no two are correlated."""
    products = rows @ rows.T / rows.shape[1]
    off = products - torch.diag(products.diag())
    return off.abs().max() < 5 / math.sqrt(rows.shape[1])


def standard(unit):
    return (unit - 0.5) * math.sqrt(12)


@pytest.mark.parametrize("bins", [2, 64, 1000])
def test_uniform_numbers_fill_all_bins_alike(bins):
    counts = torch.bincount((drawn(key()) * bins).long(), minlength=bins).to(F64)
    chi2 = ((counts - N / bins) ** 2).sum() / (N / bins)
    assert abs(chi2 - (bins - 1)) < 5 * math.sqrt(2 * (bins - 1))


@pytest.mark.parametrize("bit", range(32))
def test_every_bit_is_fair(bit):
    share = ((drawn(key()) * 2**32).long() >> bit & 1).to(F64).mean()
    assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(N)


@pytest.mark.parametrize("lag", [1, 2, 16, 1024])
def test_numbers_of_one_key_are_not_correlated(lag):
    z = standard(drawn(key()))
    assert abs((z[lag:] * z[:-lag]).mean()) < 5 / math.sqrt(N)


def test_neighbouring_keys_give_independent_numbers():
    rows = torch.stack([drawn(key(k), (1 << 14,)) for k in range(64)])
    assert independent(standard(rows))
    first = standard(vmap(lambda k: drawn(k, (2,)))(torch.arange(4000)))
    assert abs((first[1:, 0] * first[:-1, 0]).mean()) < 5 / math.sqrt(4000)


def test_neighbouring_keys_do_not_give_the_same_numbers_in_another_order():
    here, there = (drawn(key(k), (4096,)) for k in (6, 7))
    assert torch.isin(here, there).sum() < 3


def test_streams_of_a_key_are_independent_of_each_other_and_of_the_key():
    streams = [drawn(fold(key(), s), (1 << 14,)) for s in range(64)]
    rows = torch.stack([*streams, drawn(key(), (1 << 14,))])
    assert independent(standard(rows))


def test_streams_of_neighbouring_tasks_are_independent():
    tasks = keys(0, "train", 5, range(16))
    rows = torch.stack([drawn(fold(k, s), (1 << 14,)) for k in tasks for s in range(4)])
    assert independent(standard(rows))


def test_a_key_s_every_bit_changes_half_of_what_is_drawn():
    base = (drawn(key(), (4096,)) * 2**32).long()
    for bit in range(63):
        other = (drawn(key() ^ (1 << bit), (4096,)) * 2**32).long()
        flipped = sum(((base ^ other) >> b & 1).sum() for b in range(32)) / (32 * 4096)
        assert abs(flipped - 0.5) < 5 * 0.5 / math.sqrt(32 * 4096)


def test_no_two_of_a_million_folded_keys_are_equal():
    tasks = keys(0, "train", 0, range(1000))
    folded = fold(tasks[:, None], torch.arange(1000)).reshape(-1)
    assert len(folded.unique()) == 1_000_000
    assert folded.min() >= 0
    twice = fold(fold(key(), torch.arange(1000))[:, None], torch.arange(1000)).reshape(-1)
    assert len(torch.cat([folded, twice]).unique()) == 2_000_000


def test_a_stream_counts_beyond_32_bits():
    folded = [int(fold(key(), s)) for s in (0, 1, 1 << 32, (1 << 32) + 1, (1 << 62))]
    assert len(set(folded)) == 5


def test_a_stream_is_the_same_as_a_number_and_as_a_tensor():
    assert int(fold(key(), 7)) == int(fold(key(), torch.tensor(7)))


def test_task_keys_are_pure_and_differ_in_each_of_their_four():
    base = keys(3, "train", 5, [7])
    assert torch.equal(base, keys(3, "train", 5, range(20))[7:8])
    others = [keys(4, "train", 5, [7]), keys(3, "val", 5, [7]), keys(3, "train", 6, [7])]
    assert not any(torch.equal(base, other) for other in others)
    many = torch.cat([keys(0, "train", it, range(100)) for it in range(2000)])
    assert len(many.unique()) == len(many)


def test_normal_numbers_have_their_moments():
    z = normal(key(), (N,), dtype=F64)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 5 * math.sqrt(variance / N)


@pytest.mark.parametrize("at", [-3.5, -2.0, -0.5, 0.0, 1.0, 2.5, 4.0])
def test_normal_numbers_follow_their_distribution_function(at):
    below = 0.5 * math.erfc(-at / math.sqrt(2))
    share = (normal(key(), (N,), dtype=F64) < at).to(F64).mean()
    assert abs(share - below) < 5 * math.sqrt(below * (1 - below) / N)


def test_the_two_halves_of_normal_numbers_are_independent():
    halves = torch.stack(normal(key(), (2 * N,), dtype=F64).chunk(2))
    assert independent(halves)
    squares = (halves**2 - 1) / math.sqrt(2)
    assert independent(squares)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (3, 0)])
def test_any_shape(shape):
    assert uniform(key(), shape).shape == normal(key(), shape).shape == torch.Size(shape)
    assert normal(key(), shape).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_uniform_numbers_are_never_0_or_1(dtype):
    # (0, 1) is what log and the comparison with a probability rely on.
    z = uniform(key(), (N,), dtype=dtype)
    assert z.dtype == dtype and z.min() > 0 and z.max() < 1
    assert (z.to(F64) - drawn(key())).abs().max() <= torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_precision_changes_normal_numbers_by_rounding_alone(dtype):
    z = normal(key(), (4096,), dtype=dtype)
    tolerance = 4 * torch.finfo(dtype).eps
    assert z.dtype == dtype
    torch.testing.assert_close(
        z.to(F64), normal(key(), (4096,), dtype=F64), rtol=tolerance, atol=2e-5
    )


@pytest.mark.parametrize("draw", [uniform, normal])
def test_stacked_keys_draw_what_each_draws_alone(draw):
    stacked = keys(0, "train", 0, range(5))
    together = vmap(lambda k: draw(fold(k, 3), (7, 3), dtype=F64))(stacked)
    alone = torch.stack([draw(fold(k, 3), (7, 3), dtype=F64) for k in stacked])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("draw", [uniform, normal])
def test_a_trace_draws_what_its_own_key_says(draw):
    def function(key):
        return draw(fold(key, 3), (6,), dtype=F64)

    traced = make_fx(functionalize(function))(key(1))
    assert torch.equal(traced(key(2)), function(key(2)))
    assert not torch.equal(traced(key(2)), function(key(1)))


def test_a_choice_has_different_numbers_and_all_as_often():
    stacked = keys(0, "train", 0, range(20000))
    chosen = vmap(lambda k: choice(k, 5, 2))(stacked)
    assert (chosen[:, 0] != chosen[:, 1]).all()
    pairs = torch.bincount(5 * chosen[:, 0] + chosen[:, 1], minlength=25).reshape(5, 5)
    expected = len(stacked) / 20
    off = pairs[~torch.eye(5, dtype=torch.bool)] - expected
    assert off.abs().max() < 5 * math.sqrt(expected)
    assert sorted(choice(key(), 4, 9).tolist()) == [0, 1, 2, 3]
