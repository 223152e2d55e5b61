"""The on-premise cluster of the checkout, on hosts of this machine, as its file tells a newcomer.

Only what a newcomer fills in is other than in the file, and that Python's packages come from this
machine, since hosts reach no index of packages.
"""

import re
import sysconfig
import time
from pathlib import Path
from typing import Any

import yaml
from cluster.hosts import Hosts

ROOT = Path(__file__).parents[2]
FILE = ROOT / "cluster-on-premise.yaml"
INSTALL = "~/venv/bin/pip install ~/maml_dist"
# The packages of this machine are found after the host's own, and Ray's command with them.
PACKAGES = (
    "~/venv/bin/pip uninstall --yes --quiet setuptools; echo {packages} > $(~/venv/bin/python -c "
    "'import sysconfig; print(sysconfig.get_path(\"purelib\"))')/packages.pth; "
    'sed "1s|.*|#!$HOME/venv/bin/python|" {scripts}/ray > ~/venv/bin/ray; chmod +x ~/venv/bin/ray'
)
OFFLINE = " --no-index --no-build-isolation --quiet"
TOKEN = "umask 77; mkdir -p ~/.ray; {ray} get-auth-token --generate > /dev/null"


def filled(head: str, workers: list[str]) -> dict[str, Any]:
    """The cluster's file with these addresses."""
    config: dict[str, Any] = yaml.safe_load(FILE.read_text())
    config["provider"] |= {"head_ip": head, "worker_ips": workers}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": "~/.ssh/id_ed25519"}
    setup = config["setup_commands"]
    at = setup.index(INSTALL)
    paths = {key: sysconfig.get_path(key) for key in ("purelib", "scripts")}
    packages = PACKAGES.format(packages=paths["purelib"], scripts=paths["scripts"])
    setup[at:] = [packages, INSTALL + OFFLINE, *setup[at + 1 :]]
    return config


class OnPremise:
    """The cluster, driven from a host that is none of it."""

    def __init__(self, hosts: Hosts, *, workers: int = 2) -> None:
        """Makes the hosts: `head`, `w1` … and `desk`, where its user sits."""
        self.hosts = hosts
        self.names = [f"w{number + 1}" for number in range(workers)]
        self.head = hosts.add("head", 2).address
        self.addresses = [hosts.add(name, 3 + at).address for at, name in enumerate(self.names)]
        desk = hosts.add("desk", 100)
        scripts = sysconfig.get_path("scripts")
        with (desk.home / ".bashrc").open("a") as profile:  # the folder of the user's own Ray
            profile.write(f"export PATH={scripts}:$PATH RAY_UP_enable_autoscaler_v2=0\n")
        hosts.run("desk", TOKEN.format(ray="ray"))
        self.write()

    def write(self) -> None:
        """Write the file on the desk."""
        config = filled(self.head, self.addresses)
        (self.hosts.all["desk"].home / "cluster.yaml").write_text(yaml.safe_dump(config))

    def ray(self, command: str, *more: str, **options: Any) -> str:
        """`ray COMMAND cluster.yaml …`, from the root of the checkout."""
        return self.hosts.run("desk", self._line(command, *more), **options)

    def start(self, command: str, *more: str, **options: Any) -> Any:
        """The same, which goes on."""
        return self.hosts.start("desk", self._line(command, *more), **options)

    def wait_for(self, workers: int, *, within: float) -> None:
        """Until so many workers are up."""
        began = time.monotonic()
        while True:
            said = self.hosts.run("head", "ray status", check=False)
            found = re.search(r"Active:\n (\d+) ", said)
            if found and int(found[1]) > workers:  # the head is one of them
                return
            assert time.monotonic() - began < within, f"{workers} workers are not up:\n{said}"
            time.sleep(2)

    def computing(self, *, but: str = "") -> str:
        """The host whose shard has run for longest, `but` for one; others may be coming up."""
        seconds = {}
        for name in self.names:
            if self.hosts.all[name].process and name != but:
                for line in self.hosts.run(name, "ps -eo etimes,args").splitlines():
                    if "ray::RayShard" in line:
                        seconds[name] = max(int(line.split()[0]), seconds.get(name, 0))
        return max(seconds, key=lambda name: seconds[name])

    def join(self, name: str, number: int) -> None:
        """Add a machine to a cluster that runs, by hand."""
        host = self.hosts.add(name, number)
        config = filled(self.head, self.addresses)
        copied = f"-a --exclude .git {ROOT}/ root@{host.address}:maml_dist/"
        token = f"~/.ray/auth_token root@{host.address}:.ray/"
        self.hosts.run("desk", f"ssh root@{host.address} mkdir -p .ray; rsync -a {token}")
        self.hosts.run("desk", f"rsync --filter=':- .gitignore' {copied}")
        for command in config["setup_commands"]:
            self.hosts.run(name, command)
        [*_, start] = config["worker_start_ray_commands"]
        self.hosts.run(name, f"export RAY_HEAD_IP={self.head}; {start}")
        self.names.append(name)
        self.addresses.append(host.address)
        self.write()

    def ports(self, name: str) -> list[int]:
        """The ports of Ray's at which a host listens to others."""
        lines = self.hosts.run(name, "ss -ltnpH").splitlines()
        found = [line.split()[3].rpartition(":") for line in lines if "sshd" not in line]
        return sorted({int(port) for address, _, port in found if "127.0.0.1" not in address})

    def _line(self, command: str, *more: str) -> str:
        return f"cd {ROOT}; exec ray {command} ~/cluster.yaml {' '.join(more)}"
