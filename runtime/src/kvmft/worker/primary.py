"""The primary's worker: carries out what `core.primary` decides, and tells it what happened."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from kvmft.adapters import ftlog
from kvmft.adapters.memory import GuestMemory
from kvmft.adapters.priority import Priority
from kvmft.adapters.ramblocks import discover
from kvmft.adapters.reactor import Reactor
from kvmft.core import events as ev
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
from kvmft.worker.audits import Audits
from kvmft.worker.claims import Claims
from kvmft.worker.config import WorkerConfig
from kvmft.worker.disk_capture import DiskCapture
from kvmft.worker.driver import Driver
from kvmft.worker.engine import Checkpoint, Engine
from kvmft.worker.first_sync import FirstSync
from kvmft.worker.left_memory import LeftMemory
from kvmft.worker.link import AgentLink
from kvmft.worker.mirrors import Mirrors
from kvmft.worker.output import HeldOutput
from kvmft.worker.peerlink import PeerLink
from kvmft.worker.primary_status import PrimaryStatus
from kvmft.worker.qemu import Qemu
from kvmft.worker.shadow import Shadow
from kvmft.worker.stops import Stops
from kvmft.worker.true_time import TrueTime
from kvmft.worker.watched_input import WatchedInput


class PrimaryWorker:
    """One protected VM, on the side where it runs."""

    def __init__(self, reactor: Reactor, config: WorkerConfig, link: AgentLink) -> None:
        self.reactor = reactor
        self.config = config
        self.link = link
        self.machine = PrimaryMachine(Tuning(config.pace, config.hold_bound))
        self.claims = Claims(reactor, config, link, self.post)
        self.qemu = Qemu(reactor, config, self._tell_death)
        self.peer = PeerLink(reactor, config, link, self)
        self.capture = DiskCapture(
            reactor, config, self.peer, lambda: self.machine.taken, self._output
        )
        self.mirrors = Mirrors(reactor, config, self.qemu, self.capture, self._failed)
        self.stops = Stops(reactor, config, link, self.qemu, self.mirrors.rest)
        self.sync = FirstSync(
            reactor,
            config,
            self.peer,
            self.qemu,
            self.mirrors,
            self.capture,
            lambda: self.machine.phase is Phase.BULK and not self.driver.finished,
            lambda: self.post(ev.BulkDone()),
        )
        self.input = WatchedInput(reactor, config, link, self.qemu, self.peer.send)
        self.output = HeldOutput(reactor, config, link, self.qemu, self._output)
        self.audits = Audits(link)
        self.left = LeftMemory(link)
        self.clock = TrueTime(reactor, config, link)
        self.status = PrimaryStatus(
            reactor, link, self.machine, self.claims, self.peer, self.sync, self.output, self.clock
        )
        self.memory: GuestMemory | None = None
        self.engine: Engine | None = None
        self._peer_replays = False
        self._priorities: list[Priority] = []
        self._suspending = False
        commands = {
            ev.StartClaim: self._start_claim,
            ev.Connect: self._connect,
            ev.StartBulk: self._start_bulk,
            ev.TakeRound: self._take_round,
            ev.InstallHold: self._install_hold,
            ev.TakeCheckpoint: self._take_checkpoint,
            ev.ReleaseOutput: lambda effect: self.output.release(effect.epoch),
            ev.NameOffer: self._name_offer,
            ev.ReleaseAll: self._release_all,
            ev.PauseVm: self._pause_vm,
            ev.ResumeVm: self._resume_vm,
            ev.KillVm: self._kill_vm,
            ev.HandOver: self._hand_over,
            ev.KeepMemory: self._keep_memory,
            ev.Farewell: self._farewell,
            ev.DropPeer: self._drop_peer,
            ev.Report: self._report,
            ev.Finish: self._finish,
        }
        self.driver = Driver(reactor, link, self.machine, commands, self._failed)

    # -- the main path ----------------------------------------------------------------------------

    def start(self) -> None:
        """Attach to QEMU and hand the first event to the machine."""
        self.qemu.attach()
        self.stops.run_on_after_a_crash()
        self.status.start()
        self.post(ev.Started(self.config.create, self.config.peer_port is not None))

    def post(self, event: ev.Event) -> None:
        """Tell the machine of `event`, and carry out what it decides."""
        self.driver.post(event)

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
            case "epochs":
                newer = self.status.stats.newer(self.reactor.now(), line.get("since"))
                self.link.send(msg="epochs", id=line["id"], **newer)
            case "audit":
                if self.machine.protected:
                    self.audits.ask(int(line["id"]))
                else:
                    self.audits.refuse(line["id"], "the VM is not protected")

    def step_failed(self, reason: str) -> None:
        """Something failed outside of an effect, as reading the memory of a VM that just died."""
        self.link.event("failed", reason)
        if self.engine is not None:
            self.engine.busy = False
        self._failed(reason)

    def _failed(self, reason: str) -> None:
        """A step failed. If that is because QEMU is dying, its death is what the machine must hear:
        this side would claim to run alone a VM that is gone, and win against the secondary."""
        if not self.qemu.ends():
            self.post(ev.Failed(reason))

    def _tell_death(self, powered_off: bool) -> None:
        reason = "the VM was powered off" if powered_off else "QEMU died on the primary"
        self.link.event("vm_died", reason)
        self.post(ev.VmDied(reason, powered_off))

    # -- arbitration --------------------------------------------------------------------------------

    def _start_claim(self, effect: ev.StartClaim) -> None:
        self.claims.start(effect.purpose)

    def _name_offer(self, effect: ev.NameOffer) -> None:
        record = self.claims.name_pair(effect.epoch)
        self.peer.send(encode(FrameType.OFFER, effect.epoch, record))

    # -- the secondary ------------------------------------------------------------------------------

    def _connect(self, _effect: ev.Connect) -> None:
        config = self.config
        assert config.peer_port is not None
        self.output.remove()
        if self.mirrors.present():
            with self.stops.vm_stopped():
                self.mirrors.remove()
        self.memory = self._attach_memory()
        self.sync.expect(self.memory)
        address = (config.peer_address, config.peer_port)
        self.peer.open(ftlog.connect(config.peer, address, config.tls))
        self.peer.send(
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
                    "beacons": self.peer.life.offer(),
                },
            )
        )

    def _attach_memory(self) -> GuestMemory:
        blocks = discover(self.qemu.hmp, self.config.qemu_pid)
        memory = GuestMemory()
        memory.attach(self.config.qemu_pid, blocks)
        self.engine = self.stops.engine = Engine(
            self.reactor,
            self.qemu.monitor,
            memory,
            self.capture.log,
            os.path.join(self.qemu.directory, "device-state"),
            self._failed,
        )
        self.engine.on_progress = self.peer.show_life
        self.engine.on_last_stop = self.input.hand_over
        return memory

    @property
    def position(self) -> int:
        """The last checkpoint that was taken."""
        return self.machine.taken

    @property
    def paired(self) -> bool:
        """Whether epochs are under way."""
        return self.machine.phase is Phase.EPOCHS

    def allocate(self, header: Header) -> memoryview:
        """Room for what the secondary sends, all of which is small."""
        if header.length > (1 << 20):
            raise WireError(f"The secondary sent a {header.type.name} of {header.length} bytes.")
        return memoryview(bytearray(header.length))

    def frame(self, frame: Frame) -> None:
        """The secondary says something."""
        match frame.type:
            case FrameType.HEARTBEAT:
                pass
            case FrameType.DIGESTS:
                self._learn(frame)
            case FrameType.WELCOME:
                self._welcomed(frame.json())
                self.post(ev.Welcomed())
            case FrameType.RELIEVED:
                self.post(ev.Relieved())
            case FrameType.ACK:
                self.status.stats.committed(self.reactor.now())
                self.post(ev.Acked(frame.epoch))
            case FrameType.OFFER_ACK:
                self.post(ev.OfferStored())
            case FrameType.AUDIT_RESULT:
                self.audits.result(frame.json())
            case FrameType.REFUSAL:
                self.peer_lost(ev.Loss.REFUSED, str(frame.json().get("reason")))
            case _:
                raise WireError(f"The secondary sent a {frame.type.name} frame.")

    def _welcomed(self, knows: dict[str, Any]) -> None:
        """What the secondary's version knows; an older one gets whole pages, no packets and no beacons."""
        self._peer_replays = bool(knows.get("replays"))
        self.peer.life.learn(knows.get("beacons"))
        if knows.get("deltas") and self.config.delta_size and self.memory is not None and self.engine is not None:
            sizes = [block.size for block in self.memory.blocks]
            self.engine.shadow = Shadow(sizes, self.config.delta_size)

    def _learn(self, frame: Frame) -> None:
        if self.machine.phase is not Phase.CONNECTING or self.sync.known is None:
            raise WireError("A DIGESTS frame came after WELCOME.")
        self.sync.known.learn(split_digests(frame.body))

    def peer_lost(self, how: ev.Loss, reason: str, **figures: Any) -> None:
        """The secondary is gone, or of no use; `figures` go into the events log."""
        if not self.driver.finished:
            self.link.event("secondary_lost", reason, signal=how.value, **figures)
        self.post(ev.PeerLost(how, reason))

    def _farewell(self, effect: ev.Farewell) -> None:
        body = {"reason": effect.reason, "claim": effect.claim}
        self.peer.send(encode_json(FrameType.BYE, body))
        self.peer.flush_and_close()

    def _drop_peer(self, _effect: ev.DropPeer) -> None:
        self.input.forget()
        self.peer.drop()
        self.capture.release()

    # -- first sync ---------------------------------------------------------------------------------

    def _start_bulk(self, _effect: ev.StartBulk) -> None:
        assert self.memory is not None and self.sync.known is not None
        self.mirrors.connect(self.sync.known)
        with self.stops.vm_stopped():
            self.mirrors.start()
        self.mirrors.started()
        self.sync.start(self.memory)

    def _take_round(self, _effect: ev.TakeRound) -> None:
        assert self.engine is not None
        self.stops.mark()

        def scanned(ranges: np.ndarray, pause: float) -> None:
            assert self.memory is not None
            size = int((ranges[:, 1] - ranges[:, 0]).sum()) if len(ranges) else 0
            self.status.stats.paused_total += pause
            self.sync.send_round(self.memory, ranges, lambda: self.post(ev.RoundDone(size)))

        self.engine.round(scanned)

    # -- epochs -------------------------------------------------------------------------------------

    def _install_hold(self, _effect: ev.InstallHold) -> None:
        self.output.install()
        self.status.epochs_begin()
        if self.config.replay_input and self._peer_replays:
            self.input.begin()
        if self.config.realtime:
            self._priorities = [Priority(), Priority(self.config.qemu_pid)]
            if refused := next((each.refused for each in self._priorities if each.refused), ""):
                self.link.event("no_realtime", f"checkpoints have no priority over other work: {refused}")
        self.clock.begin()
        self.post(ev.HoldInstalled())

    def _output(self) -> None:
        self.post(ev.OutputPending())

    def _take_checkpoint(self, effect: ev.TakeCheckpoint) -> None:
        assert self.engine is not None
        audit = self.audits.begin()
        if effect.last:
            self.input.begin()
        self.input.cut(effect.epoch)
        self.clock.pausing()
        self.engine.take(
            effect.epoch, audit, lambda: self.output.cut(effect.epoch), self._captured, effect.last
        )

    def _captured(self, checkpoint: Checkpoint) -> None:
        now = checkpoint.until
        if not self.mirrors.go_on_still():
            return
        self.status.stats.captured(now, checkpoint.pause, checkpoint.pages, checkpoint.saved)
        if self.engine is not None and not self.engine.holds_vm:
            self.clock.running(now)
        self.peer.send(*checkpoint.parts)
        if checkpoint.audit is not None:
            head = encode_header(FrameType.AUDIT, checkpoint.epoch, len(checkpoint.audit))
            self.peer.send(head, checkpoint.audit)
        self.post(ev.Captured(checkpoint.epoch, checkpoint.pause, checkpoint.size, checkpoint.until))

    # -- planned switchover -------------------------------------------------------------------------

    def _hand_over(self, _effect: ev.HandOver) -> None:
        self.peer.send(encode(FrameType.HANDOVER, self.machine.taken))

    def _keep_memory(self, _effect: ev.KeepMemory) -> None:
        """The VM runs elsewhere: keep what it left in memory, for the standby to come, and end it."""
        assert self.memory is not None
        self.left.keep(self.memory)
        self._kill_vm(ev.KillVm())

    # -- leaving ------------------------------------------------------------------------------------

    def _pause_vm(self, _effect: ev.PauseVm) -> None:
        self.clock.pausing()
        self.stops.execute("stop", stay_stopped=True)

    def _resume_vm(self, _effect: ev.ResumeVm) -> None:
        self.stops.execute("cont", stay_stopped=False)
        self.clock.running(self.reactor.now())

    def _release_all(self, _effect: ev.ReleaseAll) -> None:
        """In a short stop, so that no packet is between two hands: everything held goes out, QEMU
        reads it all, then the redirector is removed."""
        held = bool(self.output.ports)
        with self.stops.vm_stopped():
            packets, size = self.output.release_all(self.machine.taken)
            self.output.remove()
            self.mirrors.remove()
        self.output.close()
        self.clock.leave()
        if self.memory is not None:
            self.memory.detach()
            self.memory = None
        if self.engine is not None:
            self.engine.discard_state_file()
        self.stops.unmark()
        if held:
            self.link.event("output_open", f"released held output: {packets} packets; from here on "
                            "nothing is held", packets=packets, bytes=size)  # fmt: skip
        self.post(ev.Released())

    def _kill_vm(self, _effect: ev.KillVm) -> None:
        packets = self.output.throw_away()
        self.link.event("vm_killed", f"QEMU is killed here; {packets} held packets are thrown away",
                        packets=packets)  # fmt: skip
        self.qemu.kill()

    def _finish(self, effect: ev.Finish) -> None:
        self.driver.finished = True
        self.peer.end()
        self.status.end()
        self.input.forget()
        self.clock.leave()
        for priority in self._priorities:
            priority.give_back()
        if effect.outcome is ev.Outcome.HANDED_OVER:
            self.left.tell(effect.reason)
            return
        if self.memory is not None and effect.outcome is not ev.Outcome.FENCED:
            self.memory.detach()
        if effect.outcome is ev.Outcome.DETACHED and not self._suspending:
            self.claims.remove(3.0)
        self.status.send()
        if effect.outcome is not ev.Outcome.FENCED:  # which the agent must write down at once
            self.qemu.wait_gone()
        self.link.send(msg="done", outcome=effect.outcome.value, reason=effect.reason)
        self.reactor.stop()

    # -- telling ------------------------------------------------------------------------------------

    def _report(self, effect: ev.Report) -> None:
        self.status.state = (effect.state, effect.reason)
        if effect.state == "protected":
            self.sync.percent = 100.0
            self.link.event("synced", "what differed was sent", **self.sync.figures())
        self.link.send(msg="state", state=effect.state, reason=effect.reason)
        self.link.event("state", effect.reason, state=effect.state, role="primary",
                        generation=self.claims.generation)  # fmt: skip
        self.status.send()
