"""The arbiter's record of a VM: who may run, and by which right. Frozen values, canonical bytes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum

from kvmft.errors import KvmftError

VERSION = 1
_FIELDS = ("cluster", "epoch", "gen", "holder", "mode", "nonce", "peer", "v")


class Mode(str, Enum):
    """SOLO: `holder` alone may run. PAIRED: `holder` runs, `peer` may claim. STOPPED: nobody."""

    PAIRED = "PAIRED"
    SOLO = "SOLO"
    STOPPED = "STOPPED"


@dataclass(frozen=True)
class Record:
    """One value of the arbiter's key.

    `gen` rises by 1 with each change; `nonce` (32 hex digits, 128 random bits) makes each attempt
    at a change distinguishable from every other one; `epoch` is the commit that a pair began with.
    """

    cluster: str
    gen: int
    mode: Mode
    holder: str
    peer: str
    nonce: str
    epoch: int
    v: int = VERSION

    def to_bytes(self) -> bytes:
        """Canonical bytes: JSON with sorted keys and no spaces. Equal records, equal bytes."""
        value = {name: getattr(self, name) for name in _FIELDS}
        value["mode"] = self.mode.value
        return json.dumps(value, separators=(",", ":")).encode("ascii")


def _malformed(why: str) -> KvmftError:
    return KvmftError(
        "arbiter_record_malformed",
        f"The arbiter's record is not one of kvmft's: {why}.",
        "Somebody else wrote to this key; restore the arbiter or ask a person who knows.",
    )


def _is_count(value: object) -> bool:
    """True for a number from 0; JSON's true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def from_bytes(data: bytes, cluster: str) -> Record:
    """The record in `data`. KvmftError `arbiter_record_malformed` when it is not canonical, and
    `arbiter_other_cluster` when it belongs to another cluster than `cluster`."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise _malformed(str(error)) from error
    if not isinstance(value, dict) or tuple(sorted(value)) != _FIELDS:
        raise _malformed("its fields are others")
    texts = all(isinstance(value[key], str) for key in ("cluster", "holder", "peer", "nonce"))
    numbers = all(_is_count(value[key]) for key in ("gen", "epoch", "v"))
    modes = {mode.value for mode in Mode}
    if not texts or not numbers or value["mode"] not in modes or value["v"] != VERSION:
        raise _malformed("a field has an impossible value")
    if not re.fullmatch(r"[0-9a-f]{32}", value["nonce"]):
        raise _malformed("its nonce is not 32 hex digits")
    record = Record(**{**value, "mode": Mode(value["mode"])})
    if record.to_bytes() != data:
        raise _malformed("its bytes are not canonical")
    if record.cluster != cluster:
        raise KvmftError(
            "arbiter_other_cluster",
            f"The arbiter's record belongs to cluster {record.cluster}, ours is {cluster}.",
            "Point this host at its own arbiter, or correct cluster_id.",
        )
    return record


def first(cluster: str, holder: str, peer: str, nonce: str) -> Record:
    """The record that turning FT on creates: `holder` alone may run."""
    return Record(cluster, 1, Mode.SOLO, holder, peer, nonce, 0)


def solo(base: Record, holder: str, peer: str, nonce: str, gen: int | None = None) -> Record:
    """The successor of `base` in which `holder` alone may run; of generation `gen`, which is above
    that of `base`, or of the next one."""
    number = base.gen + 1 if gen is None else gen
    return Record(base.cluster, number, Mode.SOLO, holder, peer, nonce, base.epoch)


def paired(base: Record, holder: str, peer: str, nonce: str, epoch: int) -> Record:
    """The successor of `base` in which `peer` may take over from commit `epoch` on."""
    return Record(base.cluster, base.gen + 1, Mode.PAIRED, holder, peer, nonce, epoch)


def brief(record: Record) -> str:
    """The record as people read it; of its nonce only the first 8 digits."""
    return (
        f"generation {record.gen} ({record.mode.value} by {record.holder}, "
        f"nonce {record.nonce[:8]})"
    )
