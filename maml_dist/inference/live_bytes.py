"""Live bytes: the most memory that a call holds at once in tensors that it makes."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class _Watched(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        known = len(self._live)
        for each in pytree.tree_leaves(results):
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                self._live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        if len(self._live) > known:
            self._live = {
                place: (ref, size) for place, (ref, size) in self._live.items() if not ref.expired()
            }
            self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return results


def live_bytes(call: Callable[[], object]) -> int:
    """The bytes that a call of torch's functions holds at the most, in this thread."""
    watched = _Watched()
    with watched:
        call()
    return watched.peak
