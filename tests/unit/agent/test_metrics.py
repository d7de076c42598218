"""Metrics: the exposition parses, figures are the right ones, and counters never go backwards."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvmft.adapters.certificate import expiry
from kvmft.agent import exposure
from kvmft.agent.config import parse
from kvmft.agent.counters import Counters
from kvmft.agent.exposition import Exposition
from kvmft.agent.exposure import Exposure
from kvmft.agent.metrics import STATES, Metrics
from kvmft.agent.service import Agent
from kvmft.agent.vm_status import status_of
from kvmft.errors import KvmftError
from kvmft.worker.histogram import COMMIT_BOUNDS, PAUSE_BOUNDS, Histogram
from kvmft.worker.stats import EpochStats
from tests.pair.harness import free_port, make_pki
from tests.unit.agent.test_agent_safety import BASE, agent, managed

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(text: str, name: str, **labels: str) -> float | None:
    return samples(text).get((name, tuple(sorted(labels.items()))))


class Host:
    """libvirt's word on every VM; `slow` seconds until it is given."""

    def __init__(self, execution: str = "running", slow: float = 0.0) -> None:
        self.word, self.slow = execution, slow

    def execution(self, vm: str) -> str:
        time.sleep(self.slow)
        if self.word == "down":
            raise KvmftError("libvirt_down", "libvirt does not answer.", "")
        return self.word


def worker_totals(pauses: list[float], epochs: int) -> dict[str, Any]:
    stats = EpochStats(0.0)
    for index, pause in enumerate(pauses):
        stats.captured(index + 1.0, pause, 100)
        stats.committed(index + 1.004)
    return {**stats.totals(1000 * len(pauses)), "epochs": epochs}


def made(tmp_path: Path, **state: Any) -> tuple[Agent, Any]:
    a = agent(tmp_path)
    a.host = Host()  # type: ignore[assignment]
    vm = managed(a, **state)
    vm._message({"msg": "status", "generation": 7, "held_bytes": 0, "sync_percent": 50.0,
                 "last_commit_age_ms": 2000.0, "guest_clock_loss_ppm": 100_000,
                 "totals": worker_totals([0.0021, 0.004, 3.0], 3)})  # fmt: skip
    vm._message({"msg": "state", "state": "protected", "reason": ""})
    return a, vm


def text_of(a: Agent) -> str:
    return asyncio.run(Metrics(a).text())


def test_histograms_count_a_value_on_a_bound_into_that_bound() -> None:
    made = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        made.add(value)
    assert made.to_dict() == {"bounds": [1.0, 2.0], "counts": [2, 1, 1], "sum": 12.0}


@pytest.mark.parametrize("bounds", [PAUSE_BOUNDS, COMMIT_BOUNDS])
def test_bounds_ascend(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_label_values_and_help_are_escaped() -> None:
    out = Exposition()
    out.gauge("g", 'a\\b\n"c"', 1.5, vm='we"ird\\\nname')
    out.gauge("g", "", None, vm="unknown")
    (family,) = text_string_to_metric_families(out.text())
    assert family.documentation == 'a\\b\n"c"'
    assert [(each.labels, each.value) for each in family.samples] == [({"vm": 'we"ird\\\nname'}, 1.5)]


def test_the_exposition_parses_and_every_metric_is_there(tmp_path: Path) -> None:
    a, vm = made(tmp_path)
    vm.worker = object()
    text = text_of(a)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert set(families) == {
        "kvmft_build_info", "kvmft_libvirt_up", "kvmft_arbiter_up", "kvmft_host_maintenance",
        "kvmft_certificate_expiry_seconds", "kvmft_vm_state", "kvmft_vm_generation",
        "kvmft_vm_running_here", "kvmft_vm_protection_wanted", "kvmft_vm_protected",
        "kvmft_vm_unprotected_seconds", "kvmft_failovers", "kvmft_vm_epochs", "kvmft_vm_pages",
        "kvmft_vm_log_bytes", "kvmft_vm_log_saved_bytes", "kvmft_vm_pause_seconds", "kvmft_vm_commit_seconds",
        "kvmft_vm_held_bytes", "kvmft_vm_sync_ratio", "kvmft_vm_last_commit_age_seconds",
        "kvmft_vm_guest_clock_loss_ratio", "kvmft_vm_beacons_missed",
    }  # fmt: skip
    assert all(family.documentation for family in families.values())
    assert of(text, "kvmft_vm_pause_seconds_bucket", vm="v", le="0.003") == 1
    assert of(text, "kvmft_vm_pause_seconds_bucket", vm="v", le="+Inf") == 3
    assert of(text, "kvmft_vm_pause_seconds_count", vm="v") == 3
    assert of(text, "kvmft_vm_commit_seconds_sum", vm="v") == pytest.approx(0.012)
    assert of(text, "kvmft_vm_guest_clock_loss_ratio", vm="v") == pytest.approx(0.1)
    states = [of(text, "kvmft_vm_state", vm="v", state=state) for state in STATES]
    assert sum(filter(None, states)) == 1 and of(text, "kvmft_vm_state", vm="v", state="protected")


def test_promtool_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    a, __ = made(tmp_path)
    done = subprocess.run(["promtool", "check", "metrics"], input=text_of(a), text=True,
                          capture_output=True, check=False, timeout=30)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_counters_never_go_backwards_when_a_worker_is_started_anew(tmp_path: Path) -> None:
    a, vm = made(tmp_path)
    before = samples(text_of(a))
    vm.counters.begin()  # what `_launch` does
    after_start = samples(text_of(a))
    vm._message({"msg": "status", "totals": worker_totals([0.002], 1)})
    after = samples(text_of(a))
    rising = [key for key in before if key[0].endswith(("_total", "_bucket", "_count", "_sum"))]
    assert len(rising) > 30
    for key in rising:
        assert before[key] <= after_start[key] <= after[key], key
    assert after[("kvmft_vm_epochs_total", (("vm", "v"),))] == 4


def test_a_launched_worker_begins_to_count_anew(tmp_path: Path) -> None:
    __, vm = made(tmp_path)
    asyncio.run(_launch_and_kill(vm, tmp_path))
    assert vm.counters.plain["epochs"] == 3
    vm.counters.take(worker_totals([0.002] * 5, 5))
    assert vm.counters.plain["epochs"] == 8


async def _launch_and_kill(vm: Any, tmp_path: Path) -> None:
    await vm._launch({"role": "claim", "run_dir": str(tmp_path / "run")})
    worker, vm.worker = vm.worker, None
    await worker.end(5)
    await asyncio.sleep(0.02)  # the loop lets go of the process' pipes


def test_a_message_twice_counts_once() -> None:
    counters = Counters()
    for __ in range(2):
        counters.take(worker_totals([0.002, 0.003], 2))
    assert counters.plain["epochs"] == 2 and counters.histograms["pause"]["sum"] == 0.005


@pytest.mark.parametrize(
    ("role", "may_start", "state", "execution", "expected"),
    [
        ("primary", True, "protected", "running", 1),
        ("primary", True, "protected", "paused", 1),  # at this moment a checkpoint is taken
        ("primary", True, "need_secondary", "off", 0),
        ("primary", True, "failing_over", "running", 0),  # its output waits for the arbiter's word
        ("primary", False, "need_secondary", "running", 0),  # the agent came back; output is shut
        ("primary", True, "fenced", "paused", 0),
        ("secondary", False, "protected", "paused", 0),  # a standby waits for its memory
        ("secondary", False, "protected", "running", 1),  # this must not be, so it must be seen
        ("secondary", False, "failing_over", "running", 0),
        ("stale", False, "disabled", "running", 1),  # nor must this
    ],
)
def test_running_here_means_that_its_output_may_be_seen(
    tmp_path: Path, role: str, may_start: bool, state: str, execution: str, expected: int
) -> None:
    a, vm = made(tmp_path, role=role, may_start=may_start)
    a.host.word = execution  # type: ignore[attr-defined]
    vm.shown = (state, "")
    assert of(text_of(a), "kvmft_vm_running_here", vm="v") == expected


@pytest.mark.parametrize("host", [Host("down"), Host(slow=0.5)])
def test_without_libvirt_nothing_is_claimed_about_what_runs(
    tmp_path: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvmft.agent.metrics.LIBVIRT_PATIENCE", 0.1)
    a, __ = made(tmp_path)
    a.host = host  # type: ignore[assignment]
    text = text_of(a)
    assert of(text, "kvmft_libvirt_up") == 0
    assert of(text, "kvmft_vm_running_here", vm="v") is None
    assert of(text, "kvmft_vm_state", vm="v", state="protected") == 1


def test_the_commits_age_grows_also_when_the_worker_stalls(tmp_path: Path) -> None:
    a, vm = made(tmp_path)
    vm.worker = object()
    vm.counters.figures_at -= 60
    assert of(text_of(a), "kvmft_vm_last_commit_age_seconds", vm="v") == pytest.approx(62, abs=20)


# -- exposure ------------------------------------------------------------------------------------


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mono, self.wall = 1000.0, 1_795_000_000.0
        monkeypatch.setattr(exposure.time, "monotonic", lambda: self.mono)
        monkeypatch.setattr(exposure.time, "time", lambda: self.wall)
        real = time.gmtime
        monkeypatch.setattr(exposure.time, "gmtime", lambda: real(self.wall))

    def pass_(self, seconds: float) -> None:
        self.mono += seconds
        self.wall += seconds


def test_unprotected_time_counts_over_restarts_of_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    first = Exposure(str(tmp_path))
    first.tick(True, True)
    for __ in range(10):
        clock.pass_(1)
        first.tick(True, True)
    clock.pass_(5)
    first.tick(False, True)
    assert first.seconds == 10, "the last five seconds were protected"
    first.save()
    clock.pass_(7)  # the agent is down, so nothing is protected
    second = Exposure(str(tmp_path))
    second.tick(False, True)
    assert second.seconds == 17 and second.this_month == 17
    second.end()
    clock.pass_(1000)  # turned off
    third = Exposure(str(tmp_path))
    third.tick(True, True)
    assert third.seconds == 17


def test_time_before_a_restart_of_the_host_is_the_other_hosts_to_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    first = Exposure(str(tmp_path))
    first.tick(True, True)
    monkeypatch.setattr(exposure, "boot_id", lambda: "another")
    clock.pass_(86400)
    second = Exposure(str(tmp_path))
    second.tick(True, True)
    assert second.seconds == 0


def test_months_are_kept_apart_and_old_ones_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    made = Exposure(str(tmp_path))
    made.tick(True, True)
    for __ in range(20):
        clock.pass_(31 * 86400)
        made.tick(True, True)
        made.tick(True, True)
    assert made.this_month == pytest.approx(31 * 86400)
    made.save()
    assert len(Exposure(str(tmp_path)).months) == exposure.MONTHS


@pytest.mark.parametrize("content", ["", "{", "[]", '{"unprotected_seconds": "x"}', "\0" * 100])
def test_a_damaged_file_is_no_reason_to_fail(tmp_path: Path, content: str) -> None:
    (tmp_path / exposure.FILE).write_text(content)
    made = Exposure(str(tmp_path))
    made.tick(True, True)
    assert made.seconds == 0


def test_status_shows_the_months_exposure_and_failovers_are_counted_by_kind(tmp_path: Path) -> None:
    a, vm = made(tmp_path)
    vm.exposure.months[time.strftime("%Y-%m", time.gmtime())] = 61.25
    assert status_of(a, vm, True)["unprotected_seconds_month"] == pytest.approx(61.2)
    vm._message({"msg": "event", "event": "activated", "reason": "", "data": {"kind": "unplanned"}})
    assert of(text_of(a), "kvmft_failovers_total", vm="v", kind="unplanned") == 1
    kept = json.loads((Path(a.store.root) / "v" / exposure.FILE).read_text())
    assert kept["failovers"] == {"unplanned": 1}


def test_a_vm_that_is_off_or_was_not_asked_to_be_protected_is_not_exposed(tmp_path: Path) -> None:
    __, vm = made(tmp_path, desired="enabled", running=True)
    seen: list[tuple[bool, bool]] = []
    vm.exposure.tick = lambda unprotected, wanted: seen.append((unprotected, wanted))
    vm.watch_exposure()
    vm.shown = ("need_secondary", "")
    vm.watch_exposure()
    vm._off_since = 1.0
    vm.watch_exposure()
    vm._off_since, vm.state.desired = None, "suspended"
    vm.watch_exposure()
    assert seen == [(False, True), (True, True), (False, False), (False, False)]


# -- certificates, configuration, serving ----------------------------------------------------------


def test_a_certificates_end_is_what_openssl_says(tmp_path: Path) -> None:
    make_pki(tmp_path / "pki", ("node-a",))
    for name in ("ca", "node-a"):
        path = tmp_path / "pki" / f"{name}.pem"
        said = subprocess.run(["openssl", "x509", "-enddate", "-noout", "-in", str(path)], text=True,
                              capture_output=True, check=True).stdout.strip()  # fmt: skip
        end = time.strptime(said.removeprefix("notAfter="), "%b %d %H:%M:%S %Y GMT")
        assert time.gmtime(expiry(str(path)))[:6] == end[:6]


@pytest.mark.parametrize("content", ["", "-----BEGIN CERTIFICATE-----\nMAAwAA==\n-----END CERTIFICATE-----\n",
                                     "-----BEGIN CERTIFICATE-----\n****\n-----END CERTIFICATE-----\n"])  # fmt: skip
def test_what_is_no_certificate_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.pem"
    path.write_text(content)
    with pytest.raises(KvmftError, match="is no certificate"):
        expiry(str(path))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ("10.0.0.1", 7409)),
        ({"port": 9100}, ("10.0.0.1", 9100)),
        ({"address": "127.0.0.1"}, ("127.0.0.1", 7409)),
        ({"port": None}, ("10.0.0.1", None)),
    ],
)
def test_where_metrics_are_served(value: Any, expected: tuple[str, int | None]) -> None:
    config = parse(BASE if value is None else {**BASE, "metrics": value})
    assert (config.metrics_address, config.metrics_port) == expected


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("x", "metrics"),
        ({"ports": 1}, "metrics.ports"),
        ({"port": 0}, "metrics.port"),
        ({"port": "7409"}, "metrics.port"),
        ({"address": "localhost"}, "metrics.address"),
        ({"address": 17}, "metrics.address"),
    ],
)
def test_a_slip_in_the_configuration_is_named(value: Any, path: str) -> None:
    with pytest.raises(KvmftError) as caught:
        parse({**BASE, "metrics": value})
    assert caught.value.message.startswith(f"{path} in the configuration")


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0.02)


async def _ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"200 OK", b"kvmft_build_info{"),
        (b"HEAD /metrics HTTP/1.0\r\n\r\n", b"200 OK", b""),
        (b"GET / HTTP/1.1\r\n\r\n", b"404 Not Found", b"/metrics"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405 Method", b"Only GET"),
        (b"nonsense\r\n\r\n", b"405 Method", b"Only GET"),
    ],
)
def test_it_is_served_over_http(tmp_path: Path, request_: bytes, status: bytes, body: bytes) -> None:
    async def run() -> bytes:
        task = asyncio.create_task(Metrics(a).run())
        await asyncio.sleep(0.1)
        try:
            return await _ask(port, request_)
        finally:
            await _end(task)

    a, __ = made(tmp_path)
    port = free_port()
    a.config = parse({**BASE, "metrics": {"address": "127.0.0.1", "port": port}})
    head, __, content = asyncio.run(run()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert body in content and (body or not content)


def test_endless_and_silent_requests_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvmft.agent.metrics.REQUEST_PATIENCE", 0.3)

    async def run() -> list[bytes]:
        task = asyncio.create_task(Metrics(a).run())
        await asyncio.sleep(0.1)
        try:
            return [await _ask(port, b"x" * 100_000), await _ask(port, b"GET /metr"),
                    await _ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")]  # fmt: skip
        finally:
            await _end(task)

    a, __ = made(tmp_path)
    port = free_port()
    a.config = parse({**BASE, "metrics": {"address": "127.0.0.1", "port": port}})
    flood, silence, good = asyncio.run(run())
    assert (flood, silence) == (b"", b"") and b"200 OK" in good


def test_an_address_that_is_not_there_is_told_once_and_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvmft.agent.metrics.LISTEN_AGAIN", 0.02)

    async def run() -> None:
        task = asyncio.create_task(Metrics(a).run())
        await asyncio.sleep(0.3)
        assert not task.done()
        await _end(task)

    a, __ = made(tmp_path)
    a.config = parse({**BASE, "metrics": {"address": "192.0.2.1", "port": 7409}})
    asyncio.run(run())
    told = [each for each in a.events.read(None, 0, 100) if "metrics are not served" in each["reason"]]
    assert len(told) == 1
