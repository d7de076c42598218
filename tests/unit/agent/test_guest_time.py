"""A guest's wall clock after a failover, with libvirt's domain played by an object that has a clock."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import libvirt
import pytest

from kvmft.agent import guest_time

NOW = 1_795_000_000.25


@pytest.fixture(autouse=True)
def host_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's wall clock stands: what a test takes is no part of what it finds."""
    stands = SimpleNamespace(time=lambda: NOW, time_ns=lambda: int(NOW * 1e9), monotonic=time.monotonic)
    monkeypatch.setattr(guest_time, "time", stands)


class Domain:
    """Its clock is `behind` seconds behind; the first `refusals` calls are refused with `code`."""

    def __init__(self, behind: float, refusals: int = 0, code: int = libvirt.VIR_ERR_OPERATION_INVALID) -> None:
        self.behind, self.refusals, self.code = behind, refusals, code
        self.asked = 0

    def _refuse(self) -> None:
        self.asked += 1
        if self.refusals:
            self.refusals -= 1
            error = libvirt.libvirtError("refused")
            error.err = (self.code, 10, "refused", 2, "", None, None, 0, 0)
            raise error

    def getTime(self) -> dict[str, int]:  # noqa: N802 (libvirt's name)
        self._refuse()
        shown = NOW - self.behind
        return {"seconds": int(shown), "nseconds": int(shown % 1 * 1e9)}

    def setTime(self, to: dict[str, Any]) -> int:  # noqa: N802 (libvirt's name)
        self._refuse()
        self.behind = NOW - (to["seconds"] + to["nseconds"] / 1e9)
        return 0


def put_right(domain: Domain, patience: float = 15.0) -> float | None:
    return asyncio.run(guest_time.put_right(lambda: domain, patience))


def test_a_clock_that_lost_a_failover_is_set() -> None:
    domain = Domain(0.9)
    assert put_right(domain) == pytest.approx(0.9, abs=0.001)
    assert abs(domain.behind) < 0.001


@pytest.mark.parametrize("behind", [0.02, -5.0, 3600.0])
def test_a_clock_that_is_right_or_has_a_time_of_its_own_is_left(behind: float) -> None:
    domain = Domain(behind)
    assert put_right(domain) is None
    assert domain.behind == behind


def test_an_agent_that_is_refused_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_time, "EVERY", 0.01)
    domain = Domain(0.9, refusals=3)
    assert put_right(domain) == pytest.approx(0.9, abs=0.001)
    assert put_right(Domain(0.9, refusals=10**6), patience=0.1) is None


def test_an_agent_that_fails_over_the_hardwares_clock_has_set_the_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(Domain):
        def setTime(self, to: dict[str, Any]) -> int:  # noqa: N802 (libvirt's name)
            super().setTime(to)
            self.refusals = 1
            return super().setTime(to)

    monkeypatch.setattr(guest_time, "EVERY", 0.01)
    assert put_right(Half(0.9)) == pytest.approx(0.9, abs=0.001)


def test_without_a_guest_agent_nobody_waits() -> None:
    domain = Domain(0.9, 10**6, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED)
    assert put_right(domain) is None
    assert domain.asked == 1
