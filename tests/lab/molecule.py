"""What Molecule's scenarios need of the lab, and the stage `molecule` of `./dev test`.

    python -m tests.lab.molecule create|destroy|site|guest|client|newer-wheel

The scenarios are in molecule/; KVMFT_LAB names their lab. They use the collection as it is released,
from build/molecule/NAME/collections.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.lab import guests, release, snapshot
from tests.lab.lab import ROOT, Lab

SCENARIOS = ("default", "preflight_failures", "pair", "failover", "upgrade")
"""In this order the first site run is that of `pair`, and each later scenario finds it done."""
GUEST = dataclasses.replace(guests.QUICK, name="db1", uuid=guests.POSTGRES.uuid)
"""The VM that the surveys of the job templates name by default."""
MOLECULE = (str(release.BIN / "molecule"), "--base-config", str(ROOT / ".config" / "molecule" / "config.yml"))
"""It would find this file by itself in a Git checkout alone."""
HOST_KEY = "/etc/kvmft/pki/host.key"
CLIENT_SECONDS = 300.0


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the scenarios keep their files: build/molecule/NAME."""

    lab: Lab

    @property
    def folder(self) -> Path:
        """Everything below is in it."""
        return ROOT / "build" / "molecule" / self.lab.name

    @property
    def inventory(self) -> Path:
        """The lab's inventory, for use from outside the lab's network too."""
        return self.folder / "inventory.yml"

    @property
    def collections(self) -> Path:
        """Holds the installed collection and no other."""
        return self.folder / "collections"

    @property
    def canary(self) -> Path:
        """A text that stands in private keys of the lab and must be nowhere else."""
        return self.folder / "canary"

    @property
    def before(self) -> Path:
        """What the servers were before anything was set up on them: a snapshot per server."""
        return self.folder / "before.json"

    @property
    def site_log(self) -> Path:
        """What the scenario `pair` logged with -vvv."""
        return self.folder / "site.log"

    @property
    def stop(self) -> Path:
        """The client writes until this file is there."""
        return self.folder / "client-stop"


def place() -> Place:
    """The lab that KVMFT_LAB names, and its files."""
    return Place(Lab(os.environ.get("KVMFT_LAB") or "molecule"))


def hosts(*names: str) -> list[str]:
    """Testinfra's names for servers of the lab; by default those that carry VMs."""
    where = place()
    return [f"ansible://{name}?ansible_inventory={where.inventory}" for name in names or where.lab.servers]


def inventory(lab: Lab) -> dict[str, Any]:
    """The lab's inventory, with SSH through the lab's network namespace: for programs outside it."""
    value: dict[str, Any] = yaml.safe_load(lab.inventory.read_text())
    variables = value["all"]["vars"]
    proxy = " ".join(lab.inside("busybox", "nc", "%h", "%p"))
    variables["ansible_ssh_common_args"] += f' -o LogLevel=ERROR -o ProxyCommand="{proxy}"'
    return value


def install(where: Place) -> None:
    """Install the collection from its tarball, unless that is done."""
    where.folder.mkdir(parents=True, exist_ok=True)
    if not where.collections.exists():
        release.install(release.build(where.folder / "tarball"), where.collections)


def create(where: Place) -> None:
    """Bring the lab up, install the collection, plant the canary and write the inventory."""
    where.lab.up()
    install(where)
    if not where.before.exists():
        where.before.write_text(json.dumps({host: snapshot.take(where.lab, host) for host in where.lab.hosts}))
    plant_canary(where)
    where.inventory.write_text(yaml.safe_dump(inventory(where.lab), sort_keys=False))


def plant_canary(where: Place) -> None:
    """Keys of the CA and of one host that have a text of their own before the PEM block, which
    every reader of PEM skips (RFC 7468, section 2)."""
    if where.canary.exists():
        return
    canary = f"kvmft-canary-{secrets.token_hex(16)}"
    folder = where.lab.build / "pki"
    folder.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-sha256", "-days", "30", "-subj", "/CN=kvmft CA", "-keyout", "ca.key", "-out", "ca.pem",
         "-addext", "keyUsage=critical,keyCertSign,cRLSign"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    key = folder / "ca.key"
    key.write_text(f"{canary}\n{key.read_text()}")
    where.lab.run("node-a", f"install -d -m 750 $(dirname {HOST_KEY}) && umask 077 && (echo {canary}; openssl "
                  f"genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256) > {HOST_KEY}")  # fmt: skip
    where.canary.write_text(canary)
    # Molecule adds to the log: the runs of an earlier lab had another canary.
    where.site_log.unlink(missing_ok=True)


def destroy(where: Place) -> None:
    """Take the lab away, and its files but for logs."""
    where.lab.down()
    for path in (where.collections, where.folder / "tarball"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (where.inventory, where.canary, where.before, where.stop):
        path.unlink(missing_ok=True)


def site(where: Place) -> None:
    """Run site.yml where a host has no agent yet; for scenarios that are run on their own."""
    states = [where.lab.run(host, "systemctl is-active kvmft-agent", check=False).strip()
              for host in where.lab.servers]  # fmt: skip
    if states != ["active"] * len(states):
        environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(where.collections)}
        subprocess.run([str(release.BIN / "ansible-playbook"), "-i", str(where.inventory),
                        "kvmft.core.site"], check=True, env=environment)  # fmt: skip


def guest(where: Place) -> None:
    """Start the guest on node-a, unless a host runs it."""
    if not any(GUEST.name in where.lab.run(host, "virsh list --name").split()
               for host in where.lab.servers):  # fmt: skip
        guests.start(where.lab, "node-a", GUEST)
    guests.wait_up(where.lab, GUEST)


CLIENT = """
import os, socket, sys, time
address, port, stop, until = sys.argv[1], int(sys.argv[2]), sys.argv[3], time.time() + float(sys.argv[4])
connection = socket.create_connection((address, port), timeout=60)
reader, number, longest, last = connection.makefile("rb"), 0, 0.0, time.monotonic()
while not os.path.exists(stop) and time.time() < until:
    connection.sendall(f"molecule {number}\\n".encode())
    answer = reader.readline().decode().split()
    if answer[2:] != ["molecule", str(number)]:
        sys.exit(f"asked for record {number}, was answered {answer}")
    longest, last = max(longest, time.monotonic() - last), time.monotonic()
    number += 1
    time.sleep(0.05)
print(f"{number} records over one connection, none refused; longest gap {longest * 1000:.0f} ms")
"""


def client(where: Place) -> None:
    """Have records written over one TCP connection until `stop` is there; fails when it breaks."""
    where.stop.unlink(missing_ok=True)
    done = subprocess.run(
        where.lab.inside(sys.executable, "-c", CLIENT, GUEST.address, str(GUEST.port),
                         str(where.stop), str(CLIENT_SECONDS)), check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.returncode)


def newer_wheel(where: Place) -> Path:
    """A wheel of the same runtime with a newer version, as a release brings it."""
    source = where.folder / "newer"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(ROOT / "runtime", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    init = source / "src" / "kvmft" / "__init__.py"
    text, count = re.subn(r'(__version__(?:: \w+)? = ")([^"]+)"', r'\1\2.post1"', init.read_text())
    if count != 1:
        raise RuntimeError(f"{init} does not set __version__ once.")
    init.write_text(text)
    built = subprocess.run(
        [sys.executable, str(ROOT / "roles" / "runtime" / "files" / "build_wheel.py"), str(source),
         str(where.folder / "wheel")], check=True, capture_output=True, text=True,
    )  # fmt: skip
    return Path(built.stdout.strip())


def run_molecule(*arguments: str) -> int:
    """Run Molecule in the project's root; its exit code."""
    return subprocess.run([*MOLECULE, *arguments], cwd=ROOT, check=False).returncode


def stage() -> int:
    """All scenarios on one lab, and beside them every job template on another; exit code."""
    where = place()
    jobs = Place(Lab(f"{where.lab.name}j"))
    state = where.folder / "state"
    os.environ.update({"KVMFT_LAB": where.lab.name, "MOLECULE_EPHEMERAL_DIRECTORY": str(state)})
    for each in (where, jobs):
        destroy(each)
        install(each)
    # Otherwise Molecule would believe that the lab of an earlier run is still there.
    shutil.rmtree(state, ignore_errors=True)
    log = where.folder / "molecule.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _jobs(jobs) as done:
            code = _scenarios(log)
            code = done() or code
    finally:
        gone = 0
        if "KVMFT_KEEP" not in os.environ:
            gone = run_molecule("destroy", "--no-command-borders", "-s", "default")
            destroy(jobs)
    return code or gone


@contextmanager
def _jobs(where: Place) -> Iterator[Callable[[], int]]:
    """Run tests/jobs on a lab of its own; the function waits for the end, shows what was printed, and returns the
    exit code."""
    printed = where.folder / "jobs.log"
    with printed.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "--durations=3", "tests/jobs"], cwd=ROOT, stdout=file,
            stderr=subprocess.STDOUT, env={**os.environ, "KVMFT_LAB": where.lab.name},
        )  # fmt: skip

    def end() -> int:
        code = process.wait()
        print(f"job templates:\n{printed.read_text(errors='replace')}", flush=True)
        return code

    try:
        yield end
    finally:
        process.terminate()
        process.wait()


def _scenarios(log: Path) -> int:
    """Run all scenarios and print how each step ended; exit code."""
    begun = time.monotonic()
    scenarios = [word for name in SCENARIOS for word in ("-s", name)]
    with log.open("w") as file:
        # -vvv of a site run is long: it is shown when something failed, and kept in any case.
        code = subprocess.run(
            [*MOLECULE, "test", "--no-command-borders", "--destroy", "never", *scenarios],
            cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False,
        ).returncode  # fmt: skip
    lines = log.read_text(errors="replace").splitlines()
    print("\n".join(lines[-400:] if code else [each for each in lines if _is_summary(each)]), flush=True)
    print(f"scenarios: {time.monotonic() - begun:.0f} s; their log: {log}", flush=True)
    return code


def _is_summary(line: str) -> bool:
    """A line that says how a step of a scenario, or a test in it, ended."""
    return "EXEC" not in line and bool(re.search(r"➜.*Executed:|^\d+ passed|records over one", line))


def main() -> int:
    """Do what the command line names."""
    where = place()
    actions = {"create": create, "destroy": destroy, "site": site, "guest": guest, "client": client}
    match sys.argv[1:]:
        case [name] if name in actions:
            actions[name](where)
        case ["newer-wheel"]:
            print(newer_wheel(where))
        case _:
            sys.exit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
