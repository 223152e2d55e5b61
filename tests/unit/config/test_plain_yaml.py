"""The reader of YAML: plain data or one line; nothing hangs, nothing is executed."""

import os
import sys

import pytest
import yaml

from maml_dist.config import plain_yaml
from maml_dist.config.recipe import parse_overrides, recipes

BOMB = "".join(
    f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9 if i else ['x'] * 9)}]\n" for i in range(12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: 1", {"a": 1}),
        ("[1, 2.5, x, true, null]", [1, 2.5, "x", True, None]),
        ("a: 2020-01-01", {"a": "2020-01-01"}),  # a date is a word
        ("a: '010'", {"a": "010"}),
        ("a: 0x1F", {"a": 31}),
        ("a: !!str 5", {"a": "5"}),
        ("1: 0.5", {1: 0.5}),
        ("a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}", {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}}),
        ("a: é☃", {"a": "é☃"}),
        (".inf", float("inf")),
    ],
)
def test_plain_data_is_read(text, value):
    assert plain_yaml.parse(text) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key a stands there twice .first in line 1"),
        ("a: {b: 1, b: 1}", "line 1: the key b stands there twice"),
        ("1: a\n0x1: b", "line 2: the key 1 stands there twice"),
        ("a: [1,\n 2", "line 2: expected"),
        (
            "a: !!python/object/apply:os.system [x]",
            "line 1: .*python/object/apply:os.system cannot",
        ),
        ("a: !!set {b}", "line 1: !!set cannot"),
        ("a: !!binary aGk=", "!!binary cannot"),
        ("a: !!timestamp 2001-01-01", "!!timestamp cannot"),
        ("a: !!int x", "!!int cannot"),
        ("a: !!bool maybe", "!!bool cannot"),
        ("a: !own 3", "!own cannot"),
        ("a: 010", "line 1: 010 would be read as another number"),
        ("a: 1:30", "1:30 would be read as another number"),
        ("a: -007", "-007 would be read"),
        ("yes: 1", "line 1: yes is no key"),
        ("1.5: 1", "1.5 is no key"),
        ("~: 1", "~ is no key"),
        ("? [a]\n: 1", "a list or keys is no key"),
        ("a: &a [*a]", "line 1: holds itself"),
        ("a: &a {b: *a}", "holds itself"),
        (BOMB, "aliases make more than 100,000 values"),
        (MERGES, "aliases make more than 100,000 values"),
        (f"a: {BOMB!r}".replace("'", '"'), "aliases make more than 100,000 values"),  # in quotes
        ("[" * 3000, "line 1: nested more than 64 deep"),
        ("- " * 3000 + "x", "nested more than 64 deep"),
        ("{a: " * 100, "nested more than 64 deep"),
        ('a: "\\0"', "line 1 holds the character #x0000"),
        ('a: "\\ud800"', "#xd800"),
        ("a: \x00", "#x0000"),
        ("a: " + "9" * 5000, "whole numbers are below 2.64"),
        ("--- a\n--- b", "line 2: but found another document"),
        ("<<: 3", "line 1: expected a mapping"),
        ("a: *b", "undefined alias"),
    ],
)
def test_what_is_not_is_one_line(text, said):
    with pytest.raises(ValueError, match=said) as refused:
        plain_yaml.parse(text)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_all_that_is_written_is_read_back():
    words = [
        "010",
        "1:30",
        "yes",
        "~",
        "2020-01-01",
        "é☃",
        "a: b",
        "- x",
        "*",
        "&a",
        "!x",
        "1e3",
        "",
    ]
    content = {"words": words, "numbers": [0, -1, 1e-12, 1e300, 2**63], "deep": {"a": {"b": [[]]}}}
    assert plain_yaml.parse(yaml.safe_dump(content)) == content
    assert len(recipes()) > 40


def test_files_that_are_none(tmp_path):
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    (tmp_path / "wide.yaml").write_text("a: 1", encoding="utf-16")
    (tmp_path / "large.yaml").write_text("a: 1\n" + "#" * (1 << 19))
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "list.yaml").write_text("[1]")
    for name, said in {
        "loop": "symbolic links",
        "folder": "it is a folder or a device",
        "pipe": "it is a folder or a device",
        "binary": "byte 128 is not UTF-8",
        "wide": "byte 0 is not UTF-8",
        "large": "it is over 256 KiB",
        "empty": "must hold keys and values, not None",
        "list": "must hold keys and values, not .1.",
        "nowhere": "no such file",
        "x" * 300: "File name too long",
    }.items():
        with pytest.raises(ValueError, match=said):
            plain_yaml.read(tmp_path / f"{name}.yaml")
    (tmp_path / "marked.yaml").write_text("a: 1", encoding="utf-8-sig")
    assert plain_yaml.read(tmp_path / "marked.yaml") == {"a": 1}
    for path, said in {
        "": "is empty",
        " ": "is empty",
        "a\0": "#x0000",
        "\ud800": "#xd800",
    }.items():
        with pytest.raises(ValueError, match=said):
            plain_yaml.read(path)


def test_words_are_values_or_text():
    assert parse_overrides(["a=1", "b=[1, x]", "c=null", "d=x=y", "e=[1"]) == {
        **{"a": 1, "b": [1, "x"], "c": None},
        **{"d": "x=y", "e": "[1"},  # no YAML is text
    }
    for words, said in (
        (["a=1", "a=2"], "a is given twice"),
        (["a"], "'a': expected key=value"),
        (["a="], "'a=': expected key=value, null for none"),
        ([""], "'': expected key=value"),
        ([" =1"], "expected key=value"),
        (["a=010"], "a: line 1: 010 would be read"),
        ([f"a={BOMB}"], "a: line 6: aliases"),
        (["a=" + "[" * 3000], "a: line 1: nested"),
    ):
        with pytest.raises(ValueError, match=said):
            parse_overrides(words)


def test_values_from_python_are_plain_too():
    plain_yaml.check({"a": [1, "x", None, True, 0.5, {"b": (1,)}], 1: 2.0, "é": float("inf")}, "")
    endless: list = []
    endless.append(endless)
    for value, said in (
        (float("nan"), "alpha=nan: must be a number"),
        (2**64, "alpha: 18446744073709551616: whole numbers"),
        (10**5000, "alpha: a number of 16610 bits"),
        (b"x", "not bytes"),
        (object(), "not object"),
        ({1.5: 2}, "1.5 is no key"),
        ({True: 2}, "True is no key"),
        (endless, "nested more than 64 deep"),
        ("a\0", "#x0000"),
        (BOMB, "aliases make more than"),  # which is read as YAML once more
        ({"a": ["\ud800"]}, "alpha.a holds the character #xd800"),
    ):
        with pytest.raises(ValueError, match=said):
            plain_yaml.check(value, "alpha")
    assert sys.getrecursionlimit() >= 500  # far above what is allowed
