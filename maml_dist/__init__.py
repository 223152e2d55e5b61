"""maml_dist: model-agnostic meta-learning, distributed over Ray.

run = maml_dist.meta_train("sinusoid", iterations=1000, local=True)
model = maml_dist.load(run.path)
adapted = model.adapt(x, y, steps=5)

Beside these stand here, by name, what one builds with and derives from. A file that uses PyTorch
has an `Adam` and a `Linear` already, so names that mean something else there say what they are of:
`OuterAdam`, `InnerAdam`, `LinearSchedule`, `LinearBaseline`. In a recipe the key says it, and they
are `Adam` and `Linear`.
"""

import sys

# `python -m maml_dist.…` puts the working directory first on the path, whose files, come with a
# stranger's run perhaps, would pass for Python's own. While -m looks for a module, argv is -m.
if (
    sys.argv[:1] == ["-m"]
    and any(word.startswith(("maml_dist.", "-mmaml_dist.")) for word in sys.orig_argv)
    and not sys.flags.safe_path
):
    del sys.path[0]

from importlib import import_module  # noqa: E402  # not before
from typing import TYPE_CHECKING, Any  # noqa: E402  # not before

from maml_dist.config.names import PUBLIC  # noqa: E402  # not before

if TYPE_CHECKING:  # PUBLIC, as editors and mypy read it
    from maml_dist.core.adaptation.inner_optimizers import SGD as InnerSGD
    from maml_dist.core.adaptation.inner_optimizers import Adam as InnerAdam
    from maml_dist.core.adaptation.inner_optimizers import InnerOptimizer
    from maml_dist.core.adaptation.inner_optimizers import Momentum as InnerMomentum
    from maml_dist.core.adaptation.learner import Learner, StepContext
    from maml_dist.core.data.episode import Batch, Episode, supervised
    from maml_dist.core.data.simulator import EnvironmentFault, Simulator, StepResult
    from maml_dist.core.data.task_source import Adapt, TaskKey, TaskSource
    from maml_dist.core.engine.engine import Engine
    from maml_dist.core.engine.meta_module import MetaModule
    from maml_dist.core.outer.adagrad import Adagrad
    from maml_dist.core.outer.optimizers import SGD as OuterSGD
    from maml_dist.core.outer.optimizers import Adam as OuterAdam
    from maml_dist.core.outer.optimizers import OuterOptimizer
    from maml_dist.core.outer.schedules import Constant as ConstantSchedule
    from maml_dist.core.outer.schedules import Cosine as CosineSchedule
    from maml_dist.core.outer.schedules import Linear as LinearSchedule
    from maml_dist.core.outer.schedules import Schedule
    from maml_dist.core.outer.trust_region import TrustRegion
    from maml_dist.core.params import Params
    from maml_dist.core.rl.baseline import Baseline
    from maml_dist.core.rl.baseline import Linear as LinearBaseline
    from maml_dist.core.rl.policy_gradient import PolicyGradient
    from maml_dist.inference.load import load
    from maml_dist.inference.meta_test import meta_test
    from maml_dist.learners.evolution import ESMAML
    from maml_dist.learners.imaml import IMAML
    from maml_dist.learners.maml import MAML
    from maml_dist.learners.maml_plus_plus import MAMLPlusPlus
    from maml_dist.learners.meta_sgd import MetaSGD
    from maml_dist.learners.reptile import Reptile
    from maml_dist.models.categorical_policy import CategoricalPolicy
    from maml_dist.models.conv4 import Conv4
    from maml_dist.models.embedding_mlp import EmbeddingMLP
    from maml_dist.models.gaussian_policy import GaussianPolicy
    from maml_dist.models.mlp import MLP
    from maml_dist.runs.run import Run
    from maml_dist.tasks.few_shot import Arrays, ClassData, FewShot
    from maml_dist.tasks.grid import Grid
    from maml_dist.tasks.gym import GymTasks
    from maml_dist.tasks.images.image_folder import ImageFolder
    from maml_dist.tasks.images.mini_imagenet import MiniImagenet
    from maml_dist.tasks.images.omniglot import Omniglot
    from maml_dist.tasks.knapsack import Knapsack
    from maml_dist.tasks.mujoco.ant import Ant
    from maml_dist.tasks.mujoco.half_cheetah import HalfCheetah
    from maml_dist.tasks.navigation import Navigation
    from maml_dist.tasks.ratings import Ratings
    from maml_dist.tasks.records import Records
    from maml_dist.tasks.rollout import Goal, Rollouts
    from maml_dist.tasks.sinusoid import Sinusoid
    from maml_dist.training.trainer import meta_train

__all__ = [
    "Adagrad",
    "Adapt",
    "Ant",
    "Arrays",
    "Baseline",
    "Batch",
    "CategoricalPolicy",
    "ClassData",
    "ConstantSchedule",
    "Conv4",
    "CosineSchedule",
    "ESMAML",
    "EmbeddingMLP",
    "Engine",
    "EnvironmentFault",
    "Episode",
    "FewShot",
    "GaussianPolicy",
    "Goal",
    "Grid",
    "GymTasks",
    "HalfCheetah",
    "IMAML",
    "ImageFolder",
    "InnerAdam",
    "InnerMomentum",
    "InnerOptimizer",
    "InnerSGD",
    "Knapsack",
    "Learner",
    "LinearBaseline",
    "LinearSchedule",
    "MAML",
    "MAMLPlusPlus",
    "MLP",
    "MetaModule",
    "MetaSGD",
    "MiniImagenet",
    "Navigation",
    "Omniglot",
    "OuterAdam",
    "OuterOptimizer",
    "OuterSGD",
    "Params",
    "PolicyGradient",
    "Ratings",
    "Records",
    "Reptile",
    "Rollouts",
    "Run",
    "Schedule",
    "Simulator",
    "Sinusoid",
    "StepContext",
    "StepResult",
    "TaskKey",
    "TaskSource",
    "TrustRegion",
    "load",
    "meta_test",
    "meta_train",
    "supervised",
]

if not TYPE_CHECKING:  # torch is imported by the first use, not by `--help`

    def __getattr__(name: str) -> Any:
        if name not in PUBLIC:
            raise AttributeError(f"module 'maml_dist' has no attribute {name!r}")
        module, _, attribute = PUBLIC[name].rpartition(".")
        return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
