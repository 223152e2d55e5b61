"""The bits of every server mode with one to five shards, beside those of `--local`.

    python -m benchmarks.bits [--data FOLDER] [--cases sinusoid,omniglot,navigation]
                              [--modes one,split,spread] [--shards 1,2,3,4,5]

Policies have no `split`, whose servers could not make their update. `--data` is where
`python -m maml_dist.data omniglot` has put its file; that case alone needs it. Each run is a small
one on a Ray of its own; its last checkpoint must have the weights, and the optimiser's state, of
the local one.
"""

import argparse
import os
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import maml_dist

MODES = ("one", "split", "spread")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sinusoid": ("sinusoid", {"iterations": 40}),
    "omniglot": ("omniglot-5way-1shot", {"iterations": 6}),
    "navigation": ("navigation", {"iterations": 5, "task.episodes": 5, "task.horizon": 30}),
}
REFUSED = {("navigation", "split")}
SMALL = {
    "meta_batch": 10, "slices": 5, "log_every": 1, "validation_tasks": 4, "test_tasks": 4,
    "cpus_per_shard": 0.5,
}  # fmt: skip


def main() -> int:
    """Run all of them; print a line for each."""
    options = parse()
    if options.data:
        os.environ["MAML_DIST_DATA"] = str(options.data.absolute())
    different = 0
    with tempfile.TemporaryDirectory() as name:
        for case in options.cases.split(","):
            recipe, own = CASES[case]
            settings = SMALL | own | {"checkpoint_every": own["iterations"]}
            right = weights(Path(name) / case, recipe, local=True, **settings)
            modes = [mode for mode in options.modes.split(",") if (case, mode) not in REFUSED]
            for mode, shards in product(modes, map(int, options.shards.split(","))):
                clock = time.monotonic()
                more = {"shards": shards, "server": mode, **settings}
                more |= {"servers": 2} if mode == "split" else {}
                found = weights(Path(name) / f"{case}-{mode}-{shards}", recipe, **more)
                same = right.keys() == found.keys() and all(
                    torch.equal(right[name], found[name]) for name in right
                )
                different += not same
                seconds = time.monotonic() - clock
                word = "the same" if same else "DIFFERENT"
                print(f"{case} {mode} {shards}: {word} ({seconds:.0f} s)", flush=True)
    return 1 if different else 0


def weights(folder: Path, recipe: str, **settings: Any) -> dict[str, Tensor]:
    """Those of the last checkpoint, with the optimiser's state."""
    run = maml_dist.meta_train(recipe, run=folder, progress=False, **settings)
    last = run.checkpoints.last
    assert last is not None
    return load_file(run.path / "checkpoints" / last.file)


def parse() -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--shards", default="1,2,3,4,5")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
