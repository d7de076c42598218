"""`kvmft events`, `kvmft explain` and `kvmft top`: what happened, why, and how it goes now."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from typing import Any

from kvmft.cli import story
from kvmft.cli.client import ask
from kvmft.cli.table import table
from kvmft.errors import KvmftError

INCOMPLETE = 3
STORY_EVENTS = 5000


def add_verbs(verbs: Any) -> None:
    """Add the verbs of this file to the command's parser."""
    events = _verb(verbs, "events", "what happened, in order, with reasons")
    events.add_argument("--vm", help="only of this VM")
    events.add_argument("--since", type=int, default=0, help="only after this number (this host's)")
    events.add_argument("--limit", type=int, default=1000, help="at most so many, the newest ones")
    events.add_argument("--follow", action="store_true", help="go on as events come")
    events.add_argument("--cluster", action="store_true", help="of all hosts, in one order")
    events.add_argument("--verify", action="store_true", help="check the chain of receipts")
    events.add_argument("--anchor", metavar="NUMBER:HASH", type=_anchor,
                        help="with --verify: a head that was kept; this event must be there still")  # fmt: skip
    events.add_argument("--story", action="store_true", help="with --vm: as `kvmft explain`")
    explain = _verb(verbs, "explain", "the last failover of a VM, or its pairing, step by step")
    explain.add_argument("vm", help="the VM's name in libvirt")
    explain.add_argument("--back", type=int, default=0, metavar="N", help="the Nth before the last")
    top = _verb(verbs, "top", "all VMs here, refreshed")
    top.add_argument("--interval", type=float, default=2.0, metavar="SECONDS")
    top.add_argument("--once", action="store_true", help="print one table and end")


def _verb(verbs: Any, name: str, text: str) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    added.add_argument("--json", action="store_true", help="print JSON")
    return added


def _anchor(text: str) -> tuple[int, str]:
    number, __, value = text.partition(":")
    if not number.isdigit() or len(value) != 64:
        raise argparse.ArgumentTypeError("an event's number, a colon and 64 hex digits")
    return int(number), value


def render_event(event: dict[str, Any], host: bool = False) -> str:
    """One line of the events log; `host`: with the host's name."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
    fraction = f"{event['time'] % 1:.3f}"[1:]
    data = " ".join(f"{key}={value}" for key, value in event["data"].items() if value is not None)
    where = f"{event['host']:10s} " if host else ""
    return (
        f"{where}{event['seq']:6d} {when}{fraction} {event['vm'] or '-':12s} {event['event']:14s} "
        f"{event['reason']} {data}".rstrip()
    )


def events(options: argparse.Namespace) -> int:
    """`kvmft events`."""
    if options.verify:
        return _verify(options)
    if options.story:
        if not options.vm:
            raise KvmftError("vm_missing", "A story is about one VM.", "Add --vm NAME.")
        options.back = 0
        return explain(options)
    return _cluster(options) if options.cluster else _local(options)


def _local(options: argparse.Namespace) -> int:
    since = options.since
    while True:
        for event in ask(options.socket, "events", vm=options.vm, since=since, limit=options.limit):
            print(json.dumps(event) if options.json else render_event(event), flush=True)
            since = event["seq"]
        if not options.follow:
            return 0
        time.sleep(0.5)


def _cluster(options: argparse.Namespace) -> int:
    since: dict[str, int] = {}
    told: dict[str, str] = {}
    while True:
        found = ask(options.socket, "events_cluster", vm=options.vm, since=since,
                    limit=options.limit)  # fmt: skip
        for event in found["events"]:
            print(json.dumps(event) if options.json else render_event(event, True), flush=True)
            since[event["host"]] = max(since.get(event["host"], 0), event["seq"])
        missing = _missing(found)
        for host, why in missing.items():
            if told.get(host) != why:
                print(f"kvmft: {host} did not answer: {why}", file=sys.stderr, flush=True)
        told = missing
        if not options.follow:
            return INCOMPLETE if missing else 0
        time.sleep(1)


def _missing(found: dict[str, Any]) -> dict[str, str]:
    return {host: each["reason"] for host, each in found["hosts"].items() if not each["ok"]}


def _verify(options: argparse.Namespace) -> int:
    found = ask(options.socket, "events_verify", cluster=options.cluster, anchor=options.anchor)
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(render_verify(each) for each in found))
    if any(each["intact"] is False for each in found):
        return 1
    return INCOMPLETE if any(each["intact"] is None for each in found) else 0


def render_verify(found: dict[str, Any]) -> str:
    """What the check of one host's chain found."""
    if found["intact"] is None:
        return f"{found['host']}: did not answer: {found['reason']}"
    word = "intact" if found["intact"] else "BROKEN"
    lines = [f"{found['host']}: {word}, events {found['first']} to {found['last']}, "
             f"{found['receipts']} receipts, head {found['last']}:{found['head']}"]  # fmt: skip
    lines += [f"  broken: {each}" for each in found["problems"]]
    lines += [f"  note: {each}" for each in found["remarks"]]
    return "\n".join(lines)


def explain(options: argparse.Namespace) -> int:
    """`kvmft explain`."""
    found = ask(options.socket, "events_cluster", vm=options.vm, limit=STORY_EVENTS)
    told = story.last_story(options.vm, found["events"], options.back)
    if told is None:
        raise KvmftError("no_story", f"No failover or pairing of VM {options.vm} is in the logs.",
                         "See `kvmft events --cluster` for what is there.")  # fmt: skip
    missing = _missing(found)
    if options.json:
        print(json.dumps({**asdict(told), "lacking": told.lacking(), "missing_hosts": missing}))
    else:
        print(story.render(told, missing))
    return INCOMPLETE if missing else 0


def top(options: argparse.Namespace) -> int:
    """`kvmft top`."""
    before, then = ask(options.socket, "vm_list"), time.monotonic()
    while True:
        time.sleep(max(0.1, options.interval))
        found, now = ask(options.socket, "vm_list"), time.monotonic()
        if options.json:
            print(json.dumps(found), flush=True)
        else:
            clear = "" if options.once else "\x1b[H\x1b[2J"
            print(clear + table(before, found, now - then), flush=True)
        if options.once:
            return 0
        before, then = found, now


VERBS = {"events": events, "explain": explain, "top": top}
