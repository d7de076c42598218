"""The evidence bundle: what was measured as bench.json, the VM's events, and a page that shows both by itself."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvmft.errors import KvmftError
from kvmft.report import page as pages
from kvmft.report.figures import summary

ARCHIVE = ".tar.gz"
SHOWN_EVENTS = 60
KINDS = (
    ("pause_ms", "Pauses", "milliseconds", "How long the VM stands still for a checkpoint"),
    ("commit_ms", "Commits", "milliseconds", "From the VM's resumption to the secondary's answer"),
    ("interval_ms", "Intervals", "milliseconds", "From one checkpoint to the next"),
    ("pages", "Pages per epoch", "4-KiB pages", "Memory that an epoch wrote"),
)
"""Of each distribution: its name, heading, unit and what it says."""
Rows = list[list[Any]]


def files(found: dict[str, Any]) -> dict[str, bytes]:
    """The bundle's files by name. `found` is what `evidence.measure` returns."""
    figures = {name: value for name, value in found.items() if name != "events"}
    events = "".join(json.dumps(each) + "\n" for each in found["events"])
    return {"bench.json": (json.dumps(figures, indent=1) + "\n").encode(), "events.jsonl": events.encode(),
            "bench.html": page(found).encode()}  # fmt: skip


def check(out: Path) -> None:
    """KvmftError unless the bundle can be written to `out`: before anything is measured for it."""
    if out.exists():
        raise KvmftError("bundle_exists", f"{out} exists already.", "Give another name with --out.")
    if not out.absolute().parent.is_dir():
        raise KvmftError("bundle_no_folder", f"There is no folder {out.absolute().parent} for {out.name}.",
                         "Make it, or give another one with --out.")  # fmt: skip


def write(out: Path, found: dict[str, Any]) -> None:
    """Write the bundle: an archive where `out` ends with .tar.gz, or else a folder."""
    check(out)
    made = files(found)
    try:
        if not out.name.endswith(ARCHIVE):
            out.mkdir()
            for name, data in made.items():
                (out / name).write_bytes(data)
            return
        with tarfile.open(out, "x:gz") as archive:
            for name, data in made.items():
                entry = tarfile.TarInfo(f"{out.name.removesuffix(ARCHIVE)}/{name}")
                entry.size, entry.mtime = len(data), int(found["begun"])
                archive.addfile(entry, io.BytesIO(data))
    except OSError as error:
        raise KvmftError("bundle_unwritten", f"The bundle cannot be written to {out}: {error}.",
                         "Give another place with --out.") from error  # fmt: skip


def distributions(found: dict[str, Any]) -> Rows:
    """n, median, p99 and most of each distribution."""
    epochs = found["epochs"] or {}
    rows: Rows = [[heading, unit, *summary(epochs.get(kind, [])).values()] for kind, heading, unit, __ in KINDS]
    if "ms" in (ping := found["ping"] or {}):
        rows.append([f"Answers to this host, {ping['kind']}", "milliseconds", *summary(ping["ms"]).values()])
    return rows


def bounds(found: dict[str, Any]) -> Rows:
    """What was used beside what there is: each row a figure, its value and a remark."""
    epochs, copy, cipher, log = (found[name] or {} for name in ("epochs", "memcpy", "cipher", "log"))
    rows: Rows = []
    if epochs:
        still, used = epochs["stood_still_share"], epochs["log_bytes_s"]
        rows.append(["the VM stood still", None if still is None else f"{100 * still:.2f} %", "of the time measured"])
        rows.append(["the guest's clock lost", _ppm(found["after"]["guest_clock_loss_ppm"]),
                     "since protection began, as status says; 0 is the best"])  # fmt: skip
        rows.append(["FT log in use", _rate(used), "mean over the time measured"])
        held = summary(epochs["held_bytes"])
        if held["n"]:
            rows.append(["output held, median / most", f"{held['p50']:,.0f} / {held['max']:,} bytes", f"{held['n']} looks"])
        if epochs["missed"]:
            rows.append(["values missed", epochs["missed"], "more came between two looks than are kept"])
        rows += [["interrupted", "", reason] for reason in epochs["interruptions"]]
    if copy:
        rows.append([f"copying {copy['pages']:,} pages in memory, median / p99",
                     "{p50} / {p99} ms".format(**summary(copy["ms"])), "as many as the median epoch has"])  # fmt: skip
    rows.append(["AES-256-GCM, one core", _rate(cipher.get("bytes_s")), cipher.get("error", "openssl speed, 16 KiB")])
    if log:
        rows.append(["FT log clear of any guest", _rate(log.get("bytes_s")),
                     log.get("error") or f"one connection to {log['peer']}, {log['seconds']:.0f} s"])  # fmt: skip
    if switch := found["switch"]:
        rows += [[f"planned switchover {each['source']} to {each['target']}", f"{each['outage_ms']} ms",
                  f"from the order until it ran there; protected again after {each['protected_s']} s"]
                 for each in switch["switches"]]  # fmt: skip
        rows += [["switchover", None, switch["error"]]] if "error" in switch else []
    if ping := found["ping"]:
        rows.append([f"{ping['kind']} without an answer" if "kind" in ping else "answers to this host",
                     ping.get("unanswered"), ping.get("error") or f"{len(ping['ms'])} answered"])  # fmt: skip
    return rows


def _ppm(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f} ppm"


def _rate(value: float | None) -> str | None:
    return None if value is None else f"{value / 1e6:,.2f} MB/s"


def text(found: dict[str, Any]) -> str:
    """What a terminal shows."""
    lines = [f"{heading:34s} {unit:13s} n {n}   median {pages.shown(p50)}   p99 {pages.shown(p99)}   most {pages.shown(most)}"
             for heading, unit, n, p50, p99, most in distributions(found)]  # fmt: skip
    return "\n".join(lines + [f"{what:48s} {pages.shown(value)}   ({why})" for what, value, why in bounds(found)])


def page(found: dict[str, Any]) -> str:
    """The page, in one file that needs no other."""
    when = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(found["begun"]))
    host, after = found["host"], found["after"]
    lead = (f"Measured {when} on {host['host']} ({host['cpu']}, {host['cores']} cores, Linux {host['kernel']}, QEMU {host['qemu']}) "
            f"while VM {found['vm']} was in use, for {found['seconds']:.0f} s. It was {after['state']} at the end"
            + (f"; its secondary is on {after['secondary']}." if after["secondary"] else "."))  # fmt: skip
    head = ("", "unit", "n", "median", "p99", "most")
    sections = [("In short", pages.table(head, distributions(found))),
                ("Used, and possible", pages.table(("", "value", ""), bounds(found), prose=True))]  # fmt: skip
    epochs = found["epochs"] or {}
    sections += [(says, pages.distributions(heading, unit, {heading.lower(): epochs[kind]}))
                 for kind, heading, unit, says in KINDS if epochs.get(kind)]  # fmt: skip
    if (ping := found["ping"]) and ping.get("ms"):
        sections.append(("How long the guest takes to answer this host",
                         pages.distributions("Answers", "milliseconds", {ping["kind"]: ping["ms"]})))  # fmt: skip
    options = [[name, str(value)] for name, value in sorted((after["options"] or {}).items())]
    sections.append(("The VM's options", pages.table(("option", "value"), options or [["all", "the defaults"]], prose=True)))
    sections.append(("The host", pages.table(("", ""), [[name, _said(value)] for name, value in host.items()], prose=True)))
    events = pages.table(("when", "host", "event", "reason"), _events(found["events"]), prose=True)
    sections.append((f"The VM's last {SHOWN_EVENTS} events", events))
    return pages.page(f"kvmft: the protection of {found['vm']}, measured", lead, sections)


def _said(value: Any) -> Any:
    return None if value is None else str(value)


def _events(events: Sequence[dict[str, Any]]) -> Rows:
    return [[time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["time"])), each["host"], each["event"],
             each["reason"]] for each in events[-SHOWN_EVENTS:]]  # fmt: skip
