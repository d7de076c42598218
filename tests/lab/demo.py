"""The demo: a protected database, a power cut of its server, and what the client saw of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.lab import cli, guests, measure
from tests.lab.lab import ROOT, Lab

REPORT = ROOT / "build" / "demo-report.json"
VM = guests.POSTGRES.name
LOAD_BEFORE = 10.0
LOAD_AFTER = 10.0
PROTECT_SECONDS = 240
ANSWER_SECONDS = 60


@dataclass
class Round:
    """One power cut, as the client and the surviving server saw it; times in milliseconds."""

    killed: str
    survivor: str
    committed_before: int
    committed_after: int
    lost: int
    tcp_resets: int
    failover_gap_ms: float
    commit_gap_ms: float
    echo_gap_ms: float
    detection_ms: float | None
    activation_ms: float | None
    pause_ms: dict[str, float | None]
    pages_per_epoch: dict[str, float | None]
    epochs: int | None
    guest_clock_loss_ppm: float | None


class Client:
    """tests/lab/client.py, running in the lab's network."""

    def __init__(self, lab: Lab, every: float | None = None) -> None:
        self._path = ROOT / "build" / f"demo-client-{lab.name}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("")
        self._process = subprocess.Popen(
            lab.inside(sys.executable, "-m", "tests.lab.client", guests.POSTGRES.address,
                       str(self._path), *([str(every)] if every else [])),
            stdin=subprocess.PIPE, cwd=ROOT,
        )  # fmt: skip

    def log(self) -> measure.ClientLog:
        """Everything answered so far."""
        if (code := self._process.poll()) is not None:
            raise RuntimeError(f"the client ended by itself with exit status {code}")
        return self._parse()

    def _parse(self) -> measure.ClientLog:
        with self._path.open(encoding="utf-8") as file:
            return measure.ClientLog.parse(file)

    def wait_answers(self, after: float, seconds: float) -> None:
        """Wait until both connections have been answered later than `after`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            log = self.log()
            answers = [max(log.commits.values(), default=0.0), max(log.echoes, default=0.0)]
            if min(answers) > after:
                return
            time.sleep(0.2)
        raise RuntimeError(f"the guest gave no answer within {seconds:.0f} s")

    def stop(self) -> measure.ClientLog:
        """Finish what is under way, then the whole log."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if code := self._process.wait(timeout=120):
            raise RuntimeError(f"the client ended with exit status {code}")
        return self._parse()

    def kill(self) -> None:
        """Take it away, whatever it does."""
        self._process.kill()
        self._process.wait()


def say(text: str = "") -> None:
    """One line for the person who watches."""
    print(text, flush=True)


def kvmft(lab: Lab, host: str, *arguments: str) -> Any:
    """`kvmft ... --json` on a server, parsed."""
    return json.loads(lab.run(host, f"kvmft {' '.join(arguments)} --json"))


def events(lab: Lab, host: str) -> list[dict[str, Any]]:
    """The events of the VM that `host` has written down."""
    text = lab.run(host, f"kvmft events --vm {VM} --json")
    return [json.loads(line) for line in text.splitlines()]


def wait_protected(lab: Lab, host: str) -> dict[str, Any]:
    """Wait until `host` says that the VM is protected; the status."""
    until = time.monotonic() + PROTECT_SECONDS
    shown, status = "", {}
    while time.monotonic() < until:
        status = kvmft(lab, host, "status", VM)
        if status["state"] == "protected":
            return status
        percent = status.get("sync_percent")
        text = f"{status['state']}: {status['reason']}"
        if text != shown:
            say(f"  {text}" + (f" ({percent} %)" if percent is not None else ""))
            shown = text
        time.sleep(0.5)
    raise RuntimeError(
        f"{VM} is not protected after {PROTECT_SECONDS} s; {host} says: {shown}. "
        f"See `./dev lab ssh {host} kvmft events` and `journalctl -u kvmft-agent` there."
    )


def stored_rows(lab: Lab) -> list[int]:
    """Every row number in the guest's database."""
    program = (
        "import sys; from tests.lab.client import connect; c = connect(sys.argv[1]); "
        "print(*[r[0] for r in c.execute('SELECT seq FROM ledger ORDER BY seq')])"
    )
    command = lab.inside(sys.executable, "-c", program, guests.POSTGRES.address)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120,
                          check=False)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the database does not answer: {done.stderr.strip()[-500:]}")
    return [int(word) for word in done.stdout.split()]


def power_cut(lab: Lab, client: Client, killed: str, survivor: str, status: dict[str, Any]) -> Round:
    """Cut the primary's power, wait for the service to come back, and look at what happened."""
    before = client.log()
    when = lab.power_off(killed)
    wall = time.time() - (time.monotonic() - when)
    say(f"  {killed} lost power: all its processes died at once, its cables are dead.")
    client.wait_answers(when, ANSWER_SECONDS)
    time.sleep(LOAD_AFTER)
    log = client.log()
    stored = stored_rows(lab)
    acknowledged = log.commits
    now = time.monotonic()
    commit_gap = measure.longest_gap(acknowledged.values(), when, now) or 0.0
    echo_gap = measure.longest_gap(log.echoes, when, now) or 0.0
    since = [event for event in events(lab, survivor) if event["time"] >= wall - 1]
    noticed = next((event for event in since if event["event"] == "primary_lost"), None)
    activated = next((event for event in since if event["event"] == "activated"), None)
    result = Round(
        killed=killed,
        survivor=survivor,
        committed_before=sum(at <= when for at in acknowledged.values()),
        committed_after=sum(at > when for at in acknowledged.values()),
        lost=len(measure.lost(acknowledged, stored)),
        tcp_resets=len(log.resets) - len(before.resets),
        failover_gap_ms=round(max(commit_gap, echo_gap) * 1000, 1),
        commit_gap_ms=round(commit_gap * 1000, 1),
        echo_gap_ms=round(echo_gap * 1000, 1),
        detection_ms=round((noticed["time"] - wall) * 1000, 1) if noticed else None,
        activation_ms=activated["data"].get("activation_ms") if activated else None,
        pause_ms=status.get("pause_ms") or {},
        pages_per_epoch=status.get("pages_per_epoch") or {},
        epochs=status.get("epochs"),
        guest_clock_loss_ppm=status.get("guest_clock_loss_ppm"),
    )
    _tell(result, log, when)
    return result


def reprotect(lab: Lab, killed: str, survivor: str) -> dict[str, Any]:
    """Give the killed server its power back: how soon is the VM protected again, and what crosses
    the network for it?"""
    say(f"== {killed} gets its power back and becomes the secondary")
    lab.power_on(killed)
    begun = time.monotonic()
    status = wait_protected(lab, survivor)
    seconds = round(time.monotonic() - begun, 1)
    written = int(lab.run(survivor, f"virsh domblkstat {VM} vda | awk '$2 == \"wr_bytes\" {{print $3}}'"))
    result = {"seconds": seconds, "written_since_takeover_bytes": written, **status["sync"]}
    say(f"  Protected again {seconds} s after it was up. The guest had written {written >> 10} KiB since "
        f"the takeover; {result['disk_bytes'] >> 10} KiB of disk crossed the network, "
        f"{result['disk_left_out_bytes'] >> 20} MiB were there already.")  # fmt: skip
    return result


def _tell(result: Round, log: measure.ClientLog, when: float) -> None:
    say(f"  {result.survivor} noticed after {result.detection_ms} ms, asked the arbiter, won, and let "
        f"the VM run on from its last commit.")  # fmt: skip
    say(f"  Longest silence for the client: {result.failover_gap_ms} ms "
        f"(database {result.commit_gap_ms}, echo {result.echo_gap_ms}).")  # fmt: skip
    say(f"  Acknowledged rows missing: {result.lost}. Connections broken: {result.tcp_resets}.")
    say("\n  Rows committed, per 50 ms:")
    say(measure.picture(log.commits.values(), when))
    say()


def _report(lab: Lab, rounds: list[Round], log: measure.ClientLog, stored: list[int],
            versions: dict[str, Any], accelerator: str | None) -> dict[str, Any]:  # fmt: skip
    last = asdict(rounds[-1])
    # The headline is the worst of all power cuts, not the last one.
    slowest = max(rounds, key=lambda each: (each.pause_ms or {}).get("p99") or 0.0)
    worst = {
        "detection_ms": max((each.detection_ms or 0.0 for each in rounds), default=0.0),
        "failover_gap_ms": max(each.failover_gap_ms for each in rounds),
        "pause_ms": slowest.pause_ms,
        "pages_per_epoch": slowest.pages_per_epoch,
        "epochs": sum(each.epochs or 0 for each in rounds),
        "guest_clock_loss_ppm": max((each.guest_clock_loss_ppm or 0 for each in rounds), default=0),
    }
    latency = [value * 1000 for value in log.latencies]
    return {
        "lab": lab.name,
        "release": lab.release,
        "kills": len(rounds),
        "acknowledged": len(log.commits),
        "stored": len(stored),
        "lost": len(measure.lost(log.commits, stored)),
        "tcp_resets": len(log.resets),
        "resets": log.resets,
        "committed_before": last["committed_before"],
        **worst,
        "committed_after": len(log.commits) - last["committed_before"],
        "commit_ms_protected_or_not": {
            "p50": round(measure.percentile(latency, 0.5) or 0.0, 2),
            "p99": round(measure.percentile(latency, 0.99) or 0.0, 2),
        },
        "versions": versions,
        "accelerator": accelerator,
        "rounds": [asdict(each) for each in rounds],
    }  # fmt: skip


def prepare(lab: Lab) -> None:
    """Lab, site.yml, and the database's VM on node-a."""
    say("== The lab: two servers and the arbiter's machine")
    lab.down()
    lab.up()
    say("== Ansible sets the servers up (playbooks/site.yml)")
    output = cli.site(lab, quiet=True)
    say("\n".join(line for line in output.splitlines() if "changed=" in line))
    say(f"== The VM {VM}: Debian with PostgreSQL, started by plain virsh on node-a")
    guests.start(lab, "node-a", guests.POSTGRES)
    say(f"  PostgreSQL answers after {guests.wait_up(lab, guests.POSTGRES):.0f} s.")


def run(lab: Lab, kills: int) -> dict[str, Any]:
    """The whole demo in `lab`; the report. Raises RuntimeError when a step does not come about."""
    begun = time.monotonic()
    prepare(lab)
    client = Client(lab)
    rounds: list[Round] = []
    try:
        client.wait_answers(0.0, ANSWER_SECONDS)
        say("== Fault tolerance on, while the VM runs and the client writes")
        cli.playbook(lab, "enable", "-e", f"vm={VM}", quiet=True)
        primary, secondary = "node-a", "node-b"
        versions = {host: {name: kvmft(lab, host, "host").get(name) for name in
                           ("version", "qemu", "libvirt", "kernel", "python")}
                    for host in ("node-a", "node-b")}  # fmt: skip
        for number in range(1, kills + 1):
            status = wait_protected(lab, primary)
            say(f"  Protected: runs on {primary}, secondary on {secondary}.")
            time.sleep(LOAD_BEFORE if number == 1 else random.uniform(1.0, 6.0))
            status = kvmft(lab, primary, "status", VM)
            accelerator = status.get("accelerator")
            say(f"== Power cut {number} of {kills}: {primary}")
            rounds.append(power_cut(lab, client, primary, secondary, status))
            if number < kills:
                say(f"== {primary} gets its power back and becomes the secondary")
                lab.power_on(primary)
                primary, secondary = secondary, primary
        again = reprotect(lab, primary, secondary)
        log = client.stop()
    except BaseException:
        client.kill()
        raise
    report = _report(lab, rounds, log, stored_rows(lab), versions, accelerator)
    report["reprotection"] = again
    report["seconds"] = round(time.monotonic() - begun, 1)
    return report


def _keep_logs(lab: Lab) -> None:
    folder = ROOT / "build" / "demo-logs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for host in ("node-a", "node-b"):
        if lab.is_on(host):
            (folder / f"{host}.txt").write_text(
                lab.run(host, "kvmft events; journalctl -u kvmft-agent -n 400 --no-pager; "
                        f"tail -n 50 /var/log/libvirt/qemu/{VM}.log", check=False)
            )  # fmt: skip
    say(f"The servers' events and logs are in {folder}.")


def main(kills: int, release: str) -> int:
    """Run the demo in a lab of its own, write the report, and tell whether anything was lost."""
    lab = Lab(os.environ.get("KVMFT_LAB", "demo"), release)
    try:
        try:
            report = run(lab, kills)
        except (RuntimeError, subprocess.SubprocessError) as error:
            say(f"\nThe demo failed: {error}")
            _keep_logs(lab)
            return 1
    finally:
        if "KVMFT_KEEP" not in os.environ:
            lab.down()
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1) + "\n")
    say("== In short")
    say(f"  {report['acknowledged']} rows were acknowledged; {report['lost']} are missing after "
        f"{kills} power cut{'s' if kills > 1 else ''}. {report['tcp_resets']} connections broke.")  # fmt: skip
    say(f"  lost: {report['lost']}  tcp_resets: {report['tcp_resets']}  "
        f"gap: {report['failover_gap_ms']} ms  report: {Path(REPORT).relative_to(ROOT)}")  # fmt: skip
    return 0 if report["lost"] == 0 and report["tcp_resets"] == 0 else 1
