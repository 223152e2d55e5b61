"""Joining the Ray cluster that the user named: what will not do is said in one line, in seconds.

Ray itself tries for minutes where nothing answers, and repeats a wrong token for twenty seconds.
RAY_AUTH_MODE, RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH are the user's, and stay as they are.
"""

import socket

import grpc

from maml_dist.runtime.ray_options import options

ANSWERS_WITHIN = 5  # seconds
FIRST_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # of every driver and every node
TAKES = (
    "it takes RAY_AUTH_MODE=token, and in RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token the token with "
    "which it was started"
)


def join(address: str) -> None:
    """Make this process a driver of the cluster at `address`: "auto", HOST:PORT or ray://HOST:PORT.

    Raises:
        ValueError: nothing answers there, or what answers does not take this process's token.
    """
    import ray
    from ray._private.authentication import authentication_token_setup as token
    from ray._private.services import canonicalize_bootstrap_address

    try:
        if address.startswith("ray://"):
            _connect(address.removeprefix("ray://"))
        else:
            found = canonicalize_bootstrap_address(address) or address
            _connect(found)
            if address == "auto":  # as `ray.init` does
                token.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
            token.ensure_token_if_auth_enabled(create_token_if_missing=False)
            _call(found)
        ray.init(address=address, **options())
    except ray.exceptions.AuthenticationError as error:
        raise ValueError(f"the Ray cluster at {address}: {error.message}; {TAKES}") from None
    except (OSError, RuntimeError, ValueError) as error:
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
