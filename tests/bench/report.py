"""The tables of a run: for the terminal, for docs/performance.md, and with plots as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvmft.report import page as pages
from kvmft.report.figures import line, summary
from tests.bench import restart
from tests.bench.forecast import compare
from tests.bench.lab import added

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
Table = tuple[str, Sequence[str], list[list[Any]]]
"""Heading, column heads, rows."""


def tables(found: dict[str, Any]) -> list[Table]:
    """Every table of what was measured."""
    result: list[Table] = []
    if engine := found.get("engine"):
        result += [_pauses(engine), _fits(engine)]
        result += [_beside_colo(engine["beside_colo"])] if engine.get("beside_colo") else []
        result += [_compute(engine), _log(engine)]
        result += [_forecast(engine["forecast"])] if engine.get("forecast") else []
    if lab := found.get("lab"):
        result.append(_latency(lab))
        # What an earlier version measured has fewer parts.
        result += [_speeds(lab["speeds"])] if "speeds" in lab else []
        result += [_clock(lab["clock"])] if "clock" in lab else []
    if failover := found.get("failover"):
        result.append(_gaps(failover))
        result += [_switches(failover["switches"])] if failover.get("switches") else []
        result += [_resyncs(failover["resyncs"])] if failover.get("resyncs") else []
    return result


def _pauses(engine: dict[str, Any]) -> Table:
    rows = []
    for each in engine["pages"]:
        pause, copy = summary(each["pause_ms"]), summary(engine["memcpy_ms"][str(each["dirty_pages"])])
        rows.append([f"{each['dirty_pages']:,} pages", summary(each["pages"])["p50"], pause["n"], pause["p50"], pause["p99"], copy["p50"], copy["p99"],
                     pause["p50"] / copy["p50"]])  # fmt: skip
    head = ("a guest that dirties", "pages an epoch", "n", "pause median ms", "p99 ms", "memcpy median ms", "memcpy p99 ms", "ratio of medians")
    return "Pause against dirty pages", head, rows


def _beside_colo(found: list[dict[str, Any]]) -> Table:
    rows = []
    for each in found:
        ours, colo = summary(each["ours_ms"]), summary(each["colo_ms"])
        rows.append([f"{each['dirty_pages']:,} pages", ours["n"], ours["p50"], ours["p99"], colo["n"], colo["p50"], colo["p99"],
                     ours["p50"] / colo["p50"], ours["p99"] / colo["p99"]])  # fmt: skip
    head = ("VM pause", "n", "ours median ms", "p99 ms", "n", "COLO median ms", "p99 ms", "ratio of medians", "of p99")
    return "Beside QEMU's COLO, by turns", head, rows


def fits(engine: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Two lines through the medians: pause (ms) against dirty pages, and against GiB of RAM."""
    by_pages = [(summary(each["pages"])["p50"], summary(each["pause_ms"])["p50"]) for each in engine["pages"]]
    by_ram = [(each["memory_mib"] / 1024, summary(each["pause_ms"])["p50"]) for each in engine["ram"]]
    return {"pages": line(by_pages), "ram": line(by_ram)}


def _fits(engine: dict[str, Any]) -> Table:
    found = fits(engine)
    rows = [
        ["dirty pages", f"{found['pages']['offset']:.2f} ms", f"{found['pages']['slope'] * 1e6:.0f} ns a page", found["pages"]["r2"]],
        ["RAM", f"{found['ram']['offset']:.2f} ms", f"{found['ram']['slope']:.3f} ms a GiB", found["ram"]["r2"]],
    ]
    return "What a pause costs, as fitted lines", ("against", "fixed", "each", "r2"), rows


def _compute(engine: dict[str, Any]) -> Table:
    rows = []
    for each in engine["compute"]:
        before, during = each["counts_s"]
        interval = summary(each["interval_ms"])
        rows.append([f"{each['accelerator']}, {each['pace']}", before, during, f"{100 * during / before:.1f} %", interval["p50"],
                     f"{100 * each['stood_still_share']:.1f} %"])  # fmt: skip
    head = ("a guest that computes", "rounds/s alone", "protected", "share", "interval median ms", "stands still")
    return "Guest speed", head, rows


def _log(engine: dict[str, Any]) -> Table:
    cipher, log = engine["cipher_bytes_s"], engine["log_bytes_s"]
    rows = [["openssl speed, AES-256-GCM, 16 KiB", f"{cipher / 1e6:,.0f} MB/s", ""],
            ["FT log, one connection, loopback", f"{log / 1e6:,.0f} MB/s", f"{100 * log / cipher:.0f} % of the cipher"]]  # fmt: skip
    return "FT log clear of any guest", ("", "throughput", ""), rows


def _forecast(found: list[dict[str, Any]]) -> Table:
    rows = []
    for each in found:
        for name, foretold, measured in compare(each):
            rows.append([f"{each['dirty_pages']:,} pages, {each['pace']}", name, foretold, measured,
                         foretold / measured if measured else None])  # fmt: skip
    return "Forecast beside result", ("guest", "figure", "foretold", "measured", "ratio"), rows


def _latency(lab: dict[str, Any]) -> Table:
    rows = []
    for name, off, on in added(lab):
        rows.append([name, on["n"], off["p50"], on["p50"], on["p50"] - off["p50"], off["p99"], on["p99"], on["p99"] - off["p99"]])
    head = ("request", "n", "off median ms", "on", "added", "off p99 ms", "on", "added")
    return "Latency that a client sees", head, rows


def _gaps(failover: dict[str, Any]) -> Table:
    # An earlier version's restart was on the same host and without detection.
    detection = failover.get("restart_detection_s")
    long = {} if detection is None else {"restart": restart.NAME.format(detection=detection)}
    rows = [[long.get(name, name), *summary(values).values()] for name, values in failover["gaps_ms"].items()]
    rows.append([f"of {failover['acknowledged']:,} acknowledged rows lost: {failover['lost']}; connections broken: "
                 f"{failover['resets']}", None, None, None, None])  # fmt: skip
    return "Gap that a client sees when the primary dies", ("what dies", "n", "median ms", "p99 ms", "max ms"), rows


def _speeds(speeds: dict[str, dict[str, list[float]]]) -> Table:
    rows = []
    for name, values in speeds["off"].items():
        off, on = summary(values), summary(speeds["on"][name])
        rows.append([name, on["n"], off["p50"], on["p50"], f"{100 * on['p50'] / off['p50']:.1f} %", min(values),
                     min(speeds["on"][name])])  # fmt: skip
    head = ("what the guest gets done", "n", "off median", "on", "share", "off least", "on")
    return "Throughput of the guest", head, rows


def _clock(clock: dict[str, dict[str, dict[str, float]]]) -> Table:
    rows = [[name, off["seconds"], clock["on"][name]["seconds"], off["ppm"], clock["on"][name]["ppm"],
             max(off["resolution_ppm"], clock["on"][name]["resolution_ppm"])]
            for name, off in clock["off"].items()]  # fmt: skip
    head = ("the guest's clock against the host's", "off s", "on s", "off lost ppm", "on lost ppm", "known to ppm")
    return "Guest clock", head, rows


def _switches(switches: list[dict[str, Any]]) -> Table:
    parts = (("outage_ms", "from the order until it runs there, ms"), ("echo_gap_ms", "gap of a client's echo, ms"),
             ("commit_gap_ms", "gap of a client's commits, ms"), ("protected_s", "protected again, s"))  # fmt: skip
    rows = [[name, *summary([each[key] for each in switches]).values()] for key, name in parts]
    return "Planned switchover", ("", "n", "median", "p99", "max"), rows


def _resyncs(resyncs: list[dict[str, Any]]) -> Table:
    sent = [(each["memory_bytes"] + each["disk_bytes"]) / (1 << 20) for each in resyncs]
    there = [(each["memory_left_out_bytes"] + each["disk_left_out_bytes"]) / (1 << 20) for each in resyncs]
    timed = [(mib, each["sync_seconds"]) for mib, each in zip(sent, resyncs, strict=True) if each["sync_seconds"]]
    parts = (("protected again, s after the host was up", [each["seconds"] for each in resyncs]),
             ("of that the sync, s", [seconds for __, seconds in timed]), ("sent, MiB", sent),
             ("there already and not sent, MiB", there), ("sent a second of the sync, MiB/s", [mib / s for mib, s in timed]))  # fmt: skip
    rows = [[name, *summary(values).values()] for name, values in parts]
    return "When a host returns", ("", "n", "median", "p99", "max"), rows


def text(found: dict[str, Any]) -> str:
    """The tables for a terminal."""
    lines = []
    for heading, head, rows in tables(found):
        cells = [[str(each) for each in head], *([pages.shown(each) for each in row] for row in rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
        lines += ["", heading]
        lines += ["  " + "  ".join(cell.rjust(width) if at else cell.ljust(width)
                                   for at, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in cells]  # fmt: skip
    return "\n".join(lines)


def markdown(found: dict[str, Any]) -> str:
    """The tables for the documentation."""
    lines = []
    for name, part in found.items():
        has = part["machine"]
        lines.append(f"* Part `{name}`: {has['cpu']}, {has['cores']} cores, Linux {has['kernel']}, QEMU {has['qemu']}, Python "
                     f"{has['python']}, {has['when']}.")  # fmt: skip
    for heading, head, rows in tables(found):
        lines += ["", f"### {heading}", "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
        lines += ["| " + " | ".join(pages.shown(each) for each in row) + " |" for row in rows]
    return "\n".join(lines)


def write_docs(path: Path, found: dict[str, Any]) -> None:
    """Put the tables between the two marks of the page."""
    before, rest = path.read_text().split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{markdown(found)}\n{END}{rest.split(END)[1]}")


def page(found: dict[str, Any]) -> str:
    """The page with plots."""
    sections = []
    if engine := found.get("engine"):
        series = {f"{each['dirty_pages']:,} pages": each["pause_ms"] for each in engine["pages"]}
        for each in engine.get("beside_colo", ()):
            beside = f"beside COLO, {each['dirty_pages']:,} pages"
            series |= {beside: each["ours_ms"], f"COLO, {each['dirty_pages']:,} pages": each["colo_ms"]}
        sections.append(("How long the VM stands still", pages.distributions("Pauses", "milliseconds", series)))
        sections.append(("From the VM's resumption to the commit", pages.distributions(
            "Commits", "milliseconds", {f"{each['dirty_pages']:,} pages": each["commit_ms"] for each in engine["pages"]})))  # fmt: skip
        sections.append(("Pauses against RAM", pages.distributions(
            "Pauses", "milliseconds", {f"{each['memory_mib']:,} MiB": each["pause_ms"] for each in engine["ram"]})))  # fmt: skip
    if lab := found.get("lab"):
        for name in lab["off"]:
            both = {"unprotected": lab["off"][name], "protected": lab["on"][name]}
            both |= {"with a monitor of its own": lab["own"][name]} if "own" in lab else {}
            sections.append((f"Latency: {name}", pages.distributions(name, "milliseconds", both)))
    if failover := found.get("failover"):
        sections.append(("When the primary dies", pages.distributions("Gaps", "milliseconds", failover["gaps_ms"])))
    sections += [(heading, pages.table(head, rows)) for heading, head, rows in tables(found)]
    where = next(iter(found.values()))["machine"]
    lead = (f"Measured {where['when']} on {where['cpu']}, {where['cores']} cores, Linux {where['kernel']}, QEMU {where['qemu']}. "
            "Compare what stands here with each other, not with figures of another machine.")  # fmt: skip
    return pages.page("kvmft: what protection costs", lead, sections)
