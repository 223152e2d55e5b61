"""Where tasks come from: p(T) and the losses that belong to it.

A source is a pure function of task keys: task `index` of meta-iteration `it` depends on
(seed, split, it, index) alone; never on how many shards there are, which of them draws it, or what
was drawn before. So a restarted actor draws again exactly what it lost.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from torch import Tensor

from maml_dist.core.data.episode import Batch, Episode
from maml_dist.core.data.trajectories import Trajectories
from maml_dist.core.random import keys_by_group
from maml_dist.core.renamed import refuse_renamed

# The support sets so far -> what each task's policy, adapted to them, does next.
Adapt = Callable[[tuple[Batch, ...]], Trajectories]


class TaskKey(NamedTuple):
    """The name of one task: all that its draw may depend on."""

    seed: int
    split: str  # "train", "val" or "test"
    it: int  # meta-iteration
    index: int  # type: ignore[assignment]  # within the meta-batch; hides tuple.index

    def rng(self, *salt: int) -> np.random.Generator:
        """A generator that is a pure function of the key (and of `salt`, for a second stream)."""
        words = hashlib.blake2b(repr((*self, *salt)).encode(), digest_size=32).digest()
        return np.random.Generator(np.random.PCG64(cast(Any, _Words(words))))


class _Words(ISeedSequence):  # four times faster than numpy's own SeedSequence, as much entropy
    def __init__(self, words: bytes) -> None:
        self._words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return np.frombuffer(self._words, dtype)[:n_words]


def keys_of(named: Sequence[TaskKey]) -> Tensor:
    """The random keys [task] of tasks."""
    its = groupby(named, itemgetter(0, 1, 2))
    return keys_by_group([(it, [key.index for key in own]) for it, own in its])


class TaskSource(ABC):
    """A distribution over tasks. It never knows the learner, and the learner never knows it."""

    metric: ClassVar[str] = "loss"  # the score by which checkpoints are chosen and runs reported
    maximize: ClassVar[bool] = False  # whether more of it is better
    on_policy: ClassVar[bool] = False  # what is collected depends on the parameters; has a `kl`
    other_scores: tuple[str, ...] = ()  # beside `metric`, those that an evaluation tells too
    classifies: bool = False  # whether y [n] are classes, whole numbers from 0
    # Fields that the losses do without: None where a model is served and its data are not there.
    data_fields: ClassVar[tuple[str, ...]] = ()
    penalty: float = 0.0  # on-policy: weight of phi_0's KL divergence on the support

    def __init_subclass__(cls) -> None:
        """Refuse a class that has a `kl` and is not declared on-policy, or the other way round.

        So is one that was written for 0.1.0.

        Raises:
            ValueError: in one line.
        """
        super().__init_subclass__()
        refuse_renamed(cls, {"divergence": "kl"})
        if cls.on_policy != (cls.kl is not TaskSource.kl):
            raise ValueError(
                f"{cls.__name__}.on_policy={cls.on_policy}: a task source overrides kl where it is "
                "on-policy, and nowhere else"
            )

    @abstractmethod
    def sample(self, key: TaskKey) -> Any:
        """Draw a task: a tiny, picklable description, a pure function of `key`.

        Raises:
            ValueError: the source has no such split, or cannot give such a task.
        """

    @abstractmethod
    def collect(self, tasks: Sequence[Any], *, steps: int, adapt: Adapt | None = None) -> Episode:
        """The episodes of `tasks`, stacked with the task axis first, with `steps` support batches.

        A pure function of its arguments. Supervised sources ignore `adapt`; an on-policy source
        calls it with the support so far, and gives `scores` of every stage with the episodes.
        """

    @abstractmethod
    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """The inner loss of one task: a scalar, from the model's output [n, …]."""

    def query_loss(self, output: Tensor, batch: Batch) -> Tensor:
        """The outer loss of one task: a scalar; the inner one unless overridden."""
        return self.loss(output, batch)

    def kl(self, output: Tensor, batch: Batch) -> Tensor:
        """On-policy: the mean KL divergence of one task's policy from the one that acted."""
        raise NotImplementedError

    def score(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scalars to report for one task; must have the key `metric`."""
        return {self.metric: self.loss(output, batch)}
