"""The epochs of a protected VM over a stretch of time, put together from what its worker keeps. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = ("pause_ms", "commit_ms", "interval_ms", "pages")


class Epochs:
    """Takes the answers to `vm_epochs`, one after the other; `since` is what the next question has to say."""

    def __init__(self) -> None:
        self.since: dict[str, int] | None = None
        self.values: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.held_bytes: list[int] = []
        self.missed = 0
        self.interruptions: list[str] = []
        self._before: Mapping[str, Any] | None = None
        self._paused = self._elapsed = 0.0
        self._log_bytes = self._log_seconds = 0.0

    def take(self, answer: Mapping[str, Any]) -> None:
        """One answer. The first one, and one of a new worker, is what later ones are counted from."""
        before, self._before = self._before, answer
        if isinstance(answer.get("held_bytes"), int):
            self.held_bytes.append(answer["held_bytes"])
        if before is None:
            self.since = dict(answer["counts"])
            return
        if before["started"] != answer["started"]:
            self.since = {}  # all that the new worker did is new
            return
        assert self.since is not None
        for kind in KINDS:
            found = answer["values"].get(kind, [])
            self.values[kind] += found
            self.missed += max(0, answer["counts"][kind] - self.since.get(kind, 0) - len(found))
        self.since = dict(answer["counts"])
        self._elapsed += answer["at"] - before["at"]
        self._paused += answer["paused_seconds"] - before["paused_seconds"]
        (then, sent), (now, sent_now) = before["log"], answer["log"]
        if then and now > then:
            self._log_seconds += now - then
            self._log_bytes += sent_now - sent

    def interrupted(self, reason: str) -> None:
        """No answer: the VM was not protected from here at that moment."""
        if not self.interruptions or self.interruptions[-1] != reason:
            self.interruptions.append(reason)

    def to_dict(self) -> dict[str, Any]:
        """What was found; shares and rates are None where nothing was measured.

        `stood_still_share` is the VM's pauses as a share of `seconds`; `missed` values came too fast to be kept.
        """
        return {
            "seconds": round(self._elapsed, 3), "epochs": len(self.values["pause_ms"]), "missed": self.missed,
            "interruptions": self.interruptions, "held_bytes": self.held_bytes,
            "stood_still_share": round(self._paused / self._elapsed, 6) if self._elapsed else None,
            "log_bytes_s": round(self._log_bytes / self._log_seconds) if self._log_seconds else None,
            **self.values,
        }  # fmt: skip
