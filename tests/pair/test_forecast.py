"""`kvmft forecast` of a real guest: it counts what the guest writes, leaves QEMU as it was, and comes true."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kvmft.adapters import inject
from kvmft.report.epochs import Epochs
from tests.bench import dirtyguest, engine, forecast
from tests.pair.conftest import ACCELERATORS
from tests.pair.harness import Machine, Pair, Worker, wait_for

PAGES = 1000
SECONDS = 4.0
TIMES, WINDOWS = ("pause median ms", "interval median ms", "FT log MB/s"), 4
"""Times within a factor of four, in one of so many windows: other work of this machine must not decide."""
OTHERS = 60
"""Pages that the guest's devices and firmware may write besides."""


@pytest.fixture(params=ACCELERATORS)
def writer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """A guest that writes PAGES pages all the time, unprotected."""
    boot = partial(dirtyguest.write_disk, pages=PAGES)
    pair = Pair(tmp_path, request.param, machine=Machine(engine.memory_for(PAGES), write_disk=boot))
    try:
        wait_for("the guest counting", lambda: pair.primary_vm.counts, 30)
        yield pair
    finally:
        pair.stop()


def descriptors(pair: Pair) -> list[str]:
    folder = f"/proc/{pair.primary_vm.process.pid}/fd"
    return sorted(os.readlink(os.path.join(folder, each)) for each in os.listdir(folder))


def as_before(pair: Pair, before: list[str]) -> None:
    """QEMU has the descriptors that it had (a monitor's end it may notice a little later), and the guest counts."""
    wait_for("QEMU without a new descriptor", lambda: descriptors(pair) == before)
    pair.wait_for_counts(pair.primary_vm.counts[-1] + 1)
    assert inject.find_userfaultfd(pair.primary_vm.process.pid) is None


def test_it_counts_what_the_guest_writes_and_leaves_qemu_as_it_was(writer: Pair) -> None:
    before = descriptors(writer)
    found = forecast.ask(writer.primary_vm, engine.OPTIONS, SECONDS)
    pages = {each["asked_ms"]: each["pages"]["p50"] for each in found["dirty_pages"]}
    print(f"\n{pages} pages in so many ms; {found['costs']}")
    assert PAGES <= pages[100] <= PAGES + OTHERS and PAGES <= pages[500] <= PAGES + OTHERS
    assert all(count <= PAGES + OTHERS for count in pages.values())
    assert PAGES <= found["pages_per_epoch"]["p99"] <= PAGES + OTHERS
    as_before(writer, before)
    again = forecast.ask(writer.primary_vm, engine.OPTIONS, 2.0, stops=True)
    assert os.sched_getscheduler(writer.primary_vm.process.pid) == os.SCHED_OTHER
    assert len(again["costs"]["stops_ms"]) == 5 and not any("--stop" in each for each in again["assumed"])
    as_before(writer, before)


@pytest.mark.parametrize("way", ["agent gone", "asked to end", "killed", "terminated"])
def test_whatever_ends_it_qemu_is_as_it_was(writer: Pair, way: str) -> None:
    before = descriptors(writer)
    process, line = forecast.start(writer.primary_vm, engine.OPTIONS, 30.0)
    time.sleep(2.0)
    assert process.poll() is None
    match way:
        case "agent gone":
            line.close()
        case "asked to end":
            line.sendall(b'{"cmd": "stop"}\n')
            assert b"forecast_ended" in line.recv(4096)
        case "killed":
            process.kill()
        case "terminated":
            process.terminate()
    process.wait(5)
    line.close()
    as_before(writer, before)
    assert forecast.ask(writer.primary_vm, engine.OPTIONS, 2.0)["dirty_pages"], "memory is free to be tracked again"


@pytest.mark.alone
def test_it_comes_true(writer: Pair) -> None:
    told = forecast.ask(writer.primary_vm, engine.OPTIONS, SECONDS, stops=True, log_rate=500e6)
    secondary, port = writer.start_secondary(options=engine.OPTIONS)
    primary = writer.start_primary(port, options=engine.OPTIONS)
    primary.wait(60, msg="state", state="protected")
    # Of a guest that a starved machine lets run now and then, half of the short intervals may have no page: the most counts.
    assert PAGES <= told["pages_per_epoch"]["p99"] <= PAGES + OTHERS
    rows: dict[str, tuple[float, float]] = {}
    for __ in range(WINDOWS):
        rows = _window(primary, told)
        if all(measured / 4 < foretold < measured * 4 for foretold, measured in (rows[name] for name in TIMES)):
            return
    pytest.fail(f"far from what was foretold, {WINDOWS} times: {rows}")


def _window(primary: Worker, told: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Foretold and measured in some seconds of protection, by name; printed too."""
    found = Epochs()
    primary.tell_epochs(found)
    time.sleep(SECONDS)
    primary.tell_epochs(found)
    pages = found.values["pages"]
    assert max(pages[-10:]) <= PAGES + OTHERS and max(pages) >= PAGES, "what was foretold"
    result = found.to_dict()
    rows = {name: (foretold, measured) for name, foretold, measured in forecast.compare({"forecast": told, **result})}
    for name, (foretold, measured) in rows.items():
        print(f"\n{name:20} foretold {foretold:8.2f} measured {measured:8.2f} ratio {foretold / measured:.2f}", end="")
    return rows
