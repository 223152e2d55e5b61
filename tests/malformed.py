"""Malformed inputs of every kind, drawn by a seed: words, recipes, searches, runs, data, calls.

Each case is plain data, so that another process can try it: files to make, and what to do.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

MARKER = "EXECUTED"  # what an input would make if it were executed
SMALL = {
    "iterations": "2",
    "meta_batch": "2",
    "checkpoint_every": "1",
    "validation_tasks": "2",
    "test_tasks": "2",
    "test_steps": "1",
    "engine.running": "eager",
}
BOMB = "".join(
    f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9 if i else ['x'] * 9)}]\n" for i in range(12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 30)
)
RUN = f"touch {MARKER}"
TEXTS = (
    *("", " ", "null", "~", "true", "yes", "off", "-1", "0", "1", "1.5", "1e30", "1e400", "-0.0"),
    *(".inf", "-.inf", ".nan", "nan", "1:30", "010", "0x10", "1_0", "9" * 25, "9" * 5000, "1e-400"),
    *(
        "[]",
        "[1, 2]",
        "[null]",
        "[.nan]",
        "[true]",
        "[[1]]",
        "{}",
        "{a: 1}",
        "{1: 2}",
        "{a: {b: 1}}",
    ),
    *("[" * 3000, "{" * 3000, "- " * 3000, "a: " * 300, BOMB, MERGES, repr(BOMB), "&a [*a]", "*a"),
    *(f"!!python/object/apply:os.system ['{RUN}']", "!!set {a}", "!!binary aGk=", "!!omap [a: 1]"),
    *("!!timestamp 2001-01-01", "2001-01-01", "!!int x", "!!bool x", "!!float x", "!x y", "<<: 1"),
    *("\0", "a\0b", "a\nb", "a\rb", "\x1b[2J", "é☃", "\ud800", "\u202e", "x" * 5000, "日" * 200),
    *(
        "os.system",
        "subprocess.Popen",
        "builtins.exec",
        "maml_dist.models.mlp.MLP",
        "torch.nn.Tanh",
    ),
    *("maml_dist.train.main", "nowhere.Nothing", "nowhere", ".", "..", "...", "a.", ".a", "a..b"),
    *(
        "../../x",
        "/",
        "/etc/passwd",
        "/dev/zero",
        "~",
        "file://",
        "gopher://x",
        "s3:",
        "%s%n",
        "$HOME",
    ),
    *(f"$({RUN})", f"`{RUN}`", f"__import__('os').system('{RUN}')", "lambda: 0", "{{7*7}}"),
    *(
        "'",
        '"',
        "[",
        "{",
        "[1",
        "# c",
        "- 1",
        "? x",
        "|",
        ">",
        "@x",
        "%x",
        "--",
        "=",
        "a=b",
        ":",
        ",",
    ),
)
KEYS = (
    *("task", "task.shots", "task.query", "task.oracle", "model", "hidden", "inputs", "batch_norm"),
    *(
        "learner",
        "learner.steps",
        "alpha",
        "inner",
        "first_order",
        "adapted",
        "later_share",
        "outer",
    ),
    *("beta", "outer.schedule", "clip", "clip_norm", "average", "epochs", "decays", "eps"),
    *(
        "weight_decay",
        "warm_up",
        "name",
        "description",
        "paper",
        "iterations",
        "meta_batch",
        "seed",
    ),
    *("init", "shards", "cpus_per_shard", "gpus_per_shard", "rollout_workers", "cpus_per_worker"),
    *("max_parallel_envs", "engine", "engine.batching", "engine.chunk", "budget", "engine.running"),
    *(
        "engine.memory",
        "precision",
        "on_divergence",
        "test_steps",
        "validation_tasks",
        "test_tasks",
    ),
    *("checkpoint_every", "keep_checkpoints", "checkpoints", "log_every", "pipeline_depth", "code"),
)
ODD_KEYS = (
    "",
    " ",
    ".",
    "a",
    "alhpa",
    "task.",
    ".task",
    "task..shots",
    "task.x",
    "model.init_args",
)
ODD_KEYS += ("model.class_path", "é", "\0", "x" * 5000, "paper.1", "__class__", "code.0", "self")
PATHS = ("", " ", "nowhere", "file", "folder", "pipe", "loop", "/dev/null", "\0", "x" * 300, "a\nb")
PATHS += (
    "x" * 5000,
    "/" * 300,
    "../" * 200 + "x",
    "\ud800",
    "file/run",
    "/proc/self/mem",
    "é☃ '\"",
)
COUNTS = (
    "-1",
    "0",
    "1",
    "1.5",
    "x",
    "",
    "nan",
    "inf",
    "1e3",
    "9" * 30,
    "99999999999",
    " 3",
    "0x10",
)
JSONS = (
    *(
        "",
        "null",
        "[]",
        "[1]",
        "{}",
        "1",
        "NaN",
        '"x"',
        "{",
        "[[" * 3000,
        '{"last": 3}',
        '{"best": {}}',
    ),
    *('{"last": [], "best": null}', '{"last": [{}], "best": {}}', '{"a": 1, "a": 2}', "9" * 5000),
    '{"last": [{"file": "../../victim.txt", "iteration": 1, "score": 1.0, "sha256": "00"}], '
    '"best": {"file": "../../victim.txt", "iteration": 1, "score": 1.0, "sha256": "00"}}',
    '{"last": [{"file": 3, "iteration": "x", "score": [], "sha256": null}], "best": {}}',
    *('{"iteration": 1}\n[1]\n', '{"iteration": null}\n', '{"iteration": NaN}\n', '{"x": 1}\n'),
    *('{"recipe": 1, "results": 3}', '{"results": [{"steps": [{}]}]}', "\0" * 100, "\x00\xff\xfe"),
)
FILES = (
    "recipe.yaml",
    "metrics.jsonl",
    "evaluation.json",
    "checkpoints/index.json",
    "checkpoints/*",
)


@dataclass(frozen=True)
class Case:
    """One input, and how it is tried in an empty folder."""

    kind: str
    command: str = "train"  # or evaluate, report, tune, data; python: a call
    words: tuple[str, ...] = ()  # of the command; of a call its text
    files: dict[str, Any] = field(default_factory=dict)  # name -> text, bytes as hex, or a kind
    valid: bool = False  # whether it may turn out to be a right one


def cases(count: int, seed: int = 0) -> list[Case]:
    """So many cases, of all kinds in turn."""
    rng = random.Random(seed)
    kinds = [_words(rng), _values(rng), _recipes(rng), _searches(rng), _runs(rng), _records(rng)]
    kinds += [_data(rng), _values(rng), _calls(rng), _recipes(rng)]
    return [next(kinds[i % len(kinds)]) for i in range(count)]


def small(**changes: str) -> list[str]:
    """The overrides of a short run."""
    return [f"{key}={value}" for key, value in {**SMALL, **changes}.items()]


def _words(rng: random.Random) -> Iterator[Case]:
    """Command lines: options and words that are none."""
    local = (*small(), "--local")
    while True:
        path, count, text = rng.choice(PATHS), rng.choice(COUNTS), rng.choice(TEXTS)
        command, words = rng.choice(
            [
                ("train", (path, *local)),
                ("train", ("sinusoid", path, *local)),
                ("train", ("sinusoid", *local, "--run", path)),
                ("train", ("--resume", path, "--local")),
                ("train", ("sinusoid", *local, f"init={path}")),
                ("train", ("sinusoid", *local, f"checkpoints={path}")),
                ("train", ("sinusoid", *local, "--address", text)),
                ("train", (f"{text}.yaml", *local)),
                ("train", ("sinusoid", *local, f"--{text}")),
                ("evaluate", (path,)),
                ("evaluate", ("RUN", "--tasks", count)),
                ("evaluate", ("RUN", "--steps", count)),
                ("evaluate", ("RUN", "--split", text)),
                ("evaluate", ("RUN", "--checkpoint", path)),
                ("evaluate", ("RUN", text, path)),
                ("report", (path,)),
                ("report", ("RUN", "--compare", path)),
                ("report", ("RUN", "--compare")),
                ("tune", (path,)),
                ("tune", (f"{text}.yaml", text)),
                ("data", (text,)),
                ("data", ("omniglot", "--source", path, "--out", "out")),
                ("data", ("mini-imagenet", "--source", path, "--out", "out")),
                ("data", ("mini-imagenet", f"--{text}", path)),
            ]
        )
        yield Case("words", command, words, _odd_files(), valid=True)


def _values(rng: random.Random) -> Iterator[Case]:
    """Overrides of a recipe."""
    while True:
        key = rng.choice(ODD_KEYS) if rng.random() < 0.1 else rng.choice(KEYS)
        recipe = rng.choice(
            ["sinusoid"] * 6 + ["sinusoid-reptile", "grid", "knapsack-es", "sinusoid-imaml"]
        )
        words = small(**({key: rng.choice(TEXTS)}))
        yield Case("values", "train", (recipe, *words, "--local"), valid=True)


def _recipes(rng: random.Random) -> Iterator[Case]:
    """Recipe files: lines changed, bytes changed, or no recipe at all."""
    folder = resources.files("maml_dist") / "recipes"
    names = ("sinusoid", "sinusoid-maml-plus-plus", "grid", "sinusoid-reptile")
    whole = {name: (folder / f"{name}.yaml").read_text() for name in names}
    local = (*small(), "--local")
    odd = [
        *TEXTS,
        *JSONS,
        "task: MLP\n",
        "a: b\n",
        BOMB + whole["sinusoid"],
        "folder",
        "pipe",
        "loop",
    ]
    while True:
        draw = rng.random()
        if draw < 0.4:
            text = rng.choice(odd)
            made: Any = {"made": text} if text in ("folder", "pipe", "loop") else text
        elif draw < 0.8:
            made = _changed_lines(rng, whole[rng.choice(names)].splitlines())
        else:
            made = {"hex": _changed_bytes(rng, whole[rng.choice(names)].encode()).hex()}
        yield Case("recipes", "train", ("odd.yaml", *local), {"odd.yaml": made}, valid=True)


def _searches(rng: random.Random) -> Iterator[Case]:
    """Searches: spaces that are none."""
    while True:
        text, key = rng.choice(TEXTS), rng.choice(KEYS + ODD_KEYS)
        name = rng.choice(["uniform", "loguniform", "randint", "choice", "normal", "", "null"])
        given = rng.choice(["[1, 2]", "[2, 1]", "[0, 1]", "[a, b]", "[]", "[1]", "3", "{}", text])
        lines = ["recipe: sinusoid", f"search:\n  {key}: {{{name}: {given}}}", "num_samples: 2"]
        lines += [f"overrides: {{iterations: 2, {rng.choice(KEYS)}: {text}}}"]
        lines += [f"{rng.choice(['seed', 'scheduler', 'algorithm', 'x', 'recipe'])}: {text}"]
        rng.shuffle(lines)
        content = "\n".join(lines[: rng.randint(1, 5)])
        yield Case("searches", "tune", ("odd.yaml",), {"odd.yaml": content}, valid=True)


def _runs(rng: random.Random) -> Iterator[Case]:
    """Files of a run: other text, other bytes, gone, or something else under their name."""
    while True:
        name, draw = rng.choice(FILES), rng.random()
        made: Any = {"made": rng.choice(["folder", "pipe", "loop", "gone"])}
        if draw < 0.4:
            made = {"text": rng.choice(JSONS)}
        elif draw < 0.8:
            made = {"seed": rng.randrange(2**32)}  # bytes of it are changed
        command, words = rng.choice(
            [
                ("evaluate", ("RUN", "--tasks", "2", "--steps", "1")),
                ("report", ("RUN",)),
                ("train", ("--resume", "RUN", "iterations=3", "--local")),
                ("python", ("maml_dist.load('RUN')",)),
            ]
        )
        yield Case("runs", command, words, {f"RUN/{name}": made}, valid=True)


def _records(rng: random.Random) -> Iterator[Case]:
    """Parquet files whose columns are of all types, and settings that do not fit them."""
    kinds = [
        "string",
        "null",
        "nan",
        "infinite",
        "list",
        "struct",
        "binary",
        "decimal",
        "date",
        "bool",
    ]
    kinds += ["dictionary", "huge", "some null", "empty", "none", "twice", "negative", "shuffled"]
    while True:
        made = {
            "column": rng.choice(["task_id", "a", "b", "y"]),
            "kind": rng.choice(kinds),
            "rows": rng.choice([0, 1, 7, 600, 600, 600]),
            "group": rng.choice([3, 100, 10_000]),
            "files": rng.choice([1, 1, 2]),
            "cut": rng.choice([None] * 6 + ["bytes", "half", "none"]),
        }
        key = rng.choice(
            ["path", "features", "target", "task_id", "classes", "val", "test", "cache"]
        )
        odd = [f"task.{key}={rng.choice(TEXTS)}"] if rng.random() < 0.4 else []
        words = ("records.yaml", *small(), *odd, "--local")
        yield Case("records", "train", words, {"records": made}, valid=True)


def _data(rng: random.Random) -> Iterator[Case]:
    """Sources of data sets that are none."""
    zips = ("images_background.zip", "images_evaluation.zip")
    caches = tuple(f"mini-imagenet-cache-{split}.pkl" for split in ("train", "val", "test"))
    tables = ("train.csv", "val.csv", "test.csv")
    evil = f"cos\nsystem\n(S'{RUN}'\ntR."
    rubbish = [*JSONS, *TEXTS[:30], evil, "PK\x05\x06" + "\0" * 18, "filename,label\na.png,b\n"]
    while True:
        command, names = rng.choice(
            [("omniglot", zips), ("mini-imagenet", caches), ("mini-imagenet", tables)]
        )
        made: dict[str, Any] = {}
        for name in names[: rng.randint(1, len(names))]:
            made[f"source/{name}"] = rng.choice([*rubbish, {"made": "folder"}, {"made": "pipe"}])
        yield Case("data", "data", (command, "--source", "source", "--out", "out"), made)


def _calls(rng: random.Random) -> Iterator[Case]:
    """Calls from Python with arguments of the wrong kind."""
    arrays = [
        "None",
        "'abc'",
        "b'x'",
        "[]",
        "[[1], [1, 2]]",
        "{'a': 1}",
        "object()",
        "x[:0]",
        "x * nan",
    ]
    arrays += [
        "torch.zeros(3)",
        "torch.zeros(5, 3)",
        "torch.zeros(2, 2, 3)",
        "np.array([None] * 5)",
    ]
    arrays += [
        "x.to_sparse()",
        "x + 0j",
        "1",
        "x[0]",
        "[10**400]",
        "np.zeros(5, object)",
        "x / 0",
        "len",
    ]
    steps = ["-1", "1.5", "True", "'3'", "10**12", "nan", "[1]", "{}"]
    paths = [
        "None",
        "''",
        "3",
        "b'x'",
        "'\\0'",
        "'nowhere'",
        "[]",
        "'x' * 5000",
        "object()",
        "True",
    ]
    values = ["None", "nan", "inf", "-1", "True", "object()", "[]", "{}", "b'x'", "10**400", "len"]
    values += [
        "torch.zeros(2)",
        "np.zeros(2)",
        "'\\ud800'",
        "'\\0'",
        "{1.5: 2}",
        "[[[]]]",
        "{'a': len}",
    ]
    tried = "maml_dist.meta_train('sinusoid', local=True, progress=False, iterations=0, run='r'"
    while True:
        pick = rng.choice
        text = pick(
            [
                f"model.adapt({pick(arrays)}, y)",
                f"model.adapt(x, {pick(arrays)})",
                f"model.adapt({pick(arrays)}, {pick(arrays)})",
                f"model.adapt(x, y, steps={pick(steps)})",
                f"policy.act({pick(arrays)})",
                f"policy.act([0.0, 0.0], generator={pick(values[2:])})",
                f"policy.adapt({pick(arrays)}, steps={pick(steps)})",
                f"policy.learn({pick(arrays)})",
                f"maml_dist.load({pick(paths)})",
                f"maml_dist.load(RUN, checkpoint={pick(paths)})",
                f"maml_dist.meta_test(run, tasks={pick(steps)})",
                f"maml_dist.meta_test(run, steps={pick(steps)})",
                f"maml_dist.meta_test(run, split={pick(paths)})",
                f"maml_dist.meta_test(run, checkpoint={pick(paths)})",
                f"maml_dist.meta_train({pick(paths)}, local=True)",
                f"maml_dist.meta_train(resume={pick(paths[1:])}, local=True)",
                f"{tried}, **{{{pick(KEYS + ODD_KEYS)!r}: {pick(values)}}})",
            ]
        )
        yield Case("calls", "python", (text,), valid="meta_train('s" in text)


def _odd_files() -> dict[str, Any]:
    return {"file": "x", **{name: {"made": name} for name in ("folder", "pipe", "loop")}}


def _changed_lines(rng: random.Random, lines: list[str]) -> str:
    """One to three lines twice, gone, moved, or with another value."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        key, colon, _ = lines[at].partition(":")
        lines[at : at + 1] = rng.choice(
            [
                [lines[at]] * 2,
                [],
                [f" {lines[at]}"],
                [f"{lines[at]} {rng.choice(TEXTS)}"],
                [f"{key}{colon} {rng.choice(TEXTS)}"],
                [f"{rng.choice(TEXTS)}: {rng.choice(TEXTS)}", lines[at]],
                [lines[at].replace(":", "")],
                ["\t" + lines[at]],
            ]
        )
        lines = lines or ["a: 1"]
    return "\n".join(lines) + "\n"


def _changed_bytes(rng: random.Random, content: bytes) -> bytes:
    """A few bytes others, gone or cut off."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(changed))
        changed[at : at + rng.choice([0, 1, 1, 4])] = rng.randbytes(rng.choice([0, 1, 1, 4]))
    return bytes(changed[: rng.randrange(1, len(changed))] if rng.random() < 0.2 else changed)
