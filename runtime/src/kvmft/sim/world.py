"""Simulated time, wires and arbiter. Everything that happens is an event on one heap.

Times are seconds. An event belongs to a token (a process, a boot of a host); when the token is dead
the event does not happen, as a killed process's timers do not. An event of a frozen host happens
when it thaws.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from kvmft.core.arbitration import Reply
from kvmft.core.records import Record
from kvmft.sim.watch import LATENCY, Management, Watch

ENDLESS = 100_000
"""So many events no schedule has; an ordinary one has some hundreds."""


class Token:
    """Something that can die."""

    __slots__ = ("dead",)

    def __init__(self) -> None:
        self.dead = False


class World:
    """Clock, events, random numbers, and the log of what happened (None: not kept)."""

    def __init__(self, seed: int, log: list[str] | None = None) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.log = log
        self.violations: list[str] = []
        self.counts: dict[str, int] = {}
        self._heap: list[tuple[float, int, Any, Token | None, Callable[..., None], tuple[Any, ...]]]
        self._heap = []
        self._order = 0

    def at(
        self, delay: float, host: Any, token: Token | None, act: Callable[..., None], *args: Any
    ) -> None:
        """Have `act(*args)` happen in `delay` seconds on `host` (None: nowhere) for `token`."""
        self._order += 1
        if self._order == ENDLESS:
            self.forbid("liveness", "events without end")
        heappush(self._heap, (self.now + delay, self._order, host, token, act, args))

    def run(self, until: float, done: Callable[[], bool] | None = None) -> None:
        """Let time pass up to `until`, or until `done()`, or until something forbidden happened."""
        heap = self._heap
        while heap and not self.violations:
            due, order, host, token, act, args = heap[0]
            if due > until:
                break
            heappop(heap)
            if token is not None and token.dead:
                continue
            if host is not None and host.frozen_until > due:
                heappush(heap, (host.frozen_until, order, host, token, act, args))
                continue
            self.now = due
            act(*args)
            if done is not None and done():
                return
        self.now = max(self.now, until)

    def note(self, who: str, text: str) -> None:
        """One line of the log."""
        if self.log is not None:
            self.log.append(f"{self.now:8.3f} {who:8s} {text}")

    def count(self, what: str) -> None:
        """Count that something came up, for coverage."""
        self.counts[what] = self.counts.get(what, 0) + 1

    def forbid(self, invariant: str, text: str) -> None:
        """Something happened that must not."""
        self.violations.append(f"{invariant}: {text}")
        self.note("VIOLATED", f"{invariant}: {text}")


class Wire:
    """The FT network between two hosts: each direction may be cut."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.management = Management(world)
        self.cut = [False, False]
        self.connections: list[Connection] = []

    def set_cut(self, direction: int, cut: bool) -> None:
        """Cut or mend what host `direction` sends."""
        if self.cut[direction] == cut:
            return
        self.cut[direction] = cut
        for connection in list(self.connections):
            if cut:
                connection.doubt(1 - direction)
            else:
                connection.flush(direction)


class Connection:
    """A TCP connection between worker processes: in order, late rather than lost, closed or silent.

    `ends[i]` is the process on host i. What is sent into a cut wire arrives when it is mended.
    `beacons`: both ends show life on the management network too; a version before them does not.
    """

    def __init__(self, wire: Wire, ends: list[Any], beacons: bool = True) -> None:
        self.wire = wire
        self.beacons = beacons
        self.world = wire.world
        self.ends = ends
        self.open = [True, True]
        self._last = [0.0, 0.0]
        self._parked: list[list[tuple[str, Any]]] = [[], []]
        wire.connections.append(self)

    def send(self, side: int, kind: str, value: Any = None) -> None:
        """Send a frame from host `side`."""
        if not self.open[side]:
            return
        world = self.world
        arrival = world.now + LATENCY * (0.5 + world.rng.random())
        if arrival < self._last[side]:
            arrival = self._last[side]
        self._last[side] = arrival
        world.at(arrival - world.now, None, None, self._arrive, side, kind, value)

    def _arrive(self, side: int, kind: str, value: Any) -> None:
        if self.wire.cut[side] or self._parked[side]:
            self._parked[side].append((kind, value))
            return
        end = self.ends[1 - side]
        if not self.open[1 - side] or end.dead:
            return
        self.world.at(0.0, end.host, end, self._deliver, 1 - side, kind, value)

    def _deliver(self, side: int, kind: str, value: Any) -> None:
        if not self.open[side]:
            return
        if kind == "FIN":
            self.gone(side)
            self.ends[side].lost(True, "the connection was closed")
        else:
            self.ends[side].frame(kind, value)

    def flush(self, side: int) -> None:
        """The wire was mended: what host `side` sent arrives now."""
        parked, self._parked[side] = self._parked[side], []
        for kind, value in parked:
            self._arrive(side, kind, value)

    def close(self, side: int) -> None:
        """This side's process closed it, or was killed on a living kernel."""
        if self.open[side]:
            self.send(side, "FIN")
            self.gone(side)

    def gone(self, side: int) -> None:
        """This side is no more (a closed socket, a dead host); nothing is told."""
        self.open[side] = False
        if self.open == [False, False] and self in self.wire.connections:
            self.wire.connections.remove(self)

    def doubt(self, side: int) -> None:
        """Something may have silenced the peer of `side`: its detector looks, until it hears."""
        if self.open[side] and not self.ends[side].dead:
            Watch(self, side)


class SimArbiter:
    """Holds one value; swaps it atomically. Requests and answers are late, lost or doubled."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.value: bytes | None = None
        self.top: Record | None = None
        self.past: list[bytes | None] = [None]
        self.down = False
        self.unreliable = 0.0
        self.tampered = False
        self.removed_unseen = False

    def ask(
        self, token: Token, host: Any, base: bytes | None, new: bytes | None, record: Record | None,
        answer: Callable[[Reply | None], None],
    ) -> None:  # fmt: skip
        """One transaction of `token` on `host`; `answer(None)` when no clear answer came."""
        world, rng = self.world, self.world.rng
        bad = rng.random() < self.unreliable
        fate = rng.random() if bad else 1.0
        if self.down or host.arbiter_cut:
            world.at(0.4, host, token, answer, None)
            if rng.random() < 0.3:  # held back somewhere, it may still apply, much later
                world.count("late request")
                world.at(0.5 + 3 * rng.random(), None, None, self._apply, base, new, record, None)
            return
        delay = LATENCY * (0.5 + rng.random())
        if fate < 0.25:
            world.count("lost request")
            world.at(0.4, host, token, answer, None)
            return
        if fate < 0.5:
            world.count("lost answer")
            world.at(delay, None, None, self._apply, base, new, record, None)
            world.at(0.4, host, token, answer, None)
            return
        if fate < 0.75:
            world.count("doubled request")
            late = delay + 2 * rng.random()
            world.at(late, None, None, self._apply, base, new, record, None)

        def reply(value: Reply | None) -> None:
            world.at(LATENCY if value else 0.4, host, token, answer, value)

        world.at(delay, None, None, self._apply, base, new, record, reply)

    def _apply(
        self, base: bytes | None, new: bytes | None, record: Record | None,
        reply: Callable[[Reply | None], None] | None,
    ) -> None:  # fmt: skip
        if self.down:
            if reply is not None:
                reply(None)
            return
        swapped = self.value == base
        if swapped:
            self.past.append(self.value)
            self.value = new
            if record is None:
                self.top, self.removed_unseen = None, True
                self.world.note("arbiter", "the record is removed")
            else:
                if self.top is None or record.gen > self.top.gen:
                    self.top = record
                self.world.note("arbiter", f"{record.mode.value} {record.holder} gen {record.gen}")
        if reply is not None:
            reply(Reply(True, None) if swapped else Reply(False, self.value))

    def wipe(self) -> None:
        """Somebody lost the arbiter's data."""
        self.value, self.tampered = None, True

    def roll_back(self) -> None:
        """Somebody restored an old copy of the arbiter's data."""
        if len(self.past) > 1:
            self.value, self.tampered = self.past[-1], True
