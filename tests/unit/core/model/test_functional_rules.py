from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as torchs_own

from maml_dist.core.compile.tracing import TracedFunction
from maml_dist.core.model.functional_rules import ForwardRules
from maml_dist.core.random import keys

KEY, OTHER = keys(0, "train", 0, [0, 1])
DROPOUTS = {
    "dropout": (F.dropout, (400, 6), (400, 6)),
    "dropout1d": (F.dropout1d, (200, 6, 4), (200, 6, 1)),
    "dropout1d, no batch": (F.dropout1d, (600, 4), (600, 1)),
    "dropout2d": (F.dropout2d, (200, 6, 3, 4), (200, 6, 1, 1)),
    "dropout2d, [n, channels, length]": (F.dropout2d, (200, 6, 4), (200, 6, 1)),
    "dropout3d": (F.dropout3d, (200, 6, 2, 3, 4), (200, 6, 1, 1, 1)),
    "dropout3d, no batch": (F.dropout3d, (600, 2, 3, 4), (600, 1, 1, 1)),
    "alpha_dropout": (F.alpha_dropout, (400, 6), (400, 6)),
    "feature_alpha_dropout": (F.feature_alpha_dropout, (200, 6, 4), (200, 6, 1)),
}


def ruled(function, x, key, **options):
    """By the rule: functions are named here as a module names them, at the call."""
    with ForwardRules(key=key):
        return getattr(F, function.__name__)(x, training=True, **options)


@pytest.mark.filterwarnings("ignore:dropout2d")
@pytest.mark.parametrize("case", DROPOUTS)
def test_dropout_drops_what_torchs_own_drops_at_its_rate(case):
    function, shape, units = DROPOUTS[case]
    x = torch.linspace(0.5, 1.5, 7).double()[torch.arange(torch.Size(shape).numel()) % 7]
    x = x.reshape(shape)
    ours, theirs = ruled(function, x, KEY, p=0.3), function(x, p=0.3, training=True)
    lost, gone = ((part < 0) if "alpha" in case else (part == 0) for part in (ours, theirs))
    torch.testing.assert_close(ours[~lost & ~gone], theirs[~lost & ~gone], rtol=1e-6, atol=0)
    torch.testing.assert_close(ours[lost & gone], theirs[lost & gone], rtol=1e-6, atol=0)
    rest = [dim for dim, (n, m) in enumerate(zip(shape, units, strict=True)) if n != m]
    shares = lost.double().mean(rest) if rest else lost.double()
    assert set(shares.unique().tolist()) == {0.0, 1.0}  # whole units
    assert abs(shares.mean() - 0.3) < 4 * (0.21 / shares.numel()) ** 0.5


@pytest.mark.parametrize("case", DROPOUTS)
def test_dropout_is_a_function_of_its_key(case):
    function, shape, _ = DROPOUTS[case]
    x = torch.randn(shape)
    one, again, other = (ruled(function, x, key) for key in (KEY, KEY, OTHER))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(ruled(function, x, None), x)
    before = x.clone()
    assert torch.equal(ruled(function, x, KEY, inplace=True), one) and torch.equal(x, before)
    both = vmap(lambda key: ruled(function, x, key))(torch.stack([KEY, OTHER]))
    torch.testing.assert_close(both, torch.stack([one, other]))
    traced = TracedFunction(lambda x, key: ruled(function, x, key))
    assert torch.equal(traced(x, KEY), one) and torch.equal(traced(x, OTHER), other)


def test_every_call_of_one_pass_has_a_mask_of_its_own_and_the_next_pass_the_same():
    model = nn.Sequential(nn.Dropout(0.5), nn.Sigmoid(), nn.Dropout(0.5))
    x = torch.randn(4, 50)
    with ForwardRules(key=KEY):
        first, second = F.dropout(x), F.dropout(x)
        F.dropout(x)
    assert not torch.equal(first != 0, second != 0)
    with ForwardRules(key=KEY):
        one = model(x)
    with ForwardRules(key=KEY):
        again = model(x)
    assert torch.equal(one, again)


def test_the_ends_and_what_is_outside():
    x = torch.randn(5, 5)
    for function in (F.dropout, F.dropout1d, F.alpha_dropout):
        assert torch.equal(ruled(function, x, KEY, p=1.0), torch.zeros_like(x))
        assert torch.equal(ruled(function, x, KEY, p=0.0), x)
        with pytest.raises(ValueError, match="must be in"):
            ruled(function, x, KEY, p=1.5)
    with ForwardRules(key=KEY):
        assert torch.equal(F.dropout(x, training=False), x)


def test_the_rules_are_those_of_one_thread_and_nothing_of_torchs_is_replaced():
    before = {name: value for name, value in vars(F).items() if callable(value)}
    x, flash = torch.ones(4, 50), torch.backends.cuda.flash_sdp_enabled()
    with ThreadPoolExecutor(1) as other, ForwardRules(key=None):
        assert torch.equal(F.dropout(x), x)
        assert (other.submit(F.dropout, x).result() == 0).any()
        assert {name: value for name, value in vars(F).items() if callable(value)} == before
        assert torch.backends.cuda.flash_sdp_enabled() == flash
    with pytest.raises(ZeroDivisionError), ForwardRules(key=None):
        raise ZeroDivisionError
    assert (F.dropout(x) == 0).any()


ATTENTION = {
    "plain": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "bool mask": {"attn_mask": torch.rand(4, 5) > 0.4},
    "blind rows": {"attn_mask": (torch.rand(4, 5) > 0.4).index_fill(0, torch.tensor([1]), False)},
    "float mask": {"attn_mask": torch.randn(2, 6, 4, 5).double()},
    "grouped": {"enable_gqa": True},
}


@pytest.mark.parametrize("case", ATTENTION)
def test_attention_and_both_its_derivatives_are_those_of_torchs_formula(case):
    torch.manual_seed(0)
    heads = 3 if case == "grouped" else 6
    q = torch.randn(2, 6, 4, 3).double()
    k, v = (torch.randn(2, heads, 5, 3).double() for _ in range(2))
    along = [torch.randn_like(part) for part in (q, k, v)]

    def ours(q, k, v):
        with ForwardRules(key=None):
            return F.scaled_dot_product_attention(q, k, v, **ATTENTION[case])

    def theirs(q, k, v):
        with sdpa_kernel(SDPBackend.MATH):
            return torchs_own(q, k, v, **ATTENTION[case])

    def derivatives(function):
        leaves = [part.clone().requires_grad_() for part in (q, k, v)]
        value = function(*leaves)
        first = torch.autograd.grad(value.square().sum(), leaves, create_graph=True)
        product = sum((g * a).sum() for g, a in zip(first, along, strict=True))
        return value, *first, *torch.autograd.grad(product, leaves)

    for mine, other in zip(derivatives(ours), derivatives(theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)
    one_by_one = vmap(grad(lambda q, k, v: ours(q, k, v).square().sum()))
    if case not in ("float mask",):  # which has a batch of its own
        torch.testing.assert_close(one_by_one(q, k, v), derivatives(ours)[1])


def test_attention_bound_under_another_name_before_has_its_second_derivative_too():
    q = torch.randn(2, 6, 4, 3)

    def twice(q):
        with ForwardRules(key=None):
            return grad(lambda q: torchs_own(q, q, q).square().sum())(q).square().sum()

    assert grad(twice)(q).isfinite().all()


def test_attention_drops_weights_by_the_key():
    q, v = torch.zeros(3, 40, 2), torch.eye(50).expand(3, 50, 50)
    with ForwardRules(key=KEY):
        weights = F.scaled_dot_product_attention(q, torch.zeros(3, 50, 2), v, dropout_p=0.2) * 50
    torch.testing.assert_close(weights.unique(), torch.tensor([0.0, 1.25]))
    assert abs((weights == 0).double().mean() - 0.2) < 0.03
    with ForwardRules(key=None):
        weights = F.scaled_dot_product_attention(q, torch.zeros(3, 50, 2), v, dropout_p=0.2) * 50
    torch.testing.assert_close(weights, torch.ones(3, 40, 50))


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("running", ["eager", "traced"])
def test_multihead_attention_has_seeded_dropout_and_both_derivatives(need_weights, running):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True).double()
    params = {name: p.detach() for name, p in module.named_parameters()}
    x = torch.randn(2, 5, 8).double()
    ignored = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])

    def loss(params, key):
        with ForwardRules(key=key):
            options = {"need_weights": need_weights, "key_padding_mask": ignored}
            return functional_call(module, params, (x, x, x), options)[0].square().sum()

    def meta(weight, key):
        inner = {**params, "in_proj_weight": weight}
        moved = weight - 0.1 * grad(loss)(inner, key)["in_proj_weight"]
        return loss({**inner, "in_proj_weight": moved}, key)

    gradient = grad(meta) if running == "eager" else TracedFunction(grad(meta))
    weight, along = params["in_proj_weight"], torch.randn_like(params["in_proj_weight"])
    h = 1e-6
    for key in (KEY, OTHER):
        by_difference = (meta(weight + h * along, key) - meta(weight - h * along, key)) / (2 * h)
        torch.testing.assert_close((gradient(weight, key) * along).sum(), by_difference)
    assert meta(weight, KEY) != meta(weight, OTHER)
