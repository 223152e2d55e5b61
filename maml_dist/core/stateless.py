"""Stateless: a module that computes with given parameters, and is left as it was.

What `torch.func.functional_call` gives back are parameters, and not those of a module that is
registered twice. Here all that computing leaves in a module is taken back, in every module: modes,
what hooks compute (`weight` of torch.nn.utils.weight_norm), activations and caches that it keeps.
One thread at a time computes with a module.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Modes = list[tuple[nn.Module, bool]]  # modules, and whether each is in training mode

_SEQUENCES, _SETS = (list, deque), (dict, set)
_OWN = {*vars(nn.Module())} - {"_parameters", "_buffers", "_modules"}  # of nn.Module, never kept in
_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


class Stateless:
    """A module whose parameters are given at each use."""

    def __init__(self, model: nn.Module) -> None:
        """Raises ValueError where a part is compiled TorchScript, whose parameters are fixed."""
        self._model = model
        self._parts = [(name and f"{name}.", part) for name, part in model.named_modules()]
        for name, part in self._parts:
            if isinstance(part, torch.jit.ScriptModule):
                raise ValueError(
                    f"{name.removesuffix('.') or 'the model'} is TorchScript, which takes no other "
                    "parameters than its own: use the nn.Module that it was made of"
                )

    @contextmanager
    def given(self, params: Mapping[str, Tensor], modes: Modes) -> Iterator[nn.Module]:
        """Inside, the module has these parameters (others its own), its parts these modes.

        Raises:
            ValueError: a buffer was replaced.
        """
        with untouched(self._model):
            names: dict[int, str] = {}  # a tied parameter has the name that it is first found by
            for prefix, part in self._parts:
                own: dict[str, Any] = part._parameters
                for key, value in own.items():
                    name = names.setdefault(id(value), prefix + key)
                    if name in params:
                        own[key] = params[name]
            for part, mode in modes:
                vars(part)["training"] = mode
            buffers = [(p, prefix, {**p._buffers}) for prefix, p in self._parts if p._buffers]
            yield self._model
            for part, prefix, before in buffers:
                for key, value in before.items():
                    if part._buffers.get(key) is not value:
                        raise ValueError(
                            f"the model changes its buffer {prefix}{key} while it computes: only "
                            "the running statistics of batch norm are followed, all else must be "
                            "computed from the input"
                        )


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Inside, this thread alone has the module; afterwards all that it holds is what it was.

    Tensors themselves are not copied: what is written into one stays.
    """
    with _locks.setdefault(model, RLock()):
        before = [(vars(part), *_held(part)) for part in model.modules()]
        try:
            yield
        finally:
            for now, attributes, containers in before:
                for name in now.keys() - attributes.keys():
                    del now[name]
                now.update(attributes)
                for container, content in containers:
                    container.clear()
                    fill = (
                        container.extend if isinstance(container, _SEQUENCES) else container.update
                    )
                    fill(content)


def _held(part: nn.Module) -> tuple[dict[str, Any], list[tuple[Any, Any]]]:
    """The attributes of a module, and every container among them with what it holds."""
    attributes = {**vars(part)}
    containers: list[tuple[Any, Any]] = []
    waiting = [value for name, value in attributes.items() if name not in _OWN]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, (*_SEQUENCES, *_SETS, tuple)) and id(value) not in seen:
            seen.add(id(value))
            if not isinstance(value, tuple):
                containers.append((value, value.copy()))
            waiting += value.values() if isinstance(value, dict) else value
    return attributes, containers


def training_modes(model: nn.Module) -> Modes:
    """The modes of a model's parts after its own `train()`, which may leave some as they are."""
    with untouched(model):
        model.train()
        return [(part, part.training) for part in model.modules()]
