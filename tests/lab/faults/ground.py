"""The lab as the campaign handles it: who is what, processes, wires, disks, and how it is mended.

Everything here reaches a server from outside (its namespaces, control groups and files), so that it
works also while that server is frozen, cut off or off.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import guests, net
from tests.lab.lab import Lab

SERVERS = ("node-a", "node-b")
ASK_SECONDS = 2.0
POOL_MIB = {"quick": 192, "postgres": 3072}
"""Sizes of the small storage pools of which the campaign can take the space away."""


class Broken(RuntimeError):
    """The lab did not come to the state that a step needs."""


@dataclass(frozen=True)
class Sides:
    """Who is primary and who secondary at the moment at which a fault is injected."""

    primary: str
    secondary: str


def other(host: str) -> str:
    """The other server."""
    return SERVERS[1 - SERVERS.index(host)]


class Ground:
    """One lab with one protected guest."""

    def __init__(self, lab: Lab, guest: guests.Guest) -> None:
        self.lab = lab
        self.guest = guest
        self._stopped: set[int] = set()
        self._cuts: set[str] = set()

    # -- reaching a server --------------------------------------------------------------------------

    def sh(self, host: str, command: str, timeout: float = 60, check: bool = True) -> str:
        """Run a shell command in `host`'s namespaces; its standard output."""
        leader = self.lab.leader(host)
        if leader is None:
            raise Broken(f"{host} is off.")
        done = subprocess.run(
            ["nsenter", "-t", str(leader), "-m", "-u", "-i", "-n", "-p", "--", "sh", "-c", command],
            capture_output=True, text=True, timeout=timeout, check=False,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"},
        )  # fmt: skip
        if check and done.returncode:
            raise Broken(f"{host}: {command}: exit {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def ask(self, host: str, op: str, **args: Any) -> Any:
        """What the host's agent answers on its control socket; None when it does not."""
        leader = self.lab.leader(host)
        if leader is None:
            return None
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(ASK_SECONDS)
                sock.connect(f"/proc/{leader}/root/run/kvmft/control.sock")
                sock.sendall(json.dumps({"op": op, "args": args}).encode() + b"\n")
                reply = json.loads(sock.makefile("rb").readline())
        except (OSError, ValueError):
            return None
        return reply["result"] if reply.get("ok") else {"error": reply["error"]["message"]}

    def status(self, host: str) -> dict[str, Any] | None:
        """The VM's status as `host` shows it; None when it shows none."""
        found = self.ask(host, "vm_status", vm=self.guest.name)
        return found if isinstance(found, dict) else None

    def events(self, host: str, since: float) -> list[dict[str, Any]]:
        """The host's events after the wall clock time `since`, read from its disk."""
        found = []
        path = self.lab.base / host / "kvmft" / "events.jsonl"
        with contextlib.suppress(FileNotFoundError):
            for line in path.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    event = json.loads(line)
                    if event["time"] >= since:
                        found.append(event)
        return found

    # -- who is what --------------------------------------------------------------------------------

    def sides(self) -> Sides | None:
        """Primary and secondary, once both show the VM as protected; else None."""
        shown = {host: self.status(host) for host in SERVERS}
        for host in SERVERS:
            mine, theirs = shown[host], shown[other(host)]
            if (mine and theirs and mine.get("role") == "primary" and mine["state"] == "protected"
                    and theirs.get("role") == "secondary" and theirs["state"] == "protected"
                    and mine["generation"] == theirs["generation"]):  # fmt: skip
                return Sides(host, other(host))
        return None

    def wait_protected(self, seconds: float) -> Sides:
        """Wait until both sides show `protected`; Broken, with what they show, when they do not."""
        until = time.monotonic() + seconds
        while (found := self.sides()) is None:
            if time.monotonic() > until:
                raise Broken(f"not protected within {seconds:.0f} s: {self.told()}")
            time.sleep(0.2)
        return found

    def told(self) -> str:
        """What both hosts show, in one line."""
        parts = []
        for host in SERVERS:
            found = self.status(host)
            shown = "does not answer" if found is None else found.get("error") or (
                f"{found['role']} {found['state']} ({found['reason']})")  # fmt: skip
            parts.append(f"{host}: {shown}")
        return "; ".join(parts)

    # -- processes ----------------------------------------------------------------------------------

    def processes(self, host: str, *parts: str) -> list[int]:
        """Processes of `host`, as this machine numbers them, whose command line has all `parts`."""
        found = []
        for pid in self._pids(host):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                if all(part in command for part in parts):
                    found.append(pid)
        return found

    def _pids(self, host: str) -> Iterator[int]:
        for directory, __, files in os.walk(self.lab.cgroups(host)[-1]):
            if "cgroup.procs" in files:
                with contextlib.suppress(OSError):
                    for word in Path(directory, "cgroup.procs").read_text().split():
                        yield int(word)

    def qemu(self, host: str) -> list[int]:
        """The guest's QEMU on `host`."""
        return self.processes(host, "qemu-system", f"guest={self.guest.name},")

    def agent(self, host: str) -> list[int]:
        """The agent of `host`."""
        return self.processes(host, "/kvmft agent")

    def agent_and_workers(self, host: str) -> list[int]:
        """The agent of `host` and its workers."""
        return self.agent(host) + self.processes(host, "kvmft.worker")

    def kill(self, pids: list[int]) -> None:
        """kill -9; Broken when there is nothing to kill."""
        self._signal(pids, signal.SIGKILL)

    def stop(self, pids: list[int]) -> None:
        """SIGSTOP."""
        self._signal(pids, signal.SIGSTOP)
        self._stopped |= set(pids)

    def go_on(self) -> None:
        """SIGCONT for everything that was stopped here."""
        for pid in self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._stopped.clear()

    def _signal(self, pids: list[int], number: signal.Signals) -> None:
        if not pids:
            raise Broken(f"there is no process to send {number.name} to")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def freeze(self, host: str, frozen: bool) -> None:
        """Stop, or let go on, every process of `host` (its control group's freezer)."""
        group = self.lab.cgroups(host)[-1]
        with contextlib.suppress(FileNotFoundError):
            (group / "cgroup.freeze").write_text("1" if frozen else "0")
        until = time.monotonic() + 5
        wanted = f"frozen {int(frozen)}"
        while group.exists() and wanted not in (group / "cgroup.events").read_text():
            if time.monotonic() > until:
                raise Broken(f"{host} cannot be frozen")
            time.sleep(0.005)

    # -- wires --------------------------------------------------------------------------------------

    def cut(self, host: str, network: str) -> None:
        """Drop everything that `host` sends into `network`; its link stays up."""
        port = net.interface(host, network)
        table = f"cut-{port}".replace("-", "_")
        rules = (f"table netdev {table} {{\n chain c {{\n"
                 f"  type filter hook ingress device \"{port}\" priority 0\n  drop\n }}\n}}\n")  # fmt: skip
        subprocess.run(self.lab.inside("nft", "-f", "-"), input=rules, text=True, check=True)
        self._cuts.add(table)

    def cut_both_ways(self, network: str) -> None:
        """Drop what either server sends into `network`."""
        for host in SERVERS:
            self.cut(host, network)

    def heal(self, but: tuple[str, str] | None = None) -> None:
        """Take every cut away and put every cable in, `but` that one (host, network): not even for a moment."""
        for table in self._cuts:
            subprocess.run(self.lab.inside("nft", "delete", "table", "netdev", table), check=False,
                           capture_output=True)  # fmt: skip
        self._cuts.clear()
        for host in self.lab.hosts:
            if self.lab.is_on(host):
                for network in net.NETWORKS:
                    if (host, network) != but:
                        net.cable(self.lab.name, host, network, up=True)

    def cable(self, host: str, network: str, up: bool) -> None:
        """Pull or put in a cable."""
        net.cable(self.lab.name, host, network, up)

    # -- disks --------------------------------------------------------------------------------------

    def make_pools(self) -> None:
        """A small file system of its own for each server's storage pool, on a RAM disk of which the
        space can be taken away, too: writes into a device without space are I/O errors.

        To be called before the servers are made, so that they find it mounted.
        """
        size = POOL_MIB[self.guest.kind]
        for host in SERVERS:
            home = self.lab.base / host
            ram, pool = home / "ram", home / "kvmft" / "images"
            if os.path.ismount(pool):
                continue
            for directory in (ram, pool):
                directory.mkdir(parents=True, exist_ok=True)
            _run("mount", "-t", "tmpfs", "-o", f"size={size + 16}m", "kvmft-faults", str(ram))
            disk = ram / "disk"
            with disk.open("wb") as file:
                file.truncate(size << 20)
            # Blocks of 4 KiB, as any pool of a real size has: QEMU 7.2 aborts in raw_co_block_status
            # on holes of an image that are not aligned to its requests.
            _run("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "^has_journal",
                 "-E", "lazy_itable_init=0", str(disk))  # fmt: skip
            # discard: a block that is freed loses what is behind it at once. fstrim would be too late:
            # ext4 holds free blocks around a file in reserve for it, and trims none of those.
            _run("mount", "-o", "loop,errors=continue,discard", str(disk), str(pool))

    def has_pools(self, guest: guests.Guest) -> bool:
        """True when the storage pools are small file systems of their own, large enough for `guest`."""
        disks = [self.lab.base / host / "ram" / "disk" for host in SERVERS]
        return all(disk.exists() and disk.stat().st_size >= POOL_MIB[guest.kind] << 20 for disk in disks)

    def fill_pool(self, host: str) -> None:
        """No block is left in the storage pool of `host`."""
        _fill(self.lab.base / host / "kvmft" / "images" / "filler")

    def break_disk(self, host: str) -> None:
        """Writes of `host` into blocks of its storage pool that are free now fail: there is nothing
        behind them."""
        _fill(self.lab.base / host / "ram" / "filler")

    def mend_disks(self) -> None:
        """Space is back."""
        for host in SERVERS:
            for directory in ("kvmft/images", "ram"):
                (self.lab.base / host / directory / "filler").unlink(missing_ok=True)

    # -- the guest ----------------------------------------------------------------------------------

    def order(self, words: str) -> None:
        """Give the guest's service a command that it does not answer: `x reboot`."""
        program = ("import socket, sys; c = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5); "
                   "c.sendall(sys.argv[3].encode() + b'\\n'); c.settimeout(2)\ntry: c.recv(1)\n"
                   "except OSError: pass")  # fmt: skip
        subprocess.run(self.lab.inside("python3", "-c", program, self.guest.address, "7001", words),
                       check=True, timeout=30)  # fmt: skip

    @contextlib.contextmanager
    def many_writes(self) -> Iterator[None]:
        """Meanwhile the guest writes into blocks of its disk that it did not use before: a secondary
        whose disk has no room for them must notice now, and not some day."""
        if self.guest.kind != "quick":
            yield
            return
        program = ("import socket, sys, threading; c = socket.create_connection((sys.argv[1], 7000), 5); "
                   "threading.Thread(target=lambda: [None for _ in iter(lambda: c.recv(65536), b'')], "
                   "daemon=True).start(); [c.sendall(b'more\n') for _ in range(20000)]")  # fmt: skip
        writer = subprocess.Popen(self.lab.inside("python3", "-c", program, self.guest.address),
                                  stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            yield
        finally:
            writer.kill()
            writer.wait()

    def answers(self, timeout: float = 2) -> bool:
        """True when the guest's service takes a connection."""
        probe = f"exec 3<>/dev/tcp/{self.guest.address}/{self.service_port}"
        command = self.lab.inside("timeout", str(timeout), "bash", "-c", probe)
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    @property
    def service_port(self) -> int:
        """The port that the campaign's clients use."""
        return 7001 if self.guest.kind == "quick" else self.guest.port

    # -- mending ------------------------------------------------------------------------------------

    def calm(self) -> None:
        """End every fault: thaw, continue, mend, plug in, power on."""
        for host in self.lab.hosts:
            if self.lab.is_on(host):
                self.freeze(host, False)
        self.go_on()
        self.mend_disks()
        self.heal()
        for host in self.lab.hosts:
            if not self.lab.is_on(host):
                self.lab.power_on(host, wait=False)
        for host in self.lab.hosts:
            self.lab.wait_ssh(host)

    def start_over(self) -> None:
        """Forget the VM, start it anew and protect it."""
        self.forget()
        self.protect()

    def forget(self) -> None:
        """End every fault; then no server and no arbiter knows the VM any more, nor has its disk."""
        self.calm()
        name = shlex.quote(self.guest.name)
        for host in SERVERS:
            self.sh(host, f"systemctl stop kvmft-agent; virsh -q destroy {name}; "
                    f"rm -rf /var/lib/kvmft/vm/{name} /run/kvmft/vm/{name}; virsh -q undefine {name}; "
                    f"rm -f {guests.IMAGES}/*", check=False, timeout=120)  # fmt: skip
        self.sh("witness", "ETCDCTL_API=3 etcdctl --endpoints=https://10.90.0.13:2379 "
                "--cacert=$(sed -n 's/^ETCD_TRUSTED_CA_FILE=//p' /etc/kvmft/etcd.env | tr -d '\"') "
                "--cert=$(sed -n 's/^ETCD_CERT_FILE=//p' /etc/kvmft/etcd.env | tr -d '\"') "
                "--key=$(sed -n 's/^ETCD_KEY_FILE=//p' /etc/kvmft/etcd.env | tr -d '\"') "
                "del --prefix /kvmft/")  # fmt: skip
        for host in SERVERS:
            self.sh(host, "systemctl start kvmft-agent")

    def protect(self) -> Sides:
        """Start the guest on node-a if it is nowhere, turn FT on, and wait for `protected`."""
        home = next((host for host in SERVERS if (self.status(host) or {}).get("running")), None)
        if home is None:
            home = SERVERS[0]
            guests.start(self.lab, home, self.guest)
        guests.wait_up(self.lab, self.guest)
        if self.sides() is None:
            self.sh(home, f"kvmft enable {self.guest.name} --wait 120", timeout=150)
        return self.wait_protected(60)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Broken(f"{' '.join(command)}: {done.stderr.strip()}")


def _fill(path: Path) -> None:
    """A file at `path` that takes all the space that is left."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    size = 1 << 22
    while size >= 512:
        try:
            os.write(descriptor, bytes(size))
            os.fsync(descriptor)
        except OSError:
            size //= 4
    with contextlib.suppress(OSError):
        os.close(descriptor)
