"""Experiment: the objects of a recipe, and its other keys."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from maml_dist.config import plain_yaml
from maml_dist.core.adaptation.learner import Learner
from maml_dist.core.data.task_source import TaskSource
from maml_dist.core.engine.engine import Engine
from maml_dist.core.outer.optimizers import OuterOptimizer
from maml_dist.core.validation import STEPS, check_minimum, check_range
from maml_dist.runtime.backend import ACTORS, ResourceRequest, ServerMode, ShardRange, Spread

_NAME = re.compile(r"([^/\\.\n][^/\\\n]{0,99})?")
TASKS = 1_000_000  # that an iteration, a validation or an evaluation may take


@dataclass(frozen=True)
class Experiment:
    """Everything that decides a run. Its fields are the keys of a recipe."""

    task: TaskSource  # the distribution over tasks
    model: nn.Module  # what is meta-learned
    learner: Learner  # how it adapts; holds alpha
    outer: OuterOptimizer  # how the meta-parameters are updated; holds beta
    name: str = ""  # the recipe's
    description: str = ""  # one line, for --list
    paper: dict[int, float] = field(
        default_factory=dict
    )  # adaptation steps -> score to compare with
    iterations: int = 60000  # meta-iterations (0 writes the untrained weights)
    meta_batch: int = 32  # tasks a meta-iteration
    seed: int = 0  # of the initial weights and of every task
    init: str | None = None  # a run whose weights to start from
    shards: int | dict[str, int] | None = None  # task shards, or {min, max}; null: a GPU, core each
    slices: int | None = None  # of a meta-batch, on which bits depend; null: as many as shards
    cpus_per_shard: float = 1  # cores that a shard reserves; its threads
    gpus_per_shard: float | None = None  # GPUs that a shard reserves; null: 1 where there are GPUs
    rollout_workers: int = 0  # that act in environments for a shard; 0: the shard itself does
    cpus_per_worker: float = 1  # cores that a rollout worker reserves
    server: ServerMode | None = None  # who updates: one, some actors, or the shards; null: shards
    servers: int | None = None  # parts of server=split; null: one a machine, two at least
    sparse: tuple[str, ...] | str = ()  # patterns of embeddings whose rows are learned apart
    max_staleness: int = 0  # updates that weights may be old at which a gradient is taken; 0: none
    backup: int = 0  # slices that an update does not wait for
    placement: Spread = "spread"  # of shards on machines: over many, or on few
    heartbeat_timeout: float = 30  # seconds of silence after which an actor is lost
    max_failures: int = 10  # that a run survives in a row, with no iteration between
    max_parallel_envs: int | None = None  # that a worker simulates at once; null: of all its tasks
    engine: Engine = field(default_factory=Engine)  # how tasks are differentiated
    on_divergence: Literal["stop", "skip"] = "stop"  # a task whose loss or gradient is not finite
    test_steps: int = 10  # inner steps at validation and test
    validation_tasks: int = 200  # held-out tasks a validation
    test_tasks: int = 600  # held-out tasks of the final evaluation
    checkpoint_every: int = 1000  # meta-iterations between validations, each with a checkpoint
    loggers: tuple[str, ...] = ("jsonl", "tensorboard")  # and wandb, mlflow, prometheus, a class
    keep_checkpoints: int = 3  # last checkpoints kept, beside the best
    checkpoints: str | None = None  # folder or pyarrow.fs URI for them; null: in the run folder
    log_every: int = 100  # meta-iterations averaged into one line of metrics
    pipeline_depth: int = 8  # meta-iterations submitted before their metrics are read
    code: tuple[str, ...] = ()  # folders of the user's own modules, beside the recipe's own

    def __post_init__(self) -> None:
        check_minimum(
            self, "", iterations=0, seed=0, checkpoint_every=1, keep_checkpoints=1, log_every=1
        )
        check_minimum(self, "", max_parallel_envs=1)
        check_range(self, "", meta_batch=(1, TASKS), validation_tasks=(1, TASKS))
        check_range(
            self, "", test_tasks=(2, TASKS), test_steps=(0, STEPS), pipeline_depth=(1, 10_000)
        )
        check_range(self, "", rollout_workers=(0, ACTORS), max_failures=(0, 1000))
        check_range(self, "", servers=(1, ACTORS), max_staleness=(0, 1000), backup=(0, ACTORS))
        self._check_relaxed()
        if self.server == "split" and (self.multi_round or not self.outer.divisible):
            why = "asks the tasks back" if self.multi_round else "is not said to be by elements"
            raise ValueError(
                f"server=split: the update of {type(self.outer).__name__} {why}, so that no part "
                "of it can be made apart; use spread or one"
            )
        if self.servers is not None and self.server != "split":
            raise ValueError(f"servers={self.servers}: are parts of server=split")
        check_range(self, "", heartbeat_timeout=(5, 86400))
        if not isinstance(self.shards, dict):
            check_range(self, "", shards=(1, ACTORS))
        check_range(self, "", cpus_per_shard=(0, ACTORS), cpus_per_worker=(0, ACTORS))
        check_range(self, "", gpus_per_shard=(0, ACTORS))
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name={plain_yaml.short(repr(self.name))}: must be a word for a folder, without "
                "/ and not over 100 characters"
            )
        for steps, score in self.paper.items():
            if steps < 0 or not math.isfinite(score):
                raise ValueError(f"paper={self.paper}: must be steps -> score, finite numbers")
        wanted = self.wanted_shards
        most = wanted.max if isinstance(wanted, ShardRange) else wanted
        check_range(self, "", slices=(1, ACTORS))
        for key, value in (("shards", most), ("slices", self.slices)):
            if value is not None and value > self.meta_batch:
                raise ValueError(
                    f"{key}={value}: more than the {self.meta_batch} tasks of a meta-batch"
                )
        if isinstance(self.shards, int) and self.slices and self.shards > self.slices:
            raise ValueError(
                f"shards={self.shards}: more than slices={self.slices}: some would have none to "
                "compute"
            )

    def _check_relaxed(self) -> None:
        """Raise ValueError where updates are not to wait, and cannot but."""
        if not self.relaxed:
            return
        key = "max_staleness" if self.max_staleness else "backup"
        found = f"{key}={getattr(self, key)}"
        if self.multi_round:
            raise ValueError(f"{found}: this update asks all tasks back, and so waits for them")
        if self.server not in (None, "one"):
            raise ValueError(f"{found}: one server makes such updates, not server={self.server}")
        if self.backup and self.slices and self.backup >= self.slices:
            raise ValueError(f"backup={self.backup}: must be fewer than the {self.slices} slices")

    @property
    def relaxed(self) -> bool:
        """Whether an update need not wait for everybody."""
        return bool(self.max_staleness or self.backup)

    @property
    def wanted_shards(self) -> int | ShardRange | None:
        """How many shards: so many, a range of them, or None: as many as there is room for."""
        if not isinstance(self.shards, dict):
            return self.shards
        if unknown := sorted(self.shards.keys() - {"min", "max"}):
            raise ValueError(f"shards.{unknown[0]}: unknown key; a range has min and max")
        if "max" not in self.shards:
            raise ValueError(f"shards={self.shards}: lacks max, the most shards")
        return ShardRange(**self.shards)

    @property
    def published(self) -> dict[int, float]:
        """The paper's scores to compare with; the untrained weights have none."""
        return self.paper if self.iterations or self.init else {}

    @property
    def multi_round(self) -> bool:
        """Whether an update asks the tasks back: for its step, or how far it led the policies."""
        led = self.task.on_policy and not self.learner.zeroth_order
        return self.outer.multi_round or led

    @property
    def resource_request(self) -> ResourceRequest:
        """What each shard is to have."""
        return ResourceRequest(
            self.cpus_per_shard,
            self.gpus_per_shard,
            self.rollout_workers,
            self.cpus_per_worker,
            self.placement,
            self.heartbeat_timeout,
            self.max_failures,
            self.server or ("one" if self.relaxed else "spread"),
            self.servers,
        )
