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

from kvmft.adapters.arbiter_client import claims_path
from kvmft.adapters.durable import remove_durably, write_durably
from kvmft.agent.counters import Counters
from kvmft.agent.exposure import Exposure
from kvmft.agent.farewells import Farewell
from kvmft.agent.host import RUN_DIRECTORY, Found, boot_id
from kvmft.agent.placement import ask_all, choose, permitted
from kvmft.agent.replicas import Replicas
from kvmft.agent.store import VmState
from kvmft.agent.workers import WorkerProcess
from kvmft.core.admission import Request
from kvmft.core.arbitration import holdings_from_bytes
from kvmft.core.compliance import compliance
from kvmft.core.domain import describe, hardware
from kvmft.core.records import Mode
from kvmft.errors import KvmftError

if TYPE_CHECKING:
    from kvmft.agent.service import Agent

RETRY = 3.0
LISTEN_TIMEOUT = 20.0
LEAVE_TIMEOUT = 30.0
"""Seconds that turning off waits for the worker, which may have to ask the arbiter."""
SWITCH_TIMEOUT = 30.0
BOOTS_BORNE, BOOTS_WITHIN = 2, 300.0
"""So many starts after a crash within so many seconds, and the VM is left alone for a while: what ends
QEMU may be the sync itself."""
HALTED_RETRY = 30.0
"""Seconds until the arbiter is asked again after an answer that a person must look into."""
TAKEOVER_TIME = 20.0
"""Seconds that a secondary has to take over before a VM that ended here claims to start again."""
KEEP_MEMORY = 300.0
"""Seconds that the memory of a VM that was handed over waits for its new standby."""
HARDWARE_EVERY = 2.0
"""Seconds between two looks at the devices of a protected VM."""
FIGURES = (
    "generation", "epoch", "epochs", "interval_ms", "last_commit_age_ms", "sync_percent",
    "pause_ms", "pages_per_epoch", "log_bandwidth_bytes_s", "held_bytes", "guest_clock_loss_ppm",
    "sync", "commit_ms", "objective_missed",
)  # fmt: skip


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
        self._lock = asyncio.Lock()
        self._not_before = 0.0
        self._fence_due = False
        self._settling = False
        self._worker_role = ""
        self._worker_has_peer = False
        self._hardware: frozenset[str] = frozenset()
        self._hardware_due = 0.0
        self._listening: asyncio.Future[int] | None = None
        self._audits: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._outcome: tuple[str, str] | None = None
        self._switch: asyncio.Future[None] | None = None
        self._keeper: WorkerProcess | None = None
        self._base: dict[str, Any] | None = None
        self._base_until = 0.0
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
    async def _turn(self) -> AsyncIterator[None]:
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
        if self._keeper is not None and time.monotonic() > self._base_until:
            await self._let_memory_go()
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
                await self._start_primary(None, None)
            elif state.desired == "enabled":
                await self._pair()
            elif state.desired == "disabled":
                await self._let_go()
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
            self._save()

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
                self._save()
            if state.desired == "disabled":
                await self._let_go()
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
        state = self.state
        self._show("failing_over", "asks the arbiter whether the VM may start here again")
        config = {**self._common("claim", state.peer), "qemu_pid": 0, "machine": "", "disks": []}
        await self._launch(config)

    async def _boot(self, reason: str) -> None:
        """Start the VM from this host's disk, by right."""
        state = self.state
        state.boot, state.running = boot_id(), True
        self._save()
        self._agent.events.add(state.vm, "cold_boot", reason)
        await asyncio.to_thread(self._agent.host.start, state.vm)
        self._show("need_secondary", f"started again from its disk: {reason}")

    def _later(self, seconds: float = RETRY) -> None:
        self._not_before = time.monotonic() + seconds

    def _save(self) -> None:
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
        found = await asyncio.to_thread(self._agent.host.find, state.vm)
        reasons = compliance(found.live, found.snapshots)
        reasons += await asyncio.to_thread(self._agent.host.blockers, state.vm)
        if reasons:
            raise KvmftError("not_compliant", f"VM {state.vm} cannot be protected.",
                             "Mend every reason.", reasons)  # fmt: skip
        disks = await asyncio.to_thread(self._agent.host.disk_sizes, state.vm, found.domain)
        version = await asyncio.to_thread(self._agent.host.qemu_of, found)
        self._hardware = hardware(found.live)
        facts = (await asyncio.to_thread(self._agent.host.request, found.domain)).to_dict()
        peer = await self._place(found, disks, version, facts)
        session = secrets.token_hex(16)
        if self.shown[0] != "starting":
            self._show("need_secondary", f"asks {peer} for a standby")
        answer = await self._agent.peers.call(
            peer, "standby_prepare", vm=state.vm, uuid=found.domain.uuid, xml=found.xml,
            disks=disks, qemu_version=version, machine=found.domain.machine,
            session=session, options=state.options, nics=_nics(found), autostart=state.autostart,
            allowed=self._allowed_there(peer), facts=facts,
        )  # fmt: skip
        state.peer, state.session = peer, session
        state.may_start = False
        self._save()
        await self._start_primary(found, int(answer["port"]))

    async def _watch_hardware(self) -> None:
        """A standby has the devices of the time of its start and could not load what was plugged in
        since: after a change a new one is made."""
        if not self._hardware or time.monotonic() < self._hardware_due or self.worker is None:
            return
        self._hardware_due = time.monotonic() + HARDWARE_EVERY
        try:
            now = await asyncio.to_thread(self._agent.host.hardware, self.state.vm)
        except KvmftError:
            return  # libvirt does not answer now; that is no change
        if not now or now == self._hardware or self.worker is None:
            return  # the same, or the VM is off, of which the worker will tell
        changed = "; ".join(sorted(now ^ self._hardware))
        self._hardware = frozenset()
        self._agent.events.add(self.state.vm, "hardware_changed",
                               f"the standby is made anew, as the VM's devices changed: {changed}")  # fmt: skip
        self.worker.send(cmd="suspend")

    async def _place(
        self, found: Found, disks: list[dict[str, Any]], version: str, facts: dict[str, Any]
    ) -> str:
        """The host for the secondary: where it was, while that host can take it."""
        state = self.state
        hosts = permitted(self._agent.config.peers, state.allowed)
        offers = await ask_all(
            self._agent.peers, hosts, vm=state.vm, xml=found.xml, disks=disks,
            qemu_version=version, facts=facts,
        )  # fmt: skip
        peer = choose(offers, state.peer, state.vm)
        if state.peer and state.peer != peer:
            self._agent.events.add(state.vm, "placed", f"{state.peer} cannot take it; {peer} can")
        return peer

    def _allowed_there(self, peer: str) -> list[str]:
        """The permitted hosts as `peer` has to see them once it runs the VM: this host, not itself."""
        allowed = self.state.allowed
        return [*(each for each in allowed if each != peer), self._agent.config.host] if allowed else []

    async def _start_primary(self, found: Found | None, port: int | None) -> None:
        state, agent = self.state, self._agent
        await agent.forecasts.end(state.vm)
        if found is None:
            found = await asyncio.to_thread(agent.host.find, state.vm)
        disks = await asyncio.to_thread(agent.host.disk_sizes, state.vm, found.domain)
        peer = state.peer or sorted(agent.config.peers)[0]
        self.accelerator = found.domain.accelerator
        self._worker_has_peer = port is not None
        config = {
            **self._common("primary", peer),
            "qemu_pid": found.pid,
            "own_monitor": found.domain.own_monitor,
            "machine": found.domain.machine,
            "disks": disks,
            "nics": _nics(found),
            "arbitration": "create",
            "peer_address": agent.config.peers[peer]["ft"],
            "peer_port": port,
        }
        await self._launch(config)

    # -- secondary ----------------------------------------------------------------------------------

    async def prepare(self, request: dict[str, Any], peer: str) -> int:
        """Start a standby for `peer`'s VM; the port of its FT log."""
        async with self._turn():
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
        replicas = Replicas(agent.store.directory(state.vm))
        lacking = await asyncio.to_thread(
            agent.host.admit, domain, request["disks"], agent.config.storage_pool,
            lambda path: replicas.owns(path) or path in {disk["path"] for disk in state.disks},
            Request.read(request.get("facts")),
        )  # fmt: skip
        if lacking:
            raise KvmftError("not_admitted", f"{agent.config.host} cannot take the secondary.",
                             "Mend every reason.", lacking)  # fmt: skip
        state.role, state.peer, state.session = "secondary", peer, request["session"]
        state.desired, state.may_start = "enabled", False
        state.autostart = bool(request.get("autostart"))
        state.allowed = list(request.get("allowed") or [])
        state.options, state.machine = request["options"], request["machine"]
        state.uuid, state.nics = request["uuid"], request["nics"]
        self._save()
        remove_durably(claims_path(agent.store.directory(state.vm)))
        pid, state.own_monitor, state.disks = await asyncio.to_thread(
            agent.host.start_standby, request["xml"], domain, request["disks"],
            agent.config.storage_pool, state.session,
        )  # fmt: skip
        replicas.keep(disk["path"] for disk in state.disks)
        agent.events.add(state.vm, "standby_started", f"a standby for {peer}'s VM waits for memory")
        definition = await asyncio.to_thread(agent.host.definition, state.vm)
        write_durably(self._definition, definition.encode(), 0o600)
        self._save()
        self._recover = False
        self._listening = asyncio.get_running_loop().create_future()
        self.accelerator = domain.accelerator
        try:
            config = self._secondary_config(pid, resume=False)
            await self._launch({**config, "base": self._base} if self._base else config)
            return await asyncio.wait_for(self._listening, LISTEN_TIMEOUT)
        except TimeoutError:
            raise KvmftError("standby_worker", "The standby's worker did not get ready.",
                             "See `journalctl -u kvmft-agent` on the secondary.") from None  # fmt: skip
        finally:
            self._listening = None

    def _secondary_config(self, pid: int, resume: bool) -> dict[str, Any]:
        state, config = self.state, self._agent.config
        return {
            **self._common("secondary", state.peer),
            "qemu_pid": pid,
            "own_monitor": state.own_monitor,
            "machine": state.machine,
            "disks": state.disks,
            "nics": state.nics,
            "listen_address": config.addresses["ft"],
            "port_range": list(config.ft_log_ports),
            "resume": resume,
        }

    async def _recover_secondary(self) -> None:
        """After a restart of the agent: the commits may still be in /run and the standby alive."""
        self._recover = False
        try:
            found = await asyncio.to_thread(self._agent.host.find, self.state.vm)
        except KvmftError:
            found = None
        if found is None or not found.running:
            if self._may_have_won():
                await self._claim_to_start()
            else:
                await self._go_stale("the standby did not survive")
            return
        await self._launch(self._secondary_config(found.pid, resume=True))

    def _may_have_won(self) -> bool:
        """True when this side was claiming, or had won, when its host lost power: its disks were
        made durable before it asked, so they may start if the arbiter has our record."""
        path = claims_path(self._agent.store.directory(self.state.vm))
        try:
            with open(path, "rb") as file:
                held = holdings_from_bytes(file.read(), self._agent.config.cluster_id)
        except (OSError, KvmftError):
            return False
        return bool(held.written) or any(record.mode is Mode.SOLO for record in held.bases)

    async def discard(self, caller: str) -> None:
        """The primary on `caller` turned FT off or moved its secondary: let the standby go.

        Where libvirt has a definition of the VM (this host ran it once), its disks here are of the
        past and the definition would start them: the hook's guard stays, as `stale` (I5).
        """
        async with self._turn():
            if self.state.peer not in ("", caller):
                raise KvmftError("not_yours", f"The standby of VM {self.state.vm} belongs to "
                                 f"{self.state.peer}, not to {caller}.", "")  # fmt: skip
            await self._end_standby_worker()
            if self.state.role not in ("secondary", "stale"):
                return
            await asyncio.to_thread(self._agent.host.destroy, self.state.vm)
            if await asyncio.to_thread(self._agent.host.is_defined, self.state.vm):
                self.state.role, self.state.autostart = "stale", False
                self._save()
                self._show("disabled", f"fault tolerance is off; the VM is that of {self.state.peer}")
            else:
                self._agent.forget(self)

    async def _end_standby_worker(self) -> None:
        """End a standby's worker, unless it is taking over or has: that instance is the only one."""
        state = self.state
        if self._switch is not None and not self._switch.done():
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
        self._save()
        await asyncio.to_thread(self._agent.host.destroy, self.state.vm)
        self._show("disabled", f"the replica here was given up: {reason}")

    # -- workers ------------------------------------------------------------------------------------

    def _common(self, role: str, peer: str) -> dict[str, Any]:
        state, config = self.state, self._agent.config
        return {
            "cmd": "start", "role": role, "vm": state.vm, "uuid": state.uuid,
            "host": config.host, "peer": peer, "cluster_id": config.cluster_id,
            "session": state.session or "0" * 32,
            "run_dir": os.path.join(RUN_DIRECTORY, state.vm),
            "state_dir": self._agent.store.directory(state.vm),
            "tls": {"ca": config.tls.ca, "cert": config.tls.cert, "key": config.tls.key},
            "arbiter": config.arbiter, "domain": state.vm,
            "options": {**config.options, **state.options},
        }  # fmt: skip

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
                if self._listening is not None and not self._listening.done():
                    self._listening.set_result(int(message["port"]))
            case "audit":
                waiting = self._audits.pop(int(message["id"]), None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
            case "handed_over":
                self._handed_over(message)
            case "base_taken":
                asyncio.get_running_loop().create_task(self._let_memory_go())
            case "done":
                self._outcome = (message["outcome"], message["reason"])

    def _handed_over(self, message: dict[str, Any]) -> None:
        """The VM runs on the peer. Durable first: what is here never starts again as it is."""
        state = self.state
        state.role, state.may_start, state.running = "stale", False, False
        self._save()
        self._keeper, self.worker = self.worker, None
        self._base = {"pid": message["pid"], "blocks": message["blocks"]}
        self._base_until = time.monotonic() + KEEP_MEMORY
        self._show("starting", f"handed over to {state.peer}; becomes its standby")
        if self._switch is not None and not self._switch.done():
            self._switch.set_result(None)

    async def _let_memory_go(self) -> None:
        """The new standby has taken the memory that the VM left here, or nobody came for it."""
        keeper, self._keeper, self._base = self._keeper, None, None
        if keeper is not None:
            keeper.send(cmd="release")
            await keeper.end()

    def _worker_ended(self, worker: WorkerProcess) -> None:
        if self.worker is not worker:
            return
        self.worker = None
        self._settling = True
        if self._switch is not None and not self._switch.done():
            why = self._outcome[1] if self._outcome else "the worker was killed"
            self._switch.set_exception(KvmftError(
                "switch_failed", f"VM {self.state.vm} was not switched over: {why}.",
                "It goes on here; see `kvmft events`."))  # fmt: skip
        for waiting in self._audits.values():
            if not waiting.done():
                waiting.set_exception(KvmftError("audit_lost", "The worker ended.", "Try again."))
        self._audits.clear()
        if self._listening is not None and not self._listening.done():
            reason = self._outcome[1] if self._outcome else "the worker ended"
            self._listening.set_exception(
                KvmftError("standby_worker", f"The standby's worker ended: {reason}.", "")
            )
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
                    elif outcome == "failed" and self._may_have_won():
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
        self._save()
        await asyncio.to_thread(self._agent.host.define_activated, state.vm)
        self._show("need_secondary", f"took over from {state.peer}")
        self._later(0.3)

    async def _boot_replica(self, reason: str) -> None:
        """This side had taken over, and its host lost power before that was written down."""
        state = self.state
        state.role, state.may_start = "primary", True
        self._save()
        with open(self._definition, encoding="utf-8") as file:
            await asyncio.to_thread(self._agent.host.define, file.read())
        await self._boot(reason)

    @property
    def _definition(self) -> str:
        """Where the domain is kept that a standby becomes."""
        return os.path.join(self._agent.store.directory(self.state.vm), "domain.xml")

    async def _primary_ended(self, outcome: str, reason: str) -> None:
        state = self.state
        if outcome == "fenced":
            # Durable first: also when libvirt does not answer now, this disk never starts again.
            state.role, state.may_start = "stale", False
            self._save()
            self._fence_due = True
            self._show("fenced", reason)
            await self._fence()
            return
        if outcome in ("solo", "detached"):
            state.may_start, self._regain = True, False
            self._save()
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

    # -- asked by people ----------------------------------------------------------------------------

    async def stop_protection(self, desired: str) -> None:
        """Turn off (`disabled`) or suspend; returns when it is done."""
        state = self.state
        state.desired = desired
        self._save()
        async with self._turn():
            running = await asyncio.to_thread(self._agent.host.is_running, state.vm)
            if self.worker is None and self._regain and running:
                # Its output is shut and its secondary may have taken over: a worker must win the
                # right to run alone before anything is given up.
                await self._start_primary(None, None)
        worker = self.worker
        if worker is not None:
            worker.send(cmd="stop" if desired == "disabled" else "suspend")
            await worker.end(LEAVE_TIMEOUT)
        while worker is not None and self.worker is worker:
            await asyncio.sleep(0.05)
        async with self._turn():
            if state.role != "primary":
                raise KvmftError(
                    "lost", f"VM {state.vm} was taken over by {state.peer} meanwhile.",
                    f"Ask there: kvmft status {state.vm}.",
                )  # fmt: skip
            if self._regain and not state.may_start:
                raise KvmftError(
                    "not_released",
                    f"VM {state.vm} has not won the right to run alone: {self.shown[1]}",
                    "Bring the arbiter back (`kvmft doctor`); it is then completed by itself.",
                )
            await self._let_go()

    async def _let_go(self) -> None:
        """By right alone, and not wanted otherwise: tell the peer; forget when FT is off."""
        state = self.state
        if state.peer:
            await self._agent.farewells.say(Farewell(state.vm, state.peer, state.session))
        if state.desired == "disabled" and self._agent.managed(state.vm) is self:
            self._agent.forget(self)

    async def switch(self) -> None:
        """Planned switchover to the secondary; returns when it runs the VM. Nothing is lost, also
        when it fails: then KvmftError says why and the VM goes on here."""
        state = self.state
        if self.worker is None or state.role != "primary" or self.shown[0] != "protected":
            raise KvmftError(
                "not_protected", f"VM {state.vm} is {self.shown[0]} ({self.shown[1]}), so no secondary "
                "can take it without loss.", "Wait for `protected`.",
            )  # fmt: skip
        await self._agent.probe_arbiter()
        if not self._agent.arbiter_ok:
            raise KvmftError("no_arbiter", f"The arbiter cannot swap the roles: "
                             f"{self._agent.arbiter_reason}", "Bring the arbiter up.")  # fmt: skip
        self._switch = asyncio.get_running_loop().create_future()
        try:
            self.worker.send(cmd="switch")
            await asyncio.wait_for(self._switch, SWITCH_TIMEOUT)
        except TimeoutError:
            raise KvmftError("switch_slow", f"VM {state.vm} was not switched over within "
                             f"{SWITCH_TIMEOUT:.0f} s.", "See `kvmft events`.") from None  # fmt: skip
        finally:
            self._switch = None

    async def move_secondary(self, target: str) -> None:
        """Give up the secondary, in order, and make it anew on `target` (which may be the same)."""
        state = self.state
        worker, old = self.worker, Farewell(state.vm, state.peer, state.session)
        if state.role != "primary" or worker is None:
            raise KvmftError("not_protected", f"VM {state.vm} is not protected from here.",
                             "Ask the host where it runs.")  # fmt: skip
        found = await asyncio.to_thread(self._agent.host.find, state.vm)
        disks = await asyncio.to_thread(self._agent.host.disk_sizes, state.vm, found.domain)
        permitted([*self._agent.config.peers], [target])
        if state.allowed and target not in state.allowed:
            raise KvmftError("not_allowed", f"{target} is not among the allowed hosts of VM {state.vm}.",
                             f"Allowed: {', '.join(state.allowed)}.")  # fmt: skip
        # Before anything is given up: a host that cannot take it must not cost the protection.
        version = await asyncio.to_thread(self._agent.host.qemu_of, found)
        facts = (await asyncio.to_thread(self._agent.host.request, found.domain)).to_dict()
        offers = await ask_all(
            self._agent.peers, [target], vm=state.vm, xml=found.xml, disks=disks,
            qemu_version=version, facts=facts,
        )  # fmt: skip
        choose(offers, target, state.vm)
        self._agent.events.add(state.vm, "moving", f"the secondary goes from {old.peer} to {target}")
        worker.send(cmd="suspend")
        await worker.end(LEAVE_TIMEOUT)
        while self.worker is worker:
            await asyncio.sleep(0.05)
        async with self._turn():
            if state.role != "primary" or self._regain:
                raise KvmftError("lost", f"VM {state.vm} was not released: {self.shown[1]}",
                                 "See `kvmft events`.")  # fmt: skip
            state.peer = target
            self._save()
            self._not_before = 0.0
        if old.peer != target:
            await self._agent.farewells.say(old)

    def kill_standby(self) -> None:
        """Test: end the standby's QEMU as a crash would."""
        if self.worker is None or self.state.role != "secondary":
            raise KvmftError("not_secondary", f"{self._agent.config.host} has no standby of VM "
                             f"{self.state.vm}.", "Ask the host that `kvmft status` names.")  # fmt: skip
        self._agent.host.kill(self.state.vm)

    async def audit(self) -> dict[str, Any]:
        """Compare the replica's memory with the VM's at the next commit."""
        if self.worker is None or self.state.role != "primary":
            raise KvmftError("not_protected", f"VM {self.state.vm} is not protected from here.",
                             "Ask the host where it runs.")  # fmt: skip
        identity = secrets.randbelow(1 << 30)
        waiting: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._audits[identity] = waiting
        self.worker.send(cmd="audit", id=identity)
        result = await asyncio.wait_for(waiting, 60)
        if "error" in result:
            raise KvmftError("audit", f"No audit: {result['error']}.", "Wait for `protected`.")
        return {key: result[key] for key in ("epoch", "pages", "different", "first_different")}

    def claim(self) -> None:
        """A person orders this side, a secondary, to take over."""
        if self.worker is None or self.state.role != "secondary":
            raise KvmftError("not_secondary", f"{self._agent.config.host} has no standby of VM "
                             f"{self.state.vm}.", "Ask the host that `kvmft status` names.")  # fmt: skip
        self.worker.send(cmd="claim")

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

    def status(self, running: bool) -> dict[str, Any]:
        """The status that people and modules see."""
        state, host = self.state, self._agent.config.host
        shown = self.shown
        if self.worker is None and state.desired == "suspended":
            shown = ("suspended", "suspended on request")
        primary = host if state.role == "primary" else state.peer
        # The same list on every host: those that may run the VM or have its standby.
        allowed = sorted({*state.allowed, host}) if state.allowed else []
        return {
            "vm": state.vm, "uuid": state.uuid, "state": shown[0], "reason": shown[1],
            "desired": state.desired, "role": state.role, "primary": primary,
            "secondary": state.peer if state.role == "primary" else host,
            **{name: self.figures.get(name) for name in FIGURES},
            "unprotected_seconds": round(self.exposure.seconds, 1),
            "unprotected_seconds_month": round(self.exposure.this_month, 1),
            "accelerator": self.accelerator, "running": running,
            "switched_off": self.is_off and not running, "options": state.options,
            "allowed_hosts": allowed,
            "arbiter": {"type": self._agent.config.arbiter["type"], "ok": self._agent.arbiter_ok},
        }  # fmt: skip


def _nics(found: Found) -> list[dict[str, str]]:
    return [{"alias": nic.alias, "mac": nic.mac} for nic in found.domain.nics]
