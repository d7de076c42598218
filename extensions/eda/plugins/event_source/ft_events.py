# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Events of kvmft for Event-Driven Ansible. One file, standard library only: rulebooks load it by its path."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import time
from typing import Any

DOCUMENTATION = r"""
short_description: Events of kvmft's agents
description:
  - Follows the events log of each host's agent with C(kvmft events --follow --json), here or over SSH.
  - Every event comes as C(event.kvmft) with C(host), C(seq), C(time), C(vm), C(event), C(reason) and C(data), as C(kvmft events --json) prints it.
  - A connection that broke is made again. Events are numbered by their host, so that none is missed and none comes twice. Where
    the log itself no longer has some, C(events_missing) says which.
  - With O(state_file) that also holds when the rulebook is restarted. What had reached the rulebook right before it was
    killed may come once more.
  - Besides, the source tells of what it sees itself, with C(seq) null. C(unreachable) and C(reachable) are about a host whose log
    cannot be followed, C(unprotected) and C(protected_again) about a VM, see O(unprotected_after).
options:
  hosts:
    description:
      - Hosts whose logs are followed, each a destination as C(ssh) takes it, such as V(node-a) or V(root@192.0.2.11).
        Without it that of the machine where the rulebook runs.
    type: list
    elements: str
    default: []
  command:
    description: How C(kvmft) is called on the hosts, such as V(sudo -n kvmft). The user is root or in the group C(kvmft).
    type: str
    default: kvmft
  ssh_args:
    description: Arguments of C(ssh), such as V(-i /run/secrets/key). It never asks for a password.
    type: str
    default: ""
  vms:
    description: Only events of these VMs, and those of no VM. Without it of all.
    type: list
    elements: str
    default: []
  events:
    description: Only these events, such as V(activated), V(state) or V(unprotected). Without it all.
    type: list
    elements: str
    default: []
  start:
    description: Where to begin when O(state_file) has nothing of a host. V(new) with what happens from now on, V(all) with the whole log.
    type: str
    choices: [new, all]
    default: new
  state_file:
    description: File in which the number of the last event of each host is kept. Its folder exists.
    type: str
    default: ""
  unprotected_after:
    description: Seconds without protection, although it is wanted, after which C(unprotected) is told of a VM, once. V(0) for never.
    type: int
    default: 0
  retry:
    description: Seconds until a host that did not answer is tried again.
    type: float
    default: 5
"""

EXAMPLES = r"""
- name: Look after protected VMs
  hosts: all
  sources:
    - kvmft.core.ft_events:
        hosts: [node-a, node-b]
        state_file: /var/lib/eda/kvmft.json
        unprotected_after: 300
  rules:
    - name: A failover
      condition: event.kvmft.event == "activated"
      action:
        run_playbook:
          name: kvmft.core.verify
"""

OPTIONS: dict[str, Any] = {
    "hosts": [], "command": "kvmft", "ssh_args": "", "vms": [], "events": [], "start": "new",
    "state_file": "", "unprotected_after": 0, "retry": 5.0,
}  # fmt: skip
SSH = ("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5",
       "-o", "ServerAliveCountMax=3")  # fmt: skip
LIMIT = 20_000  # as many events as an agent gives at once
LINE = 1 << 20  # bytes; an event's line has at most 64 KiB
PATIENCE = 30.0  # seconds for a command that ends by itself
EXPOSED = ("need_secondary", "starting", "failing_over")
AT_EASE = ("protected", "suspended", "disabled")


class Unreachable(Exception):
    """A host's log cannot be followed; the text says why."""


def options_of(args: dict[str, Any]) -> dict[str, Any]:
    """The options with their defaults; ValueError names one that is wrong."""
    given = {name: value for name, value in args.items() if name != "eda_feedback_queue"}
    found = {**OPTIONS, **{name: value for name, value in given.items() if name in OPTIONS}}
    unknown = sorted(set(given) - set(OPTIONS))
    if unknown:
        raise ValueError(f"ft_events has no option {', '.join(unknown)}; it has {', '.join(OPTIONS)}.")
    for name in ("hosts", "vms", "events"):
        if isinstance(found[name], str):  # what a variable of the rulebook may come as
            found[name] = [each.strip() for each in found[name].split(",") if each.strip()]
        if not isinstance(found[name], list) or not all(isinstance(each, str) for each in found[name]):
            raise ValueError(f"ft_events: {name} is {found[name]!r}; it must be a list of names.")
    for name in ("unprotected_after", "retry"):
        if isinstance(found[name], bool) or not isinstance(found[name], (int, float)) or found[name] < 0:
            raise ValueError(f"ft_events: {name} is {found[name]!r}; it must be a number of seconds.")
    if found["start"] not in ("new", "all"):
        raise ValueError(f"ft_events: start is {found['start']!r}; it must be new or all.")
    return found


class Cursors:
    """The number of the last event of each host that was handed on, kept in the file `path`, if any."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._last: dict[str, int] = {}
        if path and os.path.exists(path):
            try:
                with open(path, encoding="utf-8") as file:
                    self._last = {str(host): int(seq) for host, seq in json.load(file).items()}
            except (ValueError, AttributeError, TypeError) as error:
                raise ValueError(f"{path} is no state file of ft_events: {error}. Remove it.") from error

    def get(self, host: str) -> int | None:
        """The last number, or None when nothing of the host was handed on."""
        return self._last.get(host)

    def put(self, host: str, seq: int) -> None:
        """Remember it; whole or not at all."""
        self._last[host] = seq
        if self._path:
            made = f"{self._path}.new"
            with open(made, "w", encoding="utf-8") as file:
                json.dump(self._last, file)
            os.replace(made, self._path)


class Exposure:
    """Which VMs are unprotected, since when, by the events of all hosts. Pure: times are given, in seconds."""

    def __init__(self, after: float) -> None:
        self._after = after
        self._since: dict[str, tuple[float, dict[str, Any]]] = {}
        self._told: set[str] = set()

    def see(self, vm: str, state: str, seen: dict[str, Any], now: float) -> bool:
        """A VM's state; `seen` has host and reason. True when it is protected again after it was told of."""
        if state in EXPOSED:
            since = self._since[vm][0] if vm in self._since else now
            self._since[vm] = (since, {**seen, "state": state})
        elif state in AT_EASE:
            self._since.pop(vm, None)
            if vm in self._told:
                self._told.discard(vm)
                return state == "protected"
        return False

    def due(self, now: float) -> list[tuple[str, float, dict[str, Any]]]:
        """VMs that are to be told of now: name, seconds, what was seen last. Each once."""
        found = []
        for vm, (since, seen) in sorted(self._since.items()):
            if self._after and now - since >= self._after and vm not in self._told:
                self._told.add(vm)
                found.append((vm, now - since, seen))
        return found


class Source:
    """Follows all hosts, and hands on what the options ask for."""

    def __init__(self, queue: Any, options: dict[str, Any]) -> None:
        self._queue = queue
        self._options = options
        self._cursors = Cursors(options["state_file"])
        self._exposure = Exposure(options["unprotected_after"])

    async def run(self) -> None:
        """For ever, until cancelled."""
        hosts = self._options["hosts"] or [""]
        tasks = [asyncio.ensure_future(each) for each in (self._watch(), *map(self._host, hosts))]
        try:
            ended, _others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)  # they have processes to end
        for task in ended:
            task.result()  # none ends by itself but by an error

    # -- one host -------------------------------------------------------------------------------------

    async def _host(self, host: str) -> None:
        lost = ""
        while True:
            try:
                await self._prepare(host)
                if lost:
                    await self._tell(host, None, "reachable", "its log is followed again")
                    lost = ""
                await self._follow(host)
            except Unreachable as why:
                if str(why) != lost:
                    lost = str(why)
                    await self._tell(host, None, "unreachable", lost)
            await asyncio.sleep(self._options["retry"])

    async def _prepare(self, host: str) -> None:
        """See where the log ends, and how its VMs are."""
        try:
            await self._look(host)
        except (ValueError, KeyError, TypeError) as error:
            raise Unreachable(f"what it says is not understood: {error!r}") from error

    async def _look(self, host: str) -> None:
        newest = [json.loads(line) for line in await self._output(host, "events", "--json", "--limit", "1")]
        end = int(newest[-1]["seq"]) if newest else 0
        known = self._cursors.get(host)
        if known is None:
            self._cursors.put(host, end if self._options["start"] == "new" else 0)
        elif known > end:
            # The host was made anew, and its log with it.
            await self._tell(host, None, "events_missing", "the log has begun anew", after=known)
            self._cursors.put(host, 0)
        if self._options["unprotected_after"]:
            text = "".join(await self._output(host, "status", "--json"))
            for status in json.loads(text):
                if status.get("role") == "primary":
                    await self._see(status["vm"], status["state"], host, status.get("reason") or "")

    async def _follow(self, host: str) -> None:
        """Hand on events as they come, until the connection ends."""
        since = self._cursors.get(host) or 0
        line = self._line(host, "events", "--follow", "--json", "--since", str(since), "--limit", str(LIMIT))
        process = await self._start(line)
        errors = asyncio.create_task(process.stderr.read())
        try:
            async for text in process.stdout:
                await self._event(host, json.loads(text))
            await process.wait()
            raise Unreachable(_last_line(await errors, process.returncode))
        except (ValueError, KeyError, TypeError) as error:
            raise Unreachable(f"what it says is not understood: {error!r}") from error
        finally:
            await _end(process, errors)

    async def _event(self, host: str, event: dict[str, Any]) -> None:
        last, seq = self._cursors.get(host) or 0, int(event["seq"])
        if seq <= last:
            return
        if last and seq > last + 1:
            await self._tell(host, None, "events_missing", "the log does not have them any more",
                             first=last + 1, last=seq - 1)  # fmt: skip
        await self._hand_on(event)
        self._cursors.put(host, seq)
        if event.get("event") == "state" and event.get("vm"):
            state = (event.get("data") or {}).get("state")
            await self._see(event["vm"], str(state), host, event.get("reason") or "")

    # -- what is handed on ------------------------------------------------------------------------------

    async def _hand_on(self, event: dict[str, Any]) -> None:
        vms, names = self._options["vms"], self._options["events"]
        if (not vms or event.get("vm") in (None, *vms)) and (not names or event.get("event") in names):
            await self._queue.put({"kvmft": event})

    async def _tell(self, host: str, vm: str | None, event: str, reason: str, **data: Any) -> None:
        """An event of this source itself."""
        await self._hand_on({"seq": None, "time": round(time.time(), 4), "host": host or "localhost",
                             "vm": vm, "event": event, "reason": reason, "data": data})  # fmt: skip

    async def _see(self, vm: str, state: str, host: str, reason: str) -> None:
        if self._exposure.see(vm, state, {"host": host, "reason": reason}, time.monotonic()):
            await self._tell(host, vm, "protected_again", reason, state=state)

    async def _watch(self) -> None:
        while True:
            for vm, seconds, seen in self._exposure.due(time.monotonic()):
                await self._tell(seen["host"], vm, "unprotected", seen["reason"], state=seen["state"],
                                 seconds=round(seconds, 1))  # fmt: skip
            await asyncio.sleep(1)

    # -- commands ---------------------------------------------------------------------------------------

    def _line(self, host: str, *arguments: str) -> list[str]:
        called = [*shlex.split(self._options["command"]), *arguments]
        if not host:
            return called
        # After -- a name that begins with a dash is no option.
        return [*SSH, *shlex.split(self._options["ssh_args"]), "--", host, shlex.join(called)]

    async def _start(self, line: list[str]) -> asyncio.subprocess.Process:
        pipe, none = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        try:
            return await asyncio.create_subprocess_exec(*line, stdin=none, stdout=pipe, stderr=pipe, limit=LINE)
        except OSError as error:
            raise Unreachable(f"{line[0]} cannot be run: {error.strerror}") from error

    async def _output(self, host: str, *arguments: str) -> list[str]:
        """The lines that a command prints; Unreachable when it fails or takes too long."""
        process = await self._start(self._line(host, *arguments))
        try:
            out, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
        except TimeoutError:
            raise Unreachable(f"there was no answer within {PATIENCE:.0f} s") from None
        finally:
            await _end(process)
        if process.returncode:
            raise Unreachable(_last_line(errors, process.returncode))
        return out.decode(errors="replace").splitlines(keepends=True)


def _last_line(errors: bytes, code: int | None) -> str:
    words = errors.decode(errors="replace").strip().splitlines()
    return words[-1] if words else f"it ended with exit status {code}"


async def _end(process: asyncio.subprocess.Process, *readers: asyncio.Task[bytes]) -> None:
    """Kill it if it runs, and read its pipes to their end, unless what it started holds them open."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await process.wait()
    rest = asyncio.ensure_future(process.stdout.read())
    await asyncio.wait({rest, *readers}, timeout=1)
    for task in (rest, *readers):
        task.cancel()
    await asyncio.sleep(0)


async def main(queue: asyncio.Queue, args: dict[str, Any]) -> None:
    """Put the events of the hosts of `args` onto `queue`, for ever. ValueError for wrong options."""
    await Source(queue, options_of(args)).run()


if __name__ == "__main__":

    class Printer:
        """Stands in for the rulebook's queue: `python ft_events.py '{"hosts": ["node-a"]}'` shows what comes."""

        async def put(self, event: dict[str, Any]) -> None:
            """Show one event."""
            print(json.dumps(event), flush=True)

    import sys

    asyncio.run(main(Printer(), json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}")))  # type: ignore[arg-type]
