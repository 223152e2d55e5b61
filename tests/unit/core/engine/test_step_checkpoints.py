"""StepCheckpoints: those made again are the same bits, and only so many are held."""

import pytest
import torch

from maml_dist.core.engine.step_checkpoints import ALL_HELD, StepCheckpoints, most_held


def chain(steps):
    """The step, and all carries by hand."""
    states = [torch.linspace(0.1, 0.9, 5)]
    for k in range(steps):
        states.append(torch.sin(states[-1] * (k + 1.5)))
    return (lambda k, carry: torch.sin(carry * (k + 1.5))), states


@pytest.mark.parametrize("steps", [0, 1, ALL_HELD, ALL_HELD + 1, 16, 20, 50])
@pytest.mark.parametrize("kept", [(), (0, 3)])
def test_they_are_asked_for_backwards_and_few_are_held(steps, kept):
    step, states = chain(steps)
    calls, most, carries = [], 0, []

    def counted(k, carry):
        nonlocal most
        calls.append(k)
        if carries:
            most = max(most, len(carries[0]._held) + 1)  # with the one that is being made
        return step(k, carry)

    kept = [k for k in kept if k <= steps]
    made = StepCheckpoints(counted, states[0], steps, back=True, kept=kept)
    carries.append(made)
    assert torch.equal(made[steps], states[steps])
    for k in reversed(range(steps)):
        most = max(most, len(made._held))
        assert torch.equal(made.pop(k), states[k])
    assert most <= most_held(steps) + len(kept)
    assert len(calls) <= (2 * steps if steps > ALL_HELD else steps)
    for k in kept:
        assert torch.equal(made[k], states[k])
    assert set(made._held) == {steps, *kept}


def test_where_nothing_goes_back_only_the_ends_are_held():
    step, states = chain(50)
    carries = StepCheckpoints(step, states[0], 50, back=False, kept=[7])
    assert set(carries._held) == {0, 7, 50} and torch.equal(carries[50], states[50])
