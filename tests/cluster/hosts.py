"""Hosts: a few machines with ssh out of Linux namespaces, whose cables and power can be cut.

Each has its own network, processes, host name, /root, /tmp and /dev/shm, and sees the rest of this
machine. None reaches anything but the others. All is gone with the process that made them, since
nothing has a name: namespaces end with the processes in them.
"""

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NEEDS = ("ip", "nsenter", "rsync", "setpriv", "ssh", "ssh-keygen", "unshare")
SSHD = Path("/usr/sbin/sshd")
NETWORK = "10.77.0"
UP_WITHIN = 10.0  # seconds
SSH_CONFIG = """Host *
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  IdentityFile ~/.ssh/id_ed25519
"""
# The folder of a host is HOST, whose `root` and `tmp` are put in the place of /root and /tmp.
INIT = """set -e
hostname {name}
mount --make-rprivate /
{lend}
mount --bind {folder}/hosts /etc/hosts
mount --bind /dev/null /etc/resolv.conf
mount -t tmpfs tmpfs /run
mkdir /run/sshd
mount -t tmpfs tmpfs /dev/shm
mount --rbind {folder}/root /root
mount --rbind {folder}/tmp /tmp
export HOME=/root
cd /root
ip link set lo up
until ip addr show dev eth0 2>/dev/null | grep -q inet; do sleep 0.05; done
{sshd} -f /dev/null -o ListenAddress={address} -o HostKey=/root/.ssh/hostkey -o UsePAM=no \
  -o PermitRootLogin=prohibit-password -o StrictModes=no -o PidFile=none
touch /tmp/.up
while :; do sleep 3600 & wait; done
"""


@dataclass
class Host:
    """One machine."""

    name: str
    address: str
    folder: Path
    process: "subprocess.Popen[bytes] | None" = None
    pid: int = 0  # of its init, as this machine counts

    @property
    def home(self) -> Path:
        """Its /root."""
        return self.folder / "root"


class Hosts:
    """Machines on one switch."""

    def __init__(self, folder: Path) -> None:
        """`folder`: of all that is theirs."""
        self._folder = folder
        self.all: dict[str, Host] = {}

    def __enter__(self) -> "Hosts":
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in ("key", "hostkey"):
            made = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._folder / name)
            subprocess.run(made, check=True)
        command = ("setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity")
        self._switch = subprocess.Popen(command)
        _until(lambda: os.readlink(f"/proc/{self._switch.pid}/ns/net") != _network(), "the switch")
        self._ip(self._switch.pid, "link add br0 type bridge")
        self._ip(self._switch.pid, "link set br0 up")
        return self

    def __exit__(self, *exception: Any) -> None:
        for name in self.all:
            self.power_off(name)
        self._switch.kill()
        self._switch.wait()

    def add(self, name: str, number: int) -> Host:
        """A new machine, up and on the network."""
        host = Host(name, f"{NETWORK}.{number}", self._folder / name)
        (host.home / ".ssh").mkdir(parents=True, mode=0o700)
        (host.folder / "tmp").mkdir()
        (host.folder / "tmp").chmod(0o1777)
        ssh = host.home / ".ssh"
        for file, place in (
            ("key", "id_ed25519"),
            ("key.pub", "authorized_keys"),
            ("hostkey", "hostkey"),
        ):
            (ssh / place).write_bytes((self._folder / file).read_bytes())
            (ssh / place).chmod(0o600)
        (ssh / "config").write_text(SSH_CONFIG)
        (host.folder / "hosts").write_text(f"127.0.0.1 localhost\n{host.address} {name}\n")
        path = f"{sys.base_prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        for file in (".bashrc", ".profile"):
            (host.home / file).write_text(f"export PATH={path} RAY_USAGE_STATS_ENABLED=0\n")
        self.all[name] = host
        self.power_on(name)
        return host

    def power_on(self, name: str) -> None:
        """Start a machine, with the disk that it had."""
        host = self.all[name]
        (host.folder / "tmp" / ".up").unlink(missing_ok=True)
        init = host.folder / "init"
        words = {"name": name, "folder": host.folder, "address": host.address, "sshd": SSHD}
        init.write_text(INIT.format(lend=_lend(host.folder), **words))
        spaces = ("--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc")
        with (host.folder / "log").open("ab") as log:
            host.process = subprocess.Popen(
                ("setpriv", "--pdeathsig", "KILL", "unshare", *spaces, "bash", init),
                env={"PATH": os.environ["PATH"], "HOME": "/root"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _until(lambda: _child(host) and (host.folder / "root").exists(), f"host {name}")
        host.pid = _child(host)
        number = int(host.address.rpartition(".")[2])
        eth0 = f"peer name eth0 address 02:00:00:00:00:{number:02x} netns {host.pid}"
        self._ip(self._switch.pid, f"link add v-{name} type veth {eth0}")
        self._ip(self._switch.pid, f"link set v-{name} master br0 up")
        self._ip(host.pid, f"addr add {host.address}/24 dev eth0")
        self._ip(host.pid, "link set eth0 up")
        self._ip(host.pid, "route add default dev eth0")  # by which Ray finds its own address
        _until((host.folder / "tmp" / ".up").exists, f"host {name}: {_log(host)}")

    def power_off(self, name: str) -> None:
        """End a machine at once: its address is silent then, and its disk stays."""
        host = self.all[name]
        if host.process is not None:
            host.process.kill()
            host.process.wait()
            host.process = None

    def kill(self, name: str) -> None:
        """Kill all processes of a machine but the first: its address refuses then."""
        self.run(name, "kill -9 -1", check=False)

    def cut(self, name: str) -> None:
        """Unplug a machine's cable."""
        self._ip(self._switch.pid, f"link set v-{name} down")

    def mend(self, name: str) -> None:
        """Plug it in again."""
        self._ip(self._switch.pid, f"link set v-{name} up")

    def start(self, name: str, command: str, **options: Any) -> "subprocess.Popen[str]":
        """A command in a login shell of a machine."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
        shell = ("env", "-i", "HOME=/root", "TERM=dumb", "bash", "-c")
        inside = ("nsenter", "-t", str(self.all[name].pid), "-m", "-p", "-u", "-n", *shell)
        line = f"cd; source ~/.bashrc; {command}"
        return subprocess.Popen((*inside, line), stdin=subprocess.DEVNULL, text=True, **options)

    def run(self, name: str, command: str, *, check: bool = True, timeout: float = 600) -> str:
        """What it says, at its end."""
        process = self.start(name, command)
        try:
            said, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
            raise TimeoutError(f"{command} on {name}: {said}") from None
        assert not (check and process.returncode), f"{command} on {name}: {said}"
        return said

    def _ip(self, pid: int, words: str) -> None:
        inside = ("nsenter", "-t", str(pid), "-n", "ip", *words.split())
        done = subprocess.run(inside, capture_output=True, text=True)
        assert not done.returncode, f"ip {words}: {done.stderr}"


def missing() -> str:
    """What this machine lacks to make hosts; empty where it lacks nothing."""
    import shutil

    if os.geteuid():
        return "needs root"
    lacks = [name for name in NEEDS if not shutil.which(name)]
    lacks += [] if SSHD.exists() else [str(SSHD)]
    return f"needs {', '.join(lacks)}" if lacks else ""


def _lend(folder: Path) -> str:
    """Commands that put what tests need of this machine into a host, to be read only.

    Python's folders and the checkout, where they lie in /root or /tmp, which a host has of its own.
    """
    lent = {sys.base_prefix, sys.prefix, str(Path(__file__).parents[2])}
    lines = []
    for each in sorted(lent):
        if each.startswith(("/root/", "/tmp/")):
            place = shlex.quote(f"{folder}{each}")
            lines.append(f"mkdir -p {place}; mount --bind -o ro {shlex.quote(each)} {place}")
    return "\n".join(lines)


def _child(host: Host) -> int:
    """The init of a host, as this machine counts."""
    assert host.process is not None
    assert host.process.poll() is None, _log(host)
    # setpriv and unshare are one process, by exec; its child is the init.
    pid = host.process.pid
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(found[0]) if found else 0


def _log(host: Host) -> str:
    return (host.folder / "log").read_text(errors="replace")[-2000:]


def _network() -> str:
    return os.readlink("/proc/self/ns/net")


def _until(holds: Any, what: str) -> None:
    """Wait for it."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < UP_WITHIN, f"{what} does not come up"
        time.sleep(0.05)
