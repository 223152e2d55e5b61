"""Joining the Ray cluster that the user named: what will not do is said in one line, in seconds.

Ray itself tries for minutes where nothing answers, and repeats a wrong token for twenty seconds.
RAY_AUTH_MODE, RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH are the user's, and stay as they are.
"""

import os
import socket
from pathlib import Path

import grpc
import yaml

from maml_dist.runtime.head_watch import watch_head
from maml_dist.runtime.ray_init import init
from maml_dist.runtime.ray_options import mute, options

ANSWERS_WITHIN = 5  # seconds
_BOOTSTRAP = Path("~/ray_bootstrap_config.yaml").expanduser()  # on the head of `ray up`
FIRST_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # of every driver and every node
TAKES = (
    "it takes RAY_AUTH_MODE=token, and in RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token the token with "
    "which it was started"
)


def join(address: str) -> None:
    """Make this process a driver of the cluster at `address`: "auto" or HOST:PORT.

    Raises:
        ValueError: nothing answers there, or not in time, or it does not take this process's token;
            or it is one of Ray Client, which does not say what becomes of actors.
    """
    import ray
    from ray._private.authentication import authentication_token_setup as token
    from ray._private.services import canonicalize_bootstrap_address

    if address.startswith("ray://"):
        raise ValueError(
            f"--address {address}: must be HOST:PORT, on a machine of the cluster; from elsewhere, "
            "submit a job (docs/cluster.md)"
        )
    try:
        found = canonicalize_bootstrap_address(address) or address
        _connect(found)
        if address == "auto":  # as `ray.init` does
            token.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        token.ensure_token_if_auth_enabled(create_token_if_missing=False)
        _call(found)
        mute()
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it says what it recovers
        init(f"the Ray cluster at {address}", address=address, **options())
        watch_head(found)
    except ray.exceptions.AuthenticationError as error:
        raise ValueError(f"the Ray cluster at {address}: {error.message}; {TAKES}") from None
    except TimeoutError as error:
        raise ValueError(f"the Ray cluster at {address} does not answer: {error}") from None
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ValueError(f"no Ray cluster at {address}: {error}") from None


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=ANSWERS_WITHIN).close()


def _call(address: str) -> None:
    """Try the token."""
    import ray
    from ray._private.grpc_utils import init_grpc_channel

    with init_grpc_channel(address) as channel:
        try:
            channel.unary_unary(FIRST_CALL)(b"", timeout=ANSWERS_WITHIN)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                refused = "it refuses this process's token, or that none is sent"
                raise ray.exceptions.AuthenticationError(refused) from None
            raise ConnectionError(error.details()) from None


def may_grow() -> bool:
    """Whether an autoscaler may bring machines: of `ray up`, or of KubeRay."""
    return _BOOTSTRAP.exists() or "KUBERAY_GEN_RAY_START_CMD" in os.environ


def machines() -> list[dict[str, float]]:
    """The resources of each machine that is there, and of each that `ray up` may bring.

    Empty where others may come of which nothing is known here.
    """
    import ray

    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not may_grow():
        return there
    try:
        kinds = yaml.safe_load(_BOOTSTRAP.read_text())["available_node_types"].values()
        coming = [each["resources"] for each in kinds for _ in range(each.get("max_workers", 0))]
    except (OSError, KeyError, AttributeError, TypeError, yaml.YAMLError):
        return []
    return there + coming if all("CPU" in each for each in coming) else []
