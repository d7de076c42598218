"""The two sides of a VM, with the production client, its claims file and a reactor."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from kvmft.adapters.arbiter_client import ArbiterClient, ArbiterIdentity
from kvmft.adapters.reactor import Reactor
from kvmft.core.records import Record
from kvmft.ports import Arbiter
from tests.contract.backends import CLUSTER, Backend

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Verdict:
    """What the client told its worker."""

    won: bool
    halted: bool
    reason: str

    def __str__(self) -> str:
        return "WON" if self.won else "HALT" if self.halted else "LOST"


class Side:
    """One side's client; `restarted()` is what a worker that was killed comes back as."""

    def __init__(self, reactor: Reactor, arbiter: Arbiter, directory: Path, me: str, uuid: str) -> None:
        self.reactor, self.me, self.uuid, self.directory = reactor, me, uuid, directory
        self.verdicts: list[Verdict] = []
        self.notes: list[str] = []
        directory.mkdir(exist_ok=True, parents=True)
        peer = "node-b" if me == "node-a" else "node-a"
        identity = ArbiterIdentity(CLUSTER, uuid, me, peer, str(directory / f"{me}.json"), {},
                                   str(directory / "seen.json"))  # fmt: skip
        self.client = ArbiterClient(
            reactor, identity, lambda *told: self.verdicts.append(Verdict(*told)), self.notes.append,
            arbiter,
        )  # fmt: skip

    def restarted(self, arbiter: Arbiter) -> Side:
        return Side(self.reactor, arbiter, self.directory, self.me, self.uuid)

    def wait(self, seconds: float = 20.0) -> Verdict:
        """The next verdict."""
        before = len(self.verdicts)
        done = self.reactor.run_until(lambda: len(self.verdicts) > before, seconds)
        assert done, f"{self.me} got no verdict within {seconds} s; notes {self.notes}"
        return self.verdicts[-1]

    def noted(self, words: str, seconds: float = 20.0) -> str:
        """The note with these words, as soon as there is one."""
        done = self.reactor.run_until(lambda: any(words in note for note in self.notes), seconds)
        assert done, f"{self.me} was not told {words!r}; notes {self.notes}"
        return next(note for note in self.notes if words in note)

    def undecided_for(self, seconds: float) -> bool:
        """True when there was no verdict in that time."""
        before = len(self.verdicts)
        return not self.reactor.run_until(lambda: len(self.verdicts) > before, seconds)

    @property
    def held(self) -> Record:
        (record,) = self.client.holdings.bases
        return record


def uuid() -> str:
    """Of a VM that no other test has."""
    return f"vm-{next(_numbers)}"


def pair(backend: Backend, directory: Path) -> tuple[Side, Side]:
    """node-a and node-b, paired, each with a way of its own to the arbiter and no faults."""
    reactor, vm = Reactor(), uuid()
    directory = directory / vm
    a = Side(reactor, backend.arbiter()[0], directory, "node-a", vm)
    b = Side(reactor, backend.arbiter()[0], directory, "node-b", vm)
    a.client.create()
    assert str(a.wait()) == "WON"
    b.client.accept_offer(a.client.name_pair(1))
    a.client.pair()
    assert str(a.wait()) == "WON"
    return a, b
