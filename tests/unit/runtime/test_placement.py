"""How episodes come to a GPU and sums back from it, with a GPU that is made up."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from maml_dist.core.data.episode import Batch, supervised
from maml_dist.runtime.collectors import Placement

CPU = Placement(torch.device("cpu"), torch.float32)
GPU = Placement(torch.device("cuda"), torch.float64)


@contextmanager
def copies_seen(monkeypatch):
    """Notes pinning, copies and waits; the copies stay here."""
    seen, to = [], torch.Tensor.to

    def pin(tensor):
        seen.append(("pin", tuple(tensor.shape)))
        return tensor.clone()

    def copy(tensor, *where, non_blocking=False):
        if where and isinstance(where[0], torch.dtype):
            return to(tensor, *where)
        seen.append((str(where[0]), tuple(tensor.shape), non_blocking))
        return tensor

    class Stream:
        def synchronize(self):
            seen.append("wait")

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "pin_memory", pin)
        patched.setattr(torch.Tensor, "to", copy)
        patched.setattr(torch.cuda, "current_stream", lambda device: Stream())
        yield seen


def episodes():
    x, y = torch.arange(6.0).reshape(2, 3, 1), torch.zeros(2, 3, dtype=torch.int64)
    batch = Batch(x, y)
    return supervised(batch, batch, steps=2)


def test_episodes_are_pinned_and_copied_without_a_wait(monkeypatch):
    with copies_seen(monkeypatch) as seen:
        moved = GPU.data(episodes())
    each = [("pin", (2, 3, 1)), ("cuda", (2, 3, 1), True), ("pin", (2, 3)), ("cuda", (2, 3), True)]
    assert seen == each  # what is shared is copied once
    assert moved.support[0].x.dtype == torch.float64 and moved.query.y.dtype == torch.int64


def test_parameters_are_copied_before_they_are_pinned(monkeypatch):
    given = np.ones(4, np.float32)
    given.flags.writeable = False  # as Ray hands it out
    with copies_seen(monkeypatch) as seen:
        vector = GPU.vector(given)
    assert seen == [("pin", (4,)), ("cuda", (4,), True)]
    vector += 1
    assert (given == 1).all()


def test_what_is_on_the_device_is_not_pinned(monkeypatch):
    with copies_seen(monkeypatch) as seen:
        GPU.data(torch.zeros(3, device="meta"))
    assert seen == [("cuda", (3,), True)]


def test_several_sums_come_back_with_one_wait(monkeypatch):
    with copies_seen(monkeypatch) as seen:
        GPU.host(torch.zeros(3), torch.zeros(2))
    assert seen == [("cpu", (3,), True), ("cpu", (2,), True), "wait"]


@pytest.mark.parametrize("value", [torch.arange(3.0), torch.arange(3)])
def test_on_a_cpu_nothing_is_copied_pinned_or_waited_for(value, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", None)
    monkeypatch.setattr(torch.cuda, "current_stream", None)
    assert CPU.data(value) is value
    (back,) = CPU.host(value)
    assert back is value
