"""What `./dev bench` prints and writes is what was measured."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kvmft.report import figures
from tests.bench import colo, dirtyguest, pinger, report


def engine(pages: int, memory: int = 512) -> dict[str, Any]:
    pause = [1.0 + pages / 1000 + memory / 10_240] * 50
    return {"accelerator": "kvm", "dirty_pages": pages, "memory_mib": memory, "first_sync_s": 1.0, "counts_s": [200.0, 190.0],
            "stood_still_share": 0.02, "pause_ms": pause, "commit_ms": [0.5] * 50, "interval_ms": [500.0] * 49,
            "pages": [float(pages)] * 50}  # fmt: skip


FOUND: dict[str, Any] = {
    "engine": {
        "machine": {"cpu": "<a CPU>", "cores": 2, "kernel": "6.18", "qemu": "7.2", "python": "3.11", "when": "today"},
        "pages": [engine(10), engine(100), engine(10_000)], "ram": [engine(100, 256), engine(100, 1024), engine(100, 4096)],
        "memcpy_ms": {"10": [0.01], "100": [0.05], "10000": [9.0, 10.0, 11.0]},
        "beside_colo": [{"dirty_pages": 100, "ours_ms": [1.0, 1.5, 2.0], "colo_ms": [2.0, 3.0, 4.0]}],
        "compute": [{**engine(10), "pace": "default pace"}], "cipher_bytes_s": 2e9, "log_bytes_s": 1e9,
        "forecast": [{**engine(100), "pace": "default pace", "log_bytes_s": 2_000_000, "forecast": {
            "pause_ms": {"p50": 2.3, "p99": 4.6}, "pages_per_epoch": {"p50": 101.0}, "interval_ms": {"p50": 502.0},
            "pause_share": 0.01, "log_bandwidth_bytes_s": 3_000_000}}],
    },
    "lab": {
        "machine": {"cpu": "x", "cores": 2, "kernel": "6.18", "qemu": "7.2", "python": "3.11", "when": "today"},
        "off": {"tcp 100/s": [1.0, 1.0, 1.0]}, "on": {"tcp 100/s": [5.0, 6.0, 7.0]},
        "own": {"tcp 100/s": [2.0, 4.0, 6.0]},
        "speeds": {"off": {"disk, MiB/s": [80.0, 100.0, 120.0]}, "on": {"disk, MiB/s": [40.0, 45.0, 50.0]}},
        "clock": {"off": {"idle": {"seconds": 20.0, "ppm": -3, "resolution_ppm": 40}},
                  "on": {"idle": {"seconds": 20.1, "ppm": 4321, "resolution_ppm": 90}}},
    },
    "failover": {
        "machine": {"cpu": "x", "cores": 2, "kernel": "6.18", "qemu": "7.2", "python": "3.11", "when": "today"},
        "gaps_ms": {"process, input replayed": [150.0, 170.0], "restart": [21_000.0]}, "restart_detection_s": 0.5,
        "switches": [{"outage_ms": 33.0, "echo_gap_ms": 77.0, "commit_gap_ms": 88.0, "protected_s": 1.5}],
        "resyncs": [{"seconds": 9.0, "sync_seconds": 4.0, "memory_bytes": 300 << 20, "disk_bytes": 100 << 20,
                     "memory_left_out_bytes": 0, "disk_left_out_bytes": 2048 << 20},
                    {"seconds": 11.0, "sync_seconds": None, "memory_bytes": 1 << 20, "disk_bytes": 0,
                     "memory_left_out_bytes": 0, "disk_left_out_bytes": 0}], "lost": 0, "resets": 0, "acknowledged": 1234,
    },
}  # fmt: skip


def test_medians_quantiles_and_lines() -> None:
    assert figures.summary([]) == {"n": 0, "p50": None, "p99": None, "max": None}
    assert figures.summary([1.0, 2.0, 3.0])["p50"] == 2.0
    assert figures.line([(0, 1), (1, 3), (2, 5)]) == {"offset": 1.0, "slope": 2.0, "r2": 1.0}
    fits = report.fits(FOUND["engine"])
    assert fits["pages"]["slope"] == pytest.approx(0.001) and fits["ram"]["slope"] == pytest.approx(0.1)


def test_every_figure_is_in_text_documentation_and_page(tmp_path: Path) -> None:
    text, page = report.text(FOUND), report.page(FOUND)
    for each in ("10,000 pages", "QEMU's COLO", "0.100 ms a GiB", "50 % of the cipher", "tcp 100/s, libvirt's monitor", "tcp 100/s, own monitor",
                 "95.0 %", "kvm, default pace",
                 "100 pages, default pace", "process, input replayed", "45.0 %", "4,321", "counted: 0.5 s of detection", "not counted: fencing",
                 "Planned switchover", "When a host returns", "of 1,234 acknowledged rows lost: 0"):  # fmt: skip
        assert each in text and each.replace("'", "&#x27;") in page, each
    assert page.count("<svg") >= 5 and "<a CPU>" not in page and "http" not in page.replace("http-equiv", "")
    docs = tmp_path / "performance.md"
    docs.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_docs(docs, FOUND)
    written = docs.read_text()
    assert written.startswith("before\n") and written.endswith("after\n") and "\nold\n" not in written
    assert "| 10,000 pages | 10,000 | 50 |" in written


def test_parts_that_an_earlier_version_measured_have_the_tables_that_they_have() -> None:
    earlier = {"lab": {name: FOUND["lab"][name] for name in ("machine", "off", "on")},
               "failover": {name: FOUND["failover"][name] for name in ("machine", "gaps_ms", "lost", "resets", "acknowledged")}}  # fmt: skip
    headings = [heading for heading, __, ___ in report.tables(earlier)]
    assert headings == ["Latency that a client sees", "Gap that a client sees when the primary dies"]
    assert "detection" not in report.text(earlier), "that restart had none"


def test_the_rate_of_a_sync_is_of_those_whose_time_is_known() -> None:
    rows = {row[0]: row[1:] for __, ___, rows in report.tables(FOUND) for row in rows}
    assert rows["sent a second of the sync, MiB/s"] == [1, 100.0, 100.0, 100.0]
    assert rows["protected again, s after the host was up"][0] == 2


def test_pauses_stand_beside_colos_and_a_plain_copy() -> None:
    tables = {heading: (head, rows) for heading, head, rows in report.tables(FOUND)}
    head, rows = tables["Beside QEMU's COLO, by turns"]
    assert rows == [["100 pages", 3, 1.5, pytest.approx(1.99), 3, 3.0, pytest.approx(3.98), 0.5, pytest.approx(0.5)]]
    assert len(head) == len(rows[0])
    head, rows = tables["Pause against dirty pages"]
    ten_thousand = dict(zip(head, rows[-1], strict=True))
    assert ten_thousand["ratio of medians"] == pytest.approx((11 + 512 / 10_240) / 10)


def test_a_forecast_stands_beside_its_result() -> None:
    __, head, rows = next(table for table in report.tables(FOUND) if table[0] == "Forecast beside result")
    by_name = {row[1]: dict(zip(head, row, strict=True)) for row in rows}
    assert by_name["pause median ms"]["ratio"] == pytest.approx(2.3 / 1.15)
    assert by_name["pages per epoch"] == {"guest": "100 pages, default pace", "figure": "pages per epoch", "foretold": 101.0,
                                          "measured": 100.0, "ratio": 1.01}  # fmt: skip
    assert by_name["stands still %"]["ratio"] == 0.5 and by_name["FT log MB/s"]["ratio"] == 1.5


def test_colos_pauses_are_those_between_stop_and_resume() -> None:
    def event(name: str, at: float) -> dict[str, Any]:
        return {"event": name, "timestamp": {"seconds": 7, "microseconds": int(at * 1000)}}

    events = [event("RESUME", 1), event("STOP", 10), event("RESUME", 12.5), event("STOP", 30), event("COLO_EXIT", 31)]
    assert colo.pauses(events) == [2.5]


def test_the_guest_is_told_how_many_pages(tmp_path: Path) -> None:
    dirtyguest.write_disk(tmp_path / "disk", 12_345, 6, 7)
    sector = (tmp_path / "disk").read_bytes()[:512]
    assert sector[152:164] == b"".join(each.to_bytes(4, "little") for each in (12_345, 6, 7)) and sector.endswith(b"\x55\xaa")


def test_latency_counts_from_the_moment_a_request_was_due() -> None:

    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, __ = listener.accept()
        with connection, connection.makefile("rwb") as file:
            for number, line in enumerate(file):
                if number == 2:
                    time.sleep(0.3)
                file.write(line)
                file.flush()

    threading.Thread(target=serve, daemon=True).start()
    found = pinger.ping("127.0.0.1", listener.getsockname()[1], 20, 0.5)
    assert len(found) == 10 and min(found) < 200
    assert found[2] > 295 and found[3] > 245, "the stall delayed the request after it, too"
