"""The `kvmft` command."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from kvmft import __version__
from kvmft.cli import bench, forecast, watch
from kvmft.cli.client import SOCKET, ask
from kvmft.errors import KvmftError

PACE = {
    "interval_ms": "longest time between two checkpoints, in milliseconds",
    "max_added_latency_ms": "how long output may wait for its checkpoint",
    "max_pause_share": "most of the time that the VM may stand still: 0.5 is half of it",
}
"""Options of a VM that can be given here."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvmft", description="Fault tolerance for KVM virtual machines."
    )
    parser.add_argument("--version", action="version", version=f"kvmft {__version__}")
    parser.add_argument("--socket", default=SOCKET, help="the agent's control socket")
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, text: str, vm: bool = True) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        if vm:
            added.add_argument("vm", help="the VM's name in libvirt")
        added.add_argument("--json", action="store_true", help="print JSON")
        return added

    status = verbs.add_parser("status", help="state of one VM, or of all")
    status.add_argument("vm", nargs="?")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument("--watch", action="store_true", help="again every second")
    for name, text in (("enable", "turn fault tolerance on"), ("resume", "resume protection")):
        added = verb(name, text)
        added.add_argument("--secondary", help="host of the secondary")
        added.add_argument("--allowed-host", action="append", metavar="HOST",
                           help="a host on which the secondary may be (repeat it; default: all)")  # fmt: skip
        for name, what in PACE.items():
            added.add_argument(f"--{name.replace('_', '-')}", type=float, help=what)
        added.add_argument("--set", action="append", metavar="OPTION=VALUE", default=[],
                           help="any option of ft_vm, as replay_input=false")  # fmt: skip
        added.add_argument("--wait", type=float, metavar="SECONDS", default=0,
                           help="wait for `protected` at most so long")  # fmt: skip
    verb("disable", "turn fault tolerance off")
    verb("suspend", "suspend protection")
    failover = verb("failover", "let the secondary take over")
    failover.add_argument("--mode", choices=("unplanned", "planned", "test"), default="planned")
    failover.add_argument("--target", help="the host that shall run the VM afterwards")
    secondary = verbs.add_parser("secondary", help="move or test the secondary")
    orders = secondary.add_subparsers(dest="order", required=True)
    for name, text in (
        ("move", "make the secondary anew on another host; the VM runs on"),
        ("restart", "a test: kill the secondary; protection has to come back by itself"),
    ):
        added = orders.add_parser(name, help=text, description=text)
        added.add_argument("vm", help="the VM's name in libvirt")
        if name == "move":
            added.add_argument("target", help="the host of the new secondary")
        added.add_argument("--json", action="store_true", help="print JSON")
        added.add_argument("--wait", type=float, metavar="SECONDS", default=0,
                           help="wait for `protected` at most so long")  # fmt: skip
    verb("check", "all reasons why a VM cannot be protected")
    verb("audit", "compare the replica's memory with the VM's")
    forecast.add_verb(verbs, PACE)
    watch.add_verbs(verbs)
    bench.add_verb(verbs)
    verb("doctor", "probe this host by doing", vm=False)
    verb("host", "versions, peers and arbiter of this host", vm=False)
    upkeep = verb("maintenance", "whether this host takes new secondaries", vm=False)
    upkeep.add_argument("order", choices=("on", "off", "show"), help="on: it takes none")
    upkeep.add_argument("--reason", help="why, for those who look later")
    verbs.add_parser("agent", help="run the agent (systemd does)").add_argument(
        "--config", default="/etc/kvmft/kvmft.yml"
    )
    hook = verbs.add_parser("hook", help="libvirt's hook (libvirt calls it)")
    hook.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser


def _figure(value: Any, unit: str = "") -> str:
    return "-" if value is None else f"{value}{unit}"


def _arbiter(arbiter: dict[str, Any]) -> str:
    if arbiter["type"] == "none":
        return "none: no automatic failover"
    return f"{arbiter['type']} {'ok' if arbiter['ok'] else 'not usable: see kvmft doctor'}"


def render_status(status: dict[str, Any]) -> str:
    """A VM's status as people read it."""
    pause, pages = status.get("pause_ms") or {}, status.get("pages_per_epoch") or {}
    arbiter = status["arbiter"]
    rate = status.get("log_bandwidth_bytes_s")
    lines = [
        f"{status['vm']}: {status['state']} ({status['reason']})",
        f"  primary    {_figure(status.get('primary'))}   secondary {_figure(status.get('secondary'))}"
        f"   generation {_figure(status.get('generation'))}",
        f"  epoch      {_figure(status.get('epoch'))}   interval {_figure(status.get('interval_ms'), ' ms')}"
        f"   last commit {_figure(status.get('last_commit_age_ms'), ' ms ago')}",
        f"  pause      p50 {_figure(pause.get('p50'), ' ms')}   p99 {_figure(pause.get('p99'), ' ms')}"
        f"   pages per epoch p50 {_figure(pages.get('p50'))}",
        f"  FT log     {_figure(rate and round(rate / 1e6, 2), ' MB/s')}   held output "
        f"{_figure(status.get('held_bytes'), ' bytes')}   sync {_figure(status.get('sync_percent'), ' %')}",
        f"  guest time lost {_figure(status.get('guest_clock_loss_ppm'), ' ppm')}   "
        f"arbiter {_arbiter(arbiter)}   "
        f"accelerator {_figure(status.get('accelerator'))}",
    ]
    lines += [f"  {status[each]}" for each in ("objective_missed", "beacons_missed") if status.get(each)]
    return "\n".join(lines)


def _status(options: argparse.Namespace) -> int:
    while True:
        if options.vm:
            result = ask(options.socket, "vm_status", vm=options.vm)
            text = render_status(result)
        else:
            result = ask(options.socket, "vm_list")
            text = "\n".join(render_status(each) for each in result) or "No VM is protected here."
        print(json.dumps(result, indent=1) if options.json else text, flush=True)
        if not options.watch:
            return 0
        time.sleep(1)


def _option(text: str) -> tuple[str, Any]:
    """`interval_ms=20` as a name and a value; the agent says whether there is such an option."""
    name, equals, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        raise KvmftError(
            "option_invalid",
            f"--set {text} {'has no value that is a number, true or false' if equals else 'has no ='}.",
            "Give it as --set replay_input=false.",
        ) from None


def _change(options: argparse.Namespace) -> int:
    args: dict[str, Any] = {"vm": options.vm}
    if options.verb in ("enable", "resume"):
        args["secondary"] = options.secondary
        args["allowed_hosts"] = options.allowed_host
        given = {name: getattr(options, name) for name in PACE if getattr(options, name) is not None}
        given |= dict(_option(each) for each in options.set)
        if given:
            args["options"] = given
    if options.verb == "failover":
        args |= {"mode": options.mode, "target": options.target}
    op = f"vm_{options.verb}"
    if options.verb == "secondary":
        op = f"vm_{options.order}_secondary"
        args |= {"target": options.target} if options.order == "move" else {}
    begun = time.time()
    result = ask(options.socket, op, **args)
    until = time.monotonic() + getattr(options, "wait", 0)
    while time.monotonic() < until:
        result["status"] = ask(options.socket, "vm_status", vm=options.vm)
        # What was shown before the secondary went does not count.
        settled = options.verb != "secondary" or time.time() - begun > 1.5
        if result["status"]["state"] == "protected" and settled:
            break
        time.sleep(0.2)
    print(json.dumps(result, indent=1) if options.json else render_status(result["status"]))
    waited_in_vain = getattr(options, "wait", 0) and result["status"]["state"] != "protected"
    return 3 if waited_in_vain else 0


def _doctor(options: argparse.Namespace) -> int:
    probes = ask(options.socket, "doctor")
    if options.json:
        print(json.dumps(probes, indent=1))
    else:
        for probe in probes:
            print(f"{'ok  ' if probe['ok'] else 'FAIL'} {probe['probe']}: {probe['detail']}")
            if not probe["ok"]:
                print(f"     {probe['remedy']}")
    return 0 if all(probe["ok"] for probe in probes) else 1


def _plain(options: argparse.Namespace) -> int:
    if options.verb == "host":
        print(json.dumps(ask(options.socket, "host_info"), indent=1))
        return 0
    result = ask(options.socket, f"vm_{options.verb}", vm=options.vm)
    if options.verb == "audit":
        print(json.dumps(result) if options.json else
              f"{result['pages']} pages at commit {result['epoch']}: {result['different']} differ")  # fmt: skip
        return 1 if result["different"] else 0
    for finding in result["findings"]:
        print(json.dumps(finding) if options.json else f"{finding['message']} {finding['remedy']}")
    if not result["findings"] and not options.json:
        print("Nothing stands against protecting it.")
    return 1 if result["findings"] else 0


def _maintenance(options: argparse.Namespace) -> int:
    if options.order == "show":
        found = ask(options.socket, "host_info")["maintenance"]
    else:
        found = ask(options.socket, "host_maintenance", on=options.order == "on",
                    reason=options.reason)["maintenance"]  # fmt: skip
    why = f": {found['reason']}" if found["reason"] else ""
    print(json.dumps(found) if options.json else f"maintenance {'on' if found['on'] else 'off'}{why}")
    return 0


def _agent(options: argparse.Namespace) -> int:
    import asyncio

    from kvmft.agent.config import load
    from kvmft.agent.service import Agent

    asyncio.run(Agent(load(options.config)).run())
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command. 0: done; 1: refused or findings; 2: usage; 3: not reached in time."""
    options = _parser().parse_args(arguments)
    verbs = {**watch.VERBS, "bench": bench.bench, "status": _status, "doctor": _doctor, "agent": _agent,
             "check": _plain, "audit": _plain, "host": _plain,
             "forecast": lambda given: forecast.forecast(given, PACE),
             "maintenance": _maintenance}  # fmt: skip
    if options.verb == "hook":
        from kvmft.cli import hook

        return hook.main(options.arguments)
    try:
        return verbs.get(options.verb, _change)(options)
    except KvmftError as error:
        print(f"kvmft: {error}", file=sys.stderr)
        for reason in error.reasons:
            print(f"  - {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
