"""A scripted schedule: what is done when, one line each; its event log is compared with a golden one.

    # why this scenario is there
    seed 7
    protected             wait until the VM is protected
    wait 0.5              seconds
    host a power_off      a method of a host, with numbers as arguments if it takes any
    fault cut_both        one of the simulator's faults, which mends itself
    set arbiter down 1    an attribute of `arbiter`, `a` or `b`, as a number
    cut 0 1               cut (1) or mend (0) what host 0 sends on the FT network
    beacons 0 0           cut (0) or mend (1) what host 0 sends on the management network
    heal                  everything outside works again
    state a primary       the role of a host must be this
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvmft.core.events import ClaimAsked, Loss, PeerLost
from kvmft.sim import faults
from kvmft.sim.cluster import Cluster
from kvmft.sim.world import World

PATIENCE = 60.0


class ScriptError(ValueError):
    """A line of a scenario cannot be carried out."""


class _Player:
    def __init__(self, seed: int) -> None:
        self.log: list[str] = []
        self.world = World(seed, self.log)
        self.cluster = Cluster(self.world)
        self.named: dict[str, Any] = {host.name: host for host in self.cluster.hosts}
        self.named["arbiter"] = self.cluster.arbiter

    def wait(self, seconds: str) -> None:
        self.world.run(self.world.now + float(seconds))

    def protected(self) -> None:
        self.world.run(self.world.now + PATIENCE, lambda: self.cluster.protected)
        if not self.cluster.protected:
            self.world.forbid("scenario", "it does not get protected")

    def host(self, name: str, method: str, *arguments: str) -> None:
        getattr(self.named[name], method)(*(float(each) for each in arguments))

    def fault(self, name: str) -> None:
        self.world.note("fault", name)
        kinds = {each: kind for each, (kind, __) in faults.KINDS.items()} | faults.BEACON_KINDS
        kinds[name](self.cluster)

    def set(self, name: str, attribute: str, value: str) -> None:
        if not hasattr(self.named[name], attribute):
            raise ScriptError(f"{name} has no {attribute}")
        self.world.note("fault", f"{name}.{attribute} = {value}")
        setattr(self.named[name], attribute, float(value))

    def cut(self, direction: str, cut: str) -> None:
        self.world.note("fault", f"host {direction} is {'cut off' if int(cut) else 'heard again'}")
        self.cluster.wire.set_cut(int(direction), bool(int(cut)))

    def beacons(self, direction: str, pass_: str) -> None:
        what = "pass again" if int(pass_) else "are lost"
        self.world.note("fault", f"beacons of host {direction} {what}")
        self.cluster.wire.management.cut[int(direction)] = not int(pass_)

    def suspect(self, name: str) -> None:
        self.world.note("fault", f"{name} takes its peer for lost")
        worker = self.named[name].worker
        if worker is None:
            raise ScriptError(f"{name} has no worker")
        worker.post(PeerLost(Loss.SILENCE, "a false alarm"))

    def claim(self, name: str) -> None:
        worker = self.named[name].worker
        if worker is None:
            raise ScriptError(f"{name} has no worker")
        worker.post(ClaimAsked())

    def heal(self) -> None:
        self.world.note("fault", "everything is healed")
        faults.heal(self.cluster)

    def state(self, name: str, role: str) -> None:
        if self.named[name].role != role:
            self.world.forbid("scenario", f"{name} is {self.named[name].role} and not {role}")


def play(text: str) -> list[str]:
    """Carry out the script `text`; its event log. A violation ends it and is in the log.

    Raises ScriptError, naming the line, when a line cannot be carried out.
    """
    player = _Player(0)
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if words[0] == "seed":
            player = _Player(int(words[1]))
            continue
        action: Callable[..., None] | None = getattr(player, words[0], None)
        if action is None or words[0].startswith("_"):
            raise ScriptError(f"line {number}: there is no {words[0]!r}")
        try:
            action(*words[1:])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ScriptError(f"line {number}: {line.strip()}: {error!r}") from error
        if player.world.violations:
            break
    return player.log
