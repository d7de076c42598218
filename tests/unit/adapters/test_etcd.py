"""etcd as the arbiter: the exact JSON, and a real etcd behind a proxy that loses answers."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmft.adapters import arbiter_client
from kvmft.adapters.arbiter_client import ArbiterClient, ArbiterIdentity
from kvmft.adapters.etcd import (
    Etcd,
    EtcdConfig,
    acceptable,
    build_txn,
    parse_txn,
)
from kvmft.adapters.reactor import Reactor
from kvmft.errors import KvmftError
from kvmft.ports import Unclear, vm_key
from tests.pair.harness import Etcd as RealEtcd
from tests.pair.harness import free_port

CLUSTER = "c" * 32


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_the_transactions_are_exactly_these() -> None:
    key = b64(b"k")
    failure = [{"request_range": {"key": key}}]
    assert build_txn("k", b"old", b"new") == {
        "compare": [{"key": key, "target": "VALUE", "result": "EQUAL", "value": b64(b"old")}],
        "success": [{"request_put": {"key": key, "value": b64(b"new")}}],
        "failure": failure,
    }
    assert build_txn("k", None, b"new")["compare"] == [
        {"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0"}
    ]


@pytest.mark.parametrize(
    "answer", [None, [], {}, {"header": {}}, {"header": {}, "responses": []}, {"succeeded": True}]
)
def test_an_answer_that_says_nothing_clear_is_unclear(answer: Any) -> None:
    with pytest.raises(Unclear):
        parse_txn(answer)


@pytest.mark.parametrize(
    ("version", "good"),
    [("3.4.20", False), ("3.4.21", True), ("3.4.23", True), ("3.5.4", False), ("3.5.5", True),
     ("3.6.0", True), ("3.3.99", False), ("nonsense", False)],
)  # fmt: skip
def test_versions_that_lost_writes_are_refused(version: str, good: bool) -> None:
    assert acceptable(version) is good


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEtcd]:
    made = RealEtcd(tmp_path_factory.mktemp("etcd"))
    yield made
    made.stop()


def test_swaps_on_a_real_etcd(etcd: RealEtcd) -> None:
    client = Etcd(EtcdConfig((etcd.url,)))
    assert client.swap("a", None, b"1").succeeded
    assert client.swap("a", None, b"2").current == b"1"
    assert client.swap("a", b"0", b"2").current == b"1"
    assert client.swap("a", b"1", b"2").succeeded
    assert client.swap("a", b"2", None).succeeded
    refused = client.swap("a", b"2", b"3")
    assert (refused.succeeded, refused.current) == (False, None)
    assert client.probe(CLUSTER, "node-a").detail.startswith("etcd 3.")


def test_an_arbiter_that_does_not_answer_is_one_clear_error() -> None:
    with pytest.raises(KvmftError, match="does not answer") as caught:
        Etcd(EtcdConfig((f"http://127.0.0.1:{free_port()}",))).probe(CLUSTER, "node-a")
    assert "Check that etcd runs" in caught.value.remedy


class LossyProxy:
    """Forwards to etcd; the answers to the first `lose` requests are thrown away."""

    def __init__(self, url: str, lose: int) -> None:
        self.target = int(url.rsplit(":", 1)[1])
        self.lose = lose
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, __ = self.listener.accept()
            except OSError:
                return
            with client, socket.create_connection(("127.0.0.1", self.target)) as server:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += client.recv(65536)
                head, body = request.split(b"\r\n\r\n", 1)
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                while len(body) < length:
                    body += client.recv(65536)
                server.sendall(head + b"\r\n\r\n" + body)
                answer = server.recv(65536)
                if self.lose:
                    self.lose -= 1
                    continue
                client.sendall(answer)


class Side:
    """One side's arbiter client and its verdicts."""

    def __init__(self, reactor: Reactor, url: str, me: str, directory: Path, uuid: str) -> None:
        peer = "node-b" if me == "node-a" else "node-a"
        self.verdicts: list[tuple[bool, bool, str]] = []
        identity = ArbiterIdentity(CLUSTER, uuid, me, peer, str(directory / f"{me}.json"),
                                   {"type": "etcd", "endpoints": [url]})  # fmt: skip
        self.client = ArbiterClient(
            reactor, identity, lambda *verdict: self.verdicts.append(verdict), lambda note: None
        )


def test_pair_and_race_on_a_real_etcd(etcd: RealEtcd, tmp_path: Path) -> None:
    reactor = Reactor()
    a = Side(reactor, etcd.url, "node-a", tmp_path, "vm-1")
    b = Side(reactor, etcd.url, "node-b", tmp_path, "vm-1")
    a.client.create()
    assert reactor.run_until(lambda: len(a.verdicts) == 1, 10) and a.verdicts[0][0]
    b.client.accept_offer(a.client.name_pair(1))
    a.client.pair()
    assert reactor.run_until(lambda: len(a.verdicts) == 2, 10) and a.verdicts[1][0]
    a.client.solo()
    b.client.solo()
    assert reactor.run_until(lambda: len(a.verdicts) == 3 and bool(b.verdicts), 10)
    assert [a.verdicts[2][0], b.verdicts[0][0]].count(True) == 1, "exactly one side may win"


def test_a_lost_answer_is_still_a_win(etcd: RealEtcd, tmp_path: Path) -> None:
    reactor = Reactor()
    proxy = LossyProxy(etcd.url, lose=2)
    a = Side(reactor, proxy.url, "node-a", tmp_path, "vm-2")
    a.client.create()
    assert reactor.run_until(lambda: bool(a.verdicts), 20)
    won, __, reason = a.verdicts[0]
    assert won and "first answer was lost" in reason
    direct = Etcd(EtcdConfig((etcd.url,)))
    held = a.client.holdings.bases[0].to_bytes()
    assert direct.swap(vm_key(CLUSTER, "vm-2"), b"", b"").current == held
    proxy.listener.close()


def test_while_the_arbiter_is_away_nothing_is_decided(tmp_path: Path) -> None:
    reactor = Reactor()
    a = Side(reactor, f"http://127.0.0.1:{free_port()}", "node-a", tmp_path, "vm-3")
    a.client.create()
    assert not reactor.run_until(lambda: bool(a.verdicts), 2)


def test_a_restarted_side_creates_no_second_record(etcd: RealEtcd, tmp_path: Path) -> None:
    reactor = Reactor()
    first = Side(reactor, etcd.url, "node-a", tmp_path, "vm-4")
    first.client.create()
    reactor.run_until(lambda: bool(first.verdicts), 10)
    again = Side(reactor, etcd.url, "node-a", tmp_path, "vm-4")
    again.client.create()
    assert reactor.run_until(lambda: bool(again.verdicts), 10) and again.verdicts[0][0]
    assert again.client.generation == 2


def test_a_claims_file_that_cannot_be_written_is_tried_again(
    etcd: RealEtcd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reactor = Reactor()
    a = Side(reactor, etcd.url, "node-a", tmp_path, "vm-full")
    monkeypatch.setattr(arbiter_client, "PERSIST_RETRY", 0.05)
    real, failures = arbiter_client.write_durably, [0]

    def write(path: str, data: bytes, *more: int) -> None:
        failures[0] += 1
        if failures[0] <= 2:
            raise OSError(28, "No space left on device")
        real(path, data, *more)

    monkeypatch.setattr(arbiter_client, "write_durably", write)
    a.client.create()
    assert a.verdicts == []
    assert reactor.run_until(lambda: bool(a.verdicts), 10) and a.verdicts[0][0]
    assert failures[0] == 4, "two that failed, the write-ahead, and the verdict"
