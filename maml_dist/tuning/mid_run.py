"""Mid-run: that the keys of a population can change in mid-run, and have an effect there.

What decides the model, the tasks, or what the optimizer remembers cannot. What only says where a
learned value begins (the rates of Meta-SGD) would change nothing any more.
"""

from typing import Any

import torch

from maml_dist.config.compose import override
from maml_dist.config.dotted_keys import flatten_keys, full_key
from maml_dist.config.recipe import Config
from maml_dist.runs.run import Run
from maml_dist.runs.server_state import to_tensors
from maml_dist.runtime.server import ParameterServer
from maml_dist.tuning import distributions
from maml_dist.tuning.population import interval
from maml_dist.tuning.search_space import Search
from maml_dist.tuning.trial_run import UNWRITTEN
from maml_dist.tuning.tried import tried

CHANGEABLE = {int, float, bool, type(None)}
CAN = "other numbers of the learner and of the outer optimizer can, such as outer.beta"


def refuse_fixed(plan: Search, config: Config) -> None:
    """Raise ValueError where a key of a population is fixed once a run has begun.

    Or where its intervals are as long as its runs, or its recipe has sparse parameters.
    """
    if interval(plan, config) >= config["iterations"]:
        raise ValueError(
            f"perturbation_interval={interval(plan, config)}: must be less than the "
            f"{config['iterations']} iterations of a trial (null: checkpoint_every)"
        )
    if config["sparse"]:
        raise ValueError(
            "scheduler=pbt: with sparse parameters rows wait for updates of the values that were, "
            "so that these cannot change in mid-run"
        )
    keys = [key.removesuffix(".class_path") for key in flatten_keys(config)]
    for key in plan.search:
        known = full_key(key, keys)
        values = distributions.tried(plan.search[key])
        kinds = {type(value) for value in values}
        if not known.startswith(("learner.", "outer.")) or not kinds <= CHANGEABLE:
            raise _fixed(key, "it is no number of those that can")
        ends = distributions.choices(plan.search[key]) or values[:2]
        first, *others = [_start(plan, config, {key: value}) for value in ends]
        for other in others:
            if {n: t.shape for n, t in first.items()} != {n: t.shape for n, t in other.items()}:
                raise _fixed(key, "it decides which parameters, or moments of them, there are")
            if any(not torch.equal(first[name], other[name]) for name in first):
                raise _fixed(key, "it says where learned values, or moments, begin")


def _fixed(key: str, why: str) -> ValueError:
    return ValueError(f"search.{key}: cannot change in mid-run, as with pbt: {why}; {CAN}")


def _start(plan: Search, config: Config, values: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What a run with these values begins with."""
    run = Run(UNWRITTEN, override(config, tried(plan)[0] | values))
    seeded = run.seeded
    server = ParameterServer(
        seeded.vector(seeded.values), run.experiment.outer, learned=seeded.learned
    )
    return to_tensors(server.state(), run.layout)
