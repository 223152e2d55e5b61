"""cluster.yaml, provisioned by Ray's own node provider on an EC2 that is mocked in this process."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from ray.autoscaler import tags
from ray.autoscaler._private.resource_demand_scheduler import ResourceDemandScheduler
from ray.autoscaler._private.util import prepare_config

ROOT = Path(__file__).parents[2]
moto = pytest.importorskip("moto", reason="moto comes with the extra `dev`")


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of the mocked EC2; keys that Ray makes go to a home of the test's own."""
    pretended = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
    pretended["HOME"] = str(tmp_path_factory.mktemp("home"))
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict("os.environ", pretended))
        stack.enter_context(mock.patch("time.sleep"))
        stack.enter_context(moto.mock_aws(config={"iam": {"load_aws_managed_policies": True}}))
        import boto3
        from ray.autoscaler._private.aws import utils

        yield boto3.client("ec2", written()["provider"]["region"])
        utils.resource_cache.cache_clear()
        utils.client_cache.cache_clear()


@pytest.fixture(scope="module")
def config(cloud: Any) -> dict[str, Any]:
    """What `ray up` makes of the file, with an image of the region written over the placeholder."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config = written()
    image = cloud.register_image(Name="base", RootDeviceName="/dev/sda1")["ImageId"]
    for node in config["available_node_types"].values():
        node["node_config"]["ImageId"] = image
    bootstrapped = AWSNodeProvider.bootstrap_config(prepare_config(config))
    filled: dict[str, Any] = AWSNodeProvider.fillout_available_node_types_resources(bootstrapped)
    return filled


@pytest.fixture
def provider(config: dict[str, Any], cloud: Any) -> Iterator[Any]:
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    yield provider
    provider.terminate_nodes(provider.non_terminated_nodes({}))


def written() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return config


def launch(provider: Any, config: dict[str, Any], kind: str) -> dict[str, Any]:
    """One node of the type `kind`, as Ray launches it; what EC2 then says of it."""
    is_head = kind == config["head_node_type"]
    node_config = config["available_node_types"][kind]["node_config"]
    node_tags = {
        tags.TAG_RAY_NODE_KIND: "head" if is_head else "worker",
        tags.TAG_RAY_USER_NODE_TYPE: kind,
        tags.TAG_RAY_LAUNCH_CONFIG: "hash",
    }
    [instance] = provider.create_node(
        node_config | (config["head_node"] if is_head else {}), node_tags, 1
    )
    return described(provider.ec2.meta.client, instance)


def described(cloud: Any, instance: str) -> dict[str, Any]:
    [reservation] = cloud.describe_instances(InstanceIds=[instance])["Reservations"]
    [found] = reservation["Instances"]
    return {**found, "Tags": {tag["Key"]: tag["Value"] for tag in found["Tags"]}}


def test_the_head_is_bought_on_demand_and_may_start_workers(provider, config, cloud):
    head = launch(provider, config, "head")
    assert head["InstanceType"] == "m7i.xlarge"
    assert "InstanceLifecycle" not in head
    assert head["Tags"] == {
        "ray-cluster-name": "maml-dist",
        "ray-node-type": "head",
        "ray-user-node-type": "head",
        "ray-launch-config": "hash",
    }
    assert head["IamInstanceProfile"]["Arn"].endswith("instance-profile/ray-autoscaler-v1")
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}


def test_a_worker_is_a_spot_instance_with_a_gpu_and_no_rights(provider, config, cloud):
    worker = launch(provider, config, "gpu_worker")
    assert worker["InstanceType"] == "g6.xlarge"
    assert worker["InstanceLifecycle"] == "spot"
    assert worker["Tags"]["ray-cluster-name"] == "maml-dist"
    assert worker["Tags"]["ray-node-type"] == "worker"
    assert "IamInstanceProfile" not in worker
    resources = config["available_node_types"]["gpu_worker"]["resources"]
    assert (resources["CPU"], resources["GPU"], resources["accelerator_type:L4"]) == (4, 1, 1)


def test_from_outside_only_ssh_reaches_the_nodes(provider, config, cloud):
    head, worker = (launch(provider, config, kind) for kind in ("head", "gpu_worker"))
    [group] = {node["SecurityGroups"][0]["GroupId"] for node in (head, worker)}
    [found] = cloud.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    inside, outside = sorted(found["IpPermissions"], key=lambda rule: bool(rule["IpRanges"]))
    assert (inside["IpProtocol"], inside["IpRanges"]) == ("-1", [])
    assert [pair["GroupId"] for pair in inside["UserIdGroupPairs"]] == [group]
    assert (outside["IpProtocol"], outside["FromPort"], outside["ToPort"]) == ("tcp", 22, 22)


def test_nothing_that_costs_is_left_when_the_cluster_goes_down(provider, config, cloud):
    nodes = [launch(provider, config, kind) for kind in ("head", "gpu_worker", "gpu_worker")]
    disks = [node["BlockDeviceMappings"][0]["Ebs"]["VolumeId"] for node in nodes]
    sizes = [disk["Size"] for disk in cloud.describe_volumes(VolumeIds=disks)["Volumes"]]
    assert sizes == [150, 150, 150]
    ids = [node["InstanceId"] for node in nodes]
    assert sorted(provider.nodes_for_teardown({})) == sorted(ids)
    provider.terminate_nodes(ids)
    assert {described(cloud, instance)["State"]["Name"] for instance in ids} == {"terminated"}
    assert not {disk["VolumeId"] for disk in cloud.describe_volumes()["Volumes"]} & {*disks}


@pytest.mark.parametrize(("gpus", "workers"), [(0, 0), (3, 3), (50, 8)])
def test_workers_are_started_for_the_gpus_that_are_asked_for(provider, config, gpus, workers):
    head = launch(provider, config, "head")["InstanceId"]
    scheduler = ResourceDemandScheduler(
        provider, config["available_node_types"], config["max_workers"], "head", 1000
    )
    address = provider.internal_ip(head)
    launched, _ = scheduler.get_nodes_to_launch(
        [head], {}, [{"GPU": 1, "CPU": 1}] * gpus, {address: {}}, [], {address: {}}, [],
        mock.Mock(node_availabilities={}),
    )  # fmt: skip
    assert launched.get("gpu_worker", 0) == workers
