"""Two real QEMUs, two real workers, a real etcd: a pair on one machine, without libvirt.

Everything listens on loopback or unix sockets in a temporary directory, and everything started
here is ended here.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from kvmft.report.epochs import Epochs
from tests.pair import bootsector

RUNTIME = Path(__file__).parents[2] / "runtime" / "src"
VM_UUID = "6b766d66-7400-4000-8000-000000000001"
CLUSTER = "0123456789abcdef0123456789abcdef"
MEMORY_MIB = 64


def free_port() -> int:
    """A port that nobody listens on, below those that the kernel gives to outgoing connections (32768 and up): none of
    these can take it before a server that is told of it does."""
    while True:
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", random.randrange(10000, 20000)))
            return int(sock.getsockname()[1])


def wait_for(what: str, check: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first true value of `check`, or AssertionError that says what did not happen."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        value = check()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {seconds} s")


@cache
def machine_type() -> str:
    """The versioned machine type that this machine's QEMU means by `q35`."""
    text = subprocess.run(["qemu-system-x86_64", "-M", "help"], check=True, capture_output=True,
                          text=True).stdout  # fmt: skip
    found = re.search(r"^q35 .*\(alias of (\S+)\)", text, re.MULTILINE)
    assert found, text
    return found[1]


def openssl(*arguments: str, cwd: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=cwd, check=True, capture_output=True)


def make_pki(directory: Path, names: tuple[str, ...], ca: str = "ca") -> None:
    """A CA `ca` and a certificate for each name, in `directory`."""
    directory.mkdir(exist_ok=True)
    curve = ("-pkeyopt", "ec_paramgen_curve:P-256")
    openssl("req", "-x509", "-newkey", "ec", *curve, "-nodes", "-keyout", f"{ca}.key", "-out",
            f"{ca}.pem", "-days", "2", "-subj", f"/CN={ca}", cwd=directory)  # fmt: skip
    for name in names:
        openssl("req", "-newkey", "ec", *curve, "-nodes", "-keyout", f"{name}.key", "-out",
                f"{name}.csr", "-subj", f"/CN={name}", cwd=directory)  # fmt: skip
        (directory / f"{name}.ext").write_text(f"subjectAltName=DNS:{name}\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key",
                "-CAcreateserial", "-out", f"{name}.pem", "-days", "2", "-extfile",
                f"{name}.ext", cwd=directory)  # fmt: skip


class Etcd:
    """A single etcd member on loopback."""

    def __init__(self, directory: Path) -> None:
        client, peer = free_port(), free_port()
        self.url = f"http://127.0.0.1:{client}"
        binary = shutil.which("etcd")
        assert binary, "etcd is missing: apt-get install etcd-server"
        self.process = subprocess.Popen(
            [binary, "--data-dir", str(directory), "--listen-client-urls", self.url,
             "--advertise-client-urls", self.url, "--listen-peer-urls",
             f"http://127.0.0.1:{peer}", "--initial-advertise-peer-urls",
             f"http://127.0.0.1:{peer}", "--initial-cluster", f"default=http://127.0.0.1:{peer}",
             "--log-level", "error"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

        def up() -> bool:
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", client)) == 0

        wait_for("etcd answering", up)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Machine:
    """What a guest is: memory in MiB, whether all of it has pages from the start (`on` or `off`), and what boots."""

    memory_mib: int = MEMORY_MIB
    prealloc: str = "off"
    write_disk: Callable[[Path], None] = bootsector.write_disk


class Qemu:
    """One QEMU with a monitor of ours, the boot-sector guest's disk and a serial file."""

    def __init__(
        self, directory: Path, accelerator: str, incoming: bool, network: bool,
        disk: Path | None = None, iothread: bool = False, private: bool = False,
        machine: Machine = Machine(),
    ) -> None:  # fmt: skip
        """`iothread`: the disk has a thread of its own. `private`: memory as plain virsh gives it,
        which no other process can map."""
        self.directory = directory
        directory.mkdir()
        self.disk = disk or directory / "disk.img"
        self.serial = directory / "serial"
        self.monitor = directory / "qmp.sock"
        if incoming and disk is None:
            with self.disk.open("wb") as file:
                file.truncate(1 << 20)
        elif not incoming:
            machine.write_disk(self.disk)
        size = f"{machine.memory_mib}M"
        command = [
            "qemu-system-x86_64", "-accel", accelerator, "-m", size, "-M", "q35",
            "-nodefaults", "-display", "none", "-serial", f"file:{self.serial}",
            "-qmp", f"unix:{self.monitor},server=on,wait=off",
            "-blockdev", f"driver=file,node-name=file0,filename={self.disk}",
            "-blockdev", "driver=raw,node-name=disk0,file=file0",
            "-object", "iothread,id=iothread1",
            "-device", "virtio-blk-pci,drive=disk0,id=virtio-disk0,bootindex=1"
            + (",iothread=iothread1" if iothread else ""),
            "-object", f"memory-backend-ram,id=pc.ram,size={size},prealloc={machine.prealloc}" if private
            else f"memory-backend-memfd,id=pc.ram,size={size},share=on,prealloc={machine.prealloc}",
            "-machine", "memory-backend=pc.ram",
        ]  # fmt: skip
        if network:
            command += ["-netdev", "user,id=hostnet0,restrict=on", "-device",
                        "virtio-net-pci,netdev=hostnet0,id=net0,mac=52:54:00:12:34:56"]  # fmt: skip
        if incoming:
            command += ["-incoming", "defer"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE)
        wait_for("QEMU's monitor", self.monitor.exists)

    @property
    def counts(self) -> list[int]:
        return bootsector.counts_on_serial(self.serial) if self.serial.exists() else []

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()


@dataclass
class Worker:
    """A worker process and everything it told its agent."""

    process: subprocess.Popen[bytes]
    line: socket.socket
    messages: list[dict[str, Any]] = field(default_factory=list)
    _buffer: bytes = b""

    def send(self, **message: Any) -> None:
        self.line.sendall(json.dumps(message).encode() + b"\n")

    def poll(self) -> list[dict[str, Any]]:
        try:
            while data := self.line.recv(1 << 16, socket.MSG_DONTWAIT):
                self._buffer += data
        except OSError:
            pass
        *lines, self._buffer = self._buffer.split(b"\n")
        self.messages += [json.loads(line) for line in lines]
        return self.messages

    def find(self, **want: Any) -> dict[str, Any] | None:
        """The last message with these values."""
        for message in reversed(self.poll()):
            if all(message.get(key) == value for key, value in want.items()):
                return message
        return None

    def wait(self, seconds: float = 20.0, **want: Any) -> dict[str, Any]:
        try:
            return wait_for(f"message {want}", lambda: self.find(**want), seconds)
        except AssertionError as error:
            told = [message for message in self.messages if message["msg"] != "status"]
            raise AssertionError(f"{error}; the worker said {told[-8:]}") from None

    def tell_epochs(self, found: Epochs) -> dict[str, Any]:
        """Have `found` take the epochs since it was told last; the worker's answer."""
        identity = random.getrandbits(30)
        self.send(cmd="epochs", id=identity, since=found.since)
        answer = self.wait(msg="epochs", id=identity)
        self.messages.remove(answer)
        found.take(answer)
        return answer

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.line.close()


def start_worker(config: dict[str, Any], patch: str = "") -> Worker:
    """Start a worker; `patch` is Python run before it (planted bugs of the mutation tests)."""
    ours, theirs = socket.socketpair()
    code = f"import runpy\n{patch}\nrunpy.run_module('kvmft.worker', run_name='__main__')"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        preexec_fn=lambda: os.dup2(theirs.fileno(), 3),
        pass_fds=(3, theirs.fileno()),
        env={**os.environ, "PYTHONPATH": str(RUNTIME)},
        stderr=subprocess.PIPE,
    )
    theirs.close()
    worker = Worker(process, ours)
    worker.send(**config)
    return worker


class Pair:
    """node-a runs the guest, node-b is its standby."""

    def __init__(
        self, root: Path, accelerator: str, network: bool = False, iothread: bool = False,
        private: bool = False, machine: Machine = Machine(),
    ) -> None:  # fmt: skip
        """`iothread` and `private` (of the VM that runs first) as for `Qemu`."""
        self.machine = machine
        self.root = root
        self.accelerator = accelerator
        make_pki(root / "pki", ("node-a", "node-b"))
        self.etcd = Etcd(root / "etcd")
        self.arbiter: dict[str, Any] = {"type": "etcd", "endpoints": [self.etcd.url]}
        self.network, self.iothread = network, iothread
        self.primary_vm = Qemu(root / "qemu-a", accelerator, incoming=False, network=network,
                               iothread=iothread, private=private, machine=machine)  # fmt: skip
        self.standby_vm = self._standby("qemu-b")
        self.workers: list[Worker] = []
        self.session = "5" * 32
        self.hosts = ["node-a", "node-b"]
        self.swaps = 0

    def _standby(self, name: str, disk: Path | None = None) -> Qemu:
        return Qemu(self.root / name, self.accelerator, incoming=True, network=self.network,
                    disk=disk, iothread=self.iothread, machine=self.machine)  # fmt: skip

    def swap(self) -> None:
        """node-b runs the guest now; node-a gets a new, empty QEMU that waits, on its old disk."""
        self.swaps += 1
        self.primary_vm, old = self.standby_vm, self.primary_vm
        self.standby_vm = self._standby(f"qemu-{self.swaps}", old.disk)
        self.hosts.reverse()
        self.session = f"{self.swaps:032x}"

    def renew_standby(self) -> None:
        """A new, empty QEMU that waits on node-b, on the replica that is there; a new session."""
        self.swaps += 1
        self.standby_vm.stop()
        self.standby_vm = self._standby(f"qemu-{self.swaps}", self.standby_vm.disk)
        self.session = f"{self.swaps:032x}"

    def wait_for_counts(self, count: int) -> None:
        """Wait until the guest has counted to `count`: it lives."""
        wait_for(f"the guest at {count}", lambda: self.primary_vm.counts[-1] >= count)

    def config(self, role: str, **extra: Any) -> dict[str, Any]:
        host, peer = self.hosts if role == "primary" else reversed(self.hosts)
        vm = self.primary_vm if role == "primary" else self.standby_vm
        pki = self.root / "pki"
        for name in ("run", "state"):
            (self.root / f"{name}-{host}").mkdir(exist_ok=True)
        return {
            "cmd": "start", "role": role, "vm": "counter", "uuid": VM_UUID, "host": host,
            "peer": peer, "cluster_id": CLUSTER, "session": self.session,
            "run_dir": str(self.root / f"run-{host}"),
            "state_dir": str(self.root / f"state-{host}"),
            "tls": {"ca": str(pki / "ca.pem"), "cert": str(pki / f"{host}.pem"),
                    "key": str(pki / f"{host}.key")},
            "arbiter": self.arbiter,
            "options": {"interval_ms": 20, "min_interval_ms": 4, "detection_ms": 1000,
                        "agent_grace_ms": 1500},
            "qemu_pid": vm.process.pid, "own_monitor": str(vm.monitor), "machine": machine_type(),
            "disks": [{"target": "vda", "path": str(vm.disk), "size": 1 << 20}],
            "nics": [{"alias": "net0"}] if self.network else [],
            **extra,
        }  # fmt: skip

    def start_secondary(self, patch: str = "", **extra: Any) -> tuple[Worker, int]:
        extra = {"listen_address": "127.0.0.1", "port_range": [20000, 29999], **extra}
        worker = start_worker(self.config("secondary", **extra), patch)
        self.workers.append(worker)
        return worker, int(worker.wait(msg="listening")["port"])

    def start_primary(self, port: int | None, patch: str = "", **extra: Any) -> Worker:
        extra = {"peer_address": "127.0.0.1", "peer_port": port, "arbitration": "create", **extra}
        worker = start_worker(self.config("primary", **extra), patch)
        self.workers.append(worker)
        return worker

    def protect(self, primary_patch: str = "", secondary_patch: str = "") -> tuple[Worker, Worker]:
        secondary, port = self.start_secondary(secondary_patch)
        primary = self.start_primary(port, primary_patch)
        primary.wait(msg="state", state="protected")
        return primary, secondary

    def stop(self) -> None:
        for worker in self.workers:
            worker.stop()
        self.primary_vm.stop()
        self.standby_vm.stop()
        self.etcd.stop()
