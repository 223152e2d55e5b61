"""Functional call: a module that computes with given parameters, and is left as it was.

What `torch.func.functional_call` gives back are parameters, and not those of a module that is
registered twice. Here all that computing leaves in a module is taken back, in every module: modes,
what hooks compute (`weight` of torch.nn.utils.weight_norm), activations and caches that it keeps.
One thread at a time computes with a module.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Modes = list[tuple[nn.Module, bool]]  # modules, and whether each is in training mode

_SEQUENCES = (list, deque)
_CONTAINERS = (*_SEQUENCES, dict, set, tuple)
_OWN = {*vars(nn.Module())}  # attributes of nn.Module, in which no forward pass keeps anything
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
        with untouched(self._model, [part for _, part in self._parts]):
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
def untouched(model: nn.Module, parts: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, this thread alone has the module; afterwards all that its parts hold is what it was.

    Tensors themselves are not copied: what is written into one stays.
    """
    with _locks.setdefault(model, RLock()):
        before = [(vars(part), {**vars(part)}) for part in parts]
        containers = [(each, each.copy()) for _, attributes in before for each in _held(attributes)]
        try:
            yield
        finally:
            for now, attributes in before:
                for name in now.keys() - attributes.keys():
                    del now[name]
                now.update(attributes)
            for container, content in containers:
                container.clear()
                fill = container.extend if isinstance(container, _SEQUENCES) else container.update
                fill(content)


def _held(attributes: dict[str, Any]) -> list[Any]:
    """The containers among the attributes of a module, and those within them."""
    held = [attributes[name] for name in ("_parameters", "_buffers", "_modules")]
    waiting = [
        value
        for name, value in attributes.items()
        if name not in _OWN and isinstance(value, _CONTAINERS)
    ]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if id(value) not in seen:
            seen.add(id(value))
            if not isinstance(value, tuple):
                held.append(value)
            inner = value.values() if isinstance(value, dict) else value
            waiting += [each for each in inner if isinstance(each, _CONTAINERS)]
    return held


def training_modes(model: nn.Module) -> Modes:
    """The modes of a model's parts after its own `train()`, which may leave some as they are."""
    parts = [*model.modules()]
    with untouched(model, parts):
        model.train()
        return present_modes(model)


def present_modes(model: nn.Module) -> Modes:
    """The modes that a model's parts are in."""
    return [(part, part.training) for part in model.modules()]
