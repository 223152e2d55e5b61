"""A learner's class declares how it is differentiated, and has what it declares."""

import pytest

from maml_dist.core.adaptation.learner import Learner
from maml_dist.core.data.task_source import TaskSource
from maml_dist.learners.evolution import ESMAML
from maml_dist.learners.imaml import IMAML
from maml_dist.learners.maml import MAML
from maml_dist.learners.reptile import Reptile
from maml_dist.tasks.navigation import Navigation
from maml_dist.tasks.sinusoid import Sinusoid


def overriding(base, *methods, **declared):
    """A class of this base that overrides methods and declares attributes."""
    return type("Mine", (base,), dict.fromkeys(methods, lambda self, *rest: None) | declared)


@pytest.mark.parametrize(
    ("base", "methods", "declared", "said"),
    [
        (MAML, ["gradient_from_adapted"], {}, "declare differentiation = 'from_adapted'"),
        (Learner, ["es_gradient"], {}, "declare differentiation = 'zeroth_order'"),
        (MAML, ["zeroth_order_path"], {}, "declare differentiation = 'zeroth_order'"),
        (MAML, [], {"differentiation": "from_adapted"}, "needs gradient_from_adapted"),
        (IMAML, [], {"differentiation": "backprop"}, "declare differentiation = 'from_adapted'"),
        (MAML, ["gradient"], {}, "Mine.own_gradient=False: must say whether the class overrides"),
        (MAML, [], {"own_gradient": True}, "Mine.own_gradient=True: must say"),
        (MAML, [], {"differentiation": "implicit"}, "backprop or from_adapted or zeroth_order"),
        (Sinusoid, ["kl"], {}, "Mine.on_policy=False: a task source overrides kl where it is"),
        (TaskSource, [], {"on_policy": True}, "Mine.on_policy=True: a task source overrides kl"),
    ],
)
def test_what_is_declared_is_what_is_there(base, methods, declared, said):
    with pytest.raises(ValueError, match=said):
        overriding(base, *methods, **declared)


def test_what_is_inherited_is_declared_already():
    assert overriding(MAML, "gradient", own_gradient=True).differentiation == "backprop"
    assert overriding(Reptile, "gradient", "gradient_from_adapted").own_gradient
    assert overriding(ESMAML, "gradient", "es_gradient", "zeroth_order_path")().zeroth_order
    assert overriding(IMAML, "gradient_from_adapted")().second_order
    assert overriding(Navigation, "kl").on_policy
