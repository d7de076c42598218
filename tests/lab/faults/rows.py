"""The rows of the failure table: what is done, and what must hold.

Whatever the row: nothing acknowledged is lost, nothing is there twice, at most one side's output is
seen, every history is linearizable, and the replica equals the VM once it is protected again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from tests.lab.faults.ground import Broken, Ground, Sides

DETECTION = 0.5
"""Seconds of silence that the lab's servers take for a death (its inventory)."""
DEATH_BOUND = 1.0
"""The failure table: a gap below 1 s when something dies silently or loudly."""
GRACE_BOUND = 12.0
"""An agent that is killed has 8 s to come back before its VM is taken over."""
FT_ALONE = 4.0
"""Seconds for which the FT network is back and the arbiter is not."""
HOLD_BOUND = 3.0
"""Seconds after which a VM that may not release output is paused."""


class Watch(Protocol):
    """What an injection can see of the running clients, and where it says what it saw."""

    def last_answer(self) -> float:
        """When a client was answered last, CLOCK_MONOTONIC seconds; 0 before the first."""

    def problem(self, text: str) -> None:
        """Something that must hold did not."""

    def note(self, text: str) -> None:
        """Something worth a line in the report."""

    def shown(self, host: str, state: str, word: str = "") -> bool:
        """Whether `host` showed `state`, with `word` in its reason, since the injection."""


Injection = Callable[[Ground, Sides, Watch], None]
"""Does the fault and ends it; returns once nothing hinders recovery any more."""


@dataclass(frozen=True)
class Row:
    """One row. `moves`: whether the VM runs on the other host afterwards (None: either is right)."""

    name: str
    fault: str
    inject: Injection
    moves: bool | None
    bound: float | None
    """Longest gap for the client, seconds; None: no bound, the fault itself takes the service away."""
    resets: bool = False
    """Connections may break: the guest itself starts anew."""
    stays: bool = False
    """Protection must not be left at any moment."""
    needs_pool: bool = False
    long: bool = False
    """Only in the long campaign."""
    shows: tuple[tuple[str, str, str], ...] = field(default=())
    """Who must have shown which state with which word in its reason: (primary|secondary, state, word)."""


def wait_until(what: str, true: Callable[[], object], seconds: float) -> None:
    """Wait until `true()`; Broken with `what` when it does not come."""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            raise Broken(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(0.05)


# -- deaths -----------------------------------------------------------------------------------------


def _host_dies(which: str) -> Injection:
    def inject(ground: Ground, sides: Sides, watch: Watch) -> None:
        host = getattr(sides, which)
        ground.lab.power_off(host)
        time.sleep(3)
        ground.lab.power_on(host, wait=False)

    return inject


def _qemu_dies(which: str) -> Injection:
    def inject(ground: Ground, sides: Sides, watch: Watch) -> None:
        ground.kill(ground.qemu(getattr(sides, which)))

    return inject


def _agent_dies(which: str) -> Injection:
    def inject(ground: Ground, sides: Sides, watch: Watch) -> None:
        host = getattr(sides, which)
        before = ground.agent(host)
        ground.kill(before)
        wait_until("systemd starts the agent again",
                   lambda: (now := ground.agent(host)) and now != before, 30)  # fmt: skip

    return inject


# -- stopped and thawed -----------------------------------------------------------------------------


def _qemu_stops(which: str, seconds: float) -> Injection:
    def inject(ground: Ground, sides: Sides, watch: Watch) -> None:
        ground.stop(ground.qemu(getattr(sides, which)))
        time.sleep(seconds)
        ground.go_on()

    return inject


def _agent_stops(which: str, seconds: float) -> Injection:
    def inject(ground: Ground, sides: Sides, watch: Watch) -> None:
        ground.stop(ground.agent_and_workers(getattr(sides, which)))
        time.sleep(seconds)
        ground.go_on()

    return inject


def _host_freezes(which: str, seconds: float) -> Injection:
    def inject(ground: Ground, sides: Sides, watch: Watch) -> None:
        host = getattr(sides, which)
        ground.freeze(host, True)
        time.sleep(seconds)
        ground.freeze(host, False)

    return inject


# -- networks ---------------------------------------------------------------------------------------


def _ft_cut(ways: str, seconds: float = 6) -> Injection:
    def inject(ground: Ground, sides: Sides, watch: Watch) -> None:
        if ways in ("both", "out"):
            ground.cut(sides.primary, "ft")
        if ways in ("both", "in"):
            ground.cut(sides.secondary, "ft")
        time.sleep(seconds)
        ground.heal()

    return inject


def _cable_out(which: str, network: str, seconds: float = 6) -> Injection:
    def inject(ground: Ground, sides: Sides, watch: Watch) -> None:
        host = which if which == "witness" else getattr(sides, which)
        ground.cable(host, network, up=False)
        time.sleep(seconds)
        ground.cable(host, network, up=True)

    return inject


def _arbiter_off(ground: Ground, sides: Sides, watch: Watch) -> None:
    ground.lab.power_off("witness")
    time.sleep(5)
    ground.lab.power_on("witness")


def _both_cut(first_back: str) -> Injection:
    def inject(ground: Ground, sides: Sides, watch: Watch) -> None:
        ground.cable("witness", "mgmt", up=False)
        ground.cut_both_ways("ft")
        cut = time.monotonic()
        time.sleep(HOLD_BOUND + 2.5)
        if watch.last_answer() > cut + 1:
            watch.problem("output was released with neither the secondary nor the arbiter there")
        if not watch.shown(sides.primary, "failing_over", "paused"):
            watch.problem(f"{sides.primary} did not show that the VM is paused")
        if first_back == "ft":
            ground.heal(but=("witness", "mgmt"))
            # A claim that has left its host may still apply: only the arbiter can say.
            time.sleep(FT_ALONE)
            if watch.last_answer() > cut + 1:
                watch.problem("output was released while claims were open and the arbiter away")
        ground.cable("witness", "mgmt", up=True)
        healed = time.monotonic()
        try:
            # TCP's own patience doubles with each try: 10 s of silence may become 20.
            wait_until("the guest answers after the return of the arbiter",
                       lambda: watch.last_answer() > healed, 25)  # fmt: skip
        except Broken as error:
            watch.problem(str(error))
        ground.heal()

    return inject


def _arbiter_off_and_death(which: str) -> Injection:
    def inject(ground: Ground, sides: Sides, watch: Watch) -> None:
        ground.cable("witness", "mgmt", up=False)
        time.sleep(0.3)
        host = getattr(sides, which)
        ground.lab.power_off(host)
        cut = time.monotonic()
        time.sleep(HOLD_BOUND + 2.5)
        if watch.last_answer() > cut + 1:
            watch.problem("output was released without the arbiter's word")
        survivor = sides.secondary if which == "primary" else sides.primary
        if not watch.shown(survivor, "failing_over"):
            watch.problem(f"{survivor} did not show `failing_over` while it could not decide")
        ground.cable("witness", "mgmt", up=True)
        time.sleep(1)
        ground.lab.power_on(host, wait=False)

    return inject


# -- disks of the secondary -------------------------------------------------------------------------


def _disk_fault(kind: str) -> Injection:
    def inject(ground: Ground, sides: Sides, watch: Watch) -> None:
        begun = time.monotonic()
        (ground.fill_pool if kind == "full" else ground.break_disk)(sides.secondary)
        try:
            with ground.many_writes():
                # A write has to reach a block of the device that has no space behind it first.
                wait_until(f"{sides.primary} shows that the secondary is lost",
                           lambda: watch.shown(sides.primary, "need_secondary"), 45)  # fmt: skip
            watch.note(f"unprotected {time.monotonic() - begun:.1f} s after the fault")
        except Broken as error:
            watch.problem(str(error))
        time.sleep(2)
        shown = ground.told()
        watch.note(f"with the fault there: {shown}")
        ground.mend_disks()

    return inject


# -- both servers -----------------------------------------------------------------------------------


def _both_lose_power(order: str) -> Injection:
    def inject(ground: Ground, sides: Sides, watch: Watch) -> None:
        for host in (sides.primary, sides.secondary):
            ground.lab.power_off(host)
        time.sleep(1)
        if order == "primary":
            ground.lab.power_on(sides.primary)
            wait_until("the guest boots on the host that was primary, alone", ground.answers, 60)
            ground.lab.power_on(sides.secondary)
        elif order == "secondary":
            ground.lab.power_on(sides.secondary)
            until = time.monotonic() + 12
            while time.monotonic() < until:
                if ground.qemu(sides.secondary):
                    watch.problem(f"{sides.secondary}, which was secondary, started the VM")
                    break
                time.sleep(0.5)
            watch.note(f"alone: {ground.told()}")
            ground.lab.power_on(sides.primary)
        else:
            for host in (sides.secondary, sides.primary):
                ground.lab.power_on(host, wait=False)

    return inject


# -- the guest --------------------------------------------------------------------------------------


def _guest_reboots(ground: Ground, sides: Sides, watch: Watch) -> None:
    ground.order("x reboot")


def _guest_powers_off(ground: Ground, sides: Sides, watch: Watch) -> None:
    def shows_off(host: str) -> bool:
        return watch.shown(host, "need_secondary", "is off") or watch.shown(host, "disabled", "off")

    ground.order("x poweroff")
    wait_until("a host shows that the VM is off",
               lambda: shows_off(sides.primary) or shows_off(sides.secondary), 20)  # fmt: skip
    time.sleep(4)
    if ground.qemu(sides.primary) or ground.qemu(sides.secondary):
        watch.problem(f"the guest powered itself off and runs: {ground.told()}")
    watch.note(f"off: {ground.told()}")
    home = sides.primary if shows_off(sides.primary) else sides.secondary
    if home != sides.primary:
        watch.problem("the secondary took over from a guest that powered itself off")
    ground.sh(home, f"virsh -q start {ground.guest.name}")


def _guest_panics(ground: Ground, sides: Sides, watch: Watch) -> None:
    ground.order("x panic")
    time.sleep(4)
    if ground.sides() != sides:
        watch.problem(f"a panic inside the guest changed its protection: {ground.told()}")
    ground.sh(sides.primary, f"virsh -q reset {ground.guest.name}")


def _paused(seconds: float) -> float:
    """The gap that a stall of `seconds` may make: TCP doubles its patience with every try."""
    return 2 * seconds + 2.0


def _lengths(name: str, fault: str, make: Callable[[float], Injection], moves: bool | None,
             bound: Callable[[float], float], shorts: tuple[float, ...] = (1, 5, 30)) -> list[Row]:  # fmt: skip
    # What is shorter than the detection with all its tolerance may pass unnoticed.
    return [Row(f"{name}-{seconds:.0f}s", f"{fault} for {seconds:.0f} s", make(seconds),
                None if seconds <= 2 * DETECTION else moves, bound(seconds), long=seconds > 30)
            for seconds in (*shorts, 60)]  # fmt: skip


def _dead(_seconds: float) -> float:
    return DEATH_BOUND


ROWS: list[Row] = [
    Row("host-primary", "primary host loses power, and comes back", _host_dies("primary"), True, DEATH_BOUND),
    Row("host-secondary", "secondary host loses power, and comes back", _host_dies("secondary"), False, DEATH_BOUND),
    Row("qemu-primary", "kill -9 of the primary's QEMU", _qemu_dies("primary"), True, DEATH_BOUND),
    Row("qemu-secondary", "kill -9 of the secondary's QEMU", _qemu_dies("secondary"), False, DEATH_BOUND),
    Row("agent-primary", "kill -9 of the primary's agent", _agent_dies("primary"), False, GRACE_BOUND),
    Row("agent-secondary", "kill -9 of the secondary's agent", _agent_dies("secondary"), False, GRACE_BOUND),
    *_lengths("stop-qemu-primary", "SIGSTOP of the primary's QEMU",
              lambda s: _qemu_stops("primary", s), None, _paused),
    *_lengths("stop-agent-primary", "SIGSTOP of the primary's agent and worker",
              lambda s: _agent_stops("primary", s), True, _dead),
    *_lengths("stop-agent-secondary", "SIGSTOP of the secondary's agent and worker",
              lambda s: _agent_stops("secondary", s), False, _dead),
    *_lengths("freeze-primary", "every process of the primary host stops",
              lambda s: _host_freezes("primary", s), True, _dead),
    *_lengths("freeze-secondary", "every process of the secondary host stops",
              lambda s: _host_freezes("secondary", s), False, _dead, (5,)),
    Row("ft-cut", "FT network cut, both ways, 6 s", _ft_cut("both"), None, DEATH_BOUND),
    Row("ft-cut-out", "FT network cut, primary to secondary, 6 s", _ft_cut("out"), None, DEATH_BOUND),
    Row("ft-cut-in", "FT network cut, secondary to primary, 6 s", _ft_cut("in"), None, DEATH_BOUND),
    Row("mig-cut", "migration network of the primary cut, 6 s", _cable_out("primary", "mig"), False,
        DEATH_BOUND, stays=True),
    Row("mgmt-cut-primary", "management network of the primary cut, 6 s", _cable_out("primary", "mgmt"),
        False, DEATH_BOUND, stays=True),
    Row("mgmt-cut-secondary", "management network of the secondary cut, 6 s",
        _cable_out("secondary", "mgmt"), False, DEATH_BOUND, stays=True),
    Row("arbiter-cut", "the arbiter's link down while protected, 6 s", _cable_out("witness", "mgmt"),
        False, DEATH_BOUND, stays=True),
    Row("arbiter-off", "the arbiter loses power while protected", _arbiter_off, False, DEATH_BOUND,
        stays=True),
    Row("both-cut-arbiter-back", "FT network and arbiter cut; the arbiter returns first",
        _both_cut("arbiter"), None, 2 * (HOLD_BOUND + 2.5) + 3),
    Row("both-cut-ft-back", "FT network and arbiter cut; the FT network returns first",
        _both_cut("ft"), None, 2 * (HOLD_BOUND + 2.5 + FT_ALONE) + 3),
    Row("arbiter-off-primary-dies", "no arbiter, then the primary host dies; the arbiter returns",
        _arbiter_off_and_death("primary"), True, 2 * (HOLD_BOUND + 2.5) + 3),
    Row("arbiter-off-secondary-dies", "no arbiter, then the secondary host dies; the arbiter returns",
        _arbiter_off_and_death("secondary"), False, 2 * (HOLD_BOUND + 2.5) + 3),
    Row("disk-full", "the secondary's storage pool is full", _disk_fault("full"), False, DEATH_BOUND,
        needs_pool=True),
    Row("io-error", "the secondary's disk answers writes with I/O errors", _disk_fault("error"), False,
        DEATH_BOUND, needs_pool=True),
    Row("both-power-primary-first", "both hosts lose power; the primary returns first",
        _both_lose_power("primary"), False, None, resets=True),
    Row("both-power-secondary-first", "both hosts lose power; the secondary returns first",
        _both_lose_power("secondary"), False, None, resets=True),
    Row("both-power-at-once", "both hosts lose power and return together",
        _both_lose_power("together"), False, None, resets=True),
    Row("guest-reboot", "the guest reboots", _guest_reboots, False, None, resets=True, stays=True),
    Row("guest-poweroff", "the guest powers itself off; a person starts it again", _guest_powers_off,
        None, None, resets=True),
    Row("guest-panic", "the guest panics; a person resets it", _guest_panics, False, None, resets=True,
        stays=True),
]  # fmt: skip
