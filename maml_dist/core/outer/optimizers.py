"""The beta update: meta <- meta - rate * direction(gradient), on one flat vector.

    rate    = beta * schedule
    average = average + (meta - average) * (1 - d) / (1 - d^count)    bias-corrected moving average,
                                      of the server's whole vector, so of running statistics too

An optimizer's state is a dict of tensors, so that it can be saved without pickling. An update of a
small model is bound by dispatch: few operations, in place on tensors made here, and scalars in
Python.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from maml_dist.core.outer.idle import Waiting, adam_idle, normal, sgd_idle
from maml_dist.core.outer.schedules import Constant, Schedule
from maml_dist.core.renamed import refuse_renamed
from maml_dist.core.validation import check_decays, check_minimum, check_positive, check_share

State = dict[str, Tensor]
Gather = Callable[[Tensor], Tensor]  # of the blocks of a part of a vector, those of all of it

BLOCK = 1024  # elements whose squares are summed first; parts of a vector are of whole blocks


class Request(NamedTuple):
    """What an update wants to know of the tasks: a method of the shards, and what it is given."""

    what: Literal["gradient", "curvature", "objective"]
    at: Tensor  # [size]: where, or for the curvature what to multiply
    options: dict[str, Any] = {}


class Response(NamedTuple):
    """The answer: means over the tasks."""

    vector: Tensor | None  # [size]; none where all tasks were skipped
    scalars: dict[str, float]


UpdateRounds = Generator[
    Request, Response, tuple[Tensor, State, dict[str, float]]
]  # -> meta, state, what to log


@dataclass(frozen=True)
class OuterOptimizer(ABC):
    """An outer optimiser: a pure function of the flat meta-parameters [size]."""

    on_policy: ClassVar[bool] = False  # whether it asks what only rollouts can answer
    by_elements: ClassVar[bool] = False  # whether `step` treats each element by itself

    beta: float = 0.001  # outer rate
    schedule: Schedule = Constant()  # of the outer rate
    clip: float | None = None  # each element of the meta-gradient is clipped at ± this
    clip_norm: float | None = None  # then the meta-gradient is scaled down to this norm
    average: float | None = None  # decay d of the averaged weights that are validated; null: none
    epochs: int = 1  # updates a meta-iteration, each at a new meta-gradient on the same episodes

    def __init_subclass__(cls) -> None:
        """Refuse a class that was written for 0.1.0.

        Raises:
            ValueError: in one line.
        """
        super().__init_subclass__()
        refuse_renamed(cls, {"asks": "multi_round", "propose": "update_in_rounds"})

    def __post_init__(self) -> None:
        check_positive(self, "outer", "beta", "clip", "clip_norm")
        check_minimum(self, "outer", epochs=1)
        check_share(self, "outer", "average")

    @abstractmethod
    def moments(self, meta: Tensor) -> State:
        """What the optimizer remembers of the gradients, before the first."""

    @abstractmethod
    def step(
        self, meta: Tensor, gradient: Tensor, state: State, *, rate: float, count: float
    ) -> tuple[Tensor, State]:
        """The new meta-parameters and moments at update `count` = 1, 2, …"""

    def idle(self, rows: Tensor, moments: State, waiting: Waiting) -> tuple[Tensor, State]:
        """What updates at a zero gradient make of rows [u, dim] and their moments.

        Rows of a table that no task touches wait for them. They are made one by one from each
        number of updates seen, where no closed form of the optimizer's `step` overrides this.
        """
        found, after = rows.clone(), {name: value.clone() for name, value in moments.items()}
        for since in waiting.since.unique().tolist():
            here = waiting.since == since
            meta, shape = in_blocks(rows[here]), rows[here].shape
            state = {name: in_blocks(value[here]) for name, value in moments.items()}
            zero, rates = torch.zeros_like(meta), waiting.rates[since : waiting.made].tolist()
            for count, rate in enumerate(rates, since + 1):
                meta, state = self.step(meta, zero, state, rate=rate, count=float(count))
            found[here] = meta[: shape.numel()].view(shape)
            for name, value in state.items():
                after[name][here] = value[: shape.numel()].view(shape)
        return found, after

    def caught_up(self, rows: Tensor, moments: State, waiting: Waiting) -> tuple[Tensor, State]:
        """`idle`, of the class that has the `step`: a closed form is of no other."""
        kind = type(self) if "idle" in _defining(type(self), {"step", "idle"}) else OuterOptimizer
        return kind.idle(self, rows, moments, waiting)

    def init(self, meta: Tensor) -> State:
        """The state before the first update.

        Returns:
            `count` [] float64 of the updates made, and the moments.
        """
        return {"count": torch.tensor(0.0, dtype=torch.float64), **self.moments(meta)}

    @property
    def multi_round(self) -> bool:
        """Whether one gradient is not enough: then `update_in_rounds` makes the update."""
        return self.epochs > 1

    def update_in_rounds(
        self, meta: Tensor, gradient: Tensor, scalars: dict[str, float], state: State
    ) -> UpdateRounds:
        """A meta-iteration that asks back: yields questions, is sent the answers.

        Args:
            meta: the meta-parameters [size] with which the episodes were collected.
            gradient: the mean meta-gradient [size] there.
            scalars: the means of the tasks' metrics, `loss/after` among them.
            state: the optimizer's state.
        """
        meta, state = self.update(meta, gradient, state)
        for _ in range(1, self.epochs):
            response = yield Request("gradient", meta)
            if response.vector is not None:
                meta, state = self.update(meta, response.vector, state)
        if "return/after" not in scalars:
            return meta, state, {}
        # Policies: how far all epochs together have gone.
        response = yield Request("objective", meta)
        return meta, state, {"kl": response.scalars["kl"]}

    @property
    def divisible(self) -> bool:
        """Whether parts of the vector can be updated apart, to the same bits.

        A class that has a `step`, or another part of an update, of its own says so itself.
        """
        parts = {"step", "update", "clipped", "rate", "counted", "averaged", "by_elements"}
        return not self.multi_round and bool(_defining(type(self), parts).get("by_elements"))

    def update(
        self, meta: Tensor, gradient: Tensor, state: State, *, gather: Gather | None = None
    ) -> tuple[Tensor, State]:
        """One update; returns new tensors and changes none.

        `gather`, where this is a part of a vector: knows the other parts' blocks.
        """
        count = float(state["count"]) + 1
        if self.clip is not None or self.clip_norm is not None:
            gradient = self.clipped(gradient) if gather is None else self.clipped(gradient, gather)
        meta, after = self.step(meta, gradient, state, rate=self.rate(state), count=count)
        return meta, self.counted(after, state)

    def rate(self, state: State) -> float:
        """The outer rate of the next update."""
        return self.beta * self.schedule.factor(float(state["count"]))

    def clipped(self, gradient: Tensor, gather: Gather = lambda squares: squares) -> Tensor:
        """The meta-gradient [size], by value and then by norm."""
        if self.clip is not None:
            gradient = gradient.clamp(-self.clip, self.clip)
        if self.clip_norm is not None:
            norm = float(gather(_squares(gradient)).sum().sqrt())
            if norm > self.clip_norm:
                gradient = gradient * (self.clip_norm / norm)
        return gradient

    def counted(self, after: State, state: State) -> State:
        """The state after an update: the new moments and the count."""
        return after | {"count": state["count"] + 1}

    def averaged(self, average: Tensor, latest: Tensor, *, before: State, state: State) -> Tensor:
        """The average over all updates, those from `before` to `state` having led to `latest`."""
        assert self.average is not None
        count = float(state["count"])
        made = count - float(before["count"])
        return average.lerp(latest, (1 - self.average**made) / (1 - self.average**count))


def _defining(kind: type, names: set[str]) -> Mapping[str, Any]:
    """What the first of a class and its bases has that has one of these for itself."""
    return next(own for own in map(vars, kind.__mro__) if names & own.keys())


def in_blocks(values: Tensor) -> Tensor:
    """One vector of whole blocks: in `step` each element rounds alike, whatever is beside it."""
    flat = values.reshape(-1)
    return torch.cat([flat, flat.new_zeros(-len(flat) % BLOCK)])


def _squares(gradient: Tensor) -> Tensor:
    """The sums of squares of its blocks, in float64."""
    whole = len(gradient) // BLOCK * BLOCK
    parts = gradient[:whole].view(whole // BLOCK, BLOCK), gradient[whole:].view(1, -1)
    norms = [torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in parts]
    return torch.cat(norms if len(gradient) > whole else norms[:1]).square_()


@dataclass(frozen=True)
class SGD(OuterOptimizer):
    """Gradient descent, with (Nesterov's) momentum: v <- momentum * v + gradient."""

    by_elements = True

    momentum: float = 0.0  # decay of the velocity; 0: plain descent
    nesterov: bool = False  # step along gradient + momentum * v rather than v

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self, "outer", "momentum", zero=True)
        if self.nesterov and not self.momentum:
            raise ValueError("outer.nesterov=True: needs a momentum")

    def moments(self, meta: Tensor) -> State:
        """The velocity, if there is momentum."""
        return {"velocity": torch.zeros_like(meta)} if self.momentum else {}

    def step(
        self, meta: Tensor, gradient: Tensor, state: State, *, rate: float, count: float
    ) -> tuple[Tensor, State]:
        """Along the gradient, the velocity, or where the velocity will be."""
        if not self.momentum:
            return meta.add(gradient, alpha=-rate), {}
        velocity = normal(gradient.add(state["velocity"], alpha=self.momentum))
        ahead = gradient.add(velocity, alpha=self.momentum) if self.nesterov else velocity
        return meta.add(ahead, alpha=-rate), {"velocity": velocity}

    def idle(self, rows: Tensor, moments: State, waiting: Waiting) -> tuple[Tensor, State]:
        """Along a velocity that decays; none where there is no momentum."""
        if not self.momentum:
            return rows, moments
        velocity, nesterov = moments["velocity"], self.nesterov
        rows, velocity = sgd_idle(rows, velocity, waiting, self.momentum, nesterov=nesterov)
        return rows, {"velocity": velocity}


@dataclass(frozen=True)
class Adam(OuterOptimizer):
    """Adam (arXiv 1412.6980, algorithm 1); with a weight decay AdamW (arXiv 1711.05101)."""

    by_elements = True

    decays: tuple[float, float] = (0.9, 0.999)  # of the first and second moment
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.0  # decoupled: meta shrinks by rate * this, apart from the gradient

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decays(self, "outer", "decays")
        check_positive(self, "outer", "eps")
        check_minimum(self, "outer", weight_decay=0)

    def moments(self, meta: Tensor) -> State:
        """Both moments, at zero."""
        return {"first": torch.zeros_like(meta), "second": torch.zeros_like(meta)}

    def step(
        self, meta: Tensor, gradient: Tensor, state: State, *, rate: float, count: float
    ) -> tuple[Tensor, State]:
        """Along the bias-corrected first moment over the root of the second.

        Both corrections go into the step's length and eps: m̂ / (√v̂ + eps) is
        (√c₂ / c₁) m / (√v + √c₂ eps), with c = 1 - decay^count.
        """
        decay1, decay2 = self.decays
        root2 = (1 - decay2**count) ** 0.5
        length = rate * root2 / (1 - decay1**count)
        first = normal(state["first"].lerp(gradient, 1 - decay1))
        second = (state["second"] * decay2).addcmul_(gradient, gradient, value=1 - decay2)
        second = normal(second)
        root = second.sqrt().add_(self.eps * root2)
        if self.weight_decay:
            meta = meta * (1 - rate * self.weight_decay)
        return meta.addcdiv(first, root, value=-length), {"first": first, "second": second}

    def idle(self, rows: Tensor, moments: State, waiting: Waiting) -> tuple[Tensor, State]:
        """Along first moments that decay faster than the roots of the second."""
        rows, first, second = adam_idle(
            *(rows, moments["first"], moments["second"], waiting),
            decays=self.decays,
            eps=self.eps,
            weight_decay=self.weight_decay,
        )
        return rows, {"first": first, "second": second}
