"""Try malformed inputs: python tests/fuzz.py --count 600 --seed 0

Each is tried in an empty folder by another process, so that what hangs is found and ended.
Right is: refused in one line with status 2 (from Python a ValueError or OSError), nothing left in
the folder, nothing executed; or, where it may be right after all, accepted.
"""

import argparse
import io
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from malformed import MARKER, SMALL, Case, cases

LIMIT = 40.0  # seconds for one input
MEMORY = 12 << 30  # bytes of address space
RIGHT = ("refused", "accepted", "ended")  # ended: a run that began and diverged, with status 1


def run(tried: list[Case], *, limit: float = LIMIT) -> list[dict[str, Any]]:
    """What becomes of each case: its outcome, status and lines."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        child = _start(folder)
        for case in tried:
            result = _ask(child, case, limit)
            results.append({"case": case, **result})
            if result["outcome"] in ("hang", "crash"):
                child.kill()
                child.wait()
                child = _start(folder)
        child.stdin.close()
        child.wait()
    return results


def wrong(result: dict[str, Any]) -> bool:
    """Whether a case was not met as it should be."""
    never = result["outcome"] == "accepted" and not result["case"].valid
    return never or result["outcome"] not in RIGHT


def _start(folder: str) -> Any:
    command = [sys.executable, __file__, "--child", folder]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child.stdout.readline()  # it is ready
    return child


def _ask(child: Any, case: Case, limit: float) -> dict[str, Any]:
    child.stdin.write(json.dumps(asdict(case)) + "\n")
    child.stdin.flush()
    if not select.select([child.stdout], [], [], limit)[0]:
        return {"outcome": "hang", "status": None, "said": ""}
    line = child.stdout.readline()
    return json.loads(line) if line else {"outcome": "crash", "status": None, "said": ""}


def _serve(folder: Path) -> None:
    """The child: reads cases, writes results."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if not sys.stderr.isatty():
        os.dup2(1, 2)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.environ["MAML_DIST_DATA"] = str(folder / "no data")
    os.environ.pop("RAY_ADDRESS", None)
    import torch

    from maml_dist.training import trainer
    from maml_dist.tuning import tuner

    torch.set_num_threads(1)

    class NoRay:
        def __init__(self, address: str | None) -> None:
            raise ValueError("Ray is not started here")

    for module in (trainer, tuner):
        module.RayBackend = NoRay  # type: ignore[assignment,misc]
    print("ready", file=answers, flush=True)
    for number, line in enumerate(sys.stdin):
        case = Case(**json.loads(line))
        place = folder / f"{os.getpid()}-{number}"
        place.mkdir()
        os.chdir(place)
        answers.write(json.dumps(_tried(case, folder)) + "\n")
        answers.flush()
        os.chdir(folder)
        shutil.rmtree(place)


def _run_of(recipe: str, folder: Path) -> Path:
    """A finished run, made when it is first needed."""
    import maml_dist

    if not (folder / recipe).exists():
        settings: dict[str, Any] = {
            key: int(value) if value.isdigit() else value for key, value in SMALL.items()
        }
        settings |= {"episodes": 1, "horizon": 3} if recipe == "navigation" else {}
        settings |= {"run": folder / recipe, "local": True, "progress": False}
        maml_dist.meta_test(maml_dist.meta_train(recipe, **settings))
    return folder / recipe


def _tried(case: Case, folder: Path) -> dict[str, Any]:
    """Make the files of a case, do what it says, look what it left."""
    Path("victim.txt").write_text("whole")
    if any("RUN" in word or "(run" in word for word in (*case.words, *case.files)):
        shutil.copytree(_run_of("sinusoid", folder), "RUN")
    for name, made in case.files.items():
        _make(name, made)
    before = {str(path) for path in Path().rglob("*")}
    out, err = (
        io.TextIOWrapper(io.BytesIO(), errors=how) for how in ("strict", "backslashreplace")
    )
    raised: BaseException | None = None
    status: Any = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = _call(case, folder) if case.command == "python" else _command(case)
        except BaseException as error:  # what it is decides the outcome
            raised = error
    err.flush()
    said = err.buffer.getvalue().decode()  # type: ignore[attr-defined]
    if raised is not None:
        said = f"{type(raised).__name__}: {raised}"
    left = {str(path) for path in Path().rglob("*")} - before
    outcome = _outcome(case, raised, status, said, left)
    return {"outcome": outcome, "status": status, "said": said[-600:], "left": sorted(left)[:5]}


def _outcome(
    case: Case, raised: BaseException | None, status: Any, said: str, left: set[str]
) -> str:
    if Path(MARKER).exists() or Path("victim.txt").read_text() != "whole":
        return "executed"
    lines = [line for line in said.splitlines() if line.strip()]
    if case.command == "python":
        refused = isinstance(raised, ValueError | OSError)
        if raised is None:
            return "accepted"
        if not refused:
            return "ended" if isinstance(raised, FloatingPointError) else "traceback"
    elif raised is not None or status == 70 or "Traceback" in said:
        return "traceback"
    elif status == 0:
        return "accepted"
    elif status == 1:
        return "ended"
    elif status != 2 or not lines or not lines[-1].startswith("error: "):
        return "unclear"
    if len(lines) != 1 or len(said) > 1500 and case.command != "python":
        return "unclear"
    if case.command == "report":  # the page without the picture that could not be drawn
        left = {path for path in left if not path.startswith("RUN/")}
    return "left something" if left else "refused"


def _command(case: Case) -> int:
    from importlib import import_module

    from maml_dist.cli import guarded

    sys.argv = [case.command, *case.words]
    return guarded(import_module(f"maml_dist.{case.command}").main)


def _call(case: Case, folder: Path) -> int:
    import numpy as np
    import torch

    import maml_dist

    run = _run_of("sinusoid", folder)
    names = {"np": np, "torch": torch, "maml_dist": maml_dist, "nan": float("nan"), "RUN": run}
    names |= {"x": torch.zeros(5, 1), "y": torch.ones(5, 1), "inf": float("inf")}
    text = case.words[0]
    if "model." in text:
        names["model"] = maml_dist.load(run)
    if "policy." in text:
        names["policy"] = maml_dist.load(_run_of("navigation", folder))
    if "(run" in text:
        from maml_dist.runs.run import Run

        names["run"] = Run.open("RUN")
    eval(text, names)
    return 0


def _make(name: str, made: Any) -> None:
    """Make a file as a case describes it."""
    if name == "records":
        return _make_records(made)
    path = Path(name)
    if path.name == "*":
        path = max(path.parent.glob("*.safetensors"))
    path.parent.mkdir(parents=True, exist_ok=True)
    how = {"text": made} if isinstance(made, str) else made
    content = path.read_bytes() if path.is_file() else b""
    if "made" in how or "text" in how or "seed" in how:
        path.unlink(missing_ok=True)
    if "seed" in how:
        from malformed import _changed_bytes

        path.write_bytes(_changed_bytes(random.Random(how["seed"]), content or b"x"))
    elif "text" in how:
        path.write_bytes(how["text"].encode(errors="surrogatepass"))
    elif "hex" in how:
        path.write_bytes(bytes.fromhex(how["hex"]))
    elif how["made"] == "folder":
        path.mkdir()
    elif how["made"] == "pipe":
        os.mkfifo(path)
    elif how["made"] == "loop":
        path.symlink_to(path.name)
    return None


def _make_records(made: dict[str, Any]) -> None:
    """Parquet files, one of whose columns is odd, and a recipe of them."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import parquet as pq

    rows = made["rows"]
    ids, numbers = np.arange(rows) // 20, np.random.default_rng(0).normal(size=(3, rows))
    odd = {
        "string": lambda: pa.array(["x"] * rows, pa.string()),
        "null": lambda: pa.nulls(rows),
        "nan": lambda: pa.array([float("nan")] * rows, pa.float64()),
        "infinite": lambda: pa.array([float("inf")] * rows, pa.float64()),
        "list": lambda: pa.array([[1.0]] * rows, pa.list_(pa.float64())),
        "struct": lambda: pa.array([{"x": 1}] * rows, pa.struct([("x", pa.int64())])),
        "binary": lambda: pa.array([b"\xff"] * rows, pa.binary()),
        "decimal": lambda: pa.array([1] * rows, pa.int64()).cast(pa.decimal128(30, 2)),
        "date": lambda: pa.array([0] * rows, pa.date32()),
        "bool": lambda: pa.array([True] * rows, pa.bool_()),
        "dictionary": lambda: pa.array(ids.astype(str), pa.string()).dictionary_encode(),
        "huge": lambda: pa.array([1e300] * rows, pa.float64()),
        "some null": lambda: pa.array([None if i % 7 == 0 else i // 20 for i in range(rows)]),
        "empty": lambda: pa.array([""] * rows, pa.string()),
        "negative": lambda: pa.array(-ids),
        "shuffled": lambda: pa.array(np.random.default_rng(0).permutation(ids)),
    }
    columns = {"task_id": pa.array(ids), **{n: pa.array(numbers[i]) for i, n in enumerate("aby")}}
    name, kind = made["column"], made["kind"]
    if kind in odd:
        columns[name] = odd[kind]()
    table = pa.table(
        {key: value for key, value in columns.items() if (key, kind) != (name, "none")}
    )
    if kind == "twice":
        table = table.append_column(name, columns[name])
    for number in range(made["files"]):
        pq.write_table(table, f"{number}.parquet", row_group_size=made["group"])
        content = Path(f"{number}.parquet").read_bytes()
        cut = {
            "half": content[: len(content) // 2],
            "none": b"",
            "bytes": content[:50] + content[90:],
        }
        Path(f"{number}.parquet").write_bytes(cut.get(made["cut"], content))
    Path("records.yaml").write_text(
        "task: {class_path: Records, init_args: {path: ., features: [a, b], target: y}}\n"
        "model: {class_path: MLP, init_args: {inputs: 2}}\nlearner: MAML\nouter: Adam\n"
    )


def main() -> int:
    """Try many, print a summary by kind and all that went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--show", action="store_true", help="show what was accepted and refused too"
    )
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _serve(options.child)
        return 0
    results = run(cases(options.count, options.seed))
    for result in results:
        if wrong(result) or options.show:
            case = result["case"]
            print(f"{result['outcome']}: {case.kind}: {case.command} {str(case.words)[:300]}")
            print(f"    {str(case.files)[:400]}\n    {result['status']} {result['said']!r}")
            print(f"    left: {result.get('left')}")
    counts = Counter((result["case"].kind, result["outcome"]) for result in results)
    for (kind, outcome), number in sorted(counts.items()):
        print(f"{kind:10} {outcome:15} {number}")
    failed = sum(map(wrong, results))
    print(f"{len(results)} inputs, {failed} not met as they should be")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
