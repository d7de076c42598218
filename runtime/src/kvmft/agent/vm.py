"""One VM on this host: what is wanted, what is, and the next step from one to the other.

`reconcile` is level-triggered: it looks at the durable state, at libvirt and at the worker, and does
one thing. Whatever fails is tried again a little later, so a crash at any point needs no special
path. The rules of who may run are not here: they are in `core`, carried out by the workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from kvmft.agent.answers import Answers
from kvmft.agent.counters import Counters
from kvmft.agent.epochs import Epochs
from kvmft.agent.exposure import Exposure
from kvmft.agent.farewells import Farewell
from kvmft.agent.guest_time import put_right
from kvmft.agent.hardware_watch import HardwareWatch
from kvmft.agent.host import Found, boot_id
from kvmft.agent.kept_memory import KeptMemory
from kvmft.agent.orders import Orders
from kvmft.agent.pairing import Pairing
from kvmft.agent.standby import Standby
from kvmft.agent.startlines import StartLines
from kvmft.agent.store import VmState
from kvmft.agent.workers import WorkerProcess
from kvmft.core.domain import describe, hardware
from kvmft.errors import KvmftError

if TYPE_CHECKING:
    from kvmft.agent.service import Agent

RETRY = 3.0
BOOTS_BORNE, BOOTS_WITHIN = 2, 300.0
"""So many starts after a crash within so many seconds, and the VM is left alone for a while: what ends
QEMU may be the sync itself."""
HALTED_RETRY = 30.0
"""Seconds until the arbiter is asked again after an answer that a person must look into."""
TAKEOVER_TIME = 20.0
"""Seconds that a secondary has to take over before a VM that ended here claims to start again."""


class ManagedVm:
    """A VM that has a state file on this host."""

    def __init__(self, agent: Agent, state: VmState) -> None:
        self._agent = agent
        self.state = state
        self.worker: WorkerProcess | None = None
        self.shown = ("need_secondary", "not protected yet")
        self.figures: dict[str, Any] = {}
        self.counters = Counters()
        self.exposure = Exposure(os.path.join(agent.store.root, state.vm))
        self.accelerator: str | None = None
        self.answers = Answers(state.vm)
        self.epochs = Epochs()
        self.pairing = Pairing(agent, state)
        self.hardware = HardwareWatch(agent, state.vm)
        self.standby = Standby(agent, state)
        self.left = KeptMemory()
        self.orders = Orders(agent, self)
        self._lines = StartLines(agent, state)
        self._lock = asyncio.Lock()
        self._not_before = 0.0
        self._fence_due = False
        self._settling = False
        self._worker_role = ""
        self._worker_has_peer = False
        self._outcome: tuple[str, str] | None = None
        self._off_since: float | None = None
        self._boots: deque[float] = deque(maxlen=BOOTS_BORNE)
        # A state that was read from disk may be of an agent that died in the middle of things.
        self._regain = state.role == "primary" and not state.may_start
        self._recover = state.role == "secondary"

    # -- the one decision ---------------------------------------------------------------------------

    async def reconcile(self) -> None:
        """Take the next step, if one is due."""
        busy = self._lock.locked() or self._settling
        if busy or time.monotonic() < self._not_before:
            return
        async with self._lock:
            try:
                await self._step()
            except KvmftError as error:
                self._show("need_secondary" if self.state.role == "primary" else "disabled", str(error))
                self._later()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """The lock, once the conclusion from a worker's end is drawn: until then `state` is old."""
        while True:
            await self._lock.acquire()
            if not self._settling:
                break
            self._lock.release()
            await asyncio.sleep(0.01)
        try:
            yield
        finally:
            self._lock.release()

    async def _step(self) -> None:
        state = self.state
        if self.left.expired:
            await self.left.let_go()
        if self.protects:
            await self._watch_hardware()
        if self.worker is not None or self._agent.managed(state.vm) is not self:
            return  # busy, or forgotten meanwhile
        if self._fence_due:
            await self._fence()
            return
        if state.role == "secondary" and self._recover:
            await self._recover_secondary()
        elif state.role == "stale":
            await self._keep_off()
        elif state.role == "primary":
            running = await asyncio.to_thread(self._agent.host.is_running, state.vm)
            if not running:
                await self._primary_is_off()
                return
            self._seen_running()
            if self._regain:
                await self.regain()
            elif state.desired == "enabled":
                await self._pair()
            elif state.desired == "disabled":
                await self.let_go()
            else:
                self._show("suspended", "suspended on request")

    async def _keep_off(self) -> None:
        """What is stale never runs (I5): an agent killed while it fenced left its VM."""
        if await asyncio.to_thread(self._agent.host.is_running, self.state.vm):
            self._agent.events.add(self.state.vm, "fenced", "a stale instance ran here")
            await self._fence()

    def _seen_running(self) -> None:
        state, boot = self.state, boot_id()
        self._off_since = None
        if not state.running or state.boot != boot:
            state.running, state.boot = True, boot
            self.save()

    async def _primary_is_off(self) -> None:
        """Off on purpose, or after a power cut, or because its QEMU died: only the first is final."""
        state = self.state
        now, rebooted = time.monotonic(), state.boot != boot_id()
        if self._off_since is None:
            self._off_since = now
        crashed = state.running and not rebooted and await asyncio.to_thread(
            self._agent.host.crashed, state.vm
        )
        if state.may_start and crashed:
            self._boots.append(time.monotonic())
            await self._boot("its QEMU crashed while it had no secondary")
        elif state.may_start and not (state.running and rebooted):
            if state.running:
                state.running = False
                self.save()
            if state.desired == "disabled":
                await self.let_go()
                return
            self._show("need_secondary", "the VM is off; protection begins when it is started")
        elif state.may_start:
            await self._boot("this host alone had the right to run it before the power cut")
        elif rebooted or now >= self._off_since + TAKEOVER_TIME:
            await self._claim_to_start()
        else:
            self._show("failing_over", f"the VM ended here; {state.peer} may be taking over")

    async def _claim_to_start(self) -> None:
        """It ran with a secondary that may have taken over: the arbiter says whether it did."""
        self._show("failing_over", "asks the arbiter whether the VM may start here again")
        await self._launch(self._lines.claim())

    async def _boot(self, reason: str) -> None:
        """Start the VM from this host's disk, by right."""
        state = self.state
        state.boot, state.running = boot_id(), True
        self.save()
        self._agent.events.add(state.vm, "cold_boot", reason)
        await asyncio.to_thread(self._agent.host.start, state.vm)
        self._show("need_secondary", f"started again from its disk: {reason}")

    def _later(self, seconds: float = RETRY) -> None:
        self._not_before = time.monotonic() + seconds

    def at_once(self) -> None:
        """The next step is due now."""
        self._not_before = 0.0

    def save(self) -> None:
        """Make `state` durable."""
        self._agent.store.save(self.state)

    def _show(self, state: str, reason: str) -> None:
        if self.shown != (state, reason):
            self.shown = (state, reason)
            self._agent.events.add(self.state.vm, "state", reason, state=state)

    # -- primary ------------------------------------------------------------------------------------

    async def _pair(self) -> None:
        state = self.state
        if len(self._boots) == BOOTS_BORNE and time.monotonic() < self._boots[0] + BOOTS_WITHIN:
            self._show("need_secondary", f"its QEMU ended {BOOTS_BORNE} times shortly; runs unprotected "
                       "for some minutes, see /var/log/libvirt/qemu on this host")  # fmt: skip
            self._later()
            return
        candidate = await self.pairing.examine()
        self.hardware.known = hardware(candidate.found.live)
        peer = await self.pairing.place(candidate)
        session = secrets.token_hex(16)
        if self.shown[0] != "starting":
            self._show("need_secondary", f"asks {peer} for a standby")
        port = await self.pairing.ask(candidate, peer, session)
        state.peer, state.session = peer, session
        state.may_start = False
        self.save()
        await self._start_primary(candidate.found, port)

    async def _watch_hardware(self) -> None:
        """A standby has the devices of the time of its start and could not load what was plugged in
        since: after a change a new one is made."""
        changed = await self.hardware.changes()
        if not changed or self.worker is None:
            return
        self.hardware.forget()
        self._agent.events.add(self.state.vm, "hardware_changed",
                               f"the standby is made anew, as the VM's devices changed: {changed}")  # fmt: skip
        self.worker.send(cmd="suspend")

    async def regain(self) -> None:
        """Have a worker win the right to run alone, for a VM that runs and whose output is shut."""
        await self._start_primary(None, None)

    async def _start_primary(self, found: Found | None, port: int | None) -> None:
        state, agent = self.state, self._agent
        await agent.forecasts.end(state.vm)
        if found is None:
            found = await asyncio.to_thread(agent.host.find, state.vm)
        disks = await asyncio.to_thread(agent.host.disk_sizes, state.vm, found.domain)
        self.accelerator = found.domain.accelerator
        self._worker_has_peer = port is not None
        await self._launch(self._lines.primary(found, disks, port))

    # -- secondary ----------------------------------------------------------------------------------

    async def prepare(self, request: dict[str, Any], peer: str) -> int:
        """Start a standby for `peer`'s VM; the port of its FT log."""
        async with self.turn():
            return await self._prepare(request, peer)

    async def _prepare(self, request: dict[str, Any], peer: str) -> int:
        state, agent = self.state, self._agent
        await self._end_standby_worker()
        if state.role == "primary" and await asyncio.to_thread(agent.host.is_running, state.vm):
            raise KvmftError(
                "runs_here", f"VM {state.vm} runs on {agent.config.host} already.",
                "Two running instances must not be; find out which one is right.",
            )  # fmt: skip
        await asyncio.to_thread(agent.host.destroy, state.vm)
        domain = describe(request["xml"])
        pid = await self.standby.start(domain, request, peer)
        self._recover = False
        self.answers.expect_port()
        self.accelerator = domain.accelerator
        try:
            line = self._lines.secondary(pid, resume=False)
            await self._launch({**line, "base": self.left.base} if self.left.base else line)
            return await self.answers.port()
        finally:
            self.answers.forget_port()

    async def _recover_secondary(self) -> None:
        """After a restart of the agent: the commits may still be in /run and the standby alive."""
        self._recover = False
        try:
            found = await asyncio.to_thread(self._agent.host.find, self.state.vm)
        except KvmftError:
            found = None
        if found is None or not found.running:
            if self.standby.may_have_won():
                await self._claim_to_start()
            else:
                await self._go_stale("the standby did not survive")
            return
        await self._launch(self._lines.secondary(found.pid, resume=True))

    async def discard(self, caller: str) -> None:
        """The primary on `caller` turned FT off or moved its secondary: let the standby go.

        Where libvirt has a definition of the VM (this host ran it once), its disks here are of the
        past and the definition would start them: the hook's guard stays, as `stale` (I5).
        """
        async with self.turn():
            if self.state.peer not in ("", caller):
                raise KvmftError("not_yours", f"The standby of VM {self.state.vm} belongs to "
                                 f"{self.state.peer}, not to {caller}.", "")  # fmt: skip
            await self._end_standby_worker()
            if self.state.role not in ("secondary", "stale"):
                return
            await asyncio.to_thread(self._agent.host.destroy, self.state.vm)
            if await asyncio.to_thread(self._agent.host.is_defined, self.state.vm):
                self.state.role, self.state.autostart = "stale", False
                self.save()
                self._show("disabled", f"fault tolerance is off; the VM is that of {self.state.peer}")
            else:
                self._agent.forget(self)

    async def _end_standby_worker(self) -> None:
        """End a standby's worker, unless it is taking over or has: that instance is the only one."""
        state = self.state
        if self.answers.handing_over:
            # The peer runs the VM, and our worker still puts aside the memory that it left here.
            raise KvmftError(
                "handing_over", f"{self._agent.config.host} is handing VM {state.vm} over.",
                "Ask again in a moment.",
            )  # fmt: skip
        taking_over = self.worker is not None and self.shown[0] == "failing_over"
        if state.role == "secondary" and taking_over:
            raise KvmftError(
                "taking_over", f"{self._agent.config.host} is taking over VM {state.vm}.",
                f"See `kvmft status {state.vm}` there in a moment.",
            )  # fmt: skip
        ended = self.worker
        await self._end_worker()
        if ended is not None and state.role == "secondary" and self._outcome is not None \
                and self._outcome[0] == "activated":
            await self._became_primary()

    async def _go_stale(self, reason: str) -> None:
        self.state.role = "stale"
        self.save()
        await asyncio.to_thread(self._agent.host.destroy, self.state.vm)
        self._show("disabled", f"the replica here was given up: {reason}")

    # -- workers ------------------------------------------------------------------------------------

    async def _launch(self, config: dict[str, Any]) -> None:
        self._outcome = None
        self._worker_role = config["role"]
        self.figures = {}
        self.counters.begin()
        os.makedirs(config["run_dir"], exist_ok=True)
        worker = WorkerProcess(self._message, lambda: self._worker_ended(worker))
        self.worker = worker
        await worker.start(config)

    def _message(self, message: dict[str, Any]) -> None:
        match message.get("msg"):
            case "status":
                self.figures = message
                self.counters.take(message.get("totals"))
            case "state":
                self.shown = (message["state"], message["reason"])
            case "event":
                self._agent.events.add(self.state.vm, message["event"], message["reason"],
                                       when=message.get("time"),
                                       **message.get("data", {}))  # fmt: skip
                if message["event"] == "activated":
                    self.exposure.failed_over(message["data"]["kind"])
            case "listening":
                self.answers.listening(int(message["port"]))
            case "audit":
                self.answers.audited(message)
            case "epochs":
                self.epochs.take(message)
            case "handed_over":
                self._handed_over(message)
            case "base_taken":
                asyncio.get_running_loop().create_task(self.left.let_go())
            case "done":
                self._outcome = (message["outcome"], message["reason"])

    def _handed_over(self, message: dict[str, Any]) -> None:
        """The VM runs on the peer. Durable first: what is here never starts again as it is."""
        state = self.state
        state.role, state.may_start, state.running = "stale", False, False
        self.save()
        keeper, self.worker = self.worker, None
        self.left.hold(keeper, {"pid": message["pid"], "blocks": message["blocks"]})
        self._show("starting", f"handed over to {state.peer}; becomes its standby")
        self.answers.handed_over()

    def _worker_ended(self, worker: WorkerProcess) -> None:
        if self.worker is not worker:
            return
        self.worker = None
        self._settling = True
        self.answers.worker_ended(self._outcome)
        self.epochs.lost()
        asyncio.get_running_loop().create_task(self._settle())

    async def _settle(self) -> None:
        """Draw the conclusion from how the worker ended."""
        outcome, reason = self._outcome or ("failed", "the worker was killed")
        state = self.state
        self._agent.events.add(state.vm, "worker_ended", reason, outcome=outcome, role=state.role)
        try:
            async with self._lock:
                if state.role == "secondary":
                    if outcome == "activated":
                        await self._became_primary()
                    elif outcome == "solo":
                        await self._boot_replica(reason)
                    elif outcome == "unsettled":
                        # It claimed, and its QEMU is gone: its disks may start if the claim won.
                        await asyncio.to_thread(self._agent.host.destroy, state.vm)
                        self._recover = True
                        self._later(0.3)
                    elif self._outcome is None:
                        # Killed without a word, perhaps while it claimed or after it had won:
                        # what it left says what it may do, as after a restart of the agent.
                        self._recover = True
                        self._later(0.3)
                    elif outcome == "failed" and self.standby.may_have_won():
                        self._recover = True
                        self._show("failing_over", reason)
                        self._later(HALTED_RETRY if self._worker_role == "claim" else RETRY)
                    else:
                        await self._go_stale(reason)
                elif state.role == "primary":
                    await self._primary_ended(outcome, reason)
        except KvmftError as error:
            self._agent.events.add(state.vm, "failed", str(error))
            self._later()
        finally:
            self._settling = False
        await self.reconcile()

    async def _became_primary(self) -> None:
        state = self.state
        state.role, state.may_start = "primary", True
        state.running, state.boot = True, boot_id()
        self._regain = False
        self.save()
        await asyncio.to_thread(self._agent.host.define_activated, state.vm)
        self._show("need_secondary", f"took over from {state.peer}")
        if {**self._agent.config.options, **state.options}["true_time"]:
            asyncio.get_running_loop().create_task(self._put_time_right())
        self._later(0.3)

    async def _put_time_right(self) -> None:
        with contextlib.suppress(KvmftError):
            behind = await put_right(lambda: self._agent.host.domain(self.state.vm))
            if behind is not None:
                self._agent.events.add(self.state.vm, "guest_time_set",
                                       f"the guest's wall clock was {behind:.2f} s behind and was set",
                                       behind_ms=round(behind * 1000))  # fmt: skip

    async def _boot_replica(self, reason: str) -> None:
        """This side had taken over, and its host lost power before that was written down."""
        state = self.state
        state.role, state.may_start = "primary", True
        self.save()
        await self.standby.define()
        await self._boot(reason)

    async def _primary_ended(self, outcome: str, reason: str) -> None:
        state = self.state
        if outcome == "fenced":
            # Durable first: also when libvirt does not answer now, this disk never starts again.
            state.role, state.may_start = "stale", False
            self.save()
            self._fence_due = True
            self._show("fenced", reason)
            await self._fence()
            return
        if outcome in ("solo", "detached"):
            state.may_start, self._regain = True, False
            self.save()
            if outcome == "solo" and self._worker_role == "claim":
                await self._boot(reason)
                self._later()
                return
            if outcome == "detached" and state.desired == "disabled":
                self._agent.forget(self)
                return
            self._show("suspended" if state.desired == "suspended" else "need_secondary", reason)
        else:
            self._show("need_secondary" if self._worker_role == "primary" else "fenced", reason)
            # The right to run is ours for sure only when a claim said so.
            self._regain = not state.may_start
            if self._worker_role == "claim":
                self._later(HALTED_RETRY)
                return
        self._later()

    async def _fence(self) -> None:
        """Kill the VM that lost; tried again until libvirt did it."""
        await asyncio.to_thread(self._agent.host.destroy, self.state.vm)
        self._fence_due = False

    async def _end_worker(self) -> None:
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.send(cmd="stop")
            await worker.end()

    # -- what others see and need -------------------------------------------------------------------

    async def let_go(self) -> None:
        """By right alone, and not wanted otherwise: tell the peer; forget when FT is off."""
        state = self.state
        if state.peer:
            await self._agent.farewells.say(Farewell(state.vm, state.peer, state.session))
        if state.desired == "disabled" and self._agent.managed(state.vm) is self:
            self._agent.forget(self)

    @property
    def must_regain(self) -> bool:
        """True until a claim has said whether what runs here may be seen."""
        return self._regain

    @property
    def wants_protection(self) -> bool:
        """True when fault tolerance is on for the VM."""
        return self.state.desired == "enabled"

    @property
    def output_is_shut(self) -> bool:
        """True while nothing that runs here can be seen: its output waits for the arbiter's word,
        or for a worker after a restart of the agent."""
        if self.state.role == "primary":
            return self._regain or self.shown[0] in ("failing_over", "fenced")
        return self.state.role == "secondary" and self.shown[0] == "failing_over"

    def watch_exposure(self) -> None:
        """Count the time in which the VM ran here without the protection that it should have."""
        state = self.state
        runs = state.role == "primary" and self._off_since is None
        wanted = runs and self.wants_protection and (state.running or self.worker is not None)
        self.exposure.tick(wanted and self.shown[0] != "protected", wanted)

    @property
    def is_off(self) -> bool:
        """True while the VM is switched off here on purpose: nothing takes over, nothing is tried."""
        state = self.state
        return state.role == "primary" and state.may_start and (
            self._off_since is not None and not state.running
        )

    @property
    def protects(self) -> bool:
        """True while a worker looks after the running VM here."""
        return self.worker is not None and self._worker_role == "primary"
