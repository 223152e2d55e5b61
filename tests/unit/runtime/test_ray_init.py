"""A Ray that times out is tried again; what else it says, and the third time, is raised."""

import pytest
import ray
from ray._private.node import Node

from maml_dist.runtime import private_ray, ray_cluster, ray_init
from maml_dist.runtime.ray_init import init

BUSY = (
    "The current node timed out during startup. This could happen because some of the raylet "
    "failed to startup or the GCS has become overloaded."
)
WORD = "a Ray: The current node timed out during startup: tried again\n"


@pytest.fixture
def fails(monkeypatch):
    """Instead of Ray: raises what it is given, in order, and keeps what it was called with."""

    def start(*errors):
        errors, calls = list(errors), []

        def called(**arguments):
            calls.append(arguments)
            if errors:
                raise errors.pop(0)

        monkeypatch.setattr(ray, "init", called)
        return calls

    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return start


def test_it_is_tried_again_with_a_word_each(fails, capsys):
    calls = fails(Exception(BUSY), Exception(BUSY))
    init("a Ray", num_cpus=3)
    assert calls == [{"num_cpus": 3}] * 3
    assert capsys.readouterr().err == WORD * 2


def test_not_for_ever(fails, capsys):
    calls = fails(*[Exception(BUSY)] * 9)
    with pytest.raises(TimeoutError, match=r"timed out during startup \(tried 3 times\)$"):
        init("a Ray")
    assert len(calls) == 3 and capsys.readouterr().err == WORD * 2


@pytest.mark.parametrize(
    "error", [ValueError("timeout=x"), RuntimeError("called twice"), OSError()]
)
def test_what_another_try_would_not_mend_is_raised_at_once(fails, capsys, error):
    calls = fails(error)
    with pytest.raises(type(error)):
        init("a Ray")
    assert len(calls) == 1 and not capsys.readouterr().err


def test_the_processes_of_a_node_that_did_not_come_up_are_ended(monkeypatch, fails):
    ended = []

    class Half(Node):
        def __init__(self):
            raise Exception(BUSY)

        def kill_all_processes(self, **how):
            ended.append(how)

    fails()
    monkeypatch.setattr(ray, "init", lambda **_: Half())
    with pytest.raises(TimeoutError):
        init("a Ray")
    assert ended == [{"check_alive": False, "allow_graceful": False}] * ray_init.TRIES


def test_a_ray_of_our_own_and_a_cluster_say_it_in_one_line(monkeypatch, fails, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(private_ray, "SOCKET_PATH", 1000)
    fails(*[Exception(BUSY + "\nand a log")] * 9)
    with pytest.raises(ChildProcessError) as caught, private_ray.own_ray(2):
        pass
    (left,) = tmp_path.iterdir()
    assert str(caught.value) == (
        "Ray did not start on this machine: The current node timed out during startup (tried 3 "
        f"times); Ray's logs: {left}"
    )
    for name in ("_connect", "_call"):
        monkeypatch.setattr(ray_cluster, name, lambda address: None)
    fails(*[ConnectionError("ray client connection timeout")] * 9)
    said = "cluster at 127.0.0.1:1 does not answer: ray client connection timeout .tried 3 times.$"
    with pytest.raises(ValueError, match=said):
        ray_cluster.join("127.0.0.1:1")
    fails(ray.exceptions.RaySystemError("broken"))
    with pytest.raises(ValueError, match="no Ray cluster at 127.0.0.1:1: .*broken"):
        ray_cluster.join("127.0.0.1:1")
