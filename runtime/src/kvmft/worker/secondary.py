"""The secondary's worker: carries out what `core.secondary` decides, and tells it what happened."""

from __future__ import annotations

import socket
from typing import Any

from kvmft.adapters import ftlog
from kvmft.adapters.priority import Priority
from kvmft.adapters.reactor import READ, Reactor
from kvmft.core import events as ev
from kvmft.core.secondary import Patience, SecondaryMachine, StandbyPhase
from kvmft.core.wire import (
    RUN_WORDS,
    WRITE_WORDS,
    Frame,
    FrameType,
    Header,
    WireError,
    encode,
    encode_json,
    split_table,
)
from kvmft.errors import KvmftError
from kvmft.worker.audits import compare_pages
from kvmft.worker.carried_input import CarriedInput
from kvmft.worker.claims import Claims
from kvmft.worker.commits import Commits, apply_memory
from kvmft.worker.config import WorkerConfig
from kvmft.worker.driver import Driver
from kvmft.worker.guest_clock import put_forward
from kvmft.worker.link import AgentLink
from kvmft.worker.peerlink import PeerLink
from kvmft.worker.replica import read_mark, write_mark
from kvmft.worker.standby_qemu import StandbyQemu
from kvmft.worker.stock import Stock

STATUS_EVERY = 0.5
KINDS = {"planned switchover": "planned", "a person ordered the failover": "ordered"}
"""What kind of failover it is, by the reason with which the machine began it."""
FIRST_CONTACT = 30.0
"""Seconds in which the primary must have connected."""


class SecondaryWorker:
    """One standby: a QEMU in `inmigrate`, the replica's disks, and the commits."""

    def __init__(self, reactor: Reactor, config: WorkerConfig, link: AgentLink) -> None:
        self.reactor = reactor
        self.config = config
        self.link = link
        self.machine = SecondaryMachine(Patience(config.agent_grace))
        self.claims = Claims(reactor, config, link, self.post)
        self.qemu = StandbyQemu(reactor, config, self._qemu_died)
        self.peer = PeerLink(reactor, config, link, self)
        self.commits = Commits(reactor, config)
        self.stock = Stock(
            reactor,
            config,
            link,
            self.peer,
            self.commits.disks,
            lambda: self.peer.connected and not self.driver.finished,
        )
        self.input = CarriedInput(reactor, config, link, self.qemu)
        self.listener: socket.socket | None = None
        self.state = ("starting", "waits for the primary")
        self.lost_at = 0.0
        self._greeted = False
        self._beacons: dict[str, Any] | None = None
        self._loading = 0.0
        self._priority: Priority | None = None
        self._runs = False
        commands = {
            ev.Commit: self._commit,
            ev.SendAck: self._send_ack,
            ev.Apply: self._apply,
            ev.PersistOffer: self._persist_offer,
            ev.SendOfferAck: lambda effect: self._send(encode(FrameType.OFFER_ACK)),
            ev.StartClaim: self._start_claim,
            ev.DrawInput: lambda effect: self.input.draw(),
            ev.Load: self._load,
            ev.Run: self._run,
            ev.SendRelief: lambda effect: self._send(encode(FrameType.RELIEVED)),
            ev.Discard: self._discard,
            ev.DropPeer: self._drop_peer,
            ev.Report: self._report,
            ev.Finish: self._finish,
        }
        self.driver = Driver(reactor, link, self.machine, commands, self._give_up)

    # -- the main path ----------------------------------------------------------------------------

    def start(self) -> None:
        """Open the standby and wait for the primary, or recover the last commit after a restart."""
        config = self.config
        status = self.qemu.attach()
        self.input.look()
        self.reactor.call_later(STATUS_EVERY, self._status_timer)
        if config.resume and status != "inmigrate":
            self._recover_loaded(status)
            return
        self.qemu.take_memory()
        if config.resume:
            self._recover()
            return
        write_mark(config.state_dir, False, config.session)
        self.claims.forget()
        self.listener = ftlog.listen(config.listen_address, config.port_range)
        self.reactor.add(self.listener.fileno(), READ, self._accept)
        self.link.send(msg="listening", port=self.listener.getsockname()[1])
        self.reactor.call_later(FIRST_CONTACT, self._first_contact_missed)

    def post(self, event: ev.Event) -> None:
        """Tell the machine of `event`, and carry out what it decides."""
        self.driver.post(event)

    def _give_up(self, reason: str) -> None:
        """A step failed: this side is of no use any more, and the primary must know."""
        self._refuse(reason)
        self.post(ev.Failed(reason))

    def command(self, line: dict[str, Any]) -> None:
        """A line from the agent."""
        match line.get("cmd"):
            case "stop" | "suspend":
                self.post(ev.StopAsked())
            case "claim":
                self.link.event("failover_asked", "a person ordered the failover")
                self.post(ev.ClaimAsked())

    # -- the primary --------------------------------------------------------------------------------

    def _accept(self, _mask: int) -> None:
        assert self.listener is not None
        try:
            sock = ftlog.accept(self.listener, self.config.peer, self.config.tls)
        except (KvmftError, OSError) as error:
            self.link.event("refused", str(error))
            return
        if self.peer.connected:
            sock.close()
            self.link.event("refused", "a second FT log for the same standby was closed")
            return
        self.reactor.remove(self.listener.fileno())
        self.listener.close()
        self.listener = None
        self.peer.open(sock)

    def _first_contact_missed(self) -> None:
        if not self.peer.connected and self.listener is not None:
            self.post(ev.PeerLost(ev.Loss.SILENCE, "the primary never connected"))

    @property
    def position(self) -> int:
        """The last commit."""
        return self.machine.committed

    @property
    def paired(self) -> bool:
        """Whether this side may take over."""
        return self.machine.phase is StandbyPhase.READY

    def allocate(self, header: Header) -> memoryview:
        """Room for what the primary sends: a checkpoint's is in the journal."""
        if not self._greeted and header.type is not FrameType.HELLO:
            raise WireError(f"A {header.type.name} frame came before HELLO.")
        if header.type is FrameType.CHECKPOINT:
            try:
                return self.commits.journal.allocate(header.epoch, header.length)
            except OSError as error:
                reason = f"/run on {self.config.host} cannot hold a checkpoint: {error}"
                self._refuse(reason)
                raise WireError(reason) from error
        return memoryview(bytearray(header.length))

    def frame(self, frame: Frame) -> None:
        """The primary says something."""
        try:
            self._handle_frame(frame)
        except KvmftError as error:
            if isinstance(error, WireError):
                raise
            self._give_up(str(error))
        if self._waits:
            self.input.clear(self.reactor.now())

    def _handle_frame(self, frame: Frame) -> None:
        match frame.type:
            case FrameType.HEARTBEAT:
                pass
            case FrameType.HELLO:
                self._hello(frame.json())
            case FrameType.MEMORY:
                self._expect_filling(frame)
                table, data = split_table(frame.body, RUN_WORDS, "MEMORY")
                apply_memory(self.qemu.memory, table, data)
            case FrameType.DISK:
                self._expect_filling(frame)
                table, data = split_table(frame.body, WRITE_WORDS, "DISK")
                self.commits.disks.apply(table, data)
            case FrameType.CHECKPOINT:
                self.commits.check(frame.body, self.qemu.memory)
                self.post(ev.Staged(frame.epoch))
            case FrameType.OFFER:
                self.post(ev.Offered(bytes(frame.body)))
            case FrameType.AUDIT:
                self._audit(frame)
            case FrameType.HANDOVER:
                self.lost_at = self.reactor.now()
                self.post(ev.ClaimAsked(planned=True))
            case FrameType.REPLAY:
                self.input.replay.add(frame.epoch, memoryview(frame.body))
            case FrameType.INPUT:
                self.input.carry_in(frame.epoch, bytes(frame.body))
            case FrameType.BYE:
                self._bye(frame.json())
            case _:
                raise WireError(f"The primary sent a {frame.type.name} frame.")

    def _expect_filling(self, frame: Frame) -> None:
        if self.machine.committed:
            raise WireError(f"A {frame.type.name} frame came after the first checkpoint.")

    def _hello(self, hello: dict[str, Any]) -> None:
        want = {"session": self.config.session, "cluster": self.config.cluster_id,
                "vm": self.config.vm, "blocks": self.qemu.block_list}  # fmt: skip
        for key, value in want.items():
            if hello.get(key) != value:
                reason = f"the primary's {key} is {hello.get(key)!r}, this standby's is {value!r}"
                self._give_up(reason)
                return
        self._greeted = True
        self._beacons = self.peer.life.offer() if hello.get("beacons") else None
        self.peer.life.learn(hello.get("beacons"))
        self.stock.tell(self.qemu.memory, self._welcome, self._give_up)

    def _welcome(self) -> None:
        """The primary knows what is here already."""
        self.link.send(msg="base_taken")
        welcome = {"host": self.config.host, "replays": True, "deltas": True, "beacons": self._beacons}
        self._send(encode_json(FrameType.WELCOME, welcome))

    def _bye(self, farewell: dict[str, Any]) -> None:
        reason = str(farewell.get("reason"))
        if farewell.get("claim"):
            self.lost_at = self.reactor.now()
            self.link.event("primary_lost", f"the primary says: {reason}",
                            signal=ev.Loss.FAREWELL.value)  # fmt: skip
            self.post(ev.PeerLost(ev.Loss.FAREWELL, reason))
        else:
            self.post(ev.PeerLost(ev.Loss.REFUSED, reason))

    def _refuse(self, reason: str) -> None:
        self._send(encode_json(FrameType.REFUSAL, {"reason": reason}))

    def peer_lost(self, how: ev.Loss, reason: str, **figures: Any) -> None:
        """The primary is gone; `figures` go into the events log."""
        self.lost_at = self.reactor.now()
        if not self.driver.finished:
            self.link.event("primary_lost", reason, signal=how.value, **figures)
        self.post(ev.PeerLost(how, reason))

    def _send(self, data: bytes) -> None:
        self.peer.send(data)

    def _drop_peer(self, _effect: ev.DropPeer) -> None:
        self.peer.drop()

    # -- commits ------------------------------------------------------------------------------------

    def _commit(self, effect: ev.Commit) -> None:
        self.commits.commit(effect.epoch)
        self.input.replay.committed(effect.epoch)
        if self.config.realtime and self._priority is None:
            self._priority = Priority()
        self.post(ev.Committed(effect.epoch))

    def _send_ack(self, effect: ev.SendAck) -> None:
        self._send(encode(FrameType.ACK, effect.epoch))

    def _apply(self, effect: ev.Apply) -> None:
        self.commits.apply(effect.epoch, self.qemu.memory)
        self.post(ev.Applied(effect.epoch))

    @property
    def _waits(self) -> bool:
        """Nobody takes over here, or has."""
        return not self._runs and self.machine.phase in (StandbyPhase.FILLING, StandbyPhase.READY)

    def _look_after_disks(self) -> None:
        """A device that took writes into memory and lost them ends protection as soon as it is known:
        this side must not go on to acknowledge what it could not activate (I4)."""
        self.commits.sync_disks()
        if (fault := self.commits.disks.fault) is not None:
            self.link.event("failed", str(fault))
            self._give_up(str(fault))

    def _audit(self, frame: Frame) -> None:
        """Compare per-page hashes of main memory with the primary's, at this very commit."""
        if frame.epoch != self.machine.applied:
            raise WireError(f"AUDIT of epoch {frame.epoch} at commit {self.machine.applied}.")
        ours = self.qemu.memory.page_hashes(0, self.peer.show_life)
        result = compare_pages(frame.epoch, ours, frame.body)
        self._send(encode_json(FrameType.AUDIT_RESULT, result, frame.epoch))

    # -- arbitration --------------------------------------------------------------------------------

    def _persist_offer(self, effect: ev.PersistOffer) -> None:
        self.claims.accept_offer(effect.record)
        write_mark(self.config.state_dir, True, self.config.session)
        self.post(ev.OfferPersisted())

    def _start_claim(self, _effect: ev.StartClaim) -> None:
        self.claims.take_over(self.machine.committed)

    def _recover_loaded(self, status: str) -> None:
        """QEMU is past its loading: this side was claiming, or had won, when its worker was killed."""
        if self.commits.journal.load() is None or not read_mark(self.config.state_dir, self.config.session):
            self.post(ev.Failed(f"the standby is {status}, but nothing says that it may be"))
            return
        waits = status in ("paused", "prelaunch")
        stage = ev.Stage.LOADED if waits else ev.Stage.RUNNING
        self.post(ev.Recovered(self.commits.journal.committed, stage))

    def _recover(self) -> None:
        """After a restart: only a marked replica with a whole commit and a record may wait."""
        config = self.config
        commit = self.commits.journal.load()
        if commit is None or not read_mark(config.state_dir, config.session):
            self.post(ev.Failed("this replica had no complete commit; it needs a new sync"))
            return
        self.post(ev.Recovered(self.commits.journal.committed))

    # -- activation ---------------------------------------------------------------------------------

    def _load(self, effect: ev.Load) -> None:
        """Load device state over the committed memory (design section 2, item 6), and have the
        disks durable: once the claim is won they are the VM's only ones, also after a power cut."""
        begun = self.reactor.now()
        disks = self.commits.disks
        disks.sync_end(self.peer.show_life)
        disks.sync_later()
        self.qemu.load(self.commits.device_state())
        disks.sync_end(self.peer.show_life)
        self._loading = self.reactor.now() - begun
        self.link.event("loaded", f"the device state of commit {effect.epoch} is loaded",
                        epoch=effect.epoch, ms=round(self._loading * 1000, 1))  # fmt: skip
        self.post(ev.Loaded())

    def _run(self, _effect: ev.Run) -> None:
        begun = self.reactor.now()
        done = self.qemu.run()
        self._runs = True
        carried, replayed = self.input.vm_runs()
        forward = self._put_clock_forward()
        kind = KINDS.get(self.state[1], "unplanned")
        # A primary that handed over closes its connections, too: that is no loss.
        lost = self.lost_at and kind != "planned"
        self.link.event(
            "activated",
            f"runs from commit {self.machine.committed}",
            epoch=self.machine.committed,
            activation_ms=round((self._loading + done - begun) * 1000, 1),
            since_loss_ms=round((done - self.lost_at) * 1000, 1) if lost else None,
            kind=kind,
            carried_packets=carried,
            replayed_packets=replayed,
            clock_put_forward_ms=round(forward * 1000, 1),
        )
        self.link.event("output_open", "runs by right: its output goes out from here on, unheld")
        self.post(ev.Activated())

    def _put_clock_forward(self) -> float:
        """By the time since the commit from which the VM runs on; seconds."""
        last_commit = self.commits.last_commit
        if not self.config.true_time or not last_commit:
            return 0.0
        try:
            return put_forward(self.config.qemu_pid, self.reactor.now() - last_commit)
        except (KvmftError, OSError) as error:
            self.link.event("clock_not_kept", f"the guest's clock lost the time of the failover: {error}")
            return 0.0

    def _qemu_died(self) -> None:
        if self.machine.phase is not StandbyPhase.DONE:
            self._refuse("the standby's QEMU died")
            self.post(ev.VmDied("the standby's QEMU died"))

    def _discard(self, _effect: ev.Discard) -> None:
        self.commits.journal.clear()
        self.claims.forget()
        write_mark(self.config.state_dir, False, self.config.session)

    # -- telling ------------------------------------------------------------------------------------

    def _report(self, effect: ev.Report) -> None:
        self.state = (effect.state, effect.reason)
        self.link.send(msg="state", state=effect.state, reason=effect.reason)
        self.link.event("state", effect.reason, state=effect.state, role="secondary",
                        generation=self.claims.generation)  # fmt: skip

    def _finish(self, effect: ev.Finish) -> None:
        self.driver.finished = True
        self.peer.end()
        if self._priority is not None:
            self._priority.give_back()
        self.peer.flush_and_close()
        self._status()
        self.link.send(msg="done", outcome=effect.outcome.value, reason=effect.reason)
        self.reactor.stop()

    def _status_timer(self) -> None:
        self._status()
        if not self.driver.finished:
            if self._waits:
                self._look_after_disks()
            self.reactor.call_later(STATUS_EVERY, self._status_timer)

    def _status(self) -> None:
        now = self.reactor.now()
        self.link.send(
            msg="status",
            state=self.state[0],
            reason=self.state[1],
            generation=self.claims.generation,
            epoch=self.machine.committed,
            epochs=self.machine.committed,
            last_commit_age_ms=(
                round((now - self.commits.last_commit) * 1000, 1) if self.commits.last_commit else None
            ),
        )
