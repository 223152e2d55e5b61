"""Server state: what the parameter server holds, as the named tensors of a checkpoint and back."""

from collections.abc import Mapping

import torch
from torch import Tensor

from maml_dist.core.params import Layout, flatten, unflatten
from maml_dist.runtime.server import Saved


def to_tensors(saved: Saved, into: Layout) -> dict[str, Tensor]:
    """`meta/NAME` of each meta-parameter, `outer/NAME` of what the outer optimizer remembers."""
    _, meta, outer = saved
    split = unflatten(torch.tensor(meta), into)
    named = {f"meta/{name}": value.clone() for name, value in split.items()}
    return named | {f"outer/{name}": torch.tensor(value) for name, value in outer.items()}


def to_saved(tensors: Mapping[str, Tensor], iteration: int, into: Layout) -> Saved:
    """The state that `to_tensors` made these tensors of."""
    meta = {name: tensors[f"meta/{name}"] for name in into.names}
    outer = {n.removeprefix("outer/"): t for n, t in tensors.items() if n.startswith("outer/")}
    return iteration, flatten(meta).numpy(), {name: value.numpy() for name, value in outer.items()}
