"""Settings that do not go together, or do nothing: said before a task is drawn."""

from maml_dist.config.experiment import Experiment
from maml_dist.core.outer.trust_region import TrustRegion
from maml_dist.core.rl.policy_gradient import PolicyGradient
from maml_dist.tasks.rollout import Rollouts


def refuse_conflicts(experiment: Experiment) -> None:
    """Raise ValueError where what one part needs another has not."""
    source = experiment.task
    if experiment.outer.on_policy and not source.on_policy:
        raise ValueError(
            f"outer={type(experiment.outer).__name__}: needs the policies of rollouts, and "
            f"task={type(source).__name__} has none; use outer=Adam"
        )
    if source.on_policy and experiment.learner.zeroth_order:
        _refuse_derivatives(experiment)
    if source.on_policy and experiment.engine.precision == "bfloat16":
        raise ValueError(
            "engine.precision=bfloat16: rollouts act in float32, so that the policies scored would "
            "not be those that acted; use float32, or float64"
        )


def refuse_unused_settings(experiment: Experiment) -> None:
    """Raise ValueError where a setting does nothing here; of new runs, since old ones may go on."""
    source, outer = experiment.task, experiment.outer
    for name in ("rollout_workers", "max_parallel_envs"):
        value = getattr(experiment, name)
        if not source.on_policy and value != getattr(Experiment, name):
            raise ValueError(
                f"{name}={value}: task={type(source).__name__} has no rollouts; leave {name} out"
            )
    if isinstance(source, Rollouts):
        gradient = source.policy_gradient
        if gradient.clip != PolicyGradient.clip and gradient.outer_surrogate != "clipped":
            raise ValueError(
                f"task.policy_gradient.clip={gradient.clip}: does nothing with "
                f"outer_surrogate={gradient.outer_surrogate}; use clipped, or {PolicyGradient.clip}"
            )
    once = not outer.multi_round or isinstance(outer, TrustRegion)  # a single gradient an iteration
    if source.on_policy and source.penalty and once and not experiment.learner.zeroth_order:
        raise ValueError(
            f"task.policy_gradient.penalty={source.penalty}: does nothing in a first epoch, where "
            "the policy is the one that acted; use outer.epochs=2 or more, or 0"
        )


def _refuse_derivatives(experiment: Experiment) -> None:
    """Of policies that a learner knows by their returns alone."""
    outer, kind = experiment.outer, type(experiment.learner).__name__
    if outer.on_policy:
        raise ValueError(
            f"outer={type(outer).__name__}: needs derivatives of the policies, and learner={kind} "
            "takes none; use outer=Adam"
        )
    if outer.epochs > 1:
        raise ValueError(
            f"outer.epochs={outer.epochs}: must be 1 with learner={kind}, which has no episodes to "
            "use again"
        )
    if experiment.task.penalty:
        raise ValueError(
            f"task.policy_gradient.penalty={experiment.task.penalty}: must be 0 with "
            f"learner={kind}, which takes no derivatives of the policies"
        )
