"""What the outside world saw, as one line of history, and what may never happen to it.

A point is (instance, tick): one run of a VM and how far it came. An instance that was activated from
a commit has a parent point. What was seen must stay part of the past of whatever is seen later.
"""

from __future__ import annotations

from kvmft.sim.world import World

Point = tuple[int, int]


class History:
    """All instances of the VM, and the newest point that the world has seen."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._parents: list[Point] = []
        self.seen: Point | None = None
        self.outputs = 0

    def begin(self, origin: Point) -> int:
        """A new instance that continues from `origin`; its number."""
        self._parents.append(origin)
        return len(self._parents) - 1

    def holds(self, early: Point, late: Point) -> bool:
        """True when `early` is part of the past of `late` (or the same)."""
        instance, tick = late
        while instance != early[0]:
            if instance <= 0:
                return False
            instance, tick = self._parents[instance]
        return early[1] <= tick

    def show(self, point: Point) -> None:
        """The world sees what the VM did at `point` (I1, I2)."""
        if self.seen is not None and not self.holds(self.seen, point):
            if self.holds(point, self.seen):
                return  # an older packet that comes late is an ordinary thing on a network
            self._world.forbid("I1", f"{point} is shown, but {self.seen} of another history was")
        self.seen = point
        self.outputs += 1

    def check_start(self, origin: Point, what: str, invariant: str) -> None:
        """An instance is to run from `origin`: nothing that was seen may be missing (I3, I5)."""
        if self.seen is not None and not self.holds(self.seen, origin):
            self._world.forbid(invariant, f"{what} from {origin}, but {self.seen} was seen")
