"""The one error family of kvmft. A message is a sentence: what is wrong, where; then the remedy."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class KvmftError(Exception):
    """An error a person will read.

    `code` is a stable identifier for programs, `message` names the cause, `remedy` what to do.
    `reasons` lists further errors when several were found at once (compliance checks).
    """

    code: str
    message: str
    remedy: str = ""
    reasons: list[KvmftError] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()

    def to_dict(self) -> dict[str, object]:
        """The shape the control socket carries."""
        return {
            "code": self.code,
            "message": self.message,
            "remedy": self.remedy,
            "reasons": [reason.to_dict() for reason in self.reasons],
        }
