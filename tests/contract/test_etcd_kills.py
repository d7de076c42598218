"""A claimant of etcd is killed around its request; what it wrote ahead makes the answer right."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmft.adapters.etcd import Etcd, EtcdConfig
from kvmft.adapters.reactor import Reactor
from tests.contract.backends import EtcdBackend, Proxy
from tests.contract.sides import Side, pair
from tests.pair.harness import wait_for


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdBackend]:
    made = EtcdBackend(tmp_path_factory.mktemp("etcd"))
    yield made
    made.stop()


def _claim_and_exit(side: Side, url: str) -> None:
    again = Side(Reactor(), Etcd(EtcdConfig((url,))), side.directory, side.me, side.uuid)
    again.client.solo()
    again.reactor.run_until(lambda: bool(again.verdicts), 20)
    os._exit(0)


class Killing(Proxy):
    """Kills the claimant when its request is here, or when it was carried out."""

    child = 0
    when = ""

    def _treat(self, request: bytes, fault: str) -> bytes:
        if self.when == "before":
            self._kill()
        answer = b"" if fault == "lose request" else self.forward(request)
        if self.when == "after":
            self._kill()
        return answer

    def _kill(self) -> None:
        wait_for("the claimant's pid", lambda: self.child)
        os.kill(self.child, signal.SIGKILL)


@pytest.mark.parametrize(
    ("when", "fault", "winner"),
    [("before", "lose request", "LOST"), ("before", "pass", "WON"), ("after", "pass", "WON")],
    ids=["its request never arrives", "its request arrives without it", "its answer finds nobody"],
)
def test_a_claimant_killed_around_its_request(
    etcd: EtcdBackend, tmp_path: Path, when: str, fault: str, winner: str
) -> None:
    a, b = pair(etcd, tmp_path)
    proxy = Killing(etcd.server.client)
    proxy.when, proxy.plan = when, lambda: fault
    before = etcd.value(b.uuid)
    child = os.fork()
    if child == 0:
        _claim_and_exit(b, proxy.url)
    proxy.child = child
    __, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if fault == "pass":
        wait_for("the request carried out", lambda: etcd.value(b.uuid) != before)
    proxy.listener.close()
    a.client.solo()
    assert str(a.wait()) == ("LOST" if winner == "WON" else "WON")
    back = b.restarted(etcd.arbiter()[0])
    back.client.solo()
    assert str(back.wait()) == winner
