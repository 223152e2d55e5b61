"""maml_dist: model-agnostic meta-learning, distributed over Ray.

run = maml_dist.meta_train("sinusoid", iterations=1000, local=True)
model = maml_dist.load(run.path)
adapted = model.adapt(x, y, steps=5)
"""

import sys

# `python -m maml_dist.…` puts the working directory first on the path, whose files, come with a
# stranger's run perhaps, would pass for Python's own. While -m looks for a module, argv is -m.
if (
    sys.argv[:1] == ["-m"]
    and any(word.startswith(("maml_dist.", "-mmaml_dist.")) for word in sys.orig_argv)
    and not sys.flags.safe_path
):
    del sys.path[0]

from typing import Any  # noqa: E402  # not before

__all__ = ["load", "meta_test", "meta_train"]


def __getattr__(name: str) -> Any:  # torch is imported by the first use, not by `--help`
    if name == "meta_train":
        from maml_dist.training.trainer import meta_train

        return meta_train
    if name == "meta_test":
        from maml_dist.inference.meta_test import meta_test

        return meta_test
    if name == "load":
        from maml_dist.inference.load import load

        return load
    raise AttributeError(f"module 'maml_dist' has no attribute {name!r}")
