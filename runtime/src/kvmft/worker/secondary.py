"""The secondary's worker: carries out what `core.secondary` decides, and tells it what happened."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from kvmft.adapters import ftlog
from kvmft.adapters.arbiter_client import ArbiterClient
from kvmft.adapters.digests import digests_of
from kvmft.adapters.journal import Journal
from kvmft.adapters.memory import RamBlock, StandbyMemory
from kvmft.adapters.priority import Priority
from kvmft.adapters.qmp import SocketMonitor
from kvmft.adapters.ramblocks import discover
from kvmft.adapters.reactor import READ, Reactor, Timer
from kvmft.adapters.sparse import data_extents, punch_hole
from kvmft.adapters.taps import GuestInput, tap_of
from kvmft.core import events as ev
from kvmft.core.detector import SilenceDetector
from kvmft.core.secondary import Patience, SecondaryMachine, StandbyPhase
from kvmft.core.vmstream import activation_stream, ram_section
from kvmft.core.wire import (
    DISK_UNIT,
    MEMORY_UNIT,
    OF_DISK,
    OF_MEMORY,
    RUN_WORDS,
    WRITE_WORDS,
    Frame,
    FrameType,
    Header,
    WireError,
    encode,
    encode_digests,
    encode_json,
    split_checkpoint,
    split_table,
)
from kvmft.errors import KvmftError
from kvmft.worker.config import WorkerConfig
from kvmft.worker.guest_clock import put_forward
from kvmft.worker.guest_input import Replay
from kvmft.worker.link import AgentLink
from kvmft.worker.primary import FIRST_SYNC_PATIENCE, qemu_directory
from kvmft.worker.replica import ReplicaDisks, read_mark, write_mark

STATUS_EVERY = 0.5
ACTIVATION_BOUND = 10.0
KINDS = {"planned switchover": "planned", "a person ordered the failover": "ordered"}
"""What kind of failover it is, by the reason with which the machine began it."""
FIRST_CONTACT = 30.0
"""Seconds in which the primary must have connected."""
DIGEST_CHUNK = 4 << 20
"""Bytes hashed between two looks at what else is to be done."""
SYNC_EVERY = 0.2
"""Seconds between two flushes of the replica's disks while epochs come in."""
INPUT_BOUND = 4 << 20
"""Bytes of carried input that wait for the VM; more is dropped, as a network may."""
ANNOUNCE = {"initial": 50, "max": 550, "rounds": 5, "step": 100}
"""QEMU's own default: when the activated VM tells the network where it is now, in milliseconds."""


class SecondaryWorker:
    """One standby: a QEMU in `inmigrate`, the replica's disks, and the commits."""

    def __init__(self, reactor: Reactor, config: WorkerConfig, link: AgentLink) -> None:
        self.reactor = reactor
        self.config = config
        self.link = link
        self.machine = SecondaryMachine(Patience(config.agent_grace))
        self.arbiter = ArbiterClient(
            reactor,
            config.identity(),
            on_decided=self._decided,
            on_note=lambda reason: link.event("arbiter", reason),
            on_sent=partial(link.event, "claim_sent"),
        )
        self.journal = Journal(os.path.join(config.run_dir, "journal"), config.resume)
        self.disks = ReplicaDisks([(disk.path, disk.size) for disk in config.disks])
        self.stream: ftlog.LogStream | None = None
        self.detector: SilenceDetector | None = None
        self.listener: socket.socket | None = None
        self.state = ("starting", "waits for the primary")
        self.last_commit = 0.0
        self.lost_at = 0.0
        self._life_due = 0.0
        self._loading = 0.0
        self._synced_at = 0.0
        self._unsynced = False
        self._queue: deque[ev.Event] = deque()
        self._busy = False
        self._finished = False
        self._wake: Timer | None = None
        self._input: list[tuple[int, bytes]] = []
        self._input_bytes = 0
        self._replay = Replay()
        self._priority: Priority | None = None
        self._taps: dict[int, GuestInput | None] = {}
        self._runs = False
        self._commands: dict[type, Callable[[Any], None]] = {
            ev.Commit: self._commit,
            ev.SendAck: self._send_ack,
            ev.Apply: self._apply,
            ev.PersistOffer: self._persist_offer,
            ev.SendOfferAck: lambda effect: self._send(encode(FrameType.OFFER_ACK)),
            ev.StartClaim: self._start_claim,
            ev.Load: self._load,
            ev.Run: self._run,
            ev.SendRelief: lambda effect: self._send(encode(FrameType.RELIEVED)),
            ev.Discard: self._discard,
            ev.DropPeer: self._drop_peer,
            ev.WakeAt: self._wake_at,
            ev.Report: self._report,
            ev.Finish: self._finish,
        }

    # -- the main path ----------------------------------------------------------------------------

    def start(self) -> None:
        """Open the standby and wait for the primary, or recover the last commit after a restart."""
        config = self.config
        if config.own_monitor is None:
            raise KvmftError(
                "standby_monitor",
                "The standby has no monitor socket of ours.",
                "Let the agent start it: `kvmft enable` on the primary.",
            )
        self.directory = qemu_directory(config.run_dir, config.qemu_pid)
        self._pidfd = os.pidfd_open(config.qemu_pid)
        self.reactor.add(self._pidfd, READ, self._qemu_died)
        self.monitor = SocketMonitor(self.reactor, config.own_monitor)
        status = self.monitor.execute("query-status")["status"]
        if status != "inmigrate" and not config.resume:
            raise KvmftError(
                "standby_state",
                f"The standby's QEMU is {status} and not waiting for its memory.",
                "Discard the standby and let it be made again: `kvmft enable` on the primary.",
            )
        self.reactor.call_later(STATUS_EVERY, self._status_timer)
        if config.resume and status != "inmigrate":
            self._recover_loaded(status)
            return
        # Once loaded it must not run by itself, nor tell the network that it is here: a claim
        # decides that.
        self.monitor.execute("stop")
        self.monitor.execute("migrate-set-parameters", announce_rounds=0)
        self.memory = StandbyMemory(config.qemu_pid, self._blocks())
        if config.resume:
            self._recover()
            return
        write_mark(config.state_dir, False, config.session)
        self.arbiter.forget()
        self.listener = ftlog.listen(config.listen_address, config.port_range)
        self.reactor.add(self.listener.fileno(), READ, self._accept)
        self.link.send(msg="listening", port=self.listener.getsockname()[1])
        self.reactor.call_later(FIRST_CONTACT, self._first_contact_missed)

    def post(self, event: ev.Event) -> None:
        """Give the machine an event and carry out its effects, one event at a time, in order."""
        self._queue.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._queue and not self._finished:
                current = self._queue.popleft()
                try:
                    effects = self.machine.handle(current, self.reactor.now())
                except ev.IllegalEvent as error:
                    self.link.event("ignored", str(error))
                    continue
                for effect in effects:
                    self._carry_out(effect)
        finally:
            self._busy = False

    def _carry_out(self, effect: ev.Effect) -> None:
        try:
            self._commands[type(effect)](effect)
        except (KvmftError, OSError) as error:
            self.link.event("failed", f"{type(effect).__name__}: {error}")
            self._refuse(str(error))
            self._queue.append(ev.Failed(str(error)))

    def command(self, line: dict[str, Any]) -> None:
        """A line from the agent."""
        match line.get("cmd"):
            case "stop" | "suspend":
                self.post(ev.StopAsked())
            case "claim":
                self.link.event("failover_asked", "a person ordered the failover")
                self.post(ev.ClaimAsked())

    # -- the standby's memory -----------------------------------------------------------------------

    def _blocks(self) -> list[RamBlock]:
        """The carried blocks: main memory in its memfd, others in shadow files until activation."""

        self._aux: list[tuple[str, str]] = []
        result = []
        for block in discover(self._hmp, self.config.qemu_pid, standby=True):
            if block.kind == "memfd":
                result.append(block)
                continue
            path = os.path.join(self.config.run_dir, f"shadow-{len(self._aux)}")
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.ftruncate(descriptor, block.size)
            os.close(descriptor)
            self._aux.append((block.name, path))
            result.append(RamBlock(block.name, 0, block.size, "memfd", path))
        self._block_list = [{"name": block.name, "size": block.size} for block in result]
        return result

    def _aux_section(self) -> bytes:
        contents = []
        for name, path in self._aux:
            with open(path, "rb") as file:
                contents.append((name, file.read()))
        return ram_section(contents)

    # -- the primary --------------------------------------------------------------------------------

    def _accept(self, _mask: int) -> None:
        assert self.listener is not None
        try:
            sock = ftlog.accept(self.listener, self.config.peer, self.config.tls)
        except (KvmftError, OSError) as error:
            self.link.event("refused", str(error))
            return
        if self.stream is not None:
            sock.close()
            self.link.event("refused", "a second FT log for the same standby was closed")
            return
        self.reactor.remove(self.listener.fileno())
        self.listener.close()
        self.listener = None
        self.stream = ftlog.LogStream(
            self.reactor, sock, self._allocate, self._frame, self._stream_lost
        )
        self.detector = SilenceDetector(
            max(self.config.detection, FIRST_SYNC_PATIENCE), self.reactor.now()
        )
        self._greeted = False
        self.reactor.call_later(self.config.detection / 4, self._heartbeat)

    def _first_contact_missed(self) -> None:
        if self.stream is None and self.listener is not None:
            self.post(ev.PeerLost(ev.Loss.SILENCE, "the primary never connected"))

    def _allocate(self, header: Header) -> memoryview:
        if not self._greeted and header.type is not FrameType.HELLO:
            raise WireError(f"A {header.type.name} frame came before HELLO.")
        if header.type is FrameType.CHECKPOINT:
            try:
                return self.journal.allocate(header.epoch, header.length)
            except OSError as error:
                reason = f"/run on {self.config.host} cannot hold a checkpoint: {error}"
                self._refuse(reason)
                raise WireError(reason) from error
        return memoryview(bytearray(header.length))

    def _frame(self, frame: Frame) -> None:
        try:
            self._handle_frame(frame)
        except KvmftError as error:
            if isinstance(error, WireError):
                raise
            self._refuse(str(error))
            self.post(ev.Failed(str(error)))

    def _handle_frame(self, frame: Frame) -> None:
        match frame.type:
            case FrameType.HEARTBEAT:
                pass
            case FrameType.HELLO:
                self._hello(frame.json())
            case FrameType.MEMORY:
                self._expect_filling(frame)
                table, data = split_table(frame.body, RUN_WORDS, "MEMORY")
                self._apply_memory(table, data)
            case FrameType.DISK:
                self._expect_filling(frame)
                table, data = split_table(frame.body, WRITE_WORDS, "DISK")
                self.disks.apply(table, data)
            case FrameType.CHECKPOINT:
                split_checkpoint(frame.body)
                self.post(ev.Staged(frame.epoch))
            case FrameType.OFFER:
                self.post(ev.Offered(bytes(frame.body)))
            case FrameType.AUDIT:
                self._audit(frame)
            case FrameType.HANDOVER:
                self.lost_at = self.reactor.now()
                self.post(ev.ClaimAsked(planned=True))
            case FrameType.REPLAY:
                self._replay.add(frame.epoch, memoryview(frame.body))
            case FrameType.INPUT:
                self._carry_in(frame.epoch, bytes(frame.body))
            case FrameType.BYE:
                self._bye(frame.json())
            case _:
                raise WireError(f"The primary sent a {frame.type.name} frame.")

    def _expect_filling(self, frame: Frame) -> None:
        if self.machine.committed:
            raise WireError(f"A {frame.type.name} frame came after the first checkpoint.")

    def _hello(self, hello: dict[str, Any]) -> None:
        want = {"session": self.config.session, "cluster": self.config.cluster_id,
                "vm": self.config.vm, "blocks": self._block_list}  # fmt: skip
        for key, value in want.items():
            if hello.get(key) != value:
                reason = f"the primary's {key} is {hello.get(key)!r}, this standby's is {value!r}"
                self._refuse(reason)
                self.post(ev.Failed(reason))
                return
        self._greeted = True
        self._tell_digests(self._digest_frames())

    # -- what is here already -----------------------------------------------------------------------

    def _tell_digests(self, frames: Iterator[bytes]) -> None:
        """Tell the primary what this side has, a little at a time, and then welcome it."""
        if self.stream is None or self._finished:
            return
        try:
            frame = next(frames, None)
        except (KvmftError, OSError) as error:
            reason = f"the replica on {self.config.host} cannot be read: {error}"
            self._refuse(reason)
            self.post(ev.Failed(reason))
            return
        if frame is None:
            self.link.send(msg="base_taken")
            self._send(encode_json(FrameType.WELCOME, {"host": self.config.host, "replays": True}))
            return
        if frame:
            self._send(frame)
        self.reactor.call_later(0, lambda: self._tell_digests(frames))

    def _digest_frames(self) -> Iterator[bytes]:
        """DIGESTS frames of the standby's memory and of the replica's disks; empty ones between."""
        key = self.config.session.encode()
        self.disks.settle()
        yield from self._take_base()
        for index in range(len(self.memory.blocks)):
            for start, end in _steps(self.memory.extents(index)):
                found = digests_of(self.memory.view(index, start, end), MEMORY_UNIT, key)
                yield _digests(OF_MEMORY, index, start // MEMORY_UNIT, found)
        for index in range(len(self.config.disks)):
            for start, end in _steps(self.disks.extents(index, DISK_UNIT)):
                found = digests_of(self.disks.read(index, start, end), DISK_UNIT, key)
                yield _digests(OF_DISK, index, start // DISK_UNIT, found)

    def _take_base(self) -> Iterator[bytes]:
        """Fill the standby from the memory that the former primary left on this host."""
        base = self.config.base
        if base is None:
            return
        for index, block in enumerate(self.memory.blocks):
            descriptor = base.blocks.get(block.name)
            if descriptor is None:
                continue
            try:
                source = os.open(f"/proc/{base.pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                self.link.event("base_lost", f"the next sync sends all memory: {error}")
                return
            try:
                size = min(block.size, os.fstat(source).st_size)
                for start, end in _steps(list(data_extents(source, size))):
                    data = os.pread(source, end - start, start)
                    self.memory.fill(index, start, memoryview(data))
                    punch_hole(source, start, end - start)  # so that it is not there twice
                    yield b""
            finally:
                os.close(source)

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
        if self.stream is not None:
            self._send(encode_json(FrameType.REFUSAL, {"reason": reason}))

    def _stream_lost(self, closed: bool, reason: str) -> None:
        self.lost_at = self.reactor.now()
        signal = ev.Loss.CLOSED if closed else ev.Loss.SILENCE
        if not self._finished:
            self.link.event("primary_lost", reason, signal=signal.value)
        self.post(ev.PeerLost(ev.Loss.CLOSED if closed else ev.Loss.SILENCE, reason))

    def _heartbeat(self) -> None:
        if self.stream is None or self.detector is None or self._finished:
            return
        now = self.reactor.now()
        self.detector.heard(self.stream.last_heard)
        if self.machine.phase is StandbyPhase.READY:
            self.detector.timeout = self.config.detection
        if self.detector.suspects(now):
            silence = self.detector.silent_for(now)
            self.lost_at = now
            reason = f"no sign of life for {silence * 1000:.0f} ms"
            self.link.event("primary_lost", reason, signal=ev.Loss.SILENCE.value,
                            detection_ms=round(silence * 1000, 1))  # fmt: skip
            self.post(ev.PeerLost(ev.Loss.SILENCE, reason))
            return
        self._show_life()
        self.reactor.call_later(self.config.detection / 4, self._heartbeat)

    def _show_life(self) -> None:
        """A heartbeat, if the last one is not of just now; also from within long work."""
        now = self.reactor.now()
        if self.stream is not None and self.stream.queued == 0 and now >= self._life_due:
            self._life_due = now + self.config.detection / 8
            self._send(encode(FrameType.HEARTBEAT, self.machine.committed))

    def _send(self, data: bytes) -> None:
        if self.stream is not None:
            self.stream.send(data)

    def _drop_peer(self, _effect: ev.DropPeer) -> None:
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    # -- commits ------------------------------------------------------------------------------------

    def _commit(self, effect: ev.Commit) -> None:
        self.journal.commit(effect.epoch)
        self.last_commit = self.reactor.now()
        self._replay.committed(effect.epoch)
        if self.config.realtime and self._priority is None:
            self._priority = Priority()
        self.post(ev.Committed(effect.epoch))

    def _send_ack(self, effect: ev.SendAck) -> None:
        self._send(encode(FrameType.ACK, effect.epoch))

    def _apply(self, effect: ev.Apply) -> None:
        body = self.journal.load()
        if body is None:
            raise KvmftError(
                "journal_lost",
                f"The journal does not hold commit {effect.epoch}.",
                "The replica is discarded; protection comes back by a new sync.",
            )
        parts = split_checkpoint(body)
        self._apply_memory(parts.runs, parts.pages)
        self.disks.apply(parts.writes, parts.write_data)
        self._unsynced = self._unsynced or len(parts.writes) > 0
        self._sync_disks()
        self.post(ev.Applied(effect.epoch))

    def _sync_disks(self) -> None:
        """In the background, so that little is left to do when this side takes over."""
        if self._unsynced and self.reactor.now() > self._synced_at + SYNC_EVERY:
            self._synced_at, self._unsynced = self.reactor.now(), False
            self.disks.sync_later()

    def _look_after_disks(self) -> None:
        """A device that took writes into memory and lost them ends protection as soon as it is known:
        this side must not go on to acknowledge what it could not activate (I4)."""
        if self._runs or self.machine.phase not in (StandbyPhase.FILLING, StandbyPhase.READY):
            return
        self._sync_disks()
        if (fault := self.disks.fault) is not None:
            self.link.event("failed", str(fault))
            self._refuse(str(fault))
            self.post(ev.Failed(str(fault)))

    def _apply_memory(self, table: memoryview, data: memoryview) -> None:
        runs = np.frombuffer(table, dtype="<u8").reshape(-1, RUN_WORDS)
        self.memory.apply(runs, data)

    def _audit(self, frame: Frame) -> None:
        """Compare per-page hashes of main memory with the primary's, at this very commit."""
        if frame.epoch != self.machine.applied:
            raise WireError(f"AUDIT of epoch {frame.epoch} at commit {self.machine.applied}.")
        theirs = np.frombuffer(frame.body, dtype="<u8")
        ours = self.memory.page_hashes(0, self._show_life)
        if len(ours) != len(theirs):
            raise WireError(f"AUDIT of {len(theirs)} pages; the standby has {len(ours)}.")
        different = np.flatnonzero(ours != theirs)
        result = {
            "epoch": frame.epoch,
            "pages": len(ours),
            "different": int(len(different)),
            "first_different": int(different[0]) if len(different) else None,
        }
        self._send(encode_json(FrameType.AUDIT_RESULT, result, frame.epoch))

    # -- arbitration --------------------------------------------------------------------------------

    def _persist_offer(self, effect: ev.PersistOffer) -> None:
        self.arbiter.accept_offer(effect.record)
        self.link.event("offer_stored", "the pair's record is stored; this side may claim from it",
                        generation=self.arbiter.generation)  # fmt: skip
        write_mark(self.config.state_dir, True, self.config.session)
        self.post(ev.OfferPersisted())

    def _start_claim(self, _effect: ev.StartClaim) -> None:
        self.link.event("claim", "asks the arbiter for the right to run alone", purpose="solo",
                        generation=self.arbiter.generation,
                        epoch=self.machine.committed)  # fmt: skip
        self.arbiter.solo()

    def _decided(self, won: bool, halted: bool, reason: str) -> None:
        generation = self.arbiter.generation
        self.link.event("verdict", reason, won=won, generation=generation, **self.arbiter.receipt)
        self.post(ev.Claimed(won, halted, reason))

    def _recover_loaded(self, status: str) -> None:
        """QEMU is past its loading: this side was claiming, or had won, when its worker was killed."""
        if self.journal.load() is None or not read_mark(self.config.state_dir, self.config.session):
            self.post(ev.Failed(f"the standby is {status}, but nothing says that it may be"))
            return
        waits = status in ("paused", "prelaunch")
        stage = ev.Stage.LOADED if waits else ev.Stage.RUNNING
        self.post(ev.Recovered(self.journal.committed, stage))

    def _recover(self) -> None:
        """After a restart: only a marked replica with a whole commit and a record may wait."""
        config = self.config
        commit = self.journal.load()
        if commit is None or not read_mark(config.state_dir, config.session):
            self.post(ev.Failed("this replica had no complete commit; it needs a new sync"))
            return
        self.post(ev.Recovered(self.journal.committed))

    # -- activation ---------------------------------------------------------------------------------

    def _load(self, effect: ev.Load) -> None:
        """Load device state over the committed memory (design section 2, item 6), and have the
        disks durable: once the claim is won they are the VM's only ones, also after a power cut."""
        begun = self.reactor.now()
        self.disks.sync_end()
        self.disks.sync_later()
        body = self.journal.load()
        assert body is not None
        state = split_checkpoint(body).device_state
        stream = activation_stream(state, self.config.machine, self._aux_section())
        path = os.path.join(self.directory, "incoming.sock")
        self.monitor.execute("migrate-incoming", uri=f"unix:{path}")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(ACTIVATION_BOUND)
            sock.connect(path)
            sock.sendall(stream)
            sock.shutdown(socket.SHUT_WR)
            self._wait_loaded()
        self.disks.sync_end()
        self._loading = self.reactor.now() - begun
        self.link.event("loaded", f"the device state of commit {effect.epoch} is loaded",
                        epoch=effect.epoch, ms=round(self._loading * 1000, 1))  # fmt: skip
        self.post(ev.Loaded())

    def _run(self, _effect: ev.Run) -> None:
        begun = self.reactor.now()
        self.monitor.execute("cont")
        done = self.reactor.now()
        self.monitor.execute("announce-self", **ANNOUNCE)
        self._runs = True
        replayed = sum(self._put(index, packet) for index, packet in self._replay.take())
        carried = sum(self._put(index, packet) for index, packet in self._input)
        self._input.clear()
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
        if not self.config.true_time or not self.last_commit:
            return 0.0
        try:
            return put_forward(self.config.qemu_pid, self.reactor.now() - self.last_commit)
        except (KvmftError, OSError) as error:
            self.link.event("clock_not_kept", f"the guest's clock lost the time of the failover: {error}")
            return 0.0

    def _carry_in(self, index: int, packet: bytes) -> None:
        """A packet that reached the stopped primary: for the VM once it runs here."""
        if self._runs:
            self._put(index, packet)
        elif self._input_bytes + len(packet) <= INPUT_BOUND:
            self._input.append((index, packet))
            self._input_bytes += len(packet)

    def _put(self, index: int, packet: bytes) -> bool:
        tap = self._tap(index)
        return tap is not None and tap.put(packet)

    def _tap(self, index: int) -> GuestInput | None:
        if index not in self._taps:
            nics = self.config.nics
            name = tap_of(self._hmp, self.config.qemu_pid, nics[index]) if index < len(nics) else None
            try:
                self._taps[index] = GuestInput(self.reactor, name) if name else None
            except OSError as error:
                self.link.event("input_not_carried", f"input of {name} is dropped: {error}")
                self._taps[index] = None
        return self._taps[index]

    def _hmp(self, line: str) -> str:
        return str(self.monitor.execute("human-monitor-command", command_line=line))

    def _wait_loaded(self) -> None:
        until = self.reactor.now() + ACTIVATION_BOUND
        while True:
            status = self.monitor.execute("query-status")["status"]
            if status != "inmigrate":
                return
            if self.reactor.now() > until:
                raise KvmftError(
                    "activation_stuck",
                    "QEMU did not load the device state in time.",
                    "See QEMU's log on this host.",
                )
            self.reactor.step(0.001)

    def _qemu_died(self, _mask: int) -> None:
        self.reactor.remove(self._pidfd)
        if self.machine.phase is not StandbyPhase.DONE:
            self._refuse("the standby's QEMU died")
            self.post(ev.VmDied("the standby's QEMU died"))

    def _discard(self, _effect: ev.Discard) -> None:
        self.journal.clear()
        self.arbiter.forget()
        write_mark(self.config.state_dir, False, self.config.session)

    # -- telling ------------------------------------------------------------------------------------

    def _wake_at(self, effect: ev.WakeAt) -> None:
        if self._wake is not None:
            self._wake.cancel()
        self._wake = self.reactor.call_at(effect.due, lambda: self.post(ev.Tick()))

    def _report(self, effect: ev.Report) -> None:
        self.state = (effect.state, effect.reason)
        self.link.send(msg="state", state=effect.state, reason=effect.reason)
        self.link.event("state", effect.reason, state=effect.state, role="secondary",
                        generation=self.arbiter.generation)  # fmt: skip

    def _finish(self, effect: ev.Finish) -> None:
        self._finished = True
        if self._priority is not None:
            self._priority.give_back()
        if self.stream is not None:
            self.stream.flush_and_close(0.5)
        self._status()
        self.link.send(msg="done", outcome=effect.outcome.value, reason=effect.reason)
        self.reactor.stop()

    def _status_timer(self) -> None:
        self._status()
        if not self._finished:
            self._look_after_disks()
            self.reactor.call_later(STATUS_EVERY, self._status_timer)

    def _status(self) -> None:
        now = self.reactor.now()
        self.link.send(
            msg="status",
            state=self.state[0],
            reason=self.state[1],
            generation=self.arbiter.generation,
            epoch=self.machine.committed,
            epochs=self.machine.committed,
            last_commit_age_ms=(
                round((now - self.last_commit) * 1000, 1) if self.last_commit else None
            ),
        )


def _steps(extents: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Cut extents [start, end) into pieces of at most DIGEST_CHUNK bytes."""
    for begin, end in extents:
        for start in range(begin, end, DIGEST_CHUNK):
            yield start, min(start + DIGEST_CHUNK, end)


def _digests(of: int, index: int, first: int, found: np.ndarray) -> bytes:
    """A DIGESTS frame, or nothing where all is zero: that is what the primary assumes."""
    return encode_digests(of, index, first, found.tobytes()) if found.any() else b""
