"""What is measured on a GPU: the workloads A to D, a transformer T, and all of them in small."""

from benchmarks.peer_cases import WORKLOADS, Case, Workload, make

CASES = {name: WORKLOADS[name] for name in "ABCD"} | {
    "T": WORKLOADS["B"]._replace(
        title="a transformer (4 layers of 128) on 28x28, 5-way 1-shot, 16 tasks, 1 step",
        tasks=16, alpha=0.01, layers=4, filters=128,
    ),
}  # fmt: skip
_TINY = {"tasks": 2, "ways": 3, "query": 2, "filters": 4, "size": 16, "steps": 1}
_SMALL = {
    "A": {"tasks": 3, "shots": 4, "query": 4},
    "B": _TINY,
    "C": _TINY | {"steps": 2},
    "D": _TINY,
    "T": _TINY | {"layers": 1, "filters": 8},
}


def workload(name: str, *, small: bool) -> Workload:
    """One of `CASES`, or the same in small."""
    return CASES[name]._replace(**_SMALL[name]) if small else CASES[name]


def case(name: str, *, small: bool) -> Case:
    """Its numbers: always the same."""
    return make(workload(name, small=small)._replace(batches=1))
