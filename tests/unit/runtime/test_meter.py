"""Metrics of a process: what is told to Ray, which here is a list, and how time is parted."""

import threading
from pathlib import Path

import numpy as np
import pytest

from maml_dist.core.outer.optimizers import SGD
from maml_dist.runtime import meter, pulse
from maml_dist.runtime.links import Message
from maml_dist.runtime.messages import Contribution
from maml_dist.runtime.meter import RESTARTS, UP, Meter
from maml_dist.runtime.prometheus import labels
from maml_dist.runtime.pulse import Pace
from maml_dist.runtime.server import ParameterServer
from tests.linked import at_once, linked

RUN = {"run": "mine", "recipe": "sinusoid"}


@pytest.fixture
def told(monkeypatch):
    """What Ray is told."""
    told = []

    class Told:
        def __init__(self, name):
            self.name = name

        def set(self, value, tags):
            told.append((self.name, value, tags))

        inc = set

    monkeypatch.setattr(Meter, "_of", lambda self, metric: Told(metric.name))
    return told


def test_what_counts_is_told_by_what_has_come_since_and_the_rest_each_time(told):
    now = {(RESTARTS, ("TaskShard",)): 0.0, (UP, ("TaskShard",)): 2.0}
    counted = Meter({}, lambda: now)
    counted._labels = RUN
    labels = RUN | {"role": "TaskShard"}
    counted.tell()
    now[RESTARTS, ("TaskShard",)] = 3.0
    counted.tell()
    counted.tell()
    now[RESTARTS, ("TaskShard",)] = 4.0
    counted.tell()
    assert [one for one in told if one[0] == "actors"] == [("actors", 2.0, labels)] * 4
    assert [one for one in told if one[0] == "restarts"] == [
        ("restarts", 3.0, labels),
        ("restarts", 1.0, labels),
    ]


def test_runs_are_told_apart_by_their_folders():
    assert labels(Path("/home/me/runs/mine"), "sinusoid") == RUN
    trial = Path("/home/me/runs/tune-1/trials/3-750")
    assert labels(trial, "sinusoid") == RUN | {"run": "tune-1/trials/3-750"}


def test_one_that_fails_says_so_once_and_nothing_waits_for_it(monkeypatch, capsys):
    monkeypatch.setattr(meter, "_taken_up", lambda: 0.02)
    monkeypatch.setattr(meter, "is_own", lambda: False)

    def read():
        raise RuntimeError("Ray is away")

    failing = Meter(RUN, read)
    failing._thread.join(5)
    failing.close()
    assert capsys.readouterr().err == (
        "metrics: RuntimeError: Ray is away: none are told any more\n"
    )


def test_where_nobody_asks_there_is_no_thread(monkeypatch):
    before = threading.active_count()
    Meter({}, dict).close()
    monkeypatch.setattr(meter, "is_own", lambda: True)  # which shows metrics to nobody
    Meter(RUN, dict).close()
    assert threading.active_count() == before


def test_all_of_an_actors_time_is_in_one_phase(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(pulse.time, "monotonic", lambda: now[0])

    def pass_(seconds):
        now[0] += seconds

    pace = Pace(node="", host="")
    pass_(1)
    with pace.of("objective"):
        pass_(2)
        with pace.of("gradient", timed=True):  # asked for by the former
            pass_(4)
            assert pace.pulse().work == "gradient" and pace.spent()["gradient"] == 4
        assert pace.pulse().work == "objective"
        pass_(8)
    pass_(16)
    assert pace.spent() == {"objective": 10, "gradient": 4, "waiting": 17}
    pace.add("update", 5)
    assert pace.spent()["waiting"] == 12 and pace.busy == 19
    assert pace.pulse().typical == 4 and pace.pulse().work == ""
    with pace.of("gradient"):
        pass_(3)
        assert pace.spent()["gradient"] == 7 and sum(pace.spent().values()) == now[0]


def test_links_count_what_they_send():
    members = linked(3)

    def say(member):
        member.all_gather(Message(b"words", np.zeros(1000)))

    at_once(members, say)
    for member in members:  # to two others: a prefix of 16 bytes, words, numbers
        assert member.traffic.sent == 2 * (16 + 5 + 8000) and 0 < member.traffic.waited < 60
        member.close()


def test_the_gradient_is_kept_where_it_is_asked_for():
    given = Contribution(np.array([2.0, 4.0, 7.0]), 2, {})
    server = ParameterServer(np.zeros(3), SGD(beta=1.0), learned=2)
    server.update(given)
    assert server.gradient is None
    server.keeps_gradient = True
    server.update(given)
    assert server.gradient is not None and server.gradient.tolist() == [1, 2]
