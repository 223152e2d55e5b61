"""`ray up` on hosts with ssh: a run through lost cables, machines, Rays, driver and head.

python -m pytest -m cluster tests/cluster; needs root, and takes half an hour. With -s it
prints for each fault the seconds until it was said, and until the run went on.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.hosts import Hosts, missing
from cluster.on_premise import ROOT, OnPremise
from cluster.stranger import ASK, CALLS, LOOK, PAGES
from cluster.watched import NOT_OURS, Watched
from safetensors.numpy import load_file

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(missing()), reason=missing())]

RUN = (
    *("sinusoid", "iterations=10000", "checkpoint_every=50", "meta_batch=200", "slices=2"),
    *("log_every=1", "validation_tasks=4", "test_tasks=4", "engine.running=eager"),
)
TRAIN = f"python -m maml_dist.train {' '.join(RUN)}"
RAYLET = "kill -9 $(pgrep -x raylet)"
GCS = "kill -9 $(pgrep -x gcs_server)"
DRIVER = (
    "kill -9 $(ps -eo pid,args | awk '/[0-9] python -m maml_dist.train/ && !/bash/ {print $1}')"
)
UP_WITHIN = 600.0  # seconds


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """The same run in one process of this machine, begun now; waits for its end when asked."""
    folder = tmp_path_factory.mktemp("local") / "run"
    command = (sys.executable, "-m", "maml_dist.train", *RUN, "--local", "--run", str(folder))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=folder.parent, **quiet)

    def ended() -> Path:
        assert process.wait() == 0
        return folder

    yield ended
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def cluster(undisturbed: Callable[[], Path]) -> Iterator[OnPremise]:
    with tempfile.TemporaryDirectory(prefix="maml-hosts-") as folder, Hosts(Path(folder)) as hosts:
        made = OnPremise(hosts)
        made.ray("up", "--yes")
        made.wait_for(2, within=UP_WITHIN)
        yield made


def begun(cluster: OnPremise, run: str, command: str) -> Watched:
    """A training command on the head, by `ray exec`."""
    process = cluster.start("exec", f"'{command}'")
    return Watched(process, cluster.hosts.all["head"].home / "runs" / run)


def last(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("0*.safetensors"))


def same_bits(folder: Path, other: Path) -> bool:
    """Whether two runs have ended at the same iteration, with the same weights."""
    one, two = load_file(last(folder)), load_file(last(other))
    return (
        last(folder).name == last(other).name
        and one.keys() == two.keys()
        and all((one[name] == two[name]).all() for name in one)
    )


def test_a_run_goes_through_lost_cables_machines_and_rays(
    cluster: OnPremise, undisturbed: Callable[[], Path]
) -> None:
    hosts = cluster.hosts
    run = begun(cluster, "losses", f'{TRAIN} "shards={{min: 1, max: 2}}" --run runs/losses')
    run.until(100)

    at, host = time.monotonic(), cluster.computing()
    hosts.cut(host)
    time.sleep(20)  # less than heartbeat_timeout
    hosts.mend(host)
    run.until(run.reached + 50)
    print(f"cable cut for 20 s: {run.after(at)}")

    cluster.wait_for(2, within=UP_WITHIN)
    at, host = time.monotonic(), cluster.computing()
    hosts.cut(host)
    time.sleep(45)  # more
    hosts.mend(host)
    run.says("goes on from iteration", since=at)
    run.until(run.reached + 50)
    print(f"cable cut for 45 s: {run.after(at)}")

    at, host = time.monotonic(), cluster.computing(but=host)  # whose shard was ended
    hosts.power_off(host)
    cluster.join("w3", 60)
    run.says("goes on from iteration", since=at)
    run.until(run.reached + 50)
    print(f"powered off: {run.after(at)}")

    at = time.monotonic()
    hosts.run(cluster.computing(), RAYLET)
    run.says("goes on from iteration", since=at)
    run.until(run.reached + 20)
    print(f"raylet killed: {run.after(at)}")

    assert run.ends() == 0
    assert not [text for text in NOT_OURS if text in run.output], run.output
    losses = [line for _, line in run.lines if " on 10." in line]
    assert len(losses) == len(set(losses)) >= 3, losses
    assert same_bits(run.folder, undisturbed())


def test_a_run_goes_on_after_its_driver_and_its_head(
    cluster: OnPremise, undisturbed: Callable[[], Path]
) -> None:
    hosts = cluster.hosts
    cluster.wait_for(1, within=UP_WITHIN)
    run = begun(cluster, "ends", f'{TRAIN} "shards={{min: 1, max: 2}}" --run runs/ends')
    run.until(100)
    at = time.monotonic()
    hosts.run("head", DRIVER)
    assert run.ends(patience=60)

    resume = "python -m maml_dist.train --resume runs/ends"
    run = begun(cluster, "ends", resume)
    run.until(200)
    print(f"driver killed: went on after {time.monotonic() - at:.0f} s")
    at = time.monotonic()
    hosts.run("head", GCS)
    run.says("the cluster", "head", "does not answer", since=at, patience=60)
    assert run.ends(patience=120)
    ended = time.monotonic() - at
    print(f"head lost: {run.after(at)}, driver ended after {ended:.0f} s")

    at, reached = time.monotonic(), run.reached
    cluster.ray("up", "--yes")
    cluster.wait_for(1, within=UP_WITHIN)
    run = begun(cluster, "ends", resume)
    run.until(reached + 1)
    print(f"head lost: {time.monotonic() - at:.0f} s from `ray up` until the run went on")
    assert run.ends() == 0
    assert same_bits(run.folder, undisturbed())


def test_a_stranger_on_the_network_is_refused_everywhere(cluster: OnPremise) -> None:
    hosts = cluster.hosts
    hosts.add("stranger", 200)
    address = f"{cluster.head}:6379"
    for form in ("RAY_AUTH_MODE=disabled", f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={'0' * 64}"):
        python = f"{form} timeout 60 {sys.executable}"
        said = hosts.run(
            "stranger", f"{python} -m ray.scripts.scripts start --address={address}; :"
        )
        assert "InvalidAuthToken" in said and "Ray runtime started" not in said
        client = f"import ray; ray.init('ray://{cluster.head}:10001'); print('is', 'in')"
        assert "is in" not in hosts.run("stranger", f'{python} -c "{client}"; :')

    places = [
        f"{hosts.all[name].address}:{port}"
        for name in ("head", *cluster.names)
        if hosts.all[name].process
        for port in cluster.ports(name)
    ]
    assert len(places) >= 12
    (hosts.all["stranger"].home / "ask.py").write_text(ASK)

    def asks(calls: list[str], pages: list[str], token: str, *places: str) -> dict[str, Any]:
        words = (json.dumps(calls), json.dumps(pages), token, *places)
        arguments = " ".join(f"'{word}'" for word in words)
        said = hosts.run("stranger", f"{sys.executable} ask.py {arguments}")
        answers: dict[str, Any] = json.loads(said.splitlines()[-1])
        return answers

    token = (hosts.all["desk"].home / ".ray" / "auth_token").read_text().strip()
    assert asks([LOOK], [], token, address)[address]["calls"] == {LOOK: "OK"}  # else we ask amiss
    for token in ("", "0" * 64):
        answers = asks(CALLS, PAGES, token, *places)
        codes = {code for answer in answers.values() for code in answer["calls"].values()}
        assert codes <= {"UNAUTHENTICATED", "UNIMPLEMENTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
        refused = [at for at, answer in answers.items() if "UNAUTHENTICATED" in str(answer)]
        assert f"{address}" in refused and len(refused) >= 6
        pages = {code for answer in answers.values() for code in answer["pages"].values()}
        assert 401 in pages or 403 in pages
        assert pages <= {401, 403, 404, 405, "numbers"}, answers
    assert not (hosts.all["head"].folder / "tmp" / "stranger").exists()


def test_nothing_is_left_after_the_tear_down_of_the_file(cluster: OnPremise) -> None:
    cluster.ray("down", "--yes")
    header = (ROOT / "cluster-on-premise.yaml").read_text()
    assert "~/venv/bin/ray stop --force'; done" in header
    for address in (cluster.head, *cluster.addresses):
        cluster.hosts.run("desk", f"ssh root@{address} '~/venv/bin/ray stop --force'", check=False)
    time.sleep(5)
    for name in ("head", *cluster.names):
        if cluster.hosts.all[name].process:
            left = cluster.hosts.run(name, "ps -eo args")
            rays = [line for line in left.splitlines() if "ray" in line and "bash" not in line]
            assert not rays, f"{name}: {rays}"
