"""Run: the folder of one training run.

recipe.yaml        the whole configuration       evaluation.json   score after 0 … M steps
checkpoints/       weights and optimiser state   metrics.jsonl     a flat object a line
tensorboard/       the same numbers as events    figures/, report.html
sessions.jsonl     when and by what it was trained
driver.lock        while it is trained: by whom
spaces.json        of policies: what they see and do, for when the environment is not there
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from torch import Tensor

from maml_dist.config.compose import build
from maml_dist.config.experiment import Experiment
from maml_dist.config.given import again
from maml_dist.config.meta_parameters import MetaParameters, meta_parameters
from maml_dist.config.plain_yaml import check_path
from maml_dist.config.recipe import Config, read_yaml
from maml_dist.config.serving import build_served
from maml_dist.config.trust import Trust, allow
from maml_dist.core.model.frozen_state import FrozenState, saveable, unsaveable
from maml_dist.core.params import Layout, Params, unflatten
from maml_dist.core.tables import without
from maml_dist.loggers.lines import say
from maml_dist.runs import metrics
from maml_dist.runs.checkpoint_header import kinds_of
from maml_dist.runs.checkpoint_index import Entry
from maml_dist.runs.checkpoints import Checkpoints
from maml_dist.runs.folder import Folder, replace
from maml_dist.runs.identity import complete, refuse_anothers, refuse_other
from maml_dist.runs.lock import Held, locked
from maml_dist.runs.notebook import in_html
from maml_dist.runs.restored import restored, started
from maml_dist.runs.rows import Rows
from maml_dist.runs.server_state import (
    current_tables,
    kinds_of_tables,
    to_saved,
    to_tensors,
)
from maml_dist.runs.spaces import noted
from maml_dist.runtime.messages import ShardSpec
from maml_dist.runtime.prometheus import labels
from maml_dist.runtime.server import ParameterServer, Saved


class Locks(NamedTuple):
    """What a driver holds of a run."""

    folder: Held
    checkpoints: Held


@dataclass(frozen=True, repr=False)
class Run:
    """A training run on disk."""

    path: Path
    config: Config
    serving: bool = False  # its model is to be served: the task source may not be there

    def __repr__(self) -> str:
        return f"<Run {self.path}: {self._reached}>"

    def _repr_html_(self) -> str:
        """What a notebook shows of it: how far it has got, and its last validation."""
        return in_html(self._reached, self.path, self.metrics)

    @property
    def _reached(self) -> str:
        try:
            last = self.checkpoints.last
        except (ValueError, OSError):
            return f"{self.config['name']}, its checkpoints cannot be read"
        done = last.iteration if last else 0
        return f"{self.config['name']}, {done:,} of {self.config['iterations']:,} iterations"

    @classmethod
    def open(cls, path: str | Path, *, trust: Trust = (), **objects: Any) -> "Run":
        """An existing run; nothing in it is executed.

        Args:
            path: the run's folder.
            trust: folders whose modules its objects may be of, or files in them. What the run
                itself names is not loaded unless it is trusted.
            objects: `task`, `model`, `learner`, `outer` that the run was given from Python, again.

        Raises:
            ValueError: the folder is not a run, its recipe.yaml not one of a run, or the objects
                are not those that it lacks.
        """
        check_path(path, "the run's folder")
        allow(trust)
        path = Path(path).absolute()
        recipe = path / "recipe.yaml"
        if not recipe.is_file():
            raise ValueError(f"{path} is not a run: it holds no recipe.yaml")
        return cls(path, again(complete(read_yaml(recipe), str(recipe)), objects))

    def write_recipe(self, *, new: bool) -> None:
        """Write `recipe.yaml`: from then on the folder is a run.

        Raises:
            ValueError: the run is new, and the folder has become one in the meantime.
            OSError: the folder cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.write("recipe.yaml", yaml.safe_dump(self.config, sort_keys=False), new=new)

    @contextmanager
    def locked(self) -> Iterator[Locks]:
        """Inside, no other driver trains this run, or writes to where its checkpoints are.

        Raises:
            ValueError: another does, or the checkpoints' place is another run's.
            OSError: the folder cannot be written.
        """
        if place := self.checkpoints.folder.local:
            inside = self.config["checkpoints"] is None  # a copy of a run has its own
            owner = None if inside else self.checkpoints.owner
            refuse_anothers(self.path, place, owner=owner)
        with ExitStack() as held:
            places = [
                self.path,
                *([self.config["checkpoints"]] if self.config["checkpoints"] else []),
            ]
            locks = [held.enter_context(locked(Folder(place))) for place in places]
            for lock in locks:
                if lock.word:
                    say(lock.word, level="warning")
            yield Locks(locks[0], locks[-1])

    @property
    def experiment(self) -> Experiment:
        """The run's objects: the model with its initial weights, and with what is fixed of it."""
        return self._built[0]

    @property
    def fixed(self) -> dict[str, Tensor]:
        """What the model has beside its meta-parameters, as checkpoints hold it."""
        return saveable(self._built[1])

    @cached_property
    def _built(self) -> tuple[Experiment, FrozenState]:
        """The experiment, and what is fixed of its model: as it was in training, or for `init`."""
        init = self.config["init"]
        if self.checkpoints.last is not None:
            make = partial(build_served, spaces=noted(self.path)) if self.serving else build
            return restored(self.config, self.checkpoints, make=make)
        return started(self.config, Run.open(init)._built[1] if init else None)

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        elsewhere = self.config["checkpoints"]
        return Checkpoints(
            self.path / "checkpoints" if elsewhere is None else elsewhere,
            keep=self.config["keep_checkpoints"],
            run=str(self.path),
            belongs=lambda metadata: refuse_other(self.config, metadata),
            scores=lambda: metrics.scores(self.metrics),
        )

    @property
    def metrics(self) -> Rows:
        """The rows of `metrics.jsonl`: flat dicts, each with its `iteration`."""
        return Rows(metrics.read(self.path / "metrics.jsonl"))

    @property
    def begun(self) -> bool:
        """Whether it was trained before: it has a folder, or checkpoints."""
        return (self.path / "recipe.yaml").exists() or self.checkpoints.last is not None

    @property
    def finished(self) -> bool:
        """Whether the run has reached its last iteration, and has been validated there."""
        last = self.checkpoints.last
        return last is not None and last.validated and last.iteration >= self.config["iterations"]

    def refuse_lost(self) -> None:
        """Raise ValueError where there were checkpoints, and none is there any more."""
        if self.checkpoints.last is None and metrics.scores(self.metrics):
            raise ValueError(
                f"no checkpoint is left in {self.checkpoints.folder.path}, though the run was "
                "validated: put them back, or start again in a new run folder"
            )

    @cached_property
    def seeded(self) -> MetaParameters:
        """The meta-parameters of this recipe's seed."""
        return meta_parameters(self.experiment)

    @cached_property
    def initial(self) -> Params:
        """The meta-parameters before the first iteration: seeded, or from the run named by `init`.

        Raises:
            ValueError: that run's parameters are not those of this model and learner.
        """
        init = self.experiment.init
        if init is None or self.checkpoints.last is not None:
            return self.seeded.values
        return self.seeded.taken_from(Run.open(init).weights()[0], name=f"init={init}")

    @property
    def initial_vector(self) -> np.ndarray:
        """The initial meta-parameters [size] that stand in the vector."""
        return self.seeded.vector(self.initial)

    @property
    def initial_tables(self) -> dict[str, np.ndarray]:
        """The initial values of sparse parameters, each [rows, dim]."""
        return {table.name: self.initial[table.name].numpy() for table in self.seeded.tables}

    @property
    def layout(self) -> Layout:
        """How the flat meta-parameters split into named tensors, but for sparse ones."""
        return self.seeded.layout

    def weights(self, checkpoint: str | Path = "best") -> tuple[Params, Entry]:
        """The meta-parameters of a checkpoint ("best", "last" or a file), and which one it is.

        Where the outer optimizer averages, the averaged ones: those that were validated.

        Raises:
            ValueError: there is no such checkpoint, it is damaged, or of another run.
        """
        check_path(checkpoint, "the checkpoint")
        tensors, entry = self._load(str(checkpoint))
        named = {n.removeprefix("meta/"): t for n, t in tensors.items() if n.startswith("meta/")}
        if "outer/average" in tensors:
            named = unflatten(tensors["outer/average"], self.layout)
        if tables := self.seeded.tables:
            saved = to_saved(tensors, entry.iteration, self.layout)
            named |= current_tables(saved, tables, self.experiment.outer)
        return named, entry

    def saved(self) -> Saved | None:
        """The parameter server's state at the last checkpoint; None before the first.

        Raises:
            ValueError: it is damaged, or of another run.
        """
        if self.checkpoints.last is None:
            return None
        tensors, entry = self._load("last")
        return to_saved(tensors, entry.iteration, self.layout)

    def _load(self, checkpoint: str) -> tuple[dict[str, Tensor], Entry]:
        """The tensors of a checkpoint: all that this run's state has, all of them numbers."""
        outer, seeded = self.experiment.outer, self.seeded
        server = ParameterServer(seeded.vector(seeded.values), outer, learned=seeded.learned)
        kinds = kinds_of(to_tensors(server.state(), self.layout))
        kinds |= kinds_of_tables(seeded.tables, outer, seeded.values)
        tensors, entry = self.checkpoints.load(
            checkpoint, expect=lambda header: header.expect(kinds, f"the run {self.path}")
        )
        if wrong := [name for name, value in tensors.items() if not value.isfinite().all()]:
            raise ValueError(f"checkpoint {entry.file}: {wrong[0]} is not finite")
        return tensors, entry

    def save(self, saved: Saved, place: Checkpoints | None = None) -> None:
        """Write the parameter server's state as a checkpoint, to the run's place or to another.

        What is fixed of the model is written with the first.

        Raises:
            OSError: it cannot be written; what was there before is whole.
        """
        held, place = self._built[1], place or self.checkpoints
        if not place.fixed and (fixed := saveable(held)):
            place.save_fixed(fixed)
        if not place.entries and (names := unsaveable(held)):
            say(
                f"no checkpoint holds {', '.join(names)} of the model (sparse, or borrowed "
                "memory): its constructor must make them the same again",
                level="warning",
            )
        place.save(
            to_tensors(saved, self.layout),
            iteration=saved[0],
            recipe=json.dumps(self.config),
            maximize=self.experiment.task.maximize,
        )

    @property
    def shard_spec(self) -> ShardSpec:
        """What the shards of this run are given."""
        experiment, watched = self.experiment, "prometheus" in self.config["loggers"]
        return ShardSpec(
            source=experiment.task,
            model=without(self.seeded.tables, experiment.model),
            learner=experiment.learner,
            engine=experiment.engine,
            layout=self.layout,
            seed=experiment.seed,
            meta_batch=experiment.meta_batch,
            learned=self.seeded.learned,
            skip=experiment.on_divergence == "skip",
            max_parallel_envs=experiment.max_parallel_envs,
            slices=experiment.slices or 1,
            tables=self.seeded.tables,
            labels=labels(self.path, self.config["name"]) if watched else {},
        )

    def write(self, name: str, text: str, *, new: bool = False) -> None:
        """Make or replace a file of the run in one go: it is never seen half-written.

        Raises:
            ValueError: the file is to be new and is there already.
            OSError: it cannot be written.
        """
        try:
            replace(self.path / name, text.encode(), new=new)
        except FileExistsError:
            raise ValueError(f"{self.path} already holds a run") from None
