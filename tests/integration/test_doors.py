"""A run as a user starts it, attacked by another user of the machine who knows every port of it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("ray")  # brings its own psutil, which is found after it
psutil = pytest.importorskip("psutil")
pytestmark = pytest.mark.ray

NOBODY = 65534
HASTE = {"RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_py_gcs_connect_timeout_s": "3"}
FORMS = {
    "as Ray is": {},
    "without a token": {"RAY_AUTH_MODE": "disabled"},
    "with a wrong one": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
}
# What each of Ray's servers does for whoever is let in.
CALLS = [
    "NodeInfoGcsService/RegisterNode",
    "InternalKVGcsService/InternalKVGet",
    "ActorInfoGcsService/RegisterActor",
    "NodeManagerService/RequestWorkerLease",
    "ObjectManagerService/Pull",
    "CoreWorkerService/PushTask",
    "ReporterService/GetTraceback",
]
ASK = """
import json, sys, grpc
said = {}
for port in sys.argv[2:]:
    said[port] = {}
    for call in json.loads(sys.argv[1]):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                channel.unary_unary("/ray.rpc." + call)(b"", timeout=3)
                said[port][call] = "OK"
            except grpc.RpcError as error:
                said[port][call] = error.code().name
print(json.dumps(said))
"""
SUBMIT = """
import http.client, json, sys, urllib.error, urllib.request
job = json.dumps({"entrypoint": f"touch {sys.argv[2]}"}).encode()
for port in sys.argv[3:]:
    url = f"http://127.0.0.1:{port}/api/job_agent/jobs/"
    headers = {"Content-Type": "application/json"} | json.loads(sys.argv[1])
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, job, headers), timeout=3)
        print("ran" if b"submission_id" in answer.read() else "number", port)
    except urllib.error.HTTPError as error:
        print(error.code, port)
    except (OSError, http.client.HTTPException):
        pass  # a port of gRPC
"""
# Ray itself takes a loopback address for the machine's outer one, where nothing listens.
LITERAL = """
import os, sys, ray._private.services
ray._private.services.resolve_ip_for_localhost = lambda host: host
"""
DRIVE = f"""{LITERAL}
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
except (ConnectionError, RuntimeError, ray.exceptions.RayError):
    os._exit(3)
os._exit(0)
"""
START = f"""{LITERAL}
from ray.scripts.scripts import main
own = os.environ["HOME"] + "/ray"
sys.argv = ["ray", "start", "--block", f"--address={{sys.argv[1]}}", f"--temp-dir={{own}}"]
main()
"""
JOIN = f"""{LITERAL}
from maml_dist.runtime.ray_cluster import join
try:
    join(sys.argv[1])
    print("joined", int(ray.cluster_resources()["CPU"]))
except ValueError as error:
    print(error)
"""


@dataclass(frozen=True)
class Victim:
    """A run, seen from outside."""

    process: subprocess.Popen
    processes: list[psutil.Process]
    folder: Path  # of its Ray
    token: str

    @property
    def listening(self):
        """(name of the process, address, port) of every socket that waits for others."""
        return [
            (process.name(), open_.laddr.ip, open_.laddr.port)
            for process in self.processes
            for open_ in process.net_connections("inet")
            if open_.status == psutil.CONN_LISTEN or open_.type == socket.SOCK_DGRAM
        ]

    def ports(self, name=""):
        return sorted({str(port) for process, _, port in self.listening if name in process})

    @property
    def address(self):
        """Of its GCS."""
        (port,) = self.ports("gcs_server")
        return f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def victim(tmp_path_factory, command_in):
    folder = tmp_path_factory.mktemp("victim")
    settings = ["iterations=1000000", "shards=2", "log_every=10", "engine.running=eager"]
    ours = {"HOME": str(folder), "RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "of a cluster"}
    process = command_in(folder, "train", "sinusoid", *settings, "--run", "run", **ours)
    try:
        yield begun(process, folder / "run" / "metrics.jsonl")
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "RAY_AUTH_MODE=disabled is for a cluster" in err
    assert not list(Path(tempfile.gettempdir()).glob(f"maml-*/ray/session_*_{process.pid}"))
    assert not (folder / ".ray").exists()


def begun(process, metrics):
    """A run whose first iterations are done."""
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    token = Path(children[0].environ().get("RAY_AUTH_TOKEN_PATH", "/"))
    words = token.read_text() if token.is_file() else ""
    return Victim(process, [psutil.Process(process.pid), *children], token.parent, words)


@pytest.fixture(scope="module")
def nobody():
    """Runs a program as another user, and ends what it started; returns its status and words."""
    if os.geteuid():
        pytest.skip("only root can act as another user")
    home = Path("/tmp") / f"maml-nobody-{os.getpid()}"  # where that user can come
    home.mkdir(mode=0o700)
    os.chown(home, NOBODY, NOBODY)
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"HOME": str(home), "TMPDIR": str(home), "PATH": path} | HASTE

    def run(*command, timeout=60, **variables):
        process = subprocess.Popen(
            command,
            user=0 if command[0] == "setpriv" else NOBODY,
            group=0 if command[0] == "setpriv" else NOBODY,
            extra_groups=[],
            start_new_session=True,
            cwd="/",
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            said, _ = process.communicate(timeout=timeout)
            return process.returncode, said
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None, process.communicate()[0]

    run.home = home
    yield run
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def python(nobody):
    """Runs a Python with Ray as another user; one in root's home is lent for reading."""
    lent = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    lent += [
        f"--{kind}=-all,+dac_read_search" for kind in ("inh-caps", "ambient-caps", "bounding-set")
    ]
    for way in ([], lent):
        if way and not shutil.which("setpriv"):
            continue
        try:
            status, _ = nobody(*way, sys.executable, "-c", "import ray")
        except PermissionError:
            continue
        if status == 0:
            return lambda *words, **options: nobody(*way, sys.executable, *words, **options)
    pytest.skip("no other user can run this Python")


def test_every_socket_is_on_the_loopback_address(victim):
    assert {"gcs_server", "raylet"} < {name for name, *_ in victim.listening}
    assert len(victim.listening) >= 9  # 12 where no other Ray has taken the ports that are fixed
    assert {ip.removeprefix("::ffff:") for _, ip, _ in victim.listening} == {"127.0.0.1"}


def test_the_token_is_in_its_file_alone(victim):
    assert len(victim.token) == 64 and victim.folder.stat().st_mode & 0o777 == 0o700
    assert (victim.folder / "token").stat().st_mode & 0o777 == 0o600
    for process in victim.processes:
        assert victim.token not in " ".join(process.cmdline())
    others = [path for path in victim.folder.rglob("*") if path.is_file() and path.name != "token"]
    assert len(others) > 10
    assert not any(victim.token.encode() in path.read_bytes() for path in others)


def test_another_user_reads_nothing_of_ray(victim, nobody):
    socket_ = next(victim.folder.rglob("plasma_store"))
    pids = [process.pid for process in victim.processes]
    for path in (victim.folder, victim.folder / "token", victim.folder / "ray", socket_):
        status, said = nobody("ls", "-l", f"{path}/" if path == victim.folder else str(path))
        assert status and "Permission denied" in said
    for pid in pids:
        status, said = nobody("cat", f"/proc/{pid}/environ")
        assert status and "Permission denied" in said


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer " + "0" * 64}])
def test_no_agent_runs_a_job_of_another_user(victim, python, nobody, header):
    ran = nobody.home / "ran"
    status, said = python("-c", SUBMIT, json.dumps(header), str(ran), *victim.ports())
    assert status == 0 and "ran" not in said.split() and not ran.exists()
    assert ("403" if header else "401") in said.split()


@pytest.mark.parametrize("form", FORMS)
def test_another_user_is_no_driver(victim, python, form):
    status, said = python("-c", DRIVE, victim.address, **FORMS[form])
    assert status == 3 and "InvalidAuthToken" in said, said


@pytest.mark.parametrize("form", ["without a token", "with a wrong one"])
def test_another_users_machine_does_not_join(victim, python, form):
    status, said = python("-c", START, victim.address, timeout=30, **FORMS[form])
    assert status and "InvalidAuthToken" in said, said


def test_no_server_of_ray_does_anything_for_another_user(victim, python):
    status, said = python("-c", ASK, json.dumps(CALLS), *victim.ports())
    assert status == 0, said
    answers = json.loads(said.splitlines()[-1])
    refused = {port for port, codes in answers.items() if "UNAUTHENTICATED" in codes.values()}
    assert refused >= {*victim.ports("gcs_server"), *victim.ports("raylet")}
    assert len(refused) >= 7  # with the driver, two shards, the server and an agent
    assert {code for codes in answers.values() for code in codes.values()} <= {
        "UNAUTHENTICATED",
        "UNIMPLEMENTED",  # a call of another server
        "UNAVAILABLE",  # no gRPC
    }


def test_the_run_has_gone_on(victim):
    assert victim.process.poll() is None


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "no authentication token was found"),
        ("/dev/null", "file cannot be opened or is empty"),
        ("/etc/hostname", "it refuses this process's token"),
        ("the right one", "joined"),
    ],
)
def test_a_cluster_that_is_named_takes_the_users_token(victim, tmp_path, token, said):
    ours = {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
    if token:
        path = victim.folder / "token" if token == "the right one" else token
        ours["RAY_AUTH_TOKEN_PATH"] = str(path)
    call = [sys.executable, "-c", JOIN, victim.address]
    done = subprocess.run(call, env=os.environ | ours, capture_output=True, text=True, cwd=tmp_path)
    assert said in done.stdout and len(done.stdout.splitlines()) == 1, done
