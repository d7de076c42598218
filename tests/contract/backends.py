"""Real arbiters for the contract's tests, each with faults between it and its claimants.

The names of the faults mean the same for both: what happened to one request and to its answer.

    lose request     it never arrives; the claimant gets no answer
    lose answer      it is carried out; the claimant gets no answer
    duplicate        it is carried out twice; the claimant gets the second answer
    slow             it is carried out and answered a moment later
    hold             the claimant gets no answer; it is carried out when `release()` is called
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from kvmft.adapters.etcd import Etcd, EtcdConfig
from kvmft.adapters.filearbiter import FileArbiter, Files
from kvmft.ports import Arbiter, vm_key
from tests.pair.harness import free_port, wait_for

CLUSTER = "c" * 32
FAULTS = ("lose request", "lose answer", "duplicate", "slow")
Plan = Callable[[], str]
"""Says for each request what shall happen to it; `pass` for nothing."""


def in_turn(*faults: str) -> Plan:
    """These faults for the first requests, and then none."""
    left = list(faults)
    lock = threading.Lock()

    def next_one() -> str:
        with lock:
            return left.pop(0) if left else "pass"

    return next_one


class EtcdServer:
    """One etcd member that can be stopped, wiped, saved and put back, on addresses that stay."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.client, self.peer = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        client, peer = f"http://127.0.0.1:{self.client}", f"http://127.0.0.1:{self.peer}"
        binary = shutil.which("etcd")
        assert binary, "etcd is missing: apt-get install etcd-server"
        self.process = subprocess.Popen(
            [binary, "--data-dir", str(self.directory), "--listen-client-urls", client,
             "--advertise-client-urls", client, "--listen-peer-urls", peer,
             "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
             "--log-level", "error"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for("etcd leading", self._leads)

    def _leads(self) -> bool:
        """A transaction is answered: listening alone comes before there is a leader."""
        try:
            Etcd(EtcdConfig((f"http://127.0.0.1:{self.client}",))).probe(CLUSTER, "test")
        except Exception:
            return False
        return True

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


class Proxy:
    """HTTP between claimants and etcd: one request per connection, as the adapter sends them."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.plan: Plan = in_turn()
        self.rewrite_request: Callable[[bytes], bytes] = lambda body: body
        self.rewrite_answer: Callable[[bytes], bytes] = lambda answer: answer
        self.on_request: Callable[[], None] = lambda: None
        self.requests = 0
        self._held: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, __ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                request = self._read_request(client)
                if b"/v3/kv/txn" not in request.split(b"\r\n", 1)[0]:
                    client.sendall(self.rewrite_answer(self.forward(request)))
                    return
                self.requests += 1
                self.on_request()
                answer = self._treat(request, self.plan())
                if answer:
                    client.sendall(self.rewrite_answer(answer))
            except OSError:
                return  # the claimant or etcd is gone: no answer

    def _treat(self, request: bytes, fault: str) -> bytes:
        if fault == "lose request":
            return b""
        if fault == "hold":
            self._held.append(request)
            return b""
        if fault == "slow":
            time.sleep(0.3)
        answer = self.forward(request)
        if fault == "duplicate":
            answer = self.forward(request)
        return b"" if fault == "lose answer" else answer

    def release(self) -> None:
        """What was held back is carried out now; nobody waits for its answer any more."""
        while self._held:
            self.forward(self._held.pop(0))

    def forward(self, request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.target), timeout=5) as server:
            server.sendall(request)
            return _read_message(server)

    def _read_request(self, client: socket.socket) -> bytes:
        request = _read_message(client)
        head, __, body = request.partition(b"\r\n\r\n")
        new = self.rewrite_request(body)
        old_length, new_length = (b"Content-Length: %d" % len(each) for each in (body, new))
        return head.replace(old_length, new_length) + b"\r\n\r\n" + new


def _read_message(sock: socket.socket) -> bytes:
    """A whole HTTP message with Content-Length, or none: then its head alone."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            raise OSError("closed")
        data += piece
    head, __, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    while len(body) < length:
        piece = sock.recv(65536)
        if not piece:
            raise OSError("closed")
        body += piece
    return head + b"\r\n\r\n" + body


class FaultyFiles(Files):
    """link(2) with the same faults as a mount whose server is far away and unreliable."""

    def __init__(self, plan: Plan | None = None) -> None:
        self.plan: Plan = plan or in_turn()
        self.on_request: Callable[[], None] = lambda: None
        self._held: list[tuple[int, str, str]] = []

    def link(self, old: str, new: str, at: int) -> None:
        if not new.startswith("gen-"):
            super().link(old, new, at)
            return
        self.on_request()
        fault = self.plan()
        if fault == "slow":
            time.sleep(0.3)
        if fault == "lose request":
            raise OSError(errno.EIO, "the request was lost")
        if fault == "hold":
            # A file handle outlives the name: keep the file under another one.
            kept = f"held-{len(self._held)}-{os.getpid()}-{new}"
            super().link(old, kept, at)
            self._held.append((os.dup(at), kept, new))
            raise OSError(errno.ETIMEDOUT, "the request was held back")
        super().link(old, new, at)
        if fault == "duplicate":
            super().link(old, new, at)
        if fault == "lose answer":
            raise OSError(errno.EIO, "the answer was lost")

    def links(self, name: str, at: int) -> int:
        # The extra name of a request that is held back is not one of the directory's.
        return super().links(name, at) - sum(
            os.path.samestat(os.stat(name, dir_fd=at), os.stat(kept, dir_fd=where))
            for where, kept, __ in self._held
        )

    def release(self) -> None:
        """What was held back happens now, if the server would still do it."""
        while self._held:
            at, kept, new = self._held.pop(0)
            try:
                super().link(kept, new, at)
            except FileExistsError:
                pass
            os.unlink(kept, dir_fd=at)
            os.close(at)


class Backend:
    """One real arbiter, and what can befall it."""

    name: str

    def arbiter(self, plan: Plan | None = None) -> tuple[Arbiter, Callable[[], None]]:
        """A way to it with faults, and the call that releases what they hold back."""
        raise NotImplementedError

    def put(self, uuid: str, value: bytes) -> None:
        """Set the value, whatever there was."""
        arbiter, __ = self.arbiter()
        key = vm_key(CLUSTER, uuid)
        reply = arbiter.swap(key, None, value)
        while not reply.succeeded:
            reply = arbiter.swap(key, reply.current, value)

    def value(self, uuid: str) -> bytes | None:
        """The value as a refused transaction tells it."""
        arbiter, __ = self.arbiter()
        return arbiter.swap(vm_key(CLUSTER, uuid), b"no value is ever this", b"nor this").current

    def save(self) -> None:
        raise NotImplementedError

    def restore(self) -> None:
        """Bring back the state of `save()`, as a person does from a backup."""
        raise NotImplementedError

    def wipe(self) -> None:
        """Lose everything and set the arbiter up anew, at the same place."""
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError


class EtcdBackend(Backend):
    name = "etcd"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = EtcdServer(directory / "data")
        self.proxies: list[Proxy] = []

    def proxy(self, plan: Plan | None = None) -> Proxy:
        made = Proxy(self.server.client)
        made.plan = plan or in_turn()
        self.proxies.append(made)
        return made

    def arbiter(self, plan: Plan | None = None) -> tuple[Arbiter, Callable[[], None]]:
        proxy = self.proxy(plan)
        return Etcd(EtcdConfig((proxy.url,))), proxy.release

    def save(self) -> None:
        self.server.stop()
        shutil.copytree(self.server.directory, self.directory / "backup")
        self.server.start()

    def restore(self) -> None:
        self.server.stop()
        shutil.rmtree(self.server.directory)
        shutil.copytree(self.directory / "backup", self.server.directory)
        self.server.start()

    def wipe(self) -> None:
        self.server.stop()
        shutil.rmtree(self.server.directory)
        self.server.start()

    def stop(self) -> None:
        for proxy in self.proxies:
            proxy.listener.close()
        self.server.stop()


class FileBackend(Backend):
    name = "file"

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "shared"
        self.backup = directory / "backup"
        self.directory.mkdir()
        FileArbiter(str(self.directory)).set_up(CLUSTER)

    def arbiter(self, plan: Plan | None = None) -> tuple[Arbiter, Callable[[], None]]:
        files = FaultyFiles(plan)
        return FileArbiter(str(self.directory), files), files.release

    def folder(self, uuid: str) -> Path:
        return self.directory / "kvmft" / CLUSTER / "vm" / uuid

    def save(self) -> None:
        shutil.copytree(self.directory, self.backup)

    def restore(self) -> None:
        shutil.rmtree(self.directory)
        shutil.copytree(self.backup, self.directory)

    def wipe(self) -> None:
        shutil.rmtree(self.directory)
        self.directory.mkdir()
        FileArbiter(str(self.directory)).set_up(CLUSTER)

    def stop(self) -> None:
        pass


def make(name: str, directory: Path) -> Backend:
    return EtcdBackend(directory) if name == "etcd" else FileBackend(directory)


def without_compare(body: bytes) -> bytes:
    """What a proxy or an etcd that does not know the field makes of a transaction."""
    if not body:
        return body
    value = json.loads(body)
    value.pop("compare")
    return json.dumps(value).encode()
