"""Policy: a trained run of a policy that acts, and adapts in an environment of the user's."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import torch

from maml_dist.core.data.episode import Batch, map_tensors
from maml_dist.core.data.task_source import TaskKey, keys_of
from maml_dist.core.data.trajectories import Trajectories
from maml_dist.core.params import layout, own_form, real_of
from maml_dist.core.validation import SEEDS, STEPS, check_whole
from maml_dist.inference.adaptable import Adaptable
from maml_dist.inference.examples import as_numbers
from maml_dist.runtime.rollout_worker import Returns, RolloutWorker, Weights
from maml_dist.runtime.zeroth_order import Scoring
from maml_dist.tasks.gym_simulator import first_observation, step_results
from maml_dist.tasks.gym_spaces import (
    IMAGE_SCALE,
    action_form,
    flatten_observation,
    observation_size,
    scale_action,
)
from maml_dist.tasks.rollout import Goal, Rollouts


class Policy(Adaptable):
    """What `load` adds to the user's own policy: `act`, and `adapt` in an environment."""

    _source: Rollouts

    def act(self, obs: Any, *, generator: np.random.Generator | None = None) -> np.ndarray:
        """An action for an observation [obs], or for many [n, …, obs].

        Args:
            obs: as the task source gives it.
            generator: draws the action from the policy; the likeliest one if None.

        Returns:
            Actions [act] or [n, …, act], meant for [-1, 1] and not clipped; discrete: numbers, of
            several choices [choice] or [n, …, choice].

        Raises:
            ValueError: `obs` is no array of finite numbers of that size, or the policy's output at
                it is not finite.
        """
        like = real_of(next(self.parameters()))
        seen, size = as_numbers(obs, "obs", like=like).to(like.dtype), self._source.obs_dim
        if not seen.dim() or seen.shape[-1] != size:
            raise ValueError(f"act(obs {list(seen.shape)}): must be [{size}], or [n, …, {size}]")
        if not isinstance(generator, np.random.Generator | None):
            kind = type(generator).__name__
            raise ValueError(f"generator must be a numpy.random.Generator or None, not {kind}")
        distribution = self._source.distribution
        with torch.no_grad():
            output = self(seen)
            if not torch.isfinite(output).all():
                raise ValueError("the policy's output is not finite: it has diverged")
            if generator is None:
                action = distribution.mode(output)
            else:
                action = distribution.sample(output, self._noise(generator, output))
        numbers: np.ndarray = action.cpu().numpy()
        return numbers

    def adapt(  # type: ignore[override]  # the data come from acting
        self, env: Any, *, steps: int = 1, seed: int = 0
    ) -> "Policy":
        """A copy of this policy that has adapted in an environment; itself is unchanged.

        Every step acts for as many episodes, each of at most as many steps, as a task in training;
        a learner that compares returns lives as many with every candidate.

        Args:
            env: a Gymnasium environment whose observations, flattened, are those of the task
                source. It is given actions as in training: those for [-1, 1] are scaled and clipped
                to its bounds, discrete ones count from its start, of a Dict or Tuple each its part.
            steps: adaptation steps; 0: none.
            seed: of the environment's starts and of what the policy draws.

        Raises:
            ValueError: `steps` or `seed` is negative, the environment is none, its observations or
                actions are not those of the policy, or it gives what is not finite.
        """
        check_whole(steps, "steps", 0, STEPS)
        check_whole(seed, "seed", 0, SEEDS)
        _check_fits(env, self._source)
        if self._learner.zeroth_order:
            task = Goal(TaskKey(seed, "adapt", 0, 0), ())
            return self._climbed(self._returns_in(env, seed), task, steps)
        return self._taught(
            lambda policy, step: policy._live(env, np.random.default_rng([seed, step])), steps
        )

    def adapt_many(self, *data: Any, **options: Any) -> NoReturn:
        """Raises ValueError: a policy adapts by acting."""
        raise ValueError(
            "adapt_many: a policy adapts by acting in an environment, to one after the other: "
            "[policy.adapt(env) for env in envs]"
        )

    def predict_many(self, *data: Any, **options: Any) -> NoReturn:
        """Raises ValueError: a policy adapts by acting."""
        raise ValueError(
            "predict_many: a policy adapts by acting in an environment: policy.adapt(env).act(obs)"
        )

    def learn(self, task: Goal, *, steps: int = 1) -> "Policy":
        """A copy of this policy that has adapted to a task of its own task source.

        Raises:
            ValueError: `steps` is negative, or `task` is none.
        """
        check_whole(steps, "steps", 0, STEPS)
        if not isinstance(task, Goal):
            kind = type(task).__name__
            raise ValueError(f"task must be one that the task source has drawn, not {kind}")
        if self._learner.zeroth_order:
            return self._climbed(RolloutWorker(self._source, self).returns, task, steps)
        return self._taught(
            lambda policy, stage: self._source.roll(policy._outputs, [task], stage=stage), steps
        )

    def _taught(self, live: Callable[["Policy", int], Trajectories], steps: int) -> "Policy":
        """After `steps` inner steps on the episodes of a single task, each lived after the last.

        All steps are taken again with each new one, so that what the inner optimizer carries from
        step to step (momentum, Adam's moments) is carried here too.
        """
        adapted: Adaptable = self if steps else copy.deepcopy(self)
        like = real_of(next(self.parameters()))
        support: tuple[Batch, ...] = ()
        for step in range(steps):
            assert isinstance(adapted, Policy)
            rolled = live(adapted, step)
            batch, _ = self._source.policy_gradient.compute_advantages(
                rolled, self._source.distribution
            )
            own = map_tensors(
                lambda t: t[0].to(like.device, like.dtype if t.is_floating_point() else t.dtype),
                batch,
            )
            support = (*support, own)
            adapted = self._adapted(support)
        assert isinstance(adapted, Policy)
        return adapted

    def _outputs(self, seen: torch.Tensor) -> torch.Tensor:
        """At observations, as rollouts take and give them: float32 on a CPU."""
        like = real_of(next(self.parameters()))
        output: torch.Tensor = self(seen.to(like.device, like.dtype))
        return output.cpu().float()

    def _climbed(self, returns: Returns, task: Goal, steps: int) -> "Policy":
        """A copy that has adapted by the returns of candidates."""
        named = dict(self.named_parameters())
        start = {name: real_of(named[name].detach())[None, None] for name in self._meta}
        score = Scoring(returns, [task], into=layout(self._meta))
        key = keys_of([task.key]).to(next(self.parameters()).device)
        *_, phi = self._learner.zeroth_order_path(score, start, key, steps=steps)
        adapted = copy.deepcopy(self)
        found = {name: value[0, 0] for name, value in phi.items()}
        adapted.load_state_dict(own_form(found, adapted), strict=False)
        return adapted

    def _returns_in(self, env: Any, seed: int) -> Returns:
        """What gives the returns of candidates in an environment; all meet the same by chance."""
        trial = copy.deepcopy(self)

        def returns(weights: Weights, tasks: Sequence[Goal], *, stage: int) -> np.ndarray:
            found = []
            for row in range(len(tasks)):
                own = {name: torch.tensor(value[row]) for name, value in weights.items()}
                trial.load_state_dict(own_form(own, trial), strict=False)
                rolled = trial._live(env, np.random.default_rng([seed, stage]))
                found.append([rolled.rewards.double().sum(2).mean(), rolled.mask.double().sum()])
            return np.array(found).T

        return returns

    def _noise(self, generator: np.random.Generator, output: torch.Tensor) -> torch.Tensor:
        shape = (*output.shape[:-1], *self._source.action_shape)
        draw = generator.random if self._source.discrete else generator.standard_normal
        drawn = draw(shape)
        return torch.as_tensor(drawn, dtype=output.dtype, device=output.device)

    def _live(self, env: Any, generator: np.random.Generator) -> Trajectories:
        """The episodes of one task, as the task source gives them: [1, episode, time, …]."""
        source, shape = self._source, (1, self._source.episodes, self._source.horizon)
        observations = torch.zeros(*shape, source.obs_dim)
        rewards, mask = torch.zeros(shape), torch.zeros(shape)
        actions = torch.zeros((*shape, *source.action_shape))
        actions = actions.to(torch.int64 if source.discrete else torch.float32)
        outputs = torch.zeros(*shape, 0)
        scale = getattr(source, "image_scale", IMAGE_SCALE)
        for episode in range(source.episodes):
            obs = first_observation(env.reset(seed=int(generator.integers(2**31))))
            for time in range(source.horizon):
                here = (0, episode, time)
                with _at(here):
                    seen = flatten_observation(obs, env.observation_space, image_scale=scale)
                observations[here] = torch.from_numpy(_finite(seen, "observation", here))
                with torch.no_grad():
                    output = self._outputs(observations[here])
                    noise = self._noise(generator, output)
                    action = source.distribution.sample(output, noise)
                if not outputs.shape[-1]:
                    outputs = torch.zeros(*shape, output.shape[-1])
                outputs[here], actions[here], mask[here] = output, action, 1
                with _at(here):
                    obs, reward, ended, _ = step_results(
                        env.step(scale_action(action.numpy(), env.action_space))
                    )
                rewards[here] = _finite(reward, "reward", here)
                if ended:
                    break
        return Trajectories(observations, actions, rewards, mask, outputs)


def _check_fits(env: Any, source: Rollouts) -> None:
    """Raise ValueError where an environment shows or takes what is not the policy's."""
    needs = ("reset", "step", "action_space", "observation_space")
    if lacks := [name for name in needs if not hasattr(env, name)]:
        kind = type(env).__name__
        raise ValueError(f"env must be a Gymnasium environment; {kind} has no {', '.join(lacks)}")
    try:
        observed, acts = observation_size(env.observation_space), action_form(env.action_space)
    except ValueError as error:
        raise ValueError(f"the environment does not fit the policy: {error}") from None
    if acts != (source.action_dim, source.discrete, source.choices):
        own = "one of {} actions" if source.discrete else "{} numbers"
        many = f"choices of {list(source.choices)} ways"
        raise ValueError(
            f"the environment takes {env.action_space}; the policy acts by "
            f"{many if source.choices else own.format(source.action_dim)}"
        )
    if observed != source.obs_dim:
        raise ValueError(
            f"the environment gives {observed} numbers to observe; the policy takes "
            f"{source.obs_dim}"
        )


@contextmanager
def _at(here: tuple[int, int, int]) -> Iterator[None]:
    """Inside, what an environment gives and must not is said with the episode and the step."""
    try:
        yield
    except ValueError as error:
        _, episode, time = here
        raise ValueError(f"episode {episode}, step {time}: {error}") from error


def _finite(value: Any, what: str, here: tuple[int, int, int]) -> Any:
    if not np.isfinite(value).all():
        _, episode, time = here
        raise ValueError(f"episode {episode}, step {time}: the environment's {what} is not finite")
    return value
