"""Convolutions: how those of a trace run fastest, with the same results to rounding. On a CPU:

    a weight's gradient   as the backward of a convolution; what autograd writes for the second
                          derivative, a convolution with a kernel as large as an image, takes three
                          times as long
    of one channel        Y = W P, P [kernel, n * space] the patches under the kernel ("im2col")
    all others            channels last in memory, the layout that oneDNN computes in

Two-dimensional ones without groups, that is; others stay as they are. Other operations take over
the layout of what they are given, so that views become reshapes.

On a GPU channels last alone, the layout of tensor cores, where all convolutions of a trace are
such and rounded (TF32, bfloat16): those of a vmap over adapted weights have groups, and stay.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

_aten = torch.ops.aten
_CONVOLUTIONS = (_aten.convolution.default, _aten.convolution_backward.default)
_VIEWS = (_aten.view.default, _aten._unsafe_view.default)
_BY_MEMORY = (
    "as_strided",
    "view_as",
    "view.dtype",
    "_alias",
)  # parts of names: they need one layout
_ALIKE = {  # operation -> the places of its images, fastest channels last, all of them
    _aten.convolution.default: (0,),
    _aten.convolution_backward.default: (0, 1),
    _aten.native_batch_norm.default: (0,),
    _aten.native_batch_norm_backward.default: (0, 1),
    _aten.threshold_backward.default: (0, 1),
}


def arrange(graph: fx.Graph) -> None:
    """Rewrite the convolutions of a graph of tensors on a CPU."""
    if not any(map(_plain, graph.nodes)):
        return
    for node in list(graph.nodes):
        _weight_gradient(node)
    graph.eliminate_dead_code()
    if not _needs_one_layout(graph):
        _products(graph)
        _channels_last(graph)


def arrange_on_gpu(graph: fx.Graph) -> None:
    """Give convolutions on a GPU's tensor cores their images channels last."""
    found = [node for node in graph.nodes if node.target in _CONVOLUTIONS]
    fits = all(_plain(node) and _rounded(node) for node in found)
    if found and fits and not _needs_one_layout(graph):
        _channels_last(graph)


def _rounded(node: Any) -> bool:
    """Whether a convolution on a GPU is computed in few digits."""
    form = node.args[0].meta.get("tensor_meta")
    dtype = getattr(form, "dtype", None)
    tf32 = dtype == torch.float32 and torch.backends.cudnn.allow_tf32
    return bool(tf32 or dtype in (torch.bfloat16, torch.float16))


def _needs_one_layout(graph: fx.Graph) -> bool:
    return any(part in str(node.target) for node in graph.nodes for part in _BY_MEMORY)


def _plain(node: Any) -> bool:
    """Whether a node is a two-dimensional convolution without groups, or the backward of one."""
    if node.target not in _CONVOLUTIONS:
        return False
    groups = node.args[8 if node.target == _aten.convolution.default else 9]
    return bool(groups == 1) and all(len(_shape(image)) == 4 for image in node.args[:2])


def _shape(node: Any) -> tuple[int, ...]:
    """Of a tensor; () where the trace does not say."""
    form = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return tuple(getattr(form, "shape", ()))


def _weight_gradient(node: Any) -> None:
    """Replace (x^T * g^T)^T, dilated by the stride, by the backward of x * w.

    It may be larger than the kernel, by rows that the stride does not reach, and be cut to it.
    """
    if node.target != _aten.convolution.default or not _plain(node):
        return
    turned, kernel, bias, dilation, padding, stride, transposed, _, _ = node.args
    end = _only_user(node)
    ends = (turned, kernel, end)
    if transposed or bias is not None or not all(map(_swaps_first_two, ends)):
        return
    x, g, size = turned.args[0], kernel.args[0], list(_shape(end))
    while _cuts(cut := _only_user(end), size):
        size[cut.args[1]] = cut.args[3]
        end = cut
    axes = zip(_shape(x)[2:], size[2:], stride, padding, dilation, strict=True)
    if _shape(g)[2:] != tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes):
        return
    graph = node.graph
    with graph.inserting_before(end):
        like = graph.call_function(_aten.new_empty.default, (x, size))
        like.meta = {**end.meta}
        form = (None, stride, padding, dilation, False, [0, 0], 1, [False, True, False])
        back = graph.call_function(_aten.convolution_backward.default, (g, x, like, *form))
        gradient = graph.call_function(operator.getitem, (back, 1))
        gradient.meta = {**end.meta}
    end.replace_all_uses_with(gradient)


def _only_user(node: Any) -> Any:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _swaps_first_two(node: Any) -> bool:
    return (
        isinstance(node, fx.Node)
        and node.target == _aten.transpose.int
        and set(node.args[1:]) == {0, 1}
    )


def _cuts(node: Any, size: list[int]) -> bool:
    """Whether a node keeps the first few along an axis of space."""
    if node is None or node.target != _aten.slice.Tensor or len(node.args) != 4:
        return False
    _, axis, first, last = node.args
    return bool(axis in (2, 3) and first == 0 and 0 < last <= size[axis])


def _products(graph: fx.Graph) -> None:
    """Convolutions of one channel, which oneDNN has no fast kernel for, as matrix products."""
    patches: dict[str, fx.Node] = {}

    def of(node: fx.Node, x: Any, kernel: Any, *form: Any) -> fx.Node:
        arguments = (x, _shape(kernel)[2:], *form)
        if repr(arguments) not in patches:
            with graph.inserting_before(node):
                patches[repr(arguments)] = graph.call_function(_patches, arguments)
        return patches[repr(arguments)]

    for node in filter(_plain, list(graph.nodes)):
        if node.target == _aten.convolution.default:
            x, kernel, bias, *form, transposed, _, _ = node.args
            if _shape(x)[1] == 1 and not transposed:
                size = _shape(node)
                node.args = (of(node, x, kernel, *form), kernel, bias, size)
                node.target = _product
        else:
            g, x, kernel, _, *form, transposed, _, _, wanted = node.args
            if _shape(x)[1] == 1 and not transposed and not wanted[0]:
                node.args = (g, of(node, x, kernel, *form), _shape(kernel), wanted[2])
                node.target = _product_backward


def _patches(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """x [n, 1, height, width] -> [kernel, n * space]."""
    x = functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    for axis in (0, 1):
        x = x.unfold(2 + axis, dilation[axis] * (kernel[axis] - 1) + 1, stride[axis])
    x = x[..., :: dilation[0], :: dilation[1]]
    return x.permute(1, 4, 5, 0, 2, 3).reshape(kernel[0] * kernel[1], -1)


def _product(patches: Tensor, kernel: Tensor, bias: Tensor | None, size: list[int]) -> Tensor:
    """The images [n, filters, height, width] = `size`, channels last."""
    across = kernel.reshape(len(kernel), -1).t()
    rows = patches.t() @ across if bias is None else torch.addmm(bias, patches.t(), across)
    return rows.view(size[0], *size[2:], size[1]).permute(0, 3, 1, 2)


def _product_backward(
    g: Tensor, patches: Tensor, kernel: list[int], biased: bool
) -> tuple[None, Tensor, Tensor | None]:
    """As convolution_backward: the gradients of images (not wanted), kernel and bias."""
    rows = g.permute(0, 2, 3, 1).reshape(-1, kernel[0])
    return None, (patches @ rows).t().reshape(kernel), rows.sum(0) if biased else None


def _channels_last(graph: fx.Graph) -> None:
    """Give every operation of `_ALIKE` its images channels last; hand results on as they were."""
    found: dict[Any, fx.Node] = {}

    def put(node: fx.Node, place: int) -> None:
        image = node.args[place]
        if image not in found:
            form: dict[str, Any] = {"memory_format": torch.channels_last}
            with graph.inserting_before(node):
                found[image] = graph.call_method("contiguous", (image,), form)
        node.update_arg(place, found[image])

    for node in list(graph.nodes):
        if node.target in _VIEWS:
            node.target = _aten.reshape.default
        elif node.target in _ALIKE:
            images = [(place, node.args[place]) for place in _ALIKE[node.target]]
            if all(len(_shape(image)) == 4 and not _swaps_first_two(image) for _, image in images):
                for place, _ in images:
                    put(node, place)
        elif node.op == "output":
            with graph.inserting_before(node):
                results = [
                    graph.call_method("contiguous", (value,)) if len(_shape(value)) > 2 else value
                    for value in node.args[0]
                ]
            node.args = (results,)
