"""A QEMU process of the simulation: bytes and devices are abstracted to points of the VM's history."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmft.sim.history import Point
from kvmft.sim.world import Token

if TYPE_CHECKING:
    from kvmft.sim.host import Host


class Qemu(Token):
    """A QEMU process: a VM that runs or is stopped, or a standby that waits."""

    __slots__ = (
        "captured", "epochs_mark", "frozen_until", "hold", "host", "instance", "loaded", "memory",
        "running", "tick",
    )  # fmt: skip

    def __init__(self, host: Host, instance: int = -1, tick: int = 0) -> None:
        super().__init__()
        self.host = host
        self.instance = instance
        self.tick = tick
        self.running = False
        self.hold = False  # output goes through the worker's hands
        self.epochs_mark = False
        self.captured: list[Point] = []
        self.memory: Point | None = None  # of a standby: what was applied
        self.loaded: Point | None = None
        self.frozen_until = 0.0

    @property
    def standby(self) -> bool:
        """True while it waits for a commit to run from."""
        return self.instance < 0

    @property
    def point(self) -> Point:
        """How far the VM came."""
        return (self.instance, self.tick)
