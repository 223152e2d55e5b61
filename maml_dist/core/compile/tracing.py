"""A function of tensors, traced once for each shape of its arguments, then replayed or compiled.

The trace holds plain tensor operations: no autograd, no Python of the model. Values that the
function reads as numbers are baked in, so what changes between calls must be a tensor.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx
from torch._C import _functorch
from torch._C._functorch import TransformType
from torch._functorch.autograd_function import custom_function_call
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from maml_dist.core.compile import inductor
from maml_dist.core.compile.convolutions import arrange, arrange_on_gpu
from maml_dist.core.process_lock import EXCLUSIVE

Function = Callable[..., Any]

_READ = ("data-dependent", "item()", "tolist()", "data pointer", "dynamic shape")  # torch's words
_ARRAYS = ("numpy", "__array__", "__dlpack__")  # what hands a tensor's memory to others
_UNTRACEABLE = (
    "model, loss or learner read a tensor as a number or decide by it, which a trace cannot "
    "follow: use torch.where, or engine.running=eager with engine.batching=task"
)


class Untraceable(ValueError):
    """A function reads or decides by values that a trace does not know."""


class TracedFunction:
    """`function` of tensors -> a tree of tensors, made fast for many calls of equal shapes."""

    def __init__(
        self, function: Function, *, compiled: bool = False, arranged: bool = True
    ) -> None:
        self._function = function
        self._compiled = compiled
        self._arranged = arranged
        self._traces: dict[Any, tuple[Function, Any]] = {}

    def __call__(self, *tensors: Tensor) -> Any:
        inputs, key = plain(tensors)
        if key not in self._traces:
            traced, spec = trace(self._function, inputs)
            run = ready(traced, inputs, compiled=self._compiled, arranged=self._arranged)
            self._traces[key] = run, spec
        replay, spec = self._traces[key]
        with torch.no_grad():
            return pytree.tree_unflatten(replay(*inputs), spec)


def plain(tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
    """The tensors in the one memory layout that a trace holds for, and what it is kept by."""
    inputs = [tensor.contiguous() for tensor in tensors]
    return inputs, tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs)


def ready(
    traced: fx.GraphModule, tensors: list[Tensor], *, compiled: bool, arranged: bool = True
) -> Function:
    """A trace at arguments like these: compiled, or as fast as a replay of it gets.

    Not `arranged`, it computes what the function does, operation by operation.
    """
    run = inductor.compiled(traced, tensors) if compiled else None
    if run is None and arranged:
        on_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
        (arrange if on_cpu else arrange_on_gpu)(traced.graph)
        traced.recompile()
    return run or traced


def trace(function: Function, tensors: list[Tensor]) -> tuple[fx.GraphModule, Any]:
    """The graph of `function` at arguments of these shapes, and the form of its results.

    Raises:
        Untraceable: the function reads a tensor's value, or decides by it.
        ValueError: the function draws random numbers.
    """
    spec = None

    def flat(*tensors: Tensor) -> list[Tensor]:
        nonlocal spec
        outputs, spec = pytree.tree_flatten(function(*tensors))
        return outputs

    # Cloned: the tracer takes one tensor object in two places for one input, silently.
    clones = [tensor.detach().clone() for tensor in tensors]
    try:
        # A fake mode for all of its nodes: the tracer would make one for each, half of its time.
        # Alone: while it traces, torch's tracer replaces methods of nn.Module.
        fake = tracing(TracingContext(FakeTensorMode()))
        with EXCLUSIVE, fake, _functional_traced(), _Unread():
            traced = make_fx(functionalize(flat))(*clones)
    except (RuntimeError, TypeError) as error:
        if not any(words in str(error) for words in _READ):
            raise
        raise Untraceable(_UNTRACEABLE) from None
    _refuse(traced.graph)
    _simplify(traced.graph)
    traced.recompile()
    return traced, spec


class _Unread(TorchFunctionMode):
    """Inside, numpy reads no tensor that is traced: the array would be kept, or be no values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _ARRAYS and _functorch.is_functorch_wrapped_tensor(
            args[0]
        ):
            raise Untraceable(_UNTRACEABLE)
        return func(*args, **(kwargs or {}))


@contextmanager
def _functional_traced() -> Iterator[None]:
    """Inside, `functionalize` takes an autograd.Function that says `functional = True`.

    torch has no rule for any: those of a user may write in place.
    """
    table = custom_function_call.functorch_table
    refuse = table[TransformType.Functionalize]

    def rule(interpreter: Any, kind: Any, *operands: Any) -> Any:
        if not getattr(kind, "functional", False):
            return refuse(interpreter, kind, *operands)
        return kind.forward(*operands)  # the derivatives were taken above

    with mock.patch.dict(table, {TransformType.Functionalize: rule}):
        yield


def peak_bytes(graph: fx.Graph) -> int:
    """The most bytes that a replay of the graph holds at once, its inputs left out."""
    last: dict[fx.Node, int] = {}
    owner: dict[fx.Node, fx.Node] = {}
    nodes = list(graph.nodes)
    for place, node in enumerate(nodes):
        for source in node.all_input_nodes:
            last[owner.get(source, source)] = place
        if node.all_input_nodes and _is_view(node):
            source = node.all_input_nodes[0]
            owner[node] = owner.get(source, source)
    held = most = 0
    ends: dict[int, int] = {}
    for place, node in enumerate(nodes):
        form = node.meta.get("tensor_meta")
        if form is not None and node.op == "call_function" and node not in owner:
            forms = form if isinstance(form, tuple) and not hasattr(form, "shape") else (form,)
            size = sum(f.shape.numel() * f.dtype.itemsize for f in forms if hasattr(f, "shape"))
            held += size
            until = last.get(node, place)
            ends[until] = ends.get(until, 0) + size
        most = max(most, held)
        held -= ends.get(place, 0)
    return most


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return bool(schema and schema.returns and schema.returns[0].alias_info is not None)


def _refuse(graph: fx.Graph) -> None:
    for node in graph.nodes:
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags:
            raise ValueError(
                f"model, loss or learner draw random numbers ({node.target}) that the task does "
                "not seed: draw with maml_dist.core.random from batch.key"
            )
        if torch.Tag.dynamic_output_shape in tags and not _by_place(node):
            raise Untraceable(_UNTRACEABLE)


def _by_place(node: fx.Node) -> bool:
    """Whether a node indexes by integers or constants; by a mask, its result's shape is data."""
    indices: Any = node.args[1] if node.target == torch.ops.aten.index.Tensor else None
    return indices is not None and not any(
        index.meta["val"].dtype in (torch.bool, torch.uint8)
        for index in indices
        if index is not None and index.op != "get_attr"
    )


def _simplify(graph: fx.Graph) -> None:
    """Drop what a replay pays for and does not need: operations that change nothing or repeat."""
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        same = _unchanged(node)
        if same is None:
            same = seen.setdefault((node.target, repr(node.args), repr(node.kwargs)), node)
        if same is not None and same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _unchanged(node: fx.Node) -> Any:
    """The earlier node whose value `node` only hands on, if it does no more than that."""
    aten = torch.ops.aten
    source: Any = node.args[0] if node.args else None
    rest = list(node.args[1:])
    if node.target in (aten.detach.default, aten.alias.default):  # a replay has no autograd
        return source
    reshapes = (aten.view.default, aten._unsafe_view.default, aten.expand.default)
    if node.target in reshapes and _form(node) == _form(source):
        return source
    swaps = (aten.t.default, aten.transpose.int)
    if node.target in swaps and source.target == node.target and source.args[1:] == node.args[1:]:
        return source.args[0]  # swapped back
    if node.target == aten.add.Tensor and not node.kwargs:  # autograd adds to a gradient of zeros
        for zeros, other in (node.args, node.args[::-1]):
            made = isinstance(zeros, fx.Node) and zeros.target == aten.zeros_like.default
            if made and _form(node) == _form(other):
                return other
    if node.target == aten.mul.Scalar and rest == [1] and _form(node) == _form(source):
        return source
    return None


def _form(node: Any) -> Any:
    """Shape and dtype; for what is not computed (a constant), something equal to nothing else."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return (meta.shape, meta.dtype) if meta else object()
