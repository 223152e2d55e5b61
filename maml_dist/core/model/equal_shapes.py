"""Equal shapes: a loss whose output and targets are of two shapes is refused, not broadcast."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_ARITHMETIC = ("sub", "rsub", "add", "radd", "mul", "rmul", "div", "truediv", "rtruediv", "eq")
_OF_EQUAL_SHAPES = {
    *(functional.mse_loss, functional.l1_loss, functional.smooth_l1_loss, functional.huber_loss)
}


class _EqualShapes(TorchFunctionMode):
    def __init__(self, targets: tuple[Tensor, ...]) -> None:
        super().__init__()
        self._targets = {id(target): target for target in targets}  # and what is made of them alone

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _OF_EQUAL_SHAPES and args[0].shape != args[1].shape:
            output, target = (list(each.shape) for each in args[:2])
            raise RuntimeError(
                f"Using a target size {target} that is different to the input size {output}"
            )
        if getattr(func, "__name__", "").strip("_") in _ARITHMETIC:
            self._refuse_outer(args[:2])
        result = func(*args, **(kwargs or {}))
        given = [part for part in args if isinstance(part, Tensor)]
        if (
            isinstance(result, Tensor)
            and given
            and all(id(part) in self._targets for part in given)
        ):
            self._targets[id(result)] = result
        return result

    def _refuse_outer(self, pair: Any) -> None:
        """A target and an output are not both made larger: [n] and [n, 1] to [n, n]."""
        if len(pair) < 2 or not all(isinstance(part, Tensor) for part in pair):
            return
        one, other = (part.shape for part in pair)
        if one == other or sum(id(part) in self._targets for part in pair) != 1:
            return
        made = torch.broadcast_shapes(one, other)
        if made not in (one, other):
            raise RuntimeError(
                f"the loss broadcasts {list(one)} and {list(other)} to {list(made)}: give y the "
                "shape of the model's output"
            )


def broadcasting_refused(*targets: Tensor) -> TorchFunctionMode:
    """Inside, in this thread, a loss of two shapes raises a RuntimeError and computes nothing.

    torch warns only, and what is done with a warning is one setting for all threads. Nor is one of
    the `targets`, or what is made of them alone (`y[:, 0]`), broadcast against another tensor to
    what has the shape of neither.
    """
    return _EqualShapes(targets)
