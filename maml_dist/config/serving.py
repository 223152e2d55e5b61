"""Serving: a run's objects where its task source is not there, or cannot be made here.

The package's own supervised sources are made without their data, which their losses do without;
rollouts of the spaces that the run has noted; another source is one of which nothing is known. What
is there and not trusted is refused as ever.
"""

from dataclasses import fields
from typing import Any

from maml_dist.config.compose import arguments_of, build, build_with
from maml_dist.config.errors import class_named
from maml_dist.config.experiment import Experiment
from maml_dist.config.names import PUBLIC
from maml_dist.config.recipe import Config
from maml_dist.config.trust import NotTrusted
from maml_dist.core.data.task_source import TaskSource
from maml_dist.tasks.absent import AbsentRollouts, AbsentTask, Spaces
from maml_dist.tasks.rollout import Rollouts


def build_served(config: Config, spaces: Spaces | None) -> Experiment:
    """The objects of a run whose model is to be served.

    Args:
        config: the run's configuration.
        spaces: what the run has noted of its rollouts.

    Raises:
        ValueError: one of the other objects cannot be made, or something is not trusted.
    """
    try:
        return build(config)
    except (ValueError, OSError) as error:
        if _is_refused(error):
            raise
        reason = str(error)
    return build_with(config, lambda: _stand_in(config, spaces, reason))


def _stand_in(config: Config, spaces: Spaces | None, reason: str) -> TaskSource:
    """A source in the place of the one that cannot be made."""
    named, given = config["task"]["class_path"], config["task"].get("init_args", {})
    code = config["code"]
    if spaces is not None:
        own = {field.name for field in fields(Rollouts)}
        known = {name: value for name, value in given.items() if name in own}
        made = arguments_of(AbsentRollouts, known, code, without=("reason", *spaces))
        return AbsentRollouts(**made, **spaces, reason=reason)
    kind = _ours(named)
    if kind is not None and kind.data_fields:
        lost: dict[str, Any] = dict.fromkeys(kind.data_fields)
        return kind(**arguments_of(kind, given, code, without=kind.data_fields), **lost)
    if kind is not None:
        raise ValueError(reason)
    return AbsentTask(reason)


def _ours(named: str) -> type[TaskSource] | None:
    """The package's own source of this short name."""
    path = PUBLIC.get(named, "")
    found = class_named(path) if path else None
    return found if isinstance(found, type) and issubclass(found, TaskSource) else None


def _is_refused(error: BaseException | None) -> bool:
    """Whether what was there was not trusted, perhaps told by another error."""
    while error is not None:
        if isinstance(error, NotTrusted):
            return True
        error = error.__cause__
    return False
