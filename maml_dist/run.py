"""Run: the folder of one training run.

recipe.yaml        the whole configuration       evaluation.json   score after 0 … M steps
checkpoints/       weights and optimiser state   metrics.jsonl     a flat object a line
tensorboard/       the same numbers as events    figures/, report.html
"""

import json
import os
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from maml_dist.core.objective import running_statistics
from maml_dist.core.params import Layout, Params, flatten, layout, unflatten
from maml_dist.experiment import Experiment, build
from maml_dist.plain import check_path
from maml_dist.recipe import Config, read_yaml
from maml_dist.runtime import metrics
from maml_dist.runtime.checkpoint import Checkpoints, Entry
from maml_dist.runtime.server import Saved
from maml_dist.runtime.work import Work


@dataclass(frozen=True)
class Run:
    """A training run on disk."""

    path: Path
    config: Config

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """An existing run; nothing in it is executed.

        Raises:
            ValueError: the folder is not a run.
        """
        check_path(path, "the run's folder")
        path = Path(path).absolute()
        if not (path / "recipe.yaml").is_file():
            raise ValueError(f"{path} is not a run: it holds no recipe.yaml")
        config = read_yaml(path / "recipe.yaml")
        defaults = {item.name: item.default for item in fields(Experiment)}
        lacks = [name for name in defaults if name not in config and defaults[name] is MISSING]
        if lacks:
            raise ValueError(f"{path} is not a run: its recipe.yaml lacks {', '.join(lacks)}")
        return cls(path, {**defaults, **config})  # a run of before a key was there has its default

    def write_recipe(self, *, new: bool) -> None:
        """Write `recipe.yaml`: from then on the folder is a run.

        Raises:
            ValueError: the run is new, and the folder has become one in the meantime.
            OSError: the folder cannot be written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.write("recipe.yaml", yaml.safe_dump(self.config, sort_keys=False), new=new)

    @cached_property
    def experiment(self) -> Experiment:
        """The run's objects, the model with its initial weights."""
        return build(self.config)

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        where = self.config["checkpoints"] or self.path / "checkpoints"
        return Checkpoints(where, keep=self.config["keep"])

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`: flat dicts, each with its `iteration`."""
        return metrics.read(self.path / "metrics.jsonl")

    @property
    def finished(self) -> bool:
        """Whether the run has reached its last iteration."""
        last = self.checkpoints.last
        return last is not None and last.iteration >= self.config["iterations"]

    @cached_property
    def initial(self) -> Params:
        """The meta-parameters before the first iteration: seeded, or from the run named by `init`.

        Raises:
            ValueError: that run's parameters are not those of this model and learner.
        """
        init = self.experiment.init
        if init is None or self.checkpoints.last is not None:
            return self._seeded
        other = Run.open(init)
        loaded, _ = other.weights()
        theirs = dict(other.experiment.model.named_buffers())
        for name, buffer in self.experiment.model.named_buffers():
            if name in self.layout.names or name.endswith("num_batches_tracked"):
                continue  # running statistics travel with the weights
            if name not in theirs or not torch.equal(buffer, theirs[name]):
                raise ValueError(
                    f"init={init}: the buffer {name} differs (seed={other.experiment.seed} there)"
                )
        for name in {**self._seeded, **loaded}:
            sides = (loaded, self._seeded)
            there, here = (list(side[name].shape) if name in side else None for side in sides)
            if here != there:
                raise ValueError(f"init={init}: {name} is {there} there, {here} here")
        return {name: loaded[name].to(value.dtype) for name, value in self._seeded.items()}

    @cached_property
    def layout(self) -> Layout:
        """How the flat meta-parameters split into named tensors."""
        return layout(self._seeded)

    @cached_property
    def _seeded(self) -> Params:
        learner, kept = self.experiment.learner, running_statistics(self.experiment.model)
        if learner.keeps_steps and not kept:
            raise ValueError(
                "learner.step_statistics=true: no batch norm of the model keeps running statistics "
                "(model.running_statistics=true, where the model has it)"
            )
        rows = (learner.steps + 1,) if learner.keeps_steps else ()
        return {
            **self._learned,
            **{name: value.expand((*rows, *value.shape)).clone() for name, value in kept.items()},
        }

    @cached_property
    def _learned(self) -> Params:
        named = self.experiment.model.named_parameters()
        model = {name: p.detach() for name, p in named if p.requires_grad}  # frozen ones stay
        if not model:
            raise ValueError("the model has no parameter that requires a gradient")
        return self.experiment.learner.init(model)

    def weights(self, checkpoint: str | Path = "best") -> tuple[Params, Entry]:
        """The meta-parameters of a checkpoint ("best", "last" or a file), and which one it is.

        Where the outer rule averages, the averaged ones: those that were validated.

        Raises:
            ValueError: there is no such checkpoint, or it is damaged.
        """
        check_path(checkpoint, "the checkpoint")
        tensors, entry = self.checkpoints.load(str(checkpoint))
        named = {n.removeprefix("meta/"): t for n, t in tensors.items() if n.startswith("meta/")}
        if {n: tuple(t.shape) for n, t in named.items()} != dict(zip(*self.layout, strict=True)):
            raise ValueError(f"{entry.file} holds other parameters than this run's model")
        if "outer/average" in tensors:
            named = unflatten(tensors["outer/average"], self.layout)
        return named, entry

    def saved(self) -> Saved | None:
        """The parameter server's state at the last checkpoint; None before the first."""
        if self.checkpoints.last is None:
            return None
        tensors, entry = self.checkpoints.load("last")
        meta = {name: tensors[f"meta/{name}"] for name in self.layout.names}
        outer = {n.removeprefix("outer/"): t for n, t in tensors.items() if n.startswith("outer/")}
        return entry.iteration, flatten(meta).numpy(), {n: t.numpy() for n, t in outer.items()}

    def save(self, saved: Saved, score: float | None) -> None:
        """Write the parameter server's state as a checkpoint, judged by its validation score."""
        iteration, meta, outer = saved
        tensors: dict[str, Tensor] = {
            f"meta/{name}": value.clone()
            for name, value in unflatten(torch.tensor(meta), self.layout).items()
        }
        tensors |= {f"outer/{name}": torch.tensor(value) for name, value in outer.items()}
        self.checkpoints.save(
            tensors,
            iteration=iteration,
            recipe=json.dumps(self.config),
            score=score,
            maximize=self.experiment.task.maximize,
        )

    @property
    def work(self) -> Work:
        """What the shards of this run are given."""
        experiment = self.experiment
        return Work(
            source=experiment.task,
            model=experiment.model,
            learner=experiment.learner,
            engine=experiment.engine,
            layout=self.layout,
            seed=experiment.seed,
            meta_batch=experiment.meta_batch,
            learned=sum(value.numel() for value in self._learned.values()),
            skip=experiment.diverged == "skip",
            environments=experiment.environments,
        )

    def evaluate(self, **options: Any) -> dict[str, Any]:
        """The score after 0 … M adaptation steps; see `maml_dist.evaluate.evaluate`."""
        from maml_dist.evaluate import evaluate

        return evaluate(self, **options)

    def write(self, name: str, text: str, *, new: bool = False) -> None:
        """Make or replace a file of the run in one go: it is never seen half-written.

        Raises:
            ValueError: the file is to be new and is there already.
            OSError: it cannot be written.
        """
        part, path = self.path / f"{name}.{os.getpid()}.part", self.path / name
        part.write_text(text, encoding="utf-8")
        try:
            if new:
                os.link(part, path)  # unlike a rename, fails where another has been faster
            else:
                os.replace(part, path)
        except FileExistsError:
            raise ValueError(f"{self.path} already holds a run") from None
        except OSError:
            if not new or path.exists():
                raise
            os.replace(part, path)  # a file system without hard links
        finally:
            part.unlink(missing_ok=True)


def refuse_used(path: Path) -> None:
    """Fail early where a run could not be started.

    Raises:
        ValueError: the folder holds a run, or the path is not a folder.
        OSError: nothing can be written there.
    """
    if (path / "recipe.yaml").exists():
        raise ValueError(f"{path} already holds a run (--resume goes on with it)")
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir():
        raise ValueError(f"{path} cannot be a run folder: {there} is not a folder")
    if not os.access(there, os.W_OK):
        raise PermissionError(f"{path} cannot be a run folder: {there} is not writable")
