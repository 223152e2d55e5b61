"""A class that overrides what a method was called in 0.1.0 is refused: it would have no effect."""

from dataclasses import dataclass

import pytest

from maml_dist.core.adaptation.learner import Learner
from maml_dist.core.data.task_source import TaskSource
from maml_dist.core.outer.optimizers import SGD, OuterOptimizer
from maml_dist.learners.maml import MAML
from maml_dist.tasks.navigation import Navigation
from maml_dist.tasks.rollout import Rollouts
from maml_dist.tasks.sinusoid import Sinusoid


def overriding(*bases, **own):
    return type("Mine", bases, own)


@pytest.mark.parametrize("base", [Learner, MAML])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("judged", "step_loss_weights"),
        ("at_end", "gradient_from_adapted"),
        ("keeps_steps", "per_step_statistics"),
        ("differentiates", "differentiation"),
        ("by_scores", "zeroth_order"),
        ("path_by_scores", "zeroth_order_path"),
        ("gradient_by_scores", "es_gradient"),
    ],
)
def test_of_learners(base, old, new):
    said = f"^Mine overrides {old}, which is called {new} since 0.2.0: rename it$"
    for own in (lambda self, *rest: None, property(lambda self: True), True):
        with pytest.raises(ValueError, match=said):
            overriding(base, **{old: own})
    mixin = type("Mixin", (), {old: True})
    with pytest.raises(ValueError, match=said):
        overriding(mixin, base)


@pytest.mark.parametrize(
    ("base", "old", "new"),
    [
        *((base, "divergence", "kl") for base in (TaskSource, Sinusoid, Rollouts, Navigation)),
        *((base, "sensed", "state_dim") for base in (Rollouts, Navigation)),
        *((base, "observations", "obs_dim") for base in (Rollouts, Navigation)),
        *((base, "actions", "action_dim") for base in (Rollouts, Navigation)),
        *((base, "goals", "goal_dim") for base in (Rollouts, Navigation)),
        *((base, "asks", "multi_round") for base in (OuterOptimizer, SGD)),
        *((base, "propose", "update_in_rounds") for base in (OuterOptimizer, SGD)),
    ],
)
def test_of_tasks_and_outer_optimizers(base, old, new):
    with pytest.raises(ValueError, match=f"Mine overrides {old}, which is called {new} since"):
        overriding(base, **{old: property(lambda self: 1)})


def test_a_step_of_seven_arguments():
    def step(self, loss, meta, phi, state, batch, k, it):
        return phi, state

    with pytest.raises(
        ValueError, match=r"^Mine\.step\(self, loss, .*\(self, phi, state, context\)"
    ):
        overriding(MAML, step=step)
    overriding(MAML, step=lambda self, phi, state, context, more=1: (phi, state))
    overriding(MAML, step=lambda *all: all[1:3])


def test_a_class_of_today_may_use_the_words():
    @dataclass(frozen=True)
    class Maze(Navigation):
        goals: int = 4

    assert Maze(goals=5).goals == 5 and Maze().goal_dim == Navigation().goal_dim
    both = {"goals": lambda self: [], "goal_dim": property(lambda self: 3)}
    assert overriding(overriding(Navigation, **both))().goal_dim == 3
