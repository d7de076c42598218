"""The stops of the VM that are no checkpoint: it stands still for a moment, and runs again whatever happens to us."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kvmft.adapters.nbd import unlink_quietly
from kvmft.adapters.reactor import Reactor
from kvmft.worker.config import WorkerConfig
from kvmft.worker.engine import Engine
from kvmft.worker.link import AgentLink
from kvmft.worker.qemu import Qemu

CHECKPOINT_BOUND = 5.0
"""Seconds that a checkpoint under way is waited for before output and mirrors are let go."""


class Stops:
    """Stops and goes of one VM. `before` is called ahead of each stop of `vm_stopped`."""

    def __init__(
        self,
        reactor: Reactor,
        config: WorkerConfig,
        link: AgentLink,
        qemu: Qemu,
        before: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._link = link
        self._qemu = qemu
        self._before = before
        self.engine: Engine | None = None
        """What takes checkpoints, once there is one: it stops the VM as well."""

    @property
    def _epochs_mark(self) -> str:
        """A file that is there while this worker may have the VM stopped."""
        return os.path.join(self._config.run_dir, "epochs")

    def mark(self) -> None:
        """From now on this worker may have the VM stopped; one that comes after it lets it run."""
        with open(self._epochs_mark, "w", encoding="ascii") as mark:
            mark.write(self._config.session)

    def unmark(self) -> None:
        """This worker stops the VM no more."""
        unlink_quietly(self._epochs_mark)

    def run_on_after_a_crash(self) -> None:
        """A worker that was killed inside a checkpoint left the VM stopped: let it run. Its output
        is shut, as the redirector's sockets were closed, so nothing is shown by this."""
        if not os.path.exists(self._epochs_mark):
            return
        if self._qemu.monitor.execute("query-status")["status"] == "paused":
            self._link.event("resumed", "the worker before was killed inside a checkpoint")
            self._qemu.monitor.execute("cont")

    def execute(self, name: str, stay_stopped: bool) -> None:
        """`stop` or `cont`, also against a checkpoint that is being taken and would end with `cont`."""
        if self.engine is not None:
            self.engine.stay_stopped = stay_stopped
        self._qemu.monitor.execute(name)

    @contextmanager
    def vm_stopped(self) -> Iterator[None]:
        """Stop the VM, if it runs, for what must not meet a packet or a write under way.

        A checkpoint under way is waited for, and kept from letting the VM run again meanwhile.
        """
        engine = self.engine
        held = paused = False
        if engine is not None:
            held, paused = engine.holds_vm, engine.stay_stopped
            engine.stay_stopped = True
            self._reactor.run_until(lambda: not engine.busy, CHECKPOINT_BOUND)
        running = bool(self._qemu.monitor.execute("query-status")["running"])
        marked = os.path.exists(self._epochs_mark)
        if running:
            self.mark()
            self._before()
            self._qemu.monitor.execute("stop")
        try:
            yield
        finally:
            if engine is not None:
                engine.stay_stopped, engine.holds_vm = paused, False
            if (running or held) and not paused:
                self._qemu.monitor.execute("cont")
            if not marked:
                self.unmark()
