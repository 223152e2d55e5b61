"""How commands end: one line, an exit status, and with --traceback all of it."""

import os
import subprocess
import sys

import pytest

from maml_dist.cli import Parser, fail, guarded

USERS = """
def forward(x):
    return {}[x]

def leave():
    raise SystemExit(0)

def refuse():
    raise ValueError("my own")

def inside_torch():
    import torch
    return torch.zeros(2) @ torch.zeros(3)
"""


def ended(capsys, monkeypatch, main, *words):
    """The exit status of a command and what it said."""
    monkeypatch.setattr(sys, "argv", ["command", *words])
    status = guarded(main)
    return status, capsys.readouterr().err


def raising(error):
    """A command that raises, by code of no file: the lines of a file would be a user's."""
    names: dict = {"error": error}
    exec(compile("def main(arguments):\n    raise error", "<nowhere>", "exec"), names)
    return names["main"]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("wrong"), 2, "error: wrong"),
        (ValueError("two\n  lines"), 2, "error: two lines"),
        (FileNotFoundError(2, "None", "x"), 2, "error: [Errno 2] None: 'x'"),
        (FloatingPointError("diverged"), 1, "error: diverged"),
        (ChildProcessError("died"), 1, "error: died"),
        (MemoryError(), 1, "error: not enough memory."),
        (RuntimeError("CUDA out of memory. Tried"), 1, "error: not enough memory. CUDA out of"),
        (KeyboardInterrupt(), 130, ""),
        (ValueError(), 2, "error: no reason is given"),
    ],
)
def test_what_is_raised_is_a_line_and_a_status(capsys, monkeypatch, error, status, said):
    found, err = ended(capsys, monkeypatch, raising(error))
    assert found == status and err.startswith(said) and err.count("\n") == bool(said)


def test_a_mistake_of_ours_is_one_line_that_says_so(capsys, monkeypatch):
    status, err = ended(capsys, monkeypatch, lambda arguments: {}["x"])  # a file of tests: a user's
    assert status == 2 and "test_cli.py, line" in err and "KeyError: 'x'" in err
    main = raising(KeyError("x"))
    status, err = ended(capsys, monkeypatch, main)
    assert status == 70 and err.count("\n") == 1
    assert "a mistake of maml_dist, KeyError: 'x'" in err and "--traceback" in err
    status, err = ended(capsys, monkeypatch, main, "--traceback")
    assert status == 70 and err.startswith("Traceback") and err.count("error: a mistake") == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("forward", "line 3, in forward: KeyError: 'x'"),
        ("leave", "line 6, in leave: it ends the program (SystemExit: 0)"),
        ("refuse", "line 9, in refuse: ValueError: my own"),
        ("inside_torch", "line 13, in inside_torch: RuntimeError: "),
    ],
)
def test_the_users_code_is_named_by_file_and_line(tmp_path, capsys, monkeypatch, name, said):
    path = tmp_path / "users.py"
    path.write_text(USERS)
    names: dict = {}
    exec(compile(USERS, str(path), "exec"), names)
    call = names[name]
    status, err = ended(capsys, monkeypatch, lambda _: call("x") if name == "forward" else call())
    assert status == 2 and f"{path}, {said}" in err and err.count("\n") == 1
    status, err = ended(capsys, monkeypatch, lambda _: call("x"), "--traceback")
    assert name == "leave" or "Traceback" in err


def test_options_that_are_none_are_one_line(capsys, monkeypatch):
    def main(arguments):
        parser = Parser(prog="x")
        parser.add_argument("--tasks", type=int)
        parser.parse_args(arguments)
        return 0

    for words in (["--tasks", "x"], ["--tasks"], ["--nothing"], ["more"]):
        status, err = ended(capsys, monkeypatch, main, *words)
        assert status == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert ended(capsys, monkeypatch, main, "--traceback") == (0, "")
    with pytest.raises(SystemExit) as end:
        ended(capsys, monkeypatch, main, "--help")
    assert end.value.code == 0


def test_a_message_has_an_end(capsys):
    fail("x" * 10_000 + " y" * 10_000, status=2)
    assert len(capsys.readouterr().err) < 1200


@pytest.mark.parametrize("name", ["train", "evaluate", "report", "tune", "data"])
def test_every_command_has_traceback(name, capsys):
    from importlib import import_module

    with pytest.raises(SystemExit):
        import_module(f"maml_dist.{name}").main(["--help"])
    assert "--traceback" in capsys.readouterr().out


def test_output_that_nobody_reads_or_that_has_no_room():
    command = [sys.executable, "-m", "maml_dist.train", "--list"]
    reading, writing = os.pipe()
    os.close(reading)
    unread = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (unread.returncode, unread.stderr) == (141, "")
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith("error: [Errno 28]")
    assert ended.stderr.count("\n") == 1
    closed = subprocess.run(f"{' '.join(command)} >&- 2>&-", shell=True)
    assert closed.returncode == 0
