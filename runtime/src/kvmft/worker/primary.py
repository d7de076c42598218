"""The primary's worker: carries out what `core.primary` decides, and tells it what happened."""

from __future__ import annotations

import os
import pwd
import select
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from kvmft.adapters import ftlog
from kvmft.adapters.arbiter_client import ArbiterClient
from kvmft.adapters.memory import GuestMemory, RamBlock
from kvmft.adapters.nbd import NbdServer, unlink_quietly
from kvmft.adapters.priority import Priority
from kvmft.adapters.qmp import LibvirtMonitor, Monitor, SocketMonitor, command
from kvmft.adapters.ramblocks import discover
from kvmft.adapters.reactor import READ, Reactor, Timer
from kvmft.adapters.redirector import RedirectorPort, Segment
from kvmft.adapters.taps import tap_of
from kvmft.core import events as ev
from kvmft.core.detector import SilenceDetector
from kvmft.core.primary import Phase, PrimaryMachine, Tuning
from kvmft.core.wire import (
    Frame,
    FrameType,
    Header,
    WireError,
    encode,
    encode_header,
    encode_json,
    split_digests,
)
from kvmft.errors import KvmftError
from kvmft.worker import qemu_setup
from kvmft.worker.config import WorkerConfig
from kvmft.worker.disklog import DiskLog, DiskSink
from kvmft.worker.engine import Checkpoint, Engine
from kvmft.worker.guest_input import InputWatch
from kvmft.worker.link import AgentLink
from kvmft.worker.resync import Known, ResyncFilter
from kvmft.worker.stats import EpochStats, quantiles

BULK_CHUNK = 1 << 20
QUEUE_HIGH = 16 << 20
"""Bytes waiting for the FT log above which the disk capture stops answering."""
DISK_LOG_URGENT = 32 << 20
STATUS_EVERY = 0.5
MIRRORS_EVERY = 2.0
"""Seconds between looks whether QEMU still has the mirrors; that one breaks, we hear at once."""
FIRST_SYNC_PATIENCE = 5.0
"""Seconds of silence that are borne until there is a pair."""
RELEASE_BOUND = 2.0
MIRROR_REST, MIRROR_GONE = 2.0, 10.0
"""Seconds that a mirror may take to rest, and to be gone after its cancel."""
ASK_EVERY = 0.002
"""Seconds between two questions to QEMU about what it tells no event of."""
CHECKPOINT_BOUND = 5.0
"""Seconds that a checkpoint under way is waited for before output and mirrors are let go."""
CLAIMS = {
    ev.Purpose.CREATE: "asks the arbiter for the VM's first record",
    ev.Purpose.PAIR: "asks the arbiter to record the pair",
    ev.Purpose.SOLO: "asks the arbiter for the right to run alone",
    ev.Purpose.REMOVE: "asks the arbiter to remove the record",
}
QEMU_DEATH_MS = 300
"""How long QEMU's descriptors may be closed before its process counts as ended."""


class PrimaryWorker:
    """One protected VM, on the side where it runs."""

    def __init__(self, reactor: Reactor, config: WorkerConfig, link: AgentLink) -> None:
        self.reactor = reactor
        self.config = config
        self.link = link
        self.machine = PrimaryMachine(Tuning(config.pace, config.hold_bound))
        self.stats = EpochStats(reactor.now())
        self.arbiter = ArbiterClient(
            reactor,
            config.identity(),
            on_decided=self._decided,
            on_note=lambda reason: link.event("arbiter", reason),
            on_sent=partial(link.event, "claim_sent"),
        )
        self.disk_log = DiskLog()
        self.monitor: Monitor | None = None
        self.memory: GuestMemory | None = None
        self.engine: Engine | None = None
        self.stream: ftlog.LogStream | None = None
        self.detector: SilenceDetector | None = None
        self.ports: list[RedirectorPort] = []
        self.servers: list[NbdServer] = []
        self._mirroring = False
        self._mirrors_due = 0.0
        self.held: dict[int, list[tuple[RedirectorPort, Segment]]] = {}
        self.state = ("starting", "attaching")
        self.sync_percent: float | None = 0.0
        self._life_due = 0.0
        self.known: Known | None = None
        self.filters: list[ResyncFilter] = []
        self.synced_memory = 0
        self.input: InputWatch | None = None
        self._peer_replays = False
        self._priorities: list[Priority] = []
        self._kept: list[tuple[RamBlock, int]] = []
        self.audits: deque[int] = deque()
        self._running_audits: deque[int] = deque()
        self._queue: deque[ev.Event] = deque()
        self._busy = False
        self._wake: Timer | None = None
        self._finished = False
        self._bulk: _Bulk | None = None
        self._shutdown: str | None = None
        self._suspending = False
        self._vm_died = False
        self._sent_before = 0
        self._first_release = True
        self._commands: dict[type, Callable[[Any], None]] = {
            ev.StartClaim: self._start_claim,
            ev.Connect: self._connect,
            ev.StartBulk: self._start_bulk,
            ev.TakeRound: self._take_round,
            ev.InstallHold: self._install_hold,
            ev.TakeCheckpoint: self._take_checkpoint,
            ev.ReleaseOutput: self._release_output,
            ev.NameOffer: self._name_offer,
            ev.ReleaseAll: self._release_all,
            ev.PauseVm: lambda effect: self._execute("stop", stay_stopped=True),
            ev.ResumeVm: lambda effect: self._execute("cont", stay_stopped=False),
            ev.KillVm: self._kill_vm,
            ev.HandOver: lambda effect: self._send(encode(FrameType.HANDOVER, self.machine.taken)),
            ev.KeepMemory: self._keep_memory,
            ev.Farewell: self._farewell,
            ev.DropPeer: self._drop_peer,
            ev.WakeAt: self._wake_at,
            ev.Report: self._report,
            ev.Finish: self._finish,
        }

    # -- the main path ----------------------------------------------------------------------------

    def start(self) -> None:
        """Attach to QEMU and hand the first event to the machine."""
        config = self.config
        self.directory = qemu_directory(config.run_dir, config.qemu_pid)
        self._watch_qemu()
        if config.own_monitor:
            self.monitor = SocketMonitor(self.reactor, config.own_monitor, self._qemu_event)
        else:
            self.monitor = LibvirtMonitor(self.reactor, self._domain())
        self._run_on_after_a_crash()
        self.reactor.call_later(STATUS_EVERY, self._status_timer)
        self.post(ev.Started(config.create, config.peer_port is not None))

    def step_failed(self, reason: str) -> None:
        """Something failed outside of an effect, as reading the memory of a VM that just died."""
        self.link.event("failed", reason)
        if self.engine is not None:
            self.engine.busy = False
        self._failed(reason)

    def _failed(self, reason: str) -> None:
        """A step failed. If that is because QEMU is dying, its death is what the machine must hear:
        this side would claim to run alone a VM that is gone, and win against the secondary."""
        dying = select.poll()
        dying.register(self._pidfd, select.POLLIN)
        if dying.poll(QEMU_DEATH_MS):
            self._qemu_died(0)
        else:
            self.post(ev.Failed(reason))

    def _run_on_after_a_crash(self) -> None:
        """A worker that was killed inside a checkpoint left the VM stopped: let it run. Its output
        is shut, as the redirector's sockets were closed, so nothing is shown by this."""
        assert self.monitor is not None
        if not os.path.exists(self._epochs_mark):
            return
        if self.monitor.execute("query-status")["status"] == "paused":
            self.link.event("resumed", "the worker before was killed inside a checkpoint")
            self.monitor.execute("cont")

    @property
    def _epochs_mark(self) -> str:
        """A file that is there while this worker may have the VM stopped."""
        return os.path.join(self.config.run_dir, "epochs")

    def _mark_stops(self) -> None:
        with open(self._epochs_mark, "w", encoding="ascii") as mark:
            mark.write(self.config.session)

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
            self._failed(str(error))

    def command(self, line: dict[str, Any]) -> None:
        """A line from the agent."""
        match line.get("cmd"):
            case "stop":
                self.post(ev.StopAsked())
            case "suspend":
                self._suspending = True
                self.post(ev.StopAsked(suspend=True))
            case "switch":
                self.post(ev.SwitchAsked())
            case "release":
                self.reactor.stop()
            case "samples":
                self.link.send(msg="samples", **self.stats.samples())
            case "epochs":
                self.link.send(msg="epochs", id=line["id"], **self.stats.newer(self.reactor.now(), line.get("since")))
            case "audit":
                if self.machine.protected:
                    self.audits.append(int(line["id"]))
                else:
                    self.link.send(msg="audit", id=line["id"], error="the VM is not protected")

    # -- arbitration --------------------------------------------------------------------------------

    def _start_claim(self, effect: ev.StartClaim) -> None:
        generation = self.arbiter.generation
        again = effect.purpose is ev.Purpose.CREATE and generation is not None
        reason = CLAIMS[ev.Purpose.SOLO if again else effect.purpose]
        self.link.event("claim", reason, purpose=effect.purpose.value, generation=generation)
        match effect.purpose:
            case ev.Purpose.CREATE:
                self.arbiter.create()
            case ev.Purpose.PAIR:
                self.arbiter.pair()
            case _:
                self.arbiter.solo()

    def _decided(self, won: bool, halted: bool, reason: str) -> None:
        generation = self.arbiter.generation
        self.link.event("verdict", reason, won=won, generation=generation, **self.arbiter.receipt)
        self.post(ev.Claimed(won, halted, reason))

    def _name_offer(self, effect: ev.NameOffer) -> None:
        record = self.arbiter.name_pair(effect.epoch)
        self.link.event("offer", f"names the pair's record after commit {effect.epoch}",
                        epoch=effect.epoch)  # fmt: skip
        self._send(encode(FrameType.OFFER, effect.epoch, record))

    # -- the secondary ------------------------------------------------------------------------------

    def _connect(self, _effect: ev.Connect) -> None:
        config = self.config
        assert config.peer_port is not None and self.monitor is not None
        qemu_setup.remove_redirectors(self.monitor, config.nics, self.directory)
        if self._mirrors():
            with self._vm_stopped():
                self._remove_mirrors()
        self._attach_memory()
        assert self.memory is not None
        self.known = Known(
            [block.size for block in self.memory.blocks],
            [disk.size for disk in config.disks],
            config.session.encode(),
        )
        address = (config.peer_address, config.peer_port)
        sock = ftlog.connect(config.peer, address, config.tls)
        self.stream = ftlog.LogStream(
            self.reactor, sock, self._allocate, self._frame, self._stream_lost
        )
        # Until there is a pair, silence decides nothing and only costs the work that was done.
        self.detector = SilenceDetector(
            max(config.detection, FIRST_SYNC_PATIENCE), self.reactor.now()
        )
        self.reactor.call_later(config.detection / 4, self._heartbeat)
        self._send(
            encode_json(
                FrameType.HELLO,
                {
                    "session": config.session,
                    "cluster": config.cluster_id,
                    "vm": config.vm,
                    "host": config.host,
                    "blocks": [
                        {"name": block.name, "size": block.size} for block in self.memory.blocks
                    ],
                },
            )
        )

    def _allocate(self, header: Header) -> memoryview:
        if header.length > (1 << 20):
            raise WireError(f"The secondary sent a {header.type.name} of {header.length} bytes.")
        return memoryview(bytearray(header.length))

    def _frame(self, frame: Frame) -> None:
        if self.detector is not None:
            self.detector.heard(self.reactor.now())
        match frame.type:
            case FrameType.HEARTBEAT:
                pass
            case FrameType.DIGESTS:
                self._learn(frame)
            case FrameType.WELCOME:
                self._peer_replays = bool(frame.json().get("replays"))
                self.post(ev.Welcomed())
            case FrameType.RELIEVED:
                self.post(ev.Relieved())
            case FrameType.ACK:
                self.stats.committed(self.reactor.now())
                self.post(ev.Acked(frame.epoch))
            case FrameType.OFFER_ACK:
                self.post(ev.OfferStored())
            case FrameType.AUDIT_RESULT:
                if self._running_audits:
                    identity = self._running_audits.popleft()
                    self.link.send(**{"msg": "audit", "id": identity, **frame.json()})
            case FrameType.REFUSAL:
                self._peer_lost(ev.Loss.REFUSED, str(frame.json().get("reason")))
            case _:
                raise WireError(f"The secondary sent a {frame.type.name} frame.")

    def _learn(self, frame: Frame) -> None:
        if self.machine.phase is not Phase.CONNECTING or self.known is None:
            raise WireError("A DIGESTS frame came after WELCOME.")
        self.known.learn(split_digests(frame.body))

    def _stream_lost(self, closed: bool, reason: str) -> None:
        self._peer_lost(ev.Loss.CLOSED if closed else ev.Loss.SILENCE, reason)

    def _peer_lost(self, how: ev.Loss, reason: str, **figures: Any) -> None:
        if not self._finished:
            self.link.event("secondary_lost", reason, signal=how.value, **figures)
        self.post(ev.PeerLost(how, reason))

    def _heartbeat(self) -> None:
        if self.stream is None or self.detector is None or self._finished:
            return
        now = self.reactor.now()
        self.detector.heard(self.stream.last_heard)
        if self.machine.phase is Phase.EPOCHS:
            self.detector.timeout = self.config.detection
        if self.detector.suspects(now):
            silence = self.detector.silent_for(now)
            self._peer_lost(ev.Loss.SILENCE, f"no sign of life for {silence * 1000:.0f} ms",
                            detection_ms=round(silence * 1000, 1))  # fmt: skip
            return
        self._show_life()
        self.reactor.call_later(self.config.detection / 4, self._heartbeat)

    def _show_life(self) -> None:
        """A heartbeat, if the last one is not of just now; also from within long work."""
        now = self.reactor.now()
        if self.stream is not None and self.stream.queued == 0 and now >= self._life_due:
            self._life_due = now + self.config.detection / 8
            self._send(encode(FrameType.HEARTBEAT, self.machine.taken))

    def _send(self, *parts: bytes | bytearray | memoryview) -> None:
        if self.stream is not None:
            self.stream.send(*parts)

    def _farewell(self, effect: ev.Farewell) -> None:
        if self.stream is not None:
            body = {"reason": effect.reason, "claim": effect.claim}
            self._send(encode_json(FrameType.BYE, body))
            self.stream.flush_and_close(0.5)

    def _forget_input(self) -> None:
        if self.input is not None:
            self.input.close()
            self.input = None

    def _drop_peer(self, _effect: ev.DropPeer) -> None:
        self._forget_input()
        if self.stream is not None:
            self._sent_before += self.stream.sent_bytes
            self.stream.close()
            self.stream = None
        for server in self.servers:
            server.release()

    # -- first sync ---------------------------------------------------------------------------------

    def _attach_memory(self) -> None:
        assert self.monitor is not None
        blocks = discover(self._hmp, self.config.qemu_pid)
        self.memory = GuestMemory()
        self.memory.attach(self.config.qemu_pid, blocks)
        self.engine = Engine(
            self.reactor,
            self.monitor,
            self.memory,
            self.disk_log,
            os.path.join(self.directory, "device-state"),
            self._failed,
        )
        self.engine.on_progress = self._show_life

    def _start_bulk(self, _effect: ev.StartBulk) -> None:
        assert self.monitor is not None and self.memory is not None and self.known is not None
        blocks = self.monitor.execute("query-block")
        owner = qemu_owner(self.config.qemu_pid)
        nodes = [qemu_setup.node_of(blocks, disk.path) for disk in self.config.disks]
        for index, disk in enumerate(self.config.disks):
            path = os.path.join(self.directory, f"nbd-{disk.target}.sock")
            sink = ResyncFilter(
                DiskSink(self.disk_log, index, self._disk_grew),
                self.known.disks[index],
                disk.size,
                self.config.session.encode(),
            )
            self.filters.append(sink)
            lost = partial(self._mirror_lost, disk.target)
            self.servers.append(NbdServer(self.reactor, path, disk.size, sink, owner, lost))
            qemu_setup.add_target(self.monitor, disk.target, path)
        with self._vm_stopped():
            for disk, node in zip(self.config.disks, nodes, strict=True):
                speed = self.config.sync_bandwidth
                qemu_setup.start_mirror(self.monitor, disk.target, node, speed)
        self._mirroring = True
        self._bulk = _Bulk(self)
        self._bulk.pump()
        self._poll_mirrors()

    def _mirrors_go_on(self, found: dict[str, dict[str, Any]]) -> bool:
        """True when QEMU has every mirror, without an error; otherwise the machine was told."""
        for disk in self.config.disks:
            status = found.get(qemu_setup.job_of(disk.target), {}).get("io-status", "gone")
            if status != "ok":
                self._mirror_lost(disk.target, f"QEMU shows its job as {status}; see QEMU's log")
                return False
        return True

    def _mirror_lost(self, target: str, reason: str) -> None:
        """A disk's writes no longer reach us: no further epoch may be committed."""
        if self._mirroring:
            self._mirroring = False
            self._failed(f"the mirror of disk {target} broke: {reason}")

    def _disk_grew(self) -> None:
        if self.machine.taken == 0:
            if self.disk_log.size >= BULK_CHUNK:
                self._flush_disk_log()
        elif self.disk_log.size > DISK_LOG_URGENT:
            self.post(ev.OutputPending())
        if self.stream is not None and self.stream.queued > QUEUE_HIGH:
            for server in self.servers:
                server.hold()
            self.reactor.call_later(0.002, self._maybe_release_disks)

    def _maybe_release_disks(self) -> None:
        if self.stream is not None and self.stream.queued > QUEUE_HIGH // 2:
            self.reactor.call_later(0.002, self._maybe_release_disks)
            return
        for server in self.servers:
            server.release()

    def _flush_disk_log(self) -> None:
        """Before the first checkpoint, writes go to the replica as they come; it is not startable
        then, so nothing can be mixed."""
        if not self.disk_log:
            return
        table, data = self.disk_log.cut()
        rows = len(table) // 32
        head = encode_header(FrameType.DISK, 0, 8 + len(table) + len(data))
        self._send(head, rows.to_bytes(8, "little"), table, data)

    def _poll_mirrors(self) -> None:
        if self.machine.phase is not Phase.BULK or self.monitor is None or self._finished:
            return
        assert self._bulk is not None
        self._flush_disk_log()
        found = qemu_setup.jobs(self.monitor)
        names = [qemu_setup.job_of(disk.target) for disk in self.config.disks]
        if not self._mirrors_go_on(found):
            return
        length = sum(int(found[name]["len"]) for name in names) + self._bulk.total
        done = sum(int(found[name]["offset"]) for name in names) + self._bulk.sent
        self.sync_percent = round(min(99.0, 100.0 * done / max(1, length)), 1)
        if self._bulk.done and all(found[name]["ready"] for name in names):
            if not qemu_setup.at_rest(found):
                qemu_setup.rest(self.monitor, names)
                self.reactor.call_later(ASK_EVERY, self._poll_mirrors)
                return
            for each in self.filters:
                each.settle()
            self._flush_disk_log()
            self.post(ev.BulkDone())
            return
        self.reactor.call_later(0.05, self._poll_mirrors)

    def send_memory(
        self, ranges: np.ndarray, fresh: bool, then: Callable[[], None]
    ) -> None:
        """Send `ranges` (n, 2) as MEMORY frames, BULK_CHUNK at a time, while the VM runs.

        `fresh`: nothing was sent of them yet, so what the standby has alike is left out.
        """
        assert self.memory is not None and self.known is not None
        memory, known = self.memory, self.known
        pieces = iter(_chunks(ranges, BULK_CHUNK))

        def pump() -> None:
            if self.stream is None:
                return
            for piece in pieces:
                size = int((piece[:, 1] - piece[:, 0]).sum())
                buffer = bytearray(size)
                memory.read(piece, memoryview(buffer))
                table, data = memory.to_table(piece), memoryview(buffer)
                if fresh:
                    table, data = known.differing(table, data)
                    if self._bulk is not None:
                        self._bulk.sent += size
                if len(table):
                    rows = np.ascontiguousarray(table, dtype="<u8").tobytes()
                    head = encode_header(FrameType.MEMORY, 0, 8 + len(rows) + len(data))
                    self._send(head, len(table).to_bytes(8, "little"), rows, data)
                    self.synced_memory += len(data)
                if self.stream is None:
                    return
                bound = self.config.sync_bandwidth
                if bound and len(data):
                    self.reactor.call_later(len(data) / bound, pump)
                elif self.stream.queued:
                    self.stream.on_drained = pump
                else:
                    self.reactor.call_later(0, pump)
                return
            then()

        pump()

    def _take_round(self, _effect: ev.TakeRound) -> None:
        assert self.engine is not None
        self._mark_stops()

        def scanned(ranges: np.ndarray, pause: float) -> None:
            size = int((ranges[:, 1] - ranges[:, 0]).sum()) if len(ranges) else 0
            self.stats.paused_total += pause
            self._flush_disk_log()
            self.send_memory(ranges, False, lambda: self.post(ev.RoundDone(size)))

        self.engine.round(scanned)

    # -- epochs -------------------------------------------------------------------------------------

    def _install_hold(self, _effect: ev.InstallHold) -> None:
        assert self.monitor is not None
        for nic in self.config.nics:
            out, back = (
                os.path.join(self.directory, f"kvmft-{nic}-{way}.sock") for way in ("out", "in")
            )
            port = RedirectorPort(
                self.reactor, out, back, self._output, qemu_owner(self.config.qemu_pid)
            )
            self.ports.append(port)
            qemu_setup.install_redirector(self.monitor, nic, self.directory)
        if not (
            self.reactor.run_until(lambda: all(port.connected for port in self.ports), 5)
            and self._connected_for_qemu(5)
        ):
            raise KvmftError(
                "redirector_not_connected",
                "QEMU did not connect to the sockets that capture its network output.",
                f"Check that QEMU's user may enter {self.directory}.",
            )
        self.stats = EpochStats(self.reactor.now())
        if self.config.replay_input and self._peer_replays:
            self.input = self._watch_input()
        if self.config.realtime:
            self._priorities = [Priority(), Priority(self.config.qemu_pid)]
            if refused := next((each.refused for each in self._priorities if each.refused), ""):
                self.link.event("no_realtime", f"checkpoints have no priority over other work: {refused}")
        self.post(ev.HoldInstalled())

    def _connected_for_qemu(self, seconds: float) -> bool:
        assert self.monitor is not None
        monitor = self.monitor
        return self.reactor.run_until(
            lambda: qemu_setup.redirectors_connected(monitor, self.config.nics), seconds, ASK_EVERY
        )

    def _output(self) -> None:
        self.post(ev.OutputPending())

    def _take_checkpoint(self, effect: ev.TakeCheckpoint) -> None:
        assert self.engine is not None
        audit = bool(self.audits)
        if audit:
            self._running_audits.append(self.audits.popleft())
        if effect.last and self.input is None:
            self.input = self._watch_input()
        self.engine.on_stopped = partial(self._stopped, effect)
        self.engine.take(
            effect.epoch, audit, lambda: self._cut(effect.epoch), self._captured, effect.last
        )

    def _stopped(self, effect: ev.TakeCheckpoint) -> None:
        if self.input is not None:
            self.input.stopped(effect.epoch)
            if effect.last:
                self.input.hand_over()

    def _cut(self, epoch: int) -> None:
        segments = []
        for port in self.ports:
            port.drain()
            segments.append((port, port.cut()))
        self.held[epoch] = segments

    def _captured(self, checkpoint: Checkpoint) -> None:
        assert self.monitor is not None
        now = self.reactor.now()
        if now >= self._mirrors_due:
            self._mirrors_due = now + MIRRORS_EVERY
            if not self._mirrors_go_on(qemu_setup.jobs(self.monitor)):
                return
        self.stats.captured(now, checkpoint.pause, checkpoint.pages)
        self._send(*checkpoint.parts)
        if checkpoint.audit is not None:
            head = encode_header(FrameType.AUDIT, checkpoint.epoch, len(checkpoint.audit))
            self._send(head, checkpoint.audit)
        size = sum(map(len, checkpoint.parts))
        self.post(ev.Captured(checkpoint.epoch, checkpoint.pause, size))

    def _release_output(self, effect: ev.ReleaseOutput) -> None:
        for epoch in sorted(epoch for epoch in self.held if epoch <= effect.epoch):
            for port, segment in self.held.pop(epoch):
                port.release(segment)
                if self._first_release and segment.packets:
                    self._first_release = False
                    self.link.event("released", "the first output that waited for a commit went out",
                                    epoch=epoch, packets=segment.packets)  # fmt: skip

    # -- planned switchover -------------------------------------------------------------------------

    def _hmp(self, line: str) -> str:
        assert self.monitor is not None
        return str(self.monitor.execute("human-monitor-command", command_line=line))

    def _watch_input(self) -> InputWatch:
        """Tell the secondary of packets for the guest, on all its NICs whose packets can be seen."""
        watch = InputWatch(self.reactor, self._send)
        for index, nic in enumerate(self.config.nics):
            interface = tap_of(self._hmp, self.config.qemu_pid, nic)
            if interface is None:
                continue
            try:
                watch.add(index, interface)
            except OSError as error:
                reason = f"input of {interface} is not carried over; clients send again: {error}"
                self.link.event("input_not_carried", reason)
        return watch

    def _keep_memory(self, _effect: ev.KeepMemory) -> None:
        """The VM runs elsewhere: keep what it left in memory, for the standby to come, and end it."""
        assert self.memory is not None
        try:
            self._kept = self.memory.keep()
        except (KvmftError, OSError) as error:
            self.link.event("memory_not_kept", f"the next sync sends all memory: {error}")
        self._kill_vm(ev.KillVm())

    # -- leaving ------------------------------------------------------------------------------------

    def _execute(self, name: str, stay_stopped: bool) -> None:
        """`stop` or `cont`, also against a checkpoint that is being taken and would end with `cont`."""
        assert self.monitor is not None
        if self.engine is not None:
            self.engine.stay_stopped = stay_stopped
        self.monitor.execute(name)

    def _release_all(self, _effect: ev.ReleaseAll) -> None:
        """In a short stop, so that no packet is between two hands: everything held goes out, QEMU
        reads it all, then the redirector is removed."""
        assert self.monitor is not None
        held = bool(self.ports)
        packets = size = 0
        with self._vm_stopped():
            for port in self.ports:
                port.drain()
                self.held.setdefault(self.machine.taken + 1, []).append((port, port.cut()))
            for epoch in sorted(self.held):
                for port, segment in self.held[epoch]:
                    packets, size = packets + segment.packets, size + len(segment.data)
                    port.release(segment)
            self.held.clear()
            self.reactor.run_until(lambda: all(port.idle for port in self.ports), RELEASE_BOUND)
            qemu_setup.remove_redirectors(self.monitor, self.config.nics, self.directory)
            self._remove_mirrors()
        for port in self.ports:
            port.close()
        self.ports.clear()
        if self.memory is not None:
            self.memory.detach()
            self.memory = None
        if self.engine is not None:
            self.engine.discard_state_file()
        unlink_quietly(self._epochs_mark)
        if held:
            self.link.event("output_open", f"released held output: {packets} packets; from here on "
                            "nothing is held", packets=packets, bytes=size)  # fmt: skip
        self.post(ev.Released())

    @contextmanager
    def _vm_stopped(self) -> Iterator[None]:
        """Stop the VM, if it runs, for what must not meet a packet or a write under way.

        A checkpoint under way is waited for, and kept from letting the VM run again meanwhile.
        """
        assert self.monitor is not None
        engine = self.engine
        held = paused = False
        if engine is not None:
            held, paused = engine.holds_vm, engine.stay_stopped
            engine.stay_stopped = True
            self.reactor.run_until(lambda: not engine.busy, CHECKPOINT_BOUND)
        running = bool(self.monitor.execute("query-status")["running"])
        marked = os.path.exists(self._epochs_mark)
        if running:
            self._mark_stops()
            self._rest_mirrors()
            self.monitor.execute("stop")
        try:
            yield
        finally:
            if engine is not None:
                engine.stay_stopped, engine.holds_vm = paused, False
            if (running or held) and not paused:
                self.monitor.execute("cont")
            if not marked:
                unlink_quietly(self._epochs_mark)

    def _rest_mirrors(self) -> None:
        """Pause the mirrors, as every `stop` needs it, and wait until they are at rest. One that
        cannot rest within MIRROR_REST seconds waits for the peer, and is not about to go on."""
        assert self.monitor is not None
        monitor = self.monitor
        qemu_setup.rest(monitor, qemu_setup.jobs(monitor))
        self.reactor.run_until(
            lambda: qemu_setup.at_rest(qemu_setup.jobs(monitor)), MIRROR_REST, ASK_EVERY
        )

    def _mirrors(self) -> set[str]:
        """The block jobs of ours that this QEMU has."""
        assert self.monitor is not None
        names = {qemu_setup.job_of(disk.target) for disk in self.config.disks}
        return names & set(qemu_setup.jobs(self.monitor))

    def _remove_mirrors(self) -> None:
        """End the mirrors; the VM must be stopped.

        A mirror that ends while a guest's write is under way frees what that write uses next
        (QEMU 7.2, block/mirror.c: `active_write_settle` after the end of `mirror_run`), and the VM
        dies of it. `stop` waits for writes under way, and a stopped VM makes none.
        """
        assert self.monitor is not None
        monitor = self.monitor
        self._mirroring = False
        names = [qemu_setup.job_of(disk.target) for disk in self.config.disks]
        for name in names:
            qemu_setup.quietly(monitor, command("block-job-cancel", device=name, force=True))
        self.reactor.run_until(lambda: not self._mirrors(), MIRROR_GONE, ASK_EVERY)
        for name in names:
            qemu_setup.quietly(monitor, command("blockdev-del", node_name=name))
        for server in self.servers:
            server.close()
        self.servers.clear()

    def _kill_vm(self, _effect: ev.KillVm) -> None:
        """Fence through a descriptor of the very process, so that no recycled pid is hit."""
        packets = sum(segment.packets for parts in self.held.values() for __, segment in parts)
        self.held.clear()
        self.link.event("vm_killed", f"QEMU is killed here; {packets} held packets are thrown away",
                        packets=packets)  # fmt: skip
        self._vm_died = True  # by our hand: its end is nobody's loss, and is not told as one
        self._unwatch_qemu()
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    # -- watching QEMU ------------------------------------------------------------------------------

    def _watch_qemu(self) -> None:
        self._pidfd = os.pidfd_open(self.config.qemu_pid)
        self.reactor.add(self._pidfd, READ, self._qemu_died)

    def _unwatch_qemu(self) -> None:
        self.reactor.remove(self._pidfd)

    def _qemu_event(self, name: str, data: dict[str, Any]) -> None:
        if name == "SHUTDOWN":
            self._shutdown = "guest" if data.get("guest") else "host"

    def _qemu_died(self, _mask: int) -> None:
        if self._vm_died:
            return
        self._vm_died = True
        self._unwatch_qemu()
        self.reactor.step(0)  # QEMU's last event may still wait in the monitor's socket
        if self._shutdown == "guest":
            self._tell_death(True)
        elif self.config.own_monitor and self._shutdown is None:
            self._tell_death(False)
        else:
            # libvirt may take its time, and heartbeats must go on: silence would be a takeover.
            def ask() -> None:
                answer = self._ended_on_purpose()
                self.reactor.call_soon_threadsafe(lambda: self._tell_death(answer))

            threading.Thread(target=ask, name="libvirt", daemon=True).start()

    def _tell_death(self, powered_off: bool) -> None:
        reason = "the VM was powered off" if powered_off else "QEMU died on the primary"
        self.link.event("vm_died", reason)
        self.post(ev.VmDied(reason, powered_off))

    def _ended_on_purpose(self) -> bool:
        """True when libvirt ended the VM because somebody asked it to; a host that goes down ends
        its VMs as well, and that is what the secondary is for.

        Without a monitor of ours QEMU's events do not reach us, so libvirt is asked in any case.
        """
        import libvirt

        wanted = {libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED}
        if not self.config.own_monitor:
            wanted.add(libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN)
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            try:
                state, reason = self._domain().state()
            except libvirt.libvirtError:
                return False
            if state == libvirt.VIR_DOMAIN_SHUTOFF:
                return reason in wanted and not host_goes_down()
            time.sleep(0.01)
        return False

    def _domain(self) -> Any:
        import libvirt

        return libvirt.open("qemu:///system").lookupByUUIDString(self.config.uuid)

    # -- telling ------------------------------------------------------------------------------------

    def _wake_at(self, effect: ev.WakeAt) -> None:
        if self._wake is not None:
            self._wake.cancel()
        self._wake = self.reactor.call_at(effect.due, lambda: self.post(ev.Tick()))

    def _report(self, effect: ev.Report) -> None:
        self.state = (effect.state, effect.reason)
        if effect.state == "protected":
            self.sync_percent = 100.0
            self.link.event("synced", "what differed was sent", **self._sync_figures())
        self.link.send(msg="state", state=effect.state, reason=effect.reason)
        self.link.event("state", effect.reason, state=effect.state, role="primary",
                        generation=self.arbiter.generation)  # fmt: skip
        self._status()

    def _sync_figures(self) -> dict[str, int]:
        """Bytes that the sync sent, and bytes that the secondary had already."""
        return {
            "memory_bytes": self.synced_memory,
            "memory_left_out_bytes": 4096 * (self.known.pages_left_out if self.known else 0),
            "disk_bytes": sum(each.sent for each in self.filters),
            "disk_left_out_bytes": sum(each.left_out for each in self.filters),
        }

    def _finish(self, effect: ev.Finish) -> None:
        self._finished = True
        self._forget_input()
        for priority in self._priorities:
            priority.give_back()
        if effect.outcome is ev.Outcome.HANDED_OVER:
            self._stay_for_the_memory(effect.reason)
            return
        if self.memory is not None and effect.outcome is not ev.Outcome.FENCED:
            self.memory.detach()
        if effect.outcome is ev.Outcome.DETACHED and not self._suspending:
            self.arbiter.remove(3.0)
        self._status()
        self.link.send(msg="done", outcome=effect.outcome.value, reason=effect.reason)
        self.reactor.stop()

    def _stay_for_the_memory(self, reason: str) -> None:
        """This process holds the memory until the agent says `release`, or is gone."""
        blocks = [
            {"name": block.name, "size": block.size, "fd": descriptor}
            for block, descriptor in self._kept
        ]
        self.link.send(msg="handed_over", reason=reason, pid=os.getpid(), blocks=blocks)

    def _status_timer(self) -> None:
        self._status()
        if not self._finished:
            self.reactor.call_later(STATUS_EVERY, self._status_timer)

    def _status(self) -> None:
        now = self.reactor.now()
        stats = self.stats
        sent = self._sent_before + (self.stream.sent_bytes if self.stream else 0)
        stats.sample(now, sent)
        since = round((now - stats.last_commit) * 1000, 1) if stats.last_commit else None
        self.link.send(
            msg="status",
            state=self.state[0],
            reason=self.state[1],
            generation=self.arbiter.generation,
            epoch=self.machine.acked,
            epochs=stats.epochs,
            interval_ms=quantiles(stats.gaps)["p50"],
            objective_missed=self.machine.pacer.shortfall() if self.machine.protected else None,
            last_commit_age_ms=since,
            sync_percent=self.sync_percent,
            pause_ms=quantiles(stats.pauses),
            commit_ms=quantiles(stats.commits),
            pages_per_epoch=quantiles(stats.pages),
            log_bandwidth_bytes_s=round(max(0.0, stats.bandwidth)),
            held_bytes=sum(port.held_bytes for port in self.ports),
            guest_clock_loss_ppm=round(stats.clock_loss_ppm(now)),
            sync=self._sync_figures(),
            totals=stats.totals(sent),
        )


class _Bulk:
    """Progress of the first copy of all populated memory."""

    def __init__(self, worker: PrimaryWorker) -> None:
        assert worker.memory is not None
        self._worker = worker
        assert worker.known is not None
        self._ranges = worker.known.to_copy(worker.memory)
        self.total = int((self._ranges[:, 1] - self._ranges[:, 0]).sum())
        self.sent = 0
        self.done = False

    def pump(self) -> None:
        """Begin sending."""
        self._worker.send_memory(self._ranges, True, self._finished)

    def _finished(self) -> None:
        self.done = True


def _chunks(ranges: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut `ranges` (n, 2) into groups of at most `size` bytes each, splitting long ranges."""
    groups: list[list[tuple[int, int]]] = [[]]
    room = size
    for start, end in ranges.tolist():
        while start < end:
            take = min(room, end - start)
            groups[-1].append((start, start + take))
            start += take
            room -= take
            if room == 0:
                groups.append([])
                room = size
    return [np.array(group, dtype=np.uint64) for group in groups if group]


def qemu_directory(run_dir: str, pid: int) -> str:
    """A directory in `run_dir` where QEMU process `pid` may make and open files; its path."""
    path = os.path.join(run_dir, "qemu")
    os.makedirs(path, mode=0o700, exist_ok=True)
    for above in (os.path.dirname(run_dir), run_dir):
        os.chmod(above, 0o711)  # whatever the umask: QEMU's user must get through, not look around
    os.chown(path, *qemu_owner(pid))
    return path


def qemu_owner(pid: int) -> tuple[int, int]:
    """The user and group (ids) that QEMU process `pid` runs as."""
    status = os.stat(f"/proc/{pid}")
    try:
        return status.st_uid, pwd.getpwuid(status.st_uid).pw_gid
    except KeyError:
        return status.st_uid, status.st_gid


def host_goes_down() -> bool:
    """True while systemd shuts this host down."""
    try:
        done = subprocess.run(["systemctl", "is-system-running"], capture_output=True, text=True,
                              check=False, timeout=1)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == "stopping"
