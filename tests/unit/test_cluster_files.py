"""The files for `ray up`, against Ray's own schema and a real shell; no cloud and no network."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts import scripts

ROOT = Path(__file__).parents[2]
FILES = ["cluster.yaml", "cluster-on-premise.yaml"]


def written(file: str) -> dict[str, Any]:
    """The file as it stands."""
    config: dict[str, Any] = yaml.safe_load((ROOT / file).read_text())
    return config


def prepared(file: str) -> dict[str, Any]:
    """The file as `ray up` takes it: Ray's defaults filled in."""
    return prepare_config(written(file))


def test_every_cluster_file_of_the_checkout_is_tested() -> None:
    assert {path.name for path in ROOT.glob("cluster*.yaml")} == set(FILES)


@pytest.mark.parametrize("file", FILES)
def test_ray_accepts_the_file(file: str) -> None:
    config = prepared(file)
    validate_config(config)
    assert config["cluster_name"] == written(file)["cluster_name"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("node", ["head", "worker"])
def test_a_node_shell_finds_its_own_cluster(file: str, node: str, tmp_path: Path) -> None:
    (tmp_path / ".bashrc").write_text("export KEPT=1\n")
    [profile] = [line for line in prepared(file)[f"{node}_setup_commands"] if ".bashrc" in line]

    def shell(command: str) -> str:
        call = ["env", "-i", f"HOME={tmp_path}", "PATH=/usr/bin:/bin", "bash", "-euc", command]
        return subprocess.run(call, check=True, capture_output=True, text=True).stdout

    shell(profile)
    shell(profile)  # a second `ray up` changes nothing
    assert len((tmp_path / ".bashrc").read_text().splitlines()) == 2
    variables = shell('source ~/.bashrc; echo "$KEPT $RAY_ADDRESS $RAY_AUTH_MODE ${PATH%%:*}"')
    assert variables.split() == ["1", "auto", "token", f"{tmp_path}/venv/bin"]


@pytest.mark.parametrize("file", FILES)
def test_the_checkout_and_the_users_token_are_copied_to_the_nodes(file: str) -> None:
    config = written(file)
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token", "~/maml_dist": "."}
    assert "ray get-auth-token --generate" in (ROOT / file).read_text()
    left_out = {*config["rsync_exclude"], *(ROOT / ".gitignore").read_text().split()}
    assert config["rsync_filter"] == [".gitignore"]
    assert {".git", ".venv/", "/runs/"} <= left_out


@pytest.mark.parametrize("file", FILES)
def test_ray_starts_from_the_projects_own_commands(file: str) -> None:
    config = written(file)
    assert "~/venv/bin/pip install ~/maml_dist" in config["setup_commands"]
    assert "ray start --head --port=6379" in config["head_start_ray_commands"][-1]
    assert (
        "--autoscaling-config=~/ray_bootstrap_config.yaml" in config["head_start_ray_commands"][-1]
    )
    assert "ray start --address=$RAY_HEAD_IP:6379" in config["worker_start_ray_commands"][-1]


def test_aws_workers_are_spot_gpus_from_none_up_beside_a_head_without_shards() -> None:
    config = prepared("cluster.yaml")
    head, worker = (config["available_node_types"][kind] for kind in ("head", "gpu_worker"))
    assert config["provider"]["region"]
    assert config["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0}
    assert (head["min_workers"], head["max_workers"]) == (0, 0)
    assert (worker["min_workers"], worker["max_workers"]) == (0, config["max_workers"])
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert worker["node_config"]["ImageId"] == head["node_config"]["ImageId"]


def test_on_premise_starts_every_worker() -> None:
    config = prepared("cluster-on-premise.yaml")
    [node] = config["available_node_types"].values()
    assert node["min_workers"] == node["max_workers"] == len(config["provider"]["worker_ips"])
    assert "RAY_UP_enable_autoscaler_v2=0" in (ROOT / "cluster-on-premise.yaml").read_text()


@pytest.mark.parametrize(("failing", "starts"), [(0, 1), (1, 2), (9, 3)])
def test_on_premise_a_workers_start_is_tried_again(
    tmp_path: Path, failing: int, starts: int
) -> None:
    [start] = written("cluster-on-premise.yaml")["worker_start_ray_commands"]
    calls, ray = tmp_path / "calls", tmp_path / "ray"
    fails = f'[ "$1" = stop ] || [ $(grep -c start {calls}) -gt {failing} ]'
    ray.write_text(f'#!/bin/sh\necho "$1" >> {calls}; {fails}\n')
    ray.chmod(0o755)
    call = ["env", "-i", f"PATH={tmp_path}:/usr/bin:/bin", "bash", "-c", start]
    done = subprocess.run(call, capture_output=True, check=False)
    assert (done.returncode == 0) == (failing < starts)
    assert calls.read_text().split() == ["stop", "start"] * starts


@pytest.mark.parametrize("file", FILES)
def test_the_header_says_what_must_be_replaced(file: str) -> None:
    text = (ROOT / file).read_text()
    assert "PLACEHOLDER" in text
    for command in ("up", "monitor", "rsync-down", "down"):
        assert f"#   ray {command} {file}" in text


@pytest.mark.parametrize("file", FILES)
def test_the_headers_commands_are_rays_own(file: str) -> None:
    header = (ROOT / file).read_text().partition("\n\n")[0]
    for command in {"status"} | set(re.findall(r"#   ray ([a-z-]+)", header)):
        assert command in scripts.cli.commands
    assert "ray exec" in header and "'ray status'" in header


def test_every_machine_is_in_the_command_that_leaves_nothing_over() -> None:
    provider = written("cluster-on-premise.yaml")["provider"]
    [hosts] = re.findall(r"for host in (.*);", (ROOT / "cluster-on-premise.yaml").read_text())
    assert hosts.split() == [provider["head_ip"], *provider["worker_ips"]]
