"""What maml_dist does on this machine's GPU, within some minutes, one command.

    python benchmarks/gpu.py [--minutes 8] [--parts tests,A,…] [--omniglot FOLDER]
                             [--precision float32] [--out gpu-benchmark] [--dry-run]

    data      Omniglot: FOLDER's official images, or generated ones in their layout
    tests     pytest -m gpu
    A … D, T  the meta-gradient of the workloads of benchmarks/peer_cases.py and of a transformer:
              the engine, each way it runs, beside torch.func by hand (benchmarks/gpu_workloads.py)
    jax       the same in JAX, where it is installed (benchmarks/gpu_jax.py)
    shards    1, 2 and 4 shards that share the GPU over Ray (benchmarks/gpu_shards.py)
    omniglot  5-way 1-shot for the time that is left: the accuracy reached

Each part is a process of its own with its share of the time that is left, and survives another's
failure. Its rows are on disk as soon as they are there: OUT/PART.jsonl; what it said is in
OUT/PART.log, and all of it after each part in OUT/gpu.json, which is printed at the end, and a
table. `--dry-run` does all of it in small, on a CPU as well.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # however it is started

import torch  # noqa: E402 - after the path

from benchmarks.gpu_process import GRACE, Part, run  # noqa: E402
from benchmarks.gpu_table import lines  # noqa: E402

LEAST = 2 * GRACE  # seconds: with less, a part is left out
# Of the whole time; what a part leaves goes to those after it.
SHARES = {
    **{"data": 5, "tests": 16, "A": 5, "B": 7, "C": 8, "D": 6, "T": 6, "jax": 7},
    **{"shards": 15, "omniglot": 25},
}


def main() -> None:
    """Run the parts; print JSON and a table."""
    options = _parse()
    deadline = time.monotonic() + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": machine(), "options": _said(options), "parts": []}
    measure(parts(options), results, options.out, deadline)
    print(json.dumps(results))
    print("\n".join(lines(results)))


def measure(chosen: Sequence[Part], results: dict[str, Any], out: Path, deadline: float) -> None:
    """Run the parts until the deadline, each in its share of what is left; note what they found."""
    out = out.absolute()
    environment = {"MAML_DIST_DATA": str(out / "data"), "PYTHONPATH": _path()}
    for number, part in enumerate(chosen):
        left = deadline - time.monotonic()
        limit = left * part.share / sum(each.share for each in chosen[number:])
        if limit < LEAST:
            found = {"part": part.name, "status": "left out", "seconds": 0, "rows": []}
            found |= {"limit": round(limit, 1), "said": ["there was no time left"]}
        else:
            print(f"{part.name}: up to {limit:.0f} s", file=sys.stderr, flush=True)
            found = run(part, out, limit=limit, environment=environment)
        results["parts"].append(found)
        written = out / "gpu.json.new"
        written.write_text(json.dumps(results, indent=1))
        written.replace(out / "gpu.json")


def parts(options: argparse.Namespace) -> list[Part]:
    """Those that are asked for, in their order."""
    python, small = (sys.executable,), ("--dry-run",) * options.dry_run
    precision = ("--precision", options.precision)
    commands: dict[str, tuple[str, ...]] = {"data": _script("data")}
    if options.omniglot:
        commands["data"] += ("--omniglot", str(options.omniglot.absolute()))
    for name in "ABCDT":
        commands[name] = (*_script("workloads"), "--workloads", name, *precision)
    commands |= {"jax": (*_script("jax"), *precision)}
    commands |= {name: _script(name) for name in ("shards", "omniglot")}
    tests = ("-m", "pytest", "-q", "-m", "gpu", "-n", "0", "-rs", "-p", "no:cacheprovider")
    commands["tests"] = (
        *tests,
        "--rootdir",
        str(ROOT),
        str(ROOT / "tests/integration/test_gpu.py"),
    )
    return [
        Part(name, (*python, *commands[name]), share, writes_rows=False)
        if name == "tests"
        else Part(name, (*python, *commands[name], *small), share)
        for name, share in SHARES.items()
        if name in options.parts
    ]


def machine() -> dict[str, Any]:
    """What all of it runs on."""
    there: dict[str, Any] = {"device": "CPU", "torch": torch.__version__}
    if torch.cuda.is_available():
        there["device"] = torch.cuda.get_device_name()
        there["GiB"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30)
        there["cuda"] = torch.version.cuda
    return there | {"python": platform.python_version(), "cores": os.cpu_count()}


def _script(name: str) -> tuple[str, ...]:
    return (str(ROOT / "benchmarks" / f"gpu_{name}.py"),)


def _path() -> str:
    """So that the package of this checkout is the one that is measured, by Ray's actors too."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def _said(options: argparse.Namespace) -> dict[str, Any]:
    return {name: str(value) for name, value in vars(options).items()}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it (8)")
    parser.add_argument(
        "--parts",
        type=lambda text: text.split(","),
        default=list(SHARES),
        metavar=",".join(SHARES),
        help="those to run (all)",
    )
    parser.add_argument("--omniglot", type=Path, metavar="FOLDER", help="of the official images")
    parser.add_argument(
        "--precision", choices=("float32", "tf32"), default="float32", help="(float32)"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-benchmark"), help="(gpu-benchmark)")
    parser.add_argument("--dry-run", action="store_true", help="all of it in small")
    options = parser.parse_args()
    for name in options.parts:
        if name not in SHARES:
            parser.error(f"--parts: {name!r} is none of {', '.join(SHARES)}")
    if options.minutes <= 0:
        parser.error(f"--minutes={options.minutes:g}: must be more than 0")
    if options.omniglot and not options.omniglot.is_dir():
        parser.error(f"--omniglot={options.omniglot}: is no folder")
    return options


if __name__ == "__main__":
    main()
