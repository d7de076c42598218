"""A guest's wall clock after a failover, with libvirt's domain played by an object that has a clock."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import libvirt
import pytest

from kvmft.agent import guest_time


class Domain:
    """Its clock is `behind` seconds behind; the first `refusals` calls are refused with `code`."""

    def __init__(self, behind: float, refusals: int = 0, code: int = libvirt.VIR_ERR_OPERATION_INVALID) -> None:
        self.behind, self.refusals, self.code = behind, refusals, code

    def _refuse(self) -> None:
        if self.refusals:
            self.refusals -= 1
            error = libvirt.libvirtError("refused")
            error.err = (self.code, 10, "refused", 2, "", None, None, 0, 0)
            raise error

    def getTime(self) -> dict[str, int]:  # noqa: N802 (libvirt's name)
        self._refuse()
        shown = time.time() - self.behind
        return {"seconds": int(shown), "nseconds": int(shown % 1 * 1e9)}

    def setTime(self, to: dict[str, Any]) -> int:  # noqa: N802 (libvirt's name)
        self._refuse()
        self.behind = time.time() - (to["seconds"] + to["nseconds"] / 1e9)
        return 0


def put_right(domain: Domain, patience: float = 15.0) -> float | None:
    return asyncio.run(guest_time.put_right(lambda: domain, patience))


def test_a_clock_that_lost_a_failover_is_set() -> None:
    domain = Domain(0.9)
    assert put_right(domain) == pytest.approx(0.9, abs=0.05)
    assert abs(domain.behind) < 0.05


@pytest.mark.parametrize("behind", [0.02, -5.0, 3600.0])
def test_a_clock_that_is_right_or_has_a_time_of_its_own_is_left(behind: float) -> None:
    domain = Domain(behind)
    assert put_right(domain) is None
    assert domain.behind == behind


def test_an_agent_that_is_refused_for_a_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_time, "EVERY", 0.01)
    domain = Domain(0.9, refusals=3)
    assert put_right(domain) == pytest.approx(0.9, abs=0.2)
    assert put_right(Domain(0.9, refusals=10**6), patience=0.1) is None


def test_an_agent_that_fails_over_the_hardwares_clock_has_set_the_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(Domain):
        def setTime(self, to: dict[str, Any]) -> int:  # noqa: N802 (libvirt's name)
            super().setTime(to)
            self.refusals = 1
            return super().setTime(to)

    monkeypatch.setattr(guest_time, "EVERY", 0.01)
    assert put_right(Half(0.9)) == pytest.approx(0.9, abs=0.05)


def test_without_a_guest_agent_nobody_waits() -> None:
    begun = time.monotonic()
    assert put_right(Domain(0.9, 10**6, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED)) is None
    assert time.monotonic() - begun < 1
