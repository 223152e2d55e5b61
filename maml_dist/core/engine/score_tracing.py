"""The scores of tasks, from what a model answers.

A score need not be differentiated, so it may be anything: numpy, scikit-learn, `.item()`, `if`.
What the engine cannot follow is computed as it is written, one task after the other.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from maml_dist.core.compile.tracing import Untraceable
from maml_dist.core.engine.engine import Engine

Scores = dict[str, Tensor]
# What torch raises where a trace or a vmap ends, and a user's code that it hands its own tensors.
_ENDS = (RuntimeError, AttributeError, TypeError, KeyError, IndexError, ValueError)


class ScoreFunction:
    """Scores a part: stacked tasks, or a single one."""

    def __init__(self, engine: Engine, score: Callable[..., Mapping[str, Any]]) -> None:
        """`score` of one task: (output, *its tensors) -> numbers."""
        self._score = score
        self._single = engine.batching == "task"
        self._fast = engine.run(engine.over(self._of_tensors, shared=0), compiled=False)
        self.as_written = self._single and engine.running == "eager"

    def __call__(self, output: Tensor, *tensors: Tensor) -> Scores:
        """Each score [task]; of a single task a scalar. Raises what the score as written does."""
        if not self.as_written:
            try:
                scores: Scores = self._fast(output, *tensors)
                return scores
            except _ENDS:
                self.as_written = True
        if self._single:
            return self._numbers(output, *tensors)
        rows = zip(*(tensor.unbind() for tensor in (output, *tensors)), strict=True)
        each = [self._numbers(*row) for row in rows]
        return {name: torch.stack([scores[name] for scores in each]) for name in each[0]}

    def _of_tensors(self, output: Tensor, *tensors: Tensor) -> Scores:
        """The scores that are tensors all the way: a Python number would be kept by a trace."""
        scores = self._score(output, *tensors)
        if not all(isinstance(value, Tensor) for value in scores.values()):
            raise Untraceable("a score is no tensor")
        return dict(scores)

    def _numbers(self, output: Tensor, *tensors: Tensor) -> Scores:
        scores = self._score(output, *tensors)
        return {
            name: torch.as_tensor(value, dtype=output.dtype, device=output.device)
            for name, value in scores.items()
        }
