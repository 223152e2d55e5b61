"""Aliases: what recipes and runs of earlier versions call classes and keys that have moved since.

The only place that knows of them. A class or key that a later version moves or renames gets a line
here, and every recipe, run and checkpoint of before opens as if it had been written today.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from maml_dist.config.names import PUBLIC, ROOMS

# The class paths of 0.1.0, which wrote them in full -> the public names.
CLASSES = {
    "maml_dist.core.baseline.Linear": "LinearBaseline",
    "maml_dist.core.engine.Engine": "Engine",
    "maml_dist.core.inner.Adam": "InnerAdam",
    "maml_dist.core.inner.Descent": "InnerSGD",
    "maml_dist.core.inner.Momentum": "InnerMomentum",
    "maml_dist.core.outer.Adam": "OuterAdam",
    "maml_dist.core.outer.SGD": "OuterSGD",
    "maml_dist.core.policy_gradient.PolicyGradient": "PolicyGradient",
    "maml_dist.core.schedule.Constant": "ConstantSchedule",
    "maml_dist.core.schedule.Cosine": "CosineSchedule",
    "maml_dist.core.schedule.Linear": "LinearSchedule",
    "maml_dist.core.trust_region.TrustRegion": "TrustRegion",
    "maml_dist.learners.evolution.ESMAML": "ESMAML",
    "maml_dist.learners.imaml.IMAML": "IMAML",
    "maml_dist.learners.maml.MAML": "MAML",
    "maml_dist.learners.maml_plus_plus.MAMLPlusPlus": "MAMLPlusPlus",
    "maml_dist.learners.meta_sgd.MetaSGD": "MetaSGD",
    "maml_dist.learners.reptile.Reptile": "Reptile",
    "maml_dist.models.categorical_policy.CategoricalPolicy": "CategoricalPolicy",
    "maml_dist.models.conv4.Conv4": "Conv4",
    "maml_dist.models.gaussian_policy.GaussianPolicy": "GaussianPolicy",
    "maml_dist.models.mlp.MLP": "MLP",
    "maml_dist.tasks.ant.Ant": "Ant",
    "maml_dist.tasks.few_shot.Arrays": "Arrays",
    "maml_dist.tasks.few_shot.FewShot": "FewShot",
    "maml_dist.tasks.grid.Grid": "Grid",
    "maml_dist.tasks.gym.GymTasks": "GymTasks",
    "maml_dist.tasks.half_cheetah.HalfCheetah": "HalfCheetah",
    "maml_dist.tasks.image_folder.ImageFolder": "ImageFolder",
    "maml_dist.tasks.knapsack.Knapsack": "Knapsack",
    "maml_dist.tasks.mini_imagenet.MiniImagenet": "MiniImagenet",
    "maml_dist.tasks.navigation.Navigation": "Navigation",
    "maml_dist.tasks.omniglot.Omniglot": "Omniglot",
    "maml_dist.tasks.records.Records": "Records",
    "maml_dist.tasks.sinusoid.Sinusoid": "Sinusoid",
    "Descent": "InnerSGD",  # its short name
}

# Keys of 0.1.0 that have other names now, of a recipe itself ("") or of one of its classes.
KEYS = {
    "": {
        "ahead": "pipeline_depth",
        "diverged": "on_divergence",
        "environments": "max_parallel_envs",
        "keep": "keep_checkpoints",
    },
    "CategoricalPolicy": {"observations": "obs_dim", "actions": "action_dim"},
    "GaussianPolicy": {"observations": "obs_dim", "actions": "action_dim"},
    "PolicyGradient": {"decay": "gae_lambda"},
}

# Classes and keys of 0.1.0 that were removed -> what stood, and stands, beside them.
REMOVED = {
    "maml_dist.core.baseline.Network": "Linear",
    "maml_dist.core.baseline.Nothing": "Linear",
    "shaping": "num_perturbations",
}

# What the modules of 0.1.0 held that users' own code imported, beside CLASSES.
_HELD = {
    "maml_dist.adaptable": ("load",),
    "maml_dist.core.baseline": ("Baseline",),
    "maml_dist.core.episode": ("Batch", "Episode", "supervised"),
    "maml_dist.core.inner": ("InnerOptimizer",),
    "maml_dist.core.learner": ("Learner", "StepContext"),
    "maml_dist.core.outer": ("OuterOptimizer",),
    "maml_dist.core.schedule": ("Schedule",),
    "maml_dist.core.simulator": ("EnvironmentFault", "Simulator", "StepResult"),
    "maml_dist.core.source": ("Adapt", "TaskKey", "TaskSource"),
    "maml_dist.run": ("Run",),
    "maml_dist.session": ("meta_train",),
}

# Keys of 0.1.0 that are gone, of its classes, and the value by which it did what is done now.
GONE = {"ESMAML": {"shaping": "none"}}

_UNNAMED = {"policy_gradient": "PolicyGradient"}  # arguments of our classes, of one class
_MADE_OF = {name: path for name, path in PUBLIC.items() if path.startswith(ROOMS)}
_PATHS = {
    **{path: name for name, path in _MADE_OF.items()},
    **{f"maml_dist.{name}": name for name in _MADE_OF},
    **CLASSES,
}
_SHORT = {path.rpartition(".")[2] for path in _MADE_OF.values()}


def updated(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe of any version in the words of this one, the package's classes by short names.

    What a class of one's own is given stays as it is, but for the package's classes in it.
    """
    return {key: _updated(value) for key, value in _renamed(recipe, "").items()}


def short_name(path: str) -> str:
    """The short name of a class of the package, of this version or before; others as they are."""
    return PUBLIC[_PATHS[path]].rpartition(".")[2] if path in _PATHS else path


def key_now(key: str, known: Sequence[str]) -> str | None:
    """Which of the keys `known` a key of an earlier version is now; None where it is none."""
    return _beside(key, {old: now for keys in KEYS.values() for old, now in keys.items()}, known)


def removed(name: str, known: Sequence[str]) -> bool:
    """Whether a key or a class of an earlier version was removed from among those `known`."""
    beside = {old.rpartition(".")[2]: there for old, there in REMOVED.items()}
    return _beside(name, beside, known) is not None


def import_now(module: str | None) -> str | None:
    """How to import what a module of 0.1.0 held; None where it was none, or is where it was."""
    found = {name for path, name in CLASSES.items() if path.rpartition(".")[0] == module}
    found.update(_HELD.get(module or "", ()))
    return f"from maml_dist import {', '.join(sorted(found))}" if found else None


def _beside(key: str, table: Mapping[str, str], known: Sequence[str]) -> str | None:
    """Which of `known` is what the table gives for the last part of a key, under the same owner."""
    owner, dot, last = key.rpartition(".")
    ending = f".{owner}{dot}{table.get(last)}"
    return next((each for each in known if last in table and f".{each}".endswith(ending)), None)


def _updated(value: Any, unnamed: str | None = None) -> Any:
    """A value; `unnamed` is the class of ours that its keys are arguments of, if it names none."""
    if isinstance(value, list | tuple):
        return type(value)(map(_updated, value))
    if not isinstance(value, dict):
        return value
    if not _names_class(value):
        return _arguments(value, unnamed)
    kind = short_name(value["class_path"])
    own = {"class_path": kind, "init_args": _arguments(value.get("init_args"), kind)}
    return {name: own.get(name, given) for name, given in value.items()}


def _names_class(value: dict[Any, Any]) -> bool:
    known = value.keys() <= {"class_path", "init_args", "dict_kwargs"}
    return known and isinstance(value.get("class_path"), str)


def _arguments(arguments: Any, kind: str | None) -> Any:
    """What a class is given, by short name; of a class that is none of ours the values alone."""
    if not isinstance(arguments, dict):
        return arguments
    if kind not in _SHORT:
        return {key: _updated(value) for key, value in arguments.items()}
    renamed = _renamed(arguments, kind)
    return {key: _updated(value, _UNNAMED.get(key)) for key, value in renamed.items()}


def _renamed(arguments: dict[str, Any], kind: str) -> dict[str, Any]:
    """The arguments of a class under their names of now; one that stands there too is kept."""
    gone = GONE.get(kind, {}).items()
    names = {old: new for old, new in KEYS.get(kind, {}).items() if new not in arguments}
    return {names.get(key, key): own for key, own in arguments.items() if (key, own) not in gone}
