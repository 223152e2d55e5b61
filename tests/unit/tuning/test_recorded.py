"""A record of a search is read as it was written; what cannot be there is one line."""

import json
from dataclasses import asdict

import pytest
import yaml

from maml_dist.config.compose import compose
from maml_dist.tuning.draws import Draw, Draws
from maml_dist.tuning.finishing import space_of
from maml_dist.tuning.opened import BASE, PLAN, opened
from maml_dist.tuning.record import RECORD
from maml_dist.tuning.recorded import read_record
from maml_dist.tuning.search_space import Search

ALPHA, STEPS = "learner.alpha", "learner.steps"
SPACE = {ALPHA: {"loguniform": [0.001, 1]}, STEPS: {"choice": [1, 2, 3]}}
JUDGED = {"metric": ["val/mse/path"], "mode": ["min"], "num_samples": 3}
POPULATION = Search("sinusoid", SPACE, scheduler="pbt", perturbation_interval=10, **JUDGED)
ORDINARY = Search("sinusoid", SPACE, **JUDGED)


def drawn(trial, **more):
    values = {ALPHA: 0.1 + trial / 100, STEPS: 2}
    return {"trial": trial, "values": values, "kept": values} | more


def interval(trial, iteration=10, **more):
    reached = {"iteration": iteration, "scores": [0.5], "latest": 0.5, "seconds": 1.0}
    return {"trial": trial, "interval": reached | more}


def end(trial, **more):
    return {"trial": trial, "end": {"status": "finished", "iteration": 25, "scores": [0.2]} | more}


def takeover(trial=2, source=0, **values):
    values = {ALPHA: 0.12, STEPS: 1} | values
    return {"trial": trial, "source": source, "before": drawn(trial)["values"], "values": values}


def exploit(*takeovers, iteration=10):
    return {"exploit": {"iteration": iteration, "takeovers": [*takeovers]}}


DRAWN = [drawn(trial) for trial in range(3)]
REACHED = [*DRAWN, *(interval(trial) for trial in range(3))]
EXPLOITED = [*REACHED, exploit(takeover())]


def write(folder, lines):
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / RECORD).write_text("".join(f"{text}\n" for text in texts))


def test_a_whole_record_is_read(tmp_path):
    ends = [end(0), end(1, status="diverged", scores=None), end(2)]
    write(tmp_path, [*EXPLOITED, *(interval(trial, 20) for trial in range(3)), *ends])
    assert len(read_record(tmp_path, POPULATION)) == 13
    write(tmp_path, [drawn(0), end(0), drawn(1), drawn(2), end(2)])
    assert len(read_record(tmp_path, ORDINARY)) == 5
    assert read_record(tmp_path / "none", ORDINARY) == []


def test_what_is_drawn_can_be_read_whatever_is_searched(tmp_path):
    every = {
        "a": {"uniform": [-1, 2]},
        "b": {"quniform": [0.1, 0.55, 0.1], "when": {"j": "x"}},
        "c": {"loguniform": [1e-5, 1]},
        "d": {"qloguniform": [1, 100, 7]},
        "e": {"normal": [3, 2]},
        "f": {"lognormal": [-3, 2]},
        "g": {"randint": [1, 9]},
        "h": {"lograndint": [1, 99]},
        "i": {"choice": [None, True, 1, 1.5, [3, 4], {"k": "v"}]},
        "j": {"grid": ["x", "y"]},
    }
    plan = Search("sinusoid", every, num_samples=20)
    draws = Draws(plan, maximize=(False,), study="s")
    lines = [{"trial": number, **draws.draw(number)._asdict()} for number in range(plan.num_trials)]
    write(tmp_path, lines)
    assert len(read_record(tmp_path, plan)) == 40
    write(tmp_path, [{"trial": 0, "values": lines[0]["values"] | {"seed": 2}, "kept": {}}])
    assert len(read_record(tmp_path, space_of(plan, [1, 2]))) == 1
    with pytest.raises(ValueError, match="line 1: trial 0: seed=2: is not of"):
        read_record(tmp_path, space_of(plan, [3]))


@pytest.mark.parametrize(
    ("plan", "lines", "said"),
    [
        (ORDINARY, ["{}"], "line 1: must be one of a draw"),
        (ORDINARY, ["no"], "line 1 is not JSON"),
        (ORDINARY, [drawn(0), end(0, status="won")], "line 2"),
        (ORDINARY, [drawn(0), end(0), end(0)], "line 3: trial 0 is not one"),
        (ORDINARY, [drawn(0), end(7)], "line 2: trial 7 is not one"),
        (ORDINARY, [drawn(0), drawn(0)], "line 2: trial 0 is not one that can be there: the next"),
        (ORDINARY, [drawn(0), drawn(2)], "line 2: trial 2 is not one"),
        (ORDINARY, [drawn(-1)], "line 1: trial -1 is not one"),
        (ORDINARY, [drawn(0, values={ALPHA: 0.1})], "line 1: trial 0: has no value of learner.st"),
        (ORDINARY, [drawn(0, values={ALPHA: 0.1, STEPS: 2, "x\ny": 1})], r"'x\ny' is not searched"),
        (
            ORDINARY,
            [drawn(0, values={ALPHA: 0.1, STEPS: 4})],
            "learner.steps=4: is not of {'choice",
        ),
        (ORDINARY, [drawn(0, kept={ALPHA: 0.2, STEPS: 2})], "trial 0: kept: is not of its values"),
        (ORDINARY, [drawn(0, kept={ALPHA: 9.0, STEPS: 2})], "trial 0: kept: is not of its values"),
        (ORDINARY, [drawn(0, kept={ALPHA: "x"})], "trial 0: kept: is not of its values"),
        (ORDINARY, [drawn(0), end(0, scores=[0.1, 0.2])], "scores=[0.1, 0.2]: must be 1"),
        (ORDINARY, [drawn(0), end(0, scores=[])], "scores=[]: must be 1"),
        (ORDINARY, [drawn(0), json.dumps(end(0)).replace("0.2", "1e999")], "scores"),
        (ORDINARY, [drawn(0), end(0, iteration=10**300)], "line 2: trial 0: iteration=1000"),
        (ORDINARY, [drawn(0), end(0, seconds=-1.0)], "seconds=-1.0"),
        (ORDINARY, [drawn(0), interval(0)], "line 2: trial 0: has an interval"),
        (ORDINARY, [drawn(0), exploit()], "line 2: has an exploit"),
        (POPULATION, [*DRAWN, interval(0, 0)], "line 4: trial 0: an interval cannot end at iterat"),
        (POPULATION, [*REACHED, interval(0, 20)], "line 7: trial 0: an interval cannot end"),
        (POPULATION, [*EXPLOITED, interval(0, 10)], "line 8: trial 0: an interval cannot end"),
        (POPULATION, [*DRAWN, interval(0, 10**300)], "line 4: trial 0: an interval cannot end"),
        (POPULATION, [*DRAWN, interval(0, scores=[1, 2])], "scores=[1.0, 2.0]"),
        (POPULATION, [*EXPLOITED, drawn(3)], "line 8: trial 3 is not one"),
        (POPULATION, REACHED[:5] + [exploit()], "line 6: an exploit cannot be at iteration 10"),
        (POPULATION, [*REACHED, exploit(iteration=11)], "an exploit cannot be at iteration 11"),
        (POPULATION, [*EXPLOITED, exploit()], "line 8: an exploit cannot be at iteration 10"),
        (
            POPULATION,
            [drawn(0), drawn(1), interval(0), interval(1), exploit()],
            "line 5: an exploit cannot be at iteration 10 here: all",
        ),
        (POPULATION, [*REACHED, exploit(takeover(2, 2))], "trial 2 cannot take over from trial 2"),
        (POPULATION, [*REACHED, exploit(takeover(9))], "trial 9 cannot take over from trial 0"),
        (POPULATION, [*REACHED, end(0), exploit(takeover())], "trial 2 cannot take over from tri"),
        (
            POPULATION,
            [*REACHED, exploit(takeover(2, 0), takeover(2, 1))],
            "the exploit: trial 2 cannot take over from trial 1",
        ),
        (
            POPULATION,
            [*REACHED, exploit(takeover(2, 0), takeover(0, 1))],
            "the exploit: trial 0 cannot take over from trial 1",
        ),
        *(
            (POPULATION, [*REACHED, exploit(takeover(**{ALPHA: value}))], f"learner.alpha={shown}")
            for value, shown in {
                "x\nmodel: [/b]": r"'x\nmodel",
                None: None,
                -1.0: -1.0,
                True: True,
                1.5: 1.5,
            }.items()
        ),
        (
            POPULATION,
            [*REACHED, json.dumps(exploit(takeover())).replace(": 0.12,", ": 1e999,")],
            "learner.alpha=inf",
        ),
        (
            POPULATION,
            [*REACHED, exploit(takeover(**{ALPHA: {"a": [1]}}))],
            "line 7: the exploit: trial 2: learner.alpha={'a'",
        ),
    ],
)
def test_what_cannot_be_there_is_one_clear_line(tmp_path, plan, lines, said):
    write(tmp_path, lines)
    with pytest.raises(ValueError) as caught:
        read_record(tmp_path, plan)
    line = str(caught.value)
    assert said in line and "\n" not in line and line.startswith(str(tmp_path / RECORD))


def test_a_search_is_opened_by_it(tmp_path):
    (tmp_path / BASE).write_text(yaml.safe_dump(compose("sinusoid"), sort_keys=False))
    (tmp_path / PLAN).write_text(yaml.safe_dump(asdict(POPULATION), sort_keys=False))
    write(tmp_path, EXPLOITED)
    trials = opened(tmp_path).trials
    assert trials.all[2].runs == ["2", "2-10"] and trials.all[2].values[STEPS] == 1
    assert trials.all[0].draw == Draw(DRAWN[0]["values"], DRAWN[0]["kept"])
    write(tmp_path, [*EXPLOITED, end(5)])
    with pytest.raises(ValueError, match="line 8: trial 5 is not one"):
        opened(tmp_path)
