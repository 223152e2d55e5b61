"""Runs on a cluster that begins without a worker: the actors that they want bring machines.

Ray's autoscaler starts a Ray of its own for each, all on one host, where it stops no other's.
"""

import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cluster.hosts import Hosts, missing
from cluster.on_premise import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(missing()), reason=missing())]

# The file is where `ray up` puts it, by which a run knows that machines may come.
LISTS = (
    *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands"),
    *("setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
)
CLUSTER = {
    "cluster_name": "fake",
    "provider": {
        "type": "fake_multinode",
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "max_workers": 2,
    "idle_timeout_minutes": 5,
    "upscaling_speed": 1.0,
    **{key: {} for key in ("auth", "file_mounts")},
    **{key: [] for key in LISTS},
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
}
START = (
    "export RAY_FAKE_CLUSTER=1 AUTOSCALER_UPDATE_INTERVAL_S=1 RAY_enable_autoscaler_v2=0; "
    "for try in 1 2 3; do ray stop --force; "
    "ray start --head --num-cpus=0 --autoscaling-config=ray_bootstrap_config.yaml && break; done"
)
VARIABLES = f"PATH={sysconfig.get_path('scripts')}:$PATH PYTHONPATH={ROOT} RAY_AUTH_MODE=disabled"
TRAIN = (
    "python -m maml_dist.train sinusoid --address auto iterations=40 meta_batch=4 "
    "checkpoint_every=40 validation_tasks=2 test_tasks=2 engine.running=eager"
)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with tempfile.TemporaryDirectory(prefix="maml-hosts-") as folder, Hosts(Path(folder)) as made:
        host = made.add("head", 2)
        with (host.home / ".bashrc").open("a") as profile:
            profile.write(f"export {VARIABLES}\n")
        (host.home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(CLUSTER))
        made.run("head", START)
        yield made


@pytest.mark.parametrize("shards", ['"shards={min: 1, max: 2}"', ""])
def test_a_run_begins_where_no_worker_is_yet(hosts: Hosts, shards: str) -> None:
    assert " CPU" not in hosts.run("head", "ray status")  # so what computes has come
    said = hosts.run("head", f"{TRAIN} {shards} --run run", timeout=300)
    assert "run: /root/run" in said and "Traceback" not in said
