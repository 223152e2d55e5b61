"""A trace whose convolutions are rewritten gives what eager autograd gives."""

import operator

import pytest
import torch
from torch.func import grad, vmap
from torch.nn import functional as F

from maml_dist.core.compile.convolutions import arrange, arrange_on_gpu
from maml_dist.core.compile.tracing import TracedFunction, trace

BACKWARD = torch.ops.aten.convolution_backward.default
FORMS = {
    "stride 2": ((7, 7), {"stride": 2, "padding": 1}),
    "even size": ((8, 8), {"stride": 2, "padding": 1}),
    "stride 1": ((6, 5), {"padding": 1}),
    "no padding": ((7, 6), {}),
    "stride 3": ((11, 10), {"stride": 3, "padding": 1}),
    "dilation": ((9, 8), {"dilation": 2, "padding": 2}),
    "both": ((11, 12), {"stride": 2, "dilation": 2, "padding": 1}),
    "oblong": ((9, 12), {"stride": (2, 3), "padding": (0, 2), "dilation": (2, 1)}),
    "same": ((7, 5), {"padding": "same"}),
}
KERNELS = [(3, 3), (1, 1), (2, 3)]


def normal(*shape, seed=0):
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return drawn.double()


def derivatives(layers):
    """Loss, first and second derivatives in images and weights of a few layers."""

    def loss(x, *weights):
        y = layers(x, *weights)
        return (y.tanh() * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum()

    def step(x, *weights):
        places = tuple(range(1, 1 + len(weights)))
        by = grad(loss, places)(x, *weights)
        return loss(x, *(w - 0.1 * g for w, g in zip(weights, by, strict=True)))

    def all_of_them(x, *weights):
        places = tuple(range(1 + len(weights)))
        return loss(x, *weights), grad(loss, places)(x, *weights), grad(step, places)(x, *weights)

    def of_weights(x, *weights):
        return grad(step, tuple(range(1, 1 + len(weights))))(x, *weights)

    return all_of_them, of_weights


def same(layers, *tensors):
    for function in derivatives(layers):
        eager, replayed = function(*tensors), TracedFunction(function)(*tensors)
        torch.testing.assert_close(replayed, eager, rtol=1e-9, atol=1e-10)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_derivatives_are_those_of_eager_autograd(form, kernel, channels):
    size, options = FORMS[form]

    def layers(x, first, bias, second):
        y = F.conv2d(x, first, bias, **options).relu()
        return F.conv2d(y, second, padding=1, stride=2).flatten(1)

    weights = normal(4, channels, *kernel), normal(4), normal(2, 4, 3, 3)
    same(layers, normal(3, channels, *size), *weights)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_of_batch_norm_and_pooling(channels):
    def layers(x, first, scale, shift, second, head):
        y = F.conv2d(x, first, padding=1)
        y = F.max_pool2d(F.batch_norm(y, None, None, scale, shift, training=True).relu(), 2)
        return F.conv2d(y, second, padding=1).relu().flatten(1) @ head

    shapes = (4, channels, 3, 3), (4,), (4,), (5, 4, 3, 3), (5 * 9, 3)
    same(layers, normal(3, channels, 7, 6), *(normal(*shape) for shape in shapes))


UNTOUCHED = {
    "one-dimensional": (lambda x, w: F.conv1d(x, w, stride=2, padding=1), (3, 4, 9), (5, 4, 3)),
    "three-dimensional": (lambda x, w: F.conv3d(x, w, padding=1), (2, 2, 4, 3, 5), (3, 2, 3, 3, 3)),
    "of groups": (lambda x, w: F.conv2d(x, w, stride=2, groups=2), (3, 4, 7, 7), (6, 2, 3, 3)),
    "depthwise": (lambda x, w: F.conv2d(x, w, groups=4), (3, 4, 7, 6), (4, 1, 3, 3)),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNTOUCHED)
def test_others_stay_as_they_are(kind):
    layers, size, kernel = UNTOUCHED[kind]
    given = [normal(*size), normal(*kernel)]
    same(layers, *given)
    if "of groups" not in kind:  # whose second derivative is of parts without groups
        graph = trace(derivatives(layers)[0], given)[0].graph
        before = str(graph)
        arrange(graph)
        assert str(graph) == before


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "output_padding": 1}], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_transposed_ones(channels, options):
    def layers(x, w):
        return F.conv_transpose2d(x, w, **options)

    same(layers, normal(2, channels, 5, 4), normal(channels, 4, 3, 3))


def test_grouped_parts_beside_plain_ones():
    def layers(x, first, second):
        return F.conv2d(F.conv2d(x, first, padding=1).relu(), second, stride=2, groups=2)

    same(layers, normal(3, 3, 7, 7), normal(4, 3, 3, 3), normal(4, 2, 3, 3))


def test_the_weights_second_derivative_is_a_backward():
    def layers(x, first, second):
        return F.conv2d(F.conv2d(x, first, stride=2, padding=1).relu(), second, stride=2, padding=1)

    given = [normal(3, 3, 9, 9), normal(4, 3, 3, 3), normal(5, 4, 3, 3)]
    graph = trace(derivatives(layers)[1], given)[0].graph
    turned = torch.ops.aten.transpose.int
    before = [node.target for node in graph.nodes]
    arrange(graph)
    after = [node.target for node in graph.nodes]
    assert before.count(turned) == 3 and after.count(turned) == 0
    assert after.count(BACKWARD) == before.count(BACKWARD) + 1


def test_a_convolution_that_only_looks_like_a_weights_gradient():
    """Its kernel does not reach the images' end, as no gradient's does."""

    def turned(x, w):
        return F.conv2d(x.transpose(0, 1), w.transpose(0, 1), stride=2).transpose(0, 1)

    x, w = normal(4, 3, 9, 8), normal(5, 4, 2, 2).transpose(0, 1).contiguous()
    for dilation in (1, 2, 3):
        cut = lambda x, w, d=dilation: turned(x[:, :, ::d], w)[:, :, :2]  # noqa: E731
        same(cut, x, w)


def test_results_have_the_layout_of_the_function():
    def images(x, w):
        y = F.conv2d(x, w, padding=1)
        return y, y.transpose(0, 1), y.shape[0] * y

    given = normal(2, 3, 5, 5), normal(4, 3, 3, 3)
    for replayed in TracedFunction(images)(*given):
        assert replayed.is_contiguous()
        replayed.view(-1)


def test_views_by_memory_leave_the_layout_alone():
    def strided(x, w):
        y = F.conv2d(x, w, padding=1)
        return y.as_strided((2, 4), (100, 25))

    given = normal(2, 3, 5, 5), normal(4, 3, 3, 3)
    torch.testing.assert_close(TracedFunction(strided)(*given), strided(*given))


def test_images_of_one_channel_share_their_patches():
    def twice(x, first, second):
        return F.conv2d(x, first, padding=1), F.conv2d(x, second, padding=1)

    given = [normal(2, 1, 5, 5), normal(4, 1, 3, 3), normal(4, 1, 3, 3)]
    graph = trace(twice, given)[0].graph
    arrange(graph)
    names = [getattr(node.target, "__name__", "") for node in graph.nodes]
    assert names.count("_patches") == 1 and names.count("_product") == 2
    assert operator.getitem not in [node.target for node in graph.nodes]


def images_first(x, first, second):
    """The meta-gradient of two convolutions, as one task at a time computes it."""

    def loss(first, second):
        return F.conv2d(F.conv2d(x, first, padding=1).relu(), second, stride=2).square().mean()

    return grad(lambda first, second: loss(first - 0.01 * grad(loss)(first, second), second))(
        first, second
    )


def laid_out(graph):
    """How many operations of a graph are given their images channels last."""
    asked = (node.kwargs.get("memory_format") for node in graph.nodes)
    return sum(form is torch.channels_last for form in asked)


def arranged_on_gpu(function, *tensors):
    traced, _ = trace(function, list(tensors))
    arrange_on_gpu(traced.graph)
    traced.recompile()
    return traced


@pytest.fixture
def tf32(monkeypatch):
    """As where engine.precision=tf32 rounds the products of a GPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpus_tensor_cores_images_are_channels_last(dtype, tf32):
    given = [normal(2, 3, 6, 6), normal(4, 3, 3, 3), normal(2, 4, 3, 3)]
    given = [tensor.to(dtype) for tensor in given]
    traced = arranged_on_gpu(images_first, *given)
    assert laid_out(traced.graph) >= 4
    (found,) = traced(*given)
    assert found.is_contiguous()
    expected = images_first(*given)
    assert (found - expected).norm() < 10 * torch.finfo(dtype).eps * expected.norm()


def test_in_float32_they_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    given = [normal(2, 3, 6, 6).float(), normal(4, 3, 3, 3).float(), normal(2, 4, 3, 3).float()]
    assert laid_out(arranged_on_gpu(images_first, *given).graph) == 0


def test_so_do_those_of_a_vmap_over_adapted_weights(tf32):
    def many(x, first, second):
        return vmap(images_first, (0, None, None))(x, first, second)

    given = [normal(2, 2, 3, 6, 6).float(), normal(4, 3, 3, 3).float(), normal(2, 4, 3, 3).float()]
    traced = arranged_on_gpu(many, *given)
    assert any(node.args[-1] == 2 for node in traced.graph.nodes if "convolution" in str(node))
    assert laid_out(traced.graph) == 0
