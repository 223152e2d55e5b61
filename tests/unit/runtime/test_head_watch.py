import socket

import pytest
import ray

from maml_dist.runtime import head_watch


@pytest.fixture(autouse=True)
def eight_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process that leaves its cluster after them."""
    left = iter([True] * 8 + [False])
    monkeypatch.setattr(ray, "is_initialized", lambda: next(left))
    monkeypatch.setattr(head_watch, "EVERY", 0.01)


def test_a_head_that_does_not_answer_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    head_watch._watch(address)
    [line] = capsys.readouterr().err.splitlines()
    assert f"the cluster's head at {address} does not answer" in line and "--resume" in line


def test_of_a_head_that_answers_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        head_watch._watch(f"127.0.0.1:{head.getsockname()[1]}")
    assert not capsys.readouterr().err


def test_a_head_that_is_away_for_a_moment_is_not_spoken_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([True, False, False, True, False, False, True, True])
    monkeypatch.setattr(head_watch, "_answers", lambda address: next(answers))
    head_watch._watch("192.0.2.1:6379")
    assert not capsys.readouterr().err
