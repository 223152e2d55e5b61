"""The options of `ray.init` with which actors import from where this process does.

By itself Ray puts the working directory first for them, whose files may hide others: those that
came with a stranger's run, say.
"""

import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

QUIET: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}


def options() -> dict[str, Any]:
    """Of `ray.init`: quiet, and with this process's places to import from."""
    from ray.job_config import JobConfig

    if {"", os.getcwd()} & {*sys.path}:
        return QUIET
    job = JobConfig()
    job._client_job = True  # for which Ray leaves the path alone
    here = str(Path(__file__).parents[2])
    if here not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        job._py_driver_sys_path = [here]  # a checkout
    return {"job_config": job, **QUIET}


def mute() -> None:
    """Let nothing of the cluster's own messages into the output: what matters of them, we say.

    Ray prints them whatever its options are, a block each.
    """
    from ray._private import worker

    worker.print_to_stdstream = lambda *message, **options: None
