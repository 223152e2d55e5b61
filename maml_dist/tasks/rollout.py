"""Rollouts: a policy acts in the environments of many tasks at once.

    action = mean + exp(log_std) * noise,   or the k with cdf(k - 1) <= noise < cdf(k), of each
    of some choices

All that is drawn, starts and noise, is a pure function of the task's key and the stage; never of
the other tasks of the batch. Legend: stage = adaptation steps made before, time = control steps.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from reprlib import repr
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maml_dist.core.data.episode import Batch, Episode
from maml_dist.core.data.simulator import EnvironmentFault, Simulator
from maml_dist.core.data.task_source import Adapt, TaskKey, TaskSource
from maml_dist.core.data.trajectories import Trajectories
from maml_dist.core.renamed import refuse_renamed
from maml_dist.core.rl.distribution import Categorical, Categoricals, Distribution, Gaussian
from maml_dist.core.rl.policy_gradient import PolicyGradient, stacked
from maml_dist.core.validation import check_minimum, check_size
from maml_dist.tasks.episode_scores import EpisodeScores, key_of

_RENAMED = {
    "sensed": "state_dim",
    "observations": "obs_dim",
    "actions": "action_dim",
    "goals": "goal_dim",
}

Policy = Callable[[Tensor], Tensor]  # [task, episode, obs] float32 -> [task, episode, out]


class Goal(NamedTuple):
    """One task: what is to be reached, and the key of all that is drawn on the way."""

    key: TaskKey
    value: tuple[Any, ...]  # numbers, told to an oracle


@dataclass(frozen=True)
class Rollouts(TaskSource):
    """Tasks that are lived through: each a `Goal` for the same body in the same world."""

    metric = "return"
    maximize = True
    on_policy = True
    scores: ClassVar[tuple[str, ...]] = ()  # of an episode beside its return: episode_scores.py

    horizon: int = 100  # control steps
    episodes: int = 20  # a task and stage
    oracle: bool = False  # the goal is part of the observation
    policy_gradient: PolicyGradient = field(default_factory=PolicyGradient)  # what episodes teach

    def __init_subclass__(cls) -> None:
        """Refuse what was written for 0.1.0, and what `TaskSource` refuses.

        Raises:
            ValueError: in one line.
        """
        super().__init_subclass__()
        refuse_renamed(cls, _RENAMED, fields=False)

    def __post_init__(self) -> None:
        check_minimum(self, "task", horizon=1, episodes=1)
        check_size(self, "task", "horizon", "episodes", numbers=self.horizon * self.episodes)

    @property
    @abstractmethod
    def state_dim(self) -> int:
        """Numbers that an environment tells after each step."""

    @property
    @abstractmethod
    def goal_dim(self) -> int:
        """Numbers of a goal."""

    @property
    @abstractmethod
    def action_dim(self) -> int:
        """Numbers of an action; how many different ones there are, added up over the choices."""

    @property
    def discrete(self) -> bool:
        """Whether an action is one of a few, or some such choices."""
        return False

    @property
    def choices(self) -> tuple[int, ...]:
        """Of an action that is several discrete choices: how many ways each has; else none."""
        return ()

    @property
    def action_shape(self) -> tuple[int, ...]:
        """The shape of an action: one discrete choice has none."""
        if self.discrete:
            return (len(self.choices),) if self.choices else ()
        return (self.action_dim,)

    @property
    def distribution(self) -> Distribution:
        """How a policy's output is read."""
        if self.choices:
            return Categoricals(self.choices)
        return Categorical() if self.discrete else Gaussian()

    @property
    def other_scores(self) -> tuple[str, ...]:  # type: ignore[override]  # by the field `scores`
        """The scores beside the return."""
        return tuple(map(key_of, self.scores))

    @property
    def penalty(self) -> float:  # type: ignore[override]  # a field of the policy gradient's
        """Weight of the unadapted policy's KL divergence."""
        return self.policy_gradient.penalty

    @property
    def obs_dim(self) -> int:
        """Numbers that the policy sees: the oracle also sees the goal, behind the others."""
        return self.state_dim + self.goal_dim * self.oracle

    @abstractmethod
    def sample(self, key: TaskKey) -> Goal:
        """Draw a task: a pure function of `key`."""

    @abstractmethod
    def simulator(self, tasks: Sequence[Goal], *, stage: int) -> Simulator:
        """The environments of `tasks`, reset as `resets` draws it."""

    def resets(self, tasks: Sequence[Goal], stage: int) -> list[np.random.Generator]:
        """What each task draws the starts of its episodes from, at this stage."""
        return [task.key.rng(2 * stage + 1) for task in tasks]

    def roll(self, policy: Policy, tasks: Sequence[Goal], *, stage: int) -> Trajectories:
        """`episodes` episodes of each task, up to `horizon` steps; zeros after an episode's end.

        Where a policy's output or action is not finite, training has diverged: the episode ends
        with that step, and its reward is not a number. So neither is what is made of the task, its
        gradient and its scores, while other tasks are as ever.

        Raises:
            ValueError: an environment failed, gives arrays of other shapes than it must, or an
                observation or a reward is not finite; names task, iteration, stage and step.
        """
        noise, state_dim, distribution = (
            self._noise(tasks, stage),
            self.state_dim,
            self.distribution,
        )
        now = torch.zeros(len(tasks), self.episodes, self.obs_dim)
        if self.oracle:
            now[..., state_dim:] = torch.tensor([task.value for task in tasks])[:, None]
        # Written as [task, time, episode, …]: a step is a block for each task, not a line for each
        # episode, which would be a page of memory each.
        count = len(tasks), self.episodes
        lasting = len(tasks), self.horizon, self.episodes
        seen = torch.zeros(*lasting, self.obs_dim)
        acted = torch.zeros(noise.shape, dtype=torch.int64 if self.discrete else noise.dtype)
        earned, mask = (torch.zeros(lasting) for _ in range(2))
        senses, rewards, alive = now.numpy()[..., :state_dim], earned.numpy(), mask.numpy()
        running = np.ones(count, dtype=bool)
        outputs, step, scores = seen, 0, EpisodeScores(self.scores, count)
        try:
            with _simulator_faults():
                simulator = self.simulator(tasks, stage=stage)
                senses[:] = _finite("observations", simulator.reset(), senses.shape, running)
            for step in range(self.horizon):
                with torch.no_grad():
                    output = policy(now)
                    if step == 0:
                        self._must_fit(output)
                        outputs = output.new_zeros(*lasting, output.shape[-1])
                    action = distribution.sample(output, noise[:, step])
                chosen = action.numpy()
                seen[:, step], outputs[:, step], acted[:, step] = now, output, action
                alive[:, step] = running
                sound = _sound(output.numpy(), count) & _sound(chosen, count)
                if not sound.all():
                    chosen = np.where(np.isfinite(chosen), chosen, 0)
                wild = running & ~sound
                with _simulator_faults():
                    observed, paid, ended, *given = simulator.step(chosen)
                    scores.add((given and given[0]) or {}, running & sound)
                    scores.spoil(wild)
                    rewards[:, step] = _finite("rewards", paid, count, running & sound)
                    rewards[:, step][wild] = np.nan
                    running &= ~(_shaped("ended", ended, count).astype(bool) | wild)
                    if not running.any():
                        break
                    senses[:] = _finite("observations", observed, senses.shape, running)
            earned_scores = scores.result(simulator.named)
        except EnvironmentFault as fault:
            when = f"after {stage} adaptation steps, step {step}"
            raise ValueError(
                f"{whose(tasks, fault.task)}, {when}: {fault.reason}"
            ) from fault.__cause__
        if not running.all():
            for tensor in (seen, acted, outputs, earned):
                tensor[mask == 0] = 0
        seen, acted, earned, mask, outputs = (
            part.transpose(1, 2).contiguous() for part in (seen, acted, earned, mask, outputs)
        )
        return Trajectories(seen, acted, earned, mask, outputs, earned_scores)

    def _must_fit(self, output: Tensor) -> None:
        width = self.action_dim if self.discrete else 2 * self.action_dim
        if output.shape[-1] != width:
            kind = "logits" if self.discrete else "numbers, means and log standard deviations"
            raise ValueError(
                f"the policy gives {output.shape[-1]} numbers for an action; the tasks need "
                f"{width} {kind}: set model.action_dim={self.action_dim}"
            )

    def collect(self, tasks: Sequence[Goal], *, steps: int, adapt: Adapt | None = None) -> Episode:
        """What the tasks' policies live through as they adapt: stage after stage."""
        assert adapt is not None
        batches: list[Batch] = []
        scores: list[dict[str, Tensor]] = []
        for _ in range(steps + 1):
            batch, seen = self.policy_gradient.compute_advantages(
                adapt(tuple(batches)), self.distribution
            )
            batches.append(batch)
            scores.append(seen)
        return Episode(tuple(batches[:-1]), batches[-1], scores=stacked(scores))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """The inner surrogate."""
        return self.policy_gradient.loss(self.distribution, output, batch.y)

    def query_loss(self, output: Tensor, batch: Batch) -> Tensor:
        """The outer surrogate."""
        return self.policy_gradient.query_loss(self.distribution, output, batch.y)

    def kl(self, output: Tensor, batch: Batch) -> Tensor:
        """The mean KL divergence from the policy that acted."""
        return self.policy_gradient.kl(self.distribution, output, batch.y)

    def _noise(self, tasks: Sequence[Goal], stage: int) -> Tensor:
        """Of every action [task, time, episode, *its shape]: normal; discrete: uniform."""
        shape = (len(tasks), self.horizon, self.episodes, *self.action_shape)
        noise = np.empty(shape, np.float32)
        known: dict[TaskKey, np.ndarray] = {}  # the candidates of a task share it
        for task, drawn in zip(tasks, noise, strict=True):
            if task.key in known:
                drawn[:] = known[task.key]
                continue
            rng = task.key.rng(2 * stage + 2)
            draw = rng.random if self.discrete else rng.standard_normal
            draw(out=drawn, dtype=np.float32)
            known[task.key] = drawn
        return torch.from_numpy(noise)


def _finite(
    what: str, values: np.ndarray, shape: tuple[int, ...], running: np.ndarray
) -> np.ndarray:
    """The values [task, episode, …], of this shape and finite in the episodes that still run.

    Raises:
        EnvironmentFault: they are not; of the first such task.
    """
    values = _shaped(what, values, shape)
    bad = running & ~_sound(values, running.shape)
    if bad.any():
        raise EnvironmentFault(int(bad.any(-1).argmax()), f"{what} are not finite")
    return values


def _shaped(what: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    """What a simulator gives, as an array that is not broadcast. Raises as `_finite` does."""
    array = np.asarray(values)
    if array.shape != shape:
        axes = "task, episode" if len(shape) == 2 else "task, episode, number"
        raise EnvironmentFault(None, f"{what} have shape {array.shape}, not {shape}: [{axes}]")
    return array


def _sound(values: np.ndarray, count: tuple[int, ...]) -> np.ndarray:
    """Where [task, episode] all of the values [task, episode, …] are finite."""
    finite = np.isfinite(values)
    if finite.all():
        return np.ones(count, dtype=bool)
    sound: np.ndarray = finite.reshape(*count, -1).all(-1)
    return sound


@contextmanager
def _simulator_faults() -> Iterator[None]:
    """Inside, whatever a simulator raises is an EnvironmentFault."""
    try:
        yield
    except EnvironmentFault:
        raise
    except Exception as error:
        raise EnvironmentFault(
            None, f"the simulator raised {type(error).__name__}: {error}"
        ) from error


def whose(tasks: Sequence[Goal], place: int | None) -> str:
    """The name of a task, or of the batch; held-out tasks belong to no iteration."""
    _, split, it, first = tasks[place or 0].key
    of = f" of iteration {it}" if split == "train" else ""
    kind = "" if split == "train" else f"{split} "
    if place is None:
        numbers = [task.key.index for task in tasks]  # a shard's are not one after the other
        several = f"tasks {repr(numbers)}" if len(tasks) > 1 else f"task {first}"
        return f"{kind}{several}{of}"
    return f"{kind}task {first}{of}, goal {repr(tasks[place].value)}"
