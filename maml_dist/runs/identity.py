"""Identity: that a recipe.yaml is one of a run, and a checkpoint one of that run's."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

from maml_dist.config.aliases import updated
from maml_dist.config.experiment import Experiment
from maml_dist.config.recipe import Config
from maml_dist.core.schema import checked
from maml_dist.runs.checkpoint_header import Metadata

OBJECTS = ("task", "model", "learner", "outer", "engine")  # keys that hold objects
TEXTS = dict[int | str, float]  # YAML and JSON hold the steps of `paper` as texts
SAME = ("seed", "model", "learner", "outer", "task")  # what decides the weights of a run


def complete(config: Config, where: str) -> Config:
    """The recipe of a run in the words of this version; a key that it was made without, by default.

    Raises:
        ValueError: a key is missing, or its value is of another type.
    """
    config = updated(config)
    defaults = {item.name: item.default for item in fields(Experiment)}
    lacks = [name for name in defaults if name not in config and defaults[name] is MISSING]
    if lacks:
        raise ValueError(f"{where} is not one of a run: it lacks {', '.join(lacks)}")
    for name, form in get_type_hints(Experiment).items():
        if name in config:
            form = dict[str, Any] | str if name in OBJECTS else TEXTS if name == "paper" else form
            checked(config[name], form, f"{where}: {name}")
    if "slices" not in config and isinstance(config.get("shards"), int):
        config["slices"] = config["shards"]  # as up to 0.2.0 each shard had its share
    return {**defaults, **config}


def refuse_anothers(run: Path, checkpoints: Path, *, owner: str | None) -> None:
    """Raise ValueError where the place of checkpoints is, links followed, that of another run.

    A stranger's recipe or a link of theirs may name it, and training removes checkpoints there.
    `owner` is the folder of the run that wrote to a place outside of its folder.
    """
    place = checkpoints.resolve()
    whose = [place.parent] if place.name == "checkpoints" else []
    whose += [Path(owner)] if owner else []
    for other in whose:
        if other.resolve() != run.resolve() and (other / "recipe.yaml").exists():
            raise ValueError(
                f"{checkpoints} is the place of another run, {other}: give the run one of its own, "
                "or go on with that one"
            )


def refuse_other(config: Config, metadata: Metadata) -> None:
    """Raise ValueError where a checkpoint is not of the run of this recipe.

    Paths and names may have changed, and a key that only one of them has is of another version.
    """
    there, here = updated(metadata.recipe), updated(config)
    for key in SAME:
        theirs, ours = (dict(_leaves(each.get(key), key)) for each in (there, here))
        for name in sorted(theirs.keys() & ours.keys()):
            one, other = theirs[name], ours[name]
            text = isinstance(one, str) and isinstance(other, str)
            if one != other and not (text and not name.endswith(".class_path")):
                raise ValueError(f"it is of another run: {name} is {one!r} there, {other!r} here")


def _leaves(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, name if key == "init_args" else f"{name}.{key}")
    else:
        yield name, list(node) if isinstance(node, tuple) else node
