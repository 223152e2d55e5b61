"""A real cluster that is watched: what Prometheus has of two runs, their files have too.

Prometheus itself is run where it is installed (Debian's package `prometheus`), and asked all that
the Grafana dashboard asks.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from maml_dist.runs.run import Run
from maml_dist.runtime.prometheus import column

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "grafana" / "maml_dist.json").read_text())
PREFIX = "ray_maml_dist_"
TAKEN_UP = 2.0  # seconds between two times that Ray takes metrics up
WITHIN = 240.0  # seconds for a run to get to where it is held

# Two runs after each other; each is held at its end until a file says `go`. Of the first a shard is
# killed in the middle.
DRIVER = """
import sys, time
from pathlib import Path
import ray, maml_dist

address, folder = sys.argv[1], Path(sys.argv[2])
ray.init(address=address, log_to_driver=False, logging_level="ERROR")

def held(name, last, strike=None):
    def hold(row):
        if strike and row["iteration"] == strike:
            (victim,) = [each for each in ray.util.list_named_actors(all_namespaces=True)
                         if each["name"].startswith("TaskShard 2")]
            ray.kill(ray.get_actor(**victim))
        if row["iteration"] == last:
            (folder / f"{name}.held").touch()
            while not (folder / f"{name}.go").exists():
                time.sleep(0.1)
    return hold

common = {"progress": False, "loggers": ["jsonl", "prometheus"], "shards": 2, "validation_tasks": 4,
          "test_steps": 1, "engine.running": "eager", "log_every": 5}
maml_dist.meta_train("navigation", run=folder / "linked", iterations=20, checkpoint_every=10,
                     meta_batch=4, rollout_workers=1, cpus_per_worker=0.5, horizon=10, episodes=4,
                     cpus_per_shard=0.5, on_validation=held("linked", 20, strike=10), **common)
maml_dist.meta_train("sinusoid", run=folder / "stale", iterations=60, checkpoint_every=30,
                     meta_batch=4, server="one", max_staleness=2, cpus_per_shard=0.5,
                     on_validation=held("stale", 60), **common)
"""


class Sample(NamedTuple):
    name: str
    labels: dict[str, str]
    value: float


class Seen(NamedTuple):
    """Of a run that is held: what its node's page says, and when it was."""

    run: Run
    samples: list[Sample]
    time: float

    def of(self, name: str) -> dict[tuple[str, ...], float]:
        """The sums of a metric by the labels of its own."""
        found: dict[tuple[str, ...], float] = defaultdict(float)
        for each in self.samples:
            if each.name == PREFIX + name:
                own = (each.labels.get(label) for label in ("role", "rank", "phase"))
                found[tuple(label for label in own if label)] += each.value
        return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def page(port: int, run: str) -> list[Sample]:
    from prometheus_client.parser import text_string_to_metric_families

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    every = [sample for family in families for sample in family.samples]
    return [Sample(*each[:3]) for each in every if each.labels.get("run") == run]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """What was seen of both runs while they were held, and of Prometheus, where it is installed."""
    folder, port = tmp_path_factory.mktemp("watched"), free_port()
    variables = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    variables |= {"RAY_metrics_report_interval_ms": f"{1000 * TAKEN_UP:.0f}"}
    variables |= {"RAY_worker_niceness": "0"}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 4, "include_dashboard": False, "metrics_export_port": port}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        asked = prometheus(folder, port)
        words = [sys.executable, "-c", DRIVER, cluster.address, str(folder)]
        driver = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        try:
            seen = [held(folder, name, driver, port) for name in ("linked", "stale")]
            assert driver.wait(timeout=60) == 0
            logs = Path(cluster.head_node.get_session_dir_path(), "logs").glob("worker-*.err")
            logged = "".join(path.read_text() for path in logs)
            yield seen, asked and asked[1], driver.stderr.read(), logged
        finally:
            driver.kill()
            if asked:
                asked[0].kill()
                asked[0].wait()
            cluster.shutdown()


def held(folder: Path, name: str, driver: subprocess.Popen, port: int) -> Seen:
    """What is seen of a run that is held, which then goes on."""
    end = time.monotonic() + WITHIN
    while not (folder / f"{name}.held").exists():
        assert driver.poll() is None and time.monotonic() < end, f"{name} does not get there"
        time.sleep(0.2)
    time.sleep(4 * TAKEN_UP)  # longer than Ray remembers what is not told again
    seen = Seen(Run.open(folder / name), page(port, name), time.time())
    (folder / f"{name}.go").touch()
    return seen


def prometheus(folder: Path, port: int) -> tuple[subprocess.Popen, str] | None:
    """Prometheus, which reads the node's page each second, and its address; None: not installed."""
    program = shutil.which("prometheus")
    if program is None:
        return None
    config, own = folder / "prometheus.yml", free_port()
    job = {"job_name": "ray", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}))
    words = [program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    words += [f"--web.listen-address=127.0.0.1:{own}", "--log.level=error"]
    return subprocess.Popen(words, env=os.environ), f"http://127.0.0.1:{own}"


def ask(address: str, query: str, moment: float) -> list[dict[str, Any]]:
    """Prometheus' answer to a query of the dashboard, of all runs."""
    filled = query.replace("$run", ".*").replace("$__rate_interval", "10s")
    words = urllib.parse.urlencode({"query": filled, "time": moment})
    with urllib.request.urlopen(f"{address}/api/v1/query?{words}", timeout=10) as answer:
        found = json.load(answer)
    assert found["status"] == "success" and not found.get("warnings"), (query, found)
    return found["data"]["result"]


def last_row(run: Run) -> dict[str, float]:
    return {
        name: value for name, value in run.metrics[-1].items() if isinstance(value, int | float)
    }


def test_the_page_has_the_last_row(watched):
    for seen in watched[0]:
        for name, value in last_row(seen.run).items():
            assert seen.of(column(name).name) == {(): value}, name
        labels = {(each.labels["run"], each.labels["recipe"]) for each in seen.samples}
        assert labels == {(seen.run.path.name, seen.run.config["name"])}


def test_actors_tell_what_they_have_done(watched):
    linked, stale = watched[0]
    shards = {("TaskShard", "1"), ("TaskShard", "2")}
    workers = {("RolloutWorker", "1.1"), ("RolloutWorker", "2.1")}
    server = {("ParameterServer", "0")}
    for seen, everyone in ((linked, shards | workers | server), (stale, shards | server)):
        seconds = seen.of("seconds_total")
        assert {key[:2] for key in seconds} == everyone
        assert all((*one, "waiting") in seconds for one in everyone)
        assert {"first gradient", "gradient"} <= {key[2] for key in seconds if key[:2] in shards}
        assert seen.of("tasks_total").keys() == shards
    assert sum(stale.of("tasks_total").values()) == 60 * 4  # each once
    assert sum(linked.of("tasks_total").values()) >= 20 * 4  # what was lost was done again
    steps = linked.of("environment_steps_total")
    assert workers <= steps.keys() <= workers | shards  # which act until their workers are up
    assert sum(steps.values()) >= 20 * 4 * 2 * 4
    assert linked.of("sent_bytes_total").keys() == shards  # over their links
    meta = stale.run.initial_vector.nbytes
    sent = stale.of("sent_bytes_total")
    assert sum(sent[one] for one in shards) == 60 * 2 * meta  # a gradient a slice
    assert sent["ParameterServer", "0"] == 60 * meta
    assert linked.of("actors") == {("TaskShard",): 2, ("RolloutWorker",): 2}
    assert linked.of("restarts_total") == {("TaskShard",): 1} and not stale.of("restarts_total")
    assert len(linked.of("gradient_squares")) == len(stale.of("gradient_squares")) == 1
    assert "staleness" in last_row(stale.run)


def test_what_actors_say_is_in_their_own_logs_and_not_in_the_drivers_terminal(watched):
    _, _, said, logged = watched
    assert "TaskShard 2 of 2" in said and " goes on from iteration " in said
    for line in ("TaskShard 1 has started on", "is linked as 1 of 2", "TaskShard 1 ends: "):
        assert line in logged and line not in said
    for each in ("RolloutWorker 2.1 has started", "hands the state of iteration"):
        assert each in logged
    assert len(said.splitlines()) < 10 and logged.count("hands the state") < 10


def test_prometheus_answers_each_panel_with_what_the_file_has(watched):
    seen, address, *_ = watched
    if address is None:
        pytest.skip("Prometheus is not installed")
    for one in seen:
        for name, value in last_row(one.run).items():
            (found,) = ask(address, f'{PREFIX}{column(name).name}{{run=~"$run"}}', one.time)
            assert float(found["value"][1]) == value, name
            assert found["metric"]["run"] == one.run.path.name
    for panel in DASHBOARD["panels"]:
        if panel["title"] == "Skipped tasks":  # here none is
            continue
        for target in panel["targets"]:
            found = [ask(address, target["expr"], one.time) for one in seen]
            assert any(found), (panel["title"], target["expr"])
    for one in seen:
        of_seconds = f'{PREFIX}seconds_total{{run="{one.run.path.name}"}}[$__rate_interval]'
        for found in ask(address, f"sum by (role, rank) (rate({of_seconds}))", one.time):
            assert 0.8 < float(found["value"][1]) < 1.2, found
    (runs,) = [each for each in DASHBOARD["templating"]["list"] if each["name"] == "run"]
    metric = runs["query"]["query"].removeprefix("label_values(").partition(",")[0]
    words = urllib.parse.urlencode({"match[]": metric})
    with urllib.request.urlopen(f"{address}/api/v1/label/run/values?{words}") as answer:
        assert json.load(answer)["data"] == ["linked", "stale"]
