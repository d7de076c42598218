"""What happens to a replication machine, and what it wants done: frozen values, no behaviour.

Times are seconds of the caller's monotonic clock. Epochs count from 1 within one session.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Loss(Enum):
    """How the peer was lost; it decides how soon a claim is made."""

    SILENCE = "silence"
    CLOSED = "closed"
    FAREWELL = "farewell"
    REFUSED = "refused"


class Purpose(Enum):
    """What a change of the arbiter's record is for."""

    CREATE = "create"
    SOLO = "solo"
    PAIR = "pair"
    REMOVE = "remove"


class Outcome(Enum):
    """How a worker ended, as the agent is told."""

    DETACHED = "detached"
    ACTIVATED = "activated"
    FENCED = "fenced"
    FAILED = "failed"
    SOLO = "solo"
    HANDED_OVER = "handed_over"
    UNSETTLED = "unsettled"


# -- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """The worker is attached; `create` asks for a new record, else ours is resumed."""

    create: bool
    has_peer: bool = True


@dataclass(frozen=True)
class Welcomed:
    """The secondary accepted the session."""


@dataclass(frozen=True)
class BulkDone:
    """All populated memory was sent once and every disk's mirror is ready."""


@dataclass(frozen=True)
class RoundDone:
    """A copy round ended; `dirty_bytes` is what it had to send."""

    dirty_bytes: int


@dataclass(frozen=True)
class HoldInstalled:
    """From now on every packet of the guest passes through our hands."""


@dataclass(frozen=True)
class Captured:
    """Checkpoint `epoch` was taken and handed to the FT log; with what the secondary knew already it has `size` bytes. The VM
    runs again since `resumed` (seconds, on the machine's clock; None: just now)."""

    epoch: int
    pause: float
    size: int = 0
    resumed: float | None = None


@dataclass(frozen=True)
class Acked:
    """The secondary holds all of checkpoint `epoch`."""

    epoch: int


@dataclass(frozen=True)
class OfferStored:
    """The secondary stored the offered record durably."""


@dataclass(frozen=True)
class Claimed:
    """The arbiter's final verdict on the running claim: `won`, else lost or halted."""

    won: bool
    halted: bool = False
    reason: str = ""


@dataclass(frozen=True)
class OutputPending:
    """The guest has sent a packet that now waits for a commit."""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class PeerLost:
    """The connection ended, or the detector suspects the peer."""

    how: Loss
    reason: str


@dataclass(frozen=True)
class VmDied:
    """QEMU is gone or the guest powered off."""

    reason: str
    powered_off: bool = False


@dataclass(frozen=True)
class Released:
    """`ReleaseAll` was carried out: the guest's output is open and the mirrors are gone."""


@dataclass(frozen=True)
class StopAsked:
    """A person turned protection off (`disable`) or suspended it."""

    suspend: bool = False


@dataclass(frozen=True)
class SwitchAsked:
    """A person orders a planned switchover: the secondary shall run the VM, nothing is lost."""


@dataclass(frozen=True)
class Relieved:
    """The secondary runs the VM now, by right; this side's VM is stopped for good."""


@dataclass(frozen=True)
class Staged:
    """Secondary: every byte of checkpoint `epoch` has arrived."""

    epoch: int


@dataclass(frozen=True)
class Committed:
    """Secondary: checkpoint `epoch` would now survive a kill of this worker."""

    epoch: int


@dataclass(frozen=True)
class Applied:
    """Secondary: memory and disks now equal commit `epoch`."""

    epoch: int


@dataclass(frozen=True)
class Offered:
    """Secondary: the primary named the record of the pair."""

    record: bytes


@dataclass(frozen=True)
class OfferPersisted:
    """Secondary: the named record and the commit it belongs to are durable."""


class Stage(Enum):
    """How far the standby's QEMU had come when its worker was killed."""

    WAITING = "waiting"  # for device state
    LOADED = "loaded"  # holds the commit's device state, but does not run
    RUNNING = "running"  # it was let run, so the claim had been won


@dataclass(frozen=True)
class Recovered:
    """Secondary: after a restart, the journal holds commit `epoch` and the record is known."""

    epoch: int
    stage: Stage = Stage.WAITING


@dataclass(frozen=True)
class ClaimAsked:
    """Secondary: a failover is ordered; `planned` by the primary, which stopped its VM after the
    last commit, else by a person."""

    planned: bool = False


@dataclass(frozen=True)
class Loaded:
    """Secondary: the standby's QEMU holds the device state of the last commit; it does not run."""


@dataclass(frozen=True)
class Activated:
    """Secondary: the VM runs here now."""


@dataclass(frozen=True)
class Failed:
    """A step on this side failed (disk full, monitor lost, ...)."""

    reason: str


# -- effects --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartClaim:
    """Run the arbitration for `purpose`; its end comes back as `Claimed`."""

    purpose: Purpose


@dataclass(frozen=True)
class Connect:
    """Open the FT log to the secondary and greet it."""


@dataclass(frozen=True)
class StartBulk:
    """Start the disk mirrors and send all populated memory while the VM runs."""


@dataclass(frozen=True)
class TakeRound:
    """Scan dirty memory in a short stop, then send it while the VM runs."""


@dataclass(frozen=True)
class InstallHold:
    """Put the redirector into the VM's output."""


@dataclass(frozen=True)
class TakeCheckpoint:
    """Stop, save, scan, copy, run on; send as checkpoint `epoch`. After the `last` one the VM
    stays stopped."""

    epoch: int
    last: bool = False


@dataclass(frozen=True)
class ReleaseOutput:
    """Let the output of all epochs up to `epoch` go."""

    epoch: int


@dataclass(frozen=True)
class NameOffer:
    """Name the pair's record durably, then offer it to the secondary, which holds `epoch`."""

    epoch: int


@dataclass(frozen=True)
class ReleaseAll:
    """Let all held output go, open the VM's output for good and take the mirrors away."""


@dataclass(frozen=True)
class PauseVm:
    """Stop the VM; its output may not be shown and the bound is over."""


@dataclass(frozen=True)
class ResumeVm:
    """Let a VM that `PauseVm` stopped run again."""


@dataclass(frozen=True)
class KillVm:
    """Fence: this VM must not go on. Held output is thrown away."""


@dataclass(frozen=True)
class Farewell:
    """Tell the peer why we leave; `claim` asks it to take over at once."""

    reason: str
    claim: bool = False


@dataclass(frozen=True)
class HandOver:
    """Tell the secondary to take over: it holds all that this VM ever did."""


@dataclass(frozen=True)
class KeepMemory:
    """Keep the stopped VM's memory and end its QEMU: what is here becomes the standby."""


@dataclass(frozen=True)
class DropPeer:
    """Close the FT log."""


@dataclass(frozen=True)
class WakeAt:
    """Send a `Tick` at `due`."""

    due: float


@dataclass(frozen=True)
class Report:
    """The VM's state, for people."""

    state: str
    reason: str


@dataclass(frozen=True)
class Commit:
    """Secondary: make staged checkpoint `epoch` survive a kill of this worker."""

    epoch: int


@dataclass(frozen=True)
class SendAck:
    """Secondary: acknowledge `epoch`."""

    epoch: int


@dataclass(frozen=True)
class Apply:
    """Secondary: write commit `epoch` into the standby's memory and disks."""

    epoch: int


@dataclass(frozen=True)
class PersistOffer:
    """Secondary: store the record durably, marking the replica as startable with it."""

    record: bytes


@dataclass(frozen=True)
class SendOfferAck:
    """Secondary: tell the primary that the record is stored."""


@dataclass(frozen=True)
class DrawInput:
    """Secondary: have the network bring the VM's packets here, where they wait for it: it is dead elsewhere."""


@dataclass(frozen=True)
class Load:
    """Secondary: load the device state of commit `epoch` into QEMU, without letting it run."""

    epoch: int


@dataclass(frozen=True)
class Run:
    """Secondary: let the loaded standby run; its claim was won."""


@dataclass(frozen=True)
class SendRelief:
    """Secondary: tell the primary, which waits, that the VM runs here."""


@dataclass(frozen=True)
class Discard:
    """Secondary: the replica is worthless; mark it so and let the standby go."""


@dataclass(frozen=True)
class Finish:
    """The worker is done."""

    outcome: Outcome
    reason: str


Event = (
    Started | Welcomed | BulkDone | RoundDone | HoldInstalled | Captured | Acked | OfferStored
    | Claimed | OutputPending | Tick | PeerLost | VmDied | Released | StopAsked | SwitchAsked
    | Relieved | Staged | Committed | Applied | Offered | OfferPersisted | Recovered | ClaimAsked
    | Loaded | Activated | Failed
)  # fmt: skip
Effect = (
    StartClaim | Connect | StartBulk | TakeRound | InstallHold | TakeCheckpoint | ReleaseOutput
    | NameOffer | ReleaseAll | PauseVm | ResumeVm | KillVm | Farewell | HandOver | KeepMemory
    | DropPeer | WakeAt | Report | Commit | SendAck | Apply | PersistOffer | SendOfferAck
    | DrawInput | Load | Run | SendRelief | Discard | Finish
)  # fmt: skip


class IllegalEvent(ValueError):
    """An event that cannot happen in this phase; the machine is unchanged."""
