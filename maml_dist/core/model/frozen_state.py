"""Frozen state: what predicts beside meta-parameters and running statistics, and never changes.

Frozen parameters, buffers (persistent or not), and the tensors and arrays that the module's parts
hold as plain attributes, alone, in lists, tuples and dicts, or in modules that are hidden there. A
constructor may draw them or read them from a file: it still does, and what is kept comes instead.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maml_dist.core.model.objective import running_statistics
from maml_dist.core.params import Params

FrozenState = dict[str, Tensor | np.ndarray]  # by name, what the module itself holds: no copies

_OWN = vars(nn.Module()).keys()  # attributes of every module's


def frozen_state(model: nn.Module) -> FrozenState:
    """What of a model that was just made is fixed; what is held twice has its first name."""
    seen = {id(p) for p in model.parameters() if p.requires_grad}
    statistics = running_statistics(model)
    seen |= {id(value) for value in statistics.values()}
    for name in statistics:  # their counts of batches stay at zero
        part = model.get_submodule(name.rpartition(".")[0])
        seen.add(id(getattr(part, "num_batches_tracked", None)))
    found: FrozenState = {}
    for name, value in _held(model, "", set()):
        if id(value) not in seen and _is_data(value):
            found[name] = value
            seen.add(id(value))
    return found


def unsaveable(held: FrozenState) -> list[str]:
    """Names of what no file of dense tensors can keep: sparse tensors, borrowed memory."""
    return [name for name, value in held.items() if not _is_dense(value)]


def saveable(held: FrozenState) -> Params:
    """What is to be saved, on the CPU; complex numbers as pairs. It may share memory."""
    return {name: _plain(value) for name, value in held.items() if _is_dense(value)}


def restore(held: FrozenState, saved: Params) -> None:
    """Put saved values in the place of those held; views of them elsewhere keep their own.

    Raises:
        ValueError: names or shapes differ.
    """
    here = saveable(held)
    for name in sorted({*here, *saved}):
        sides = (saved, here)
        there, own = (list(side[name].shape) if name in side else None for side in sides)
        if there != own:
            raise ValueError(
                f"{name} is {'missing' if there is None else there} there, "
                f"{'unknown' if own is None else own} here"
            )
    for name, value in saved.items():
        place = held[name]
        pairs = place.is_complex() if isinstance(place, Tensor) else np.iscomplexobj(place)
        value = torch.view_as_complex(value) if pairs else value
        if isinstance(place, Tensor):
            place.data = value.to(place.device, place.dtype, copy=True)
        else:
            writeable, place.flags.writeable = place.flags.writeable, True
            place[...] = value.numpy()
            place.flags.writeable = writeable


def _plain(value: Tensor | np.ndarray) -> Tensor:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.array(value))
    value = value.detach().cpu()
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


def _is_data(value: Tensor | np.ndarray) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufc"
    derived = value.requires_grad and not value.is_leaf  # computed of parameters, as by a hook
    return not derived and not nn.parameter.is_lazy(value) and value.device.type != "meta"


def _is_dense(value: Tensor | np.ndarray) -> bool:
    if isinstance(value, np.ndarray):
        mine = value.flags.writeable or value.flags.owndata
        return mine and value.dtype.isnative and value.dtype.char not in "gG"  # long doubles
    return value.layout == torch.strided and not value.is_quantized


def _held(model: nn.Module, prefix: str, visited: set[int]) -> Iterator[tuple[str, Any]]:
    """All tensors and arrays by name, parameters and buffers first."""
    yield from model.named_parameters(prefix)
    yield from model.named_buffers(prefix)
    parts = [(name, part) for name, part in model.named_modules(prefix=prefix)]
    visited |= {id(part) for _, part in parts}
    for name, part in parts:
        for key, value in vars(part).items():
            if key not in _OWN:
                yield from _within(value, f"{name}.{key}" if name else key, visited)


def _within(value: Any, name: str, visited: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor | np.ndarray):
        yield name, value
    elif isinstance(value, nn.Module | list | tuple | dict) and id(value) not in visited:
        visited.add(id(value))
        if isinstance(value, nn.Module):
            yield from _held(value, name, visited)
        else:
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            for key, part in pairs:
                yield from _within(part, f"{name}.{key}", visited)
