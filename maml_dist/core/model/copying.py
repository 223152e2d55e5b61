"""Copying: a module as a copy, whatever a forward pass has left in it.

torch copies no tensor that autograd has computed, and such are attributes of many modules: what
hooks compute (`weight` of torch.nn.utils.weight_norm), activations that are kept. In a copy they
are plain tensors. And a function that closes over a module of the copy is one of the copy's.
"""

import copy
from collections.abc import Iterator
from types import CellType, FunctionType
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Module = TypeVar("Module", bound=nn.Module)
Memo = dict[int, Any]  # id of what was copied -> its copy


def copied(module: Module, memo: Memo) -> Module:
    """A deep copy, as `copy.deepcopy` with `memo`."""
    made: list[tuple[CellType, CellType]] = []
    for function in _functions(module):
        before = function.__closure__ or ()
        cells = tuple(CellType() for _ in before)
        code, scope, name = function.__code__, function.__globals__, function.__name__
        memo[id(function)] = new = FunctionType(code, scope, name, function.__defaults__, cells)
        new.__kwdefaults__, new.__qualname__ = function.__kwdefaults__, function.__qualname__
        made += zip(before, cells, strict=True)
    with _Plain(share=False):
        copied: Module = nn.Module.__new__(type(module))
        memo[id(module)] = copied
        restore: Any = copied.__setstate__
        restore(copy.deepcopy(_state(module), memo))
        for old, cell in made:
            cell.cell_contents = copy.deepcopy(old.cell_contents, memo)
    return copied


def plain_state(module: nn.Module, fixed: Memo) -> Any:
    """A module's state to be pickled; shares all tensors but those that autograd has computed.

    `fixed`: what is not copied either, by id.
    """
    memo = {id(module): module, **{id(p): p for p in module.parameters()}, **fixed}
    with _Plain(share=True):
        return copy.deepcopy(_state(module), memo)


def _state(module: nn.Module) -> Any:
    state: Any = module.__getstate__()
    # Of this moment: another thread may compute with the module.
    return {**state} if isinstance(state, dict) else state


class _Plain(TorchFunctionMode):
    """Inside, tensors that autograd has computed are copied as plain ones."""

    def __init__(self, *, share: bool) -> None:
        super().__init__()
        self._share = share  # all others stay the same tensors

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            plain = tensor if tensor.is_leaf else tensor.detach()
            if self._share or plain is not tensor:
                return memo.setdefault(id(tensor), plain if self._share else plain.clone())
        return func(*args, **(kwargs or {}))


def _functions(module: nn.Module) -> Iterator[FunctionType]:
    """The functions in a module's attributes that close over a module of it."""
    parts = {id(part) for part in module.modules()}
    waiting = [value for part in module.modules() for value in [*vars(part).values()]]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, FunctionType):
            if any(id(cell.cell_contents) in parts for cell in value.__closure__ or ()):
                yield value
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple | set):
            waiting += value
