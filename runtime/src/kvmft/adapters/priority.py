"""Processor time when it is needed: a checkpoint must not wait behind ordinary work while the VM stands still.

SCHED_RR for the replication worker and for QEMU's main thread, which answers `stop` and saves the devices; the VM's
processors are left as they are. Threads that these make later are ordinary ones (SCHED_RESET_ON_FORK, sched(7)). The
kernel keeps 5 % of the time for everything else (kernel.sched_rt_runtime_us).
"""

from __future__ import annotations

import os

POLICY = os.SCHED_RR | os.SCHED_RESET_ON_FORK
LEVEL = 1
"""The lowest of the real-time priorities: what the machine itself needs goes before."""


class Priority:
    """Real-time priority of one thread, until `give_back`. What the host does not permit is left alone."""

    def __init__(self, thread: int = 0) -> None:
        """`thread`: its id, which is the process's for the main thread; 0 is the calling one."""
        self._thread = thread
        self._before: tuple[int, os.sched_param] | None = None
        self.refused = ""
        """Why it was not given."""
        try:
            before = os.sched_getscheduler(thread), os.sched_getparam(thread)
            if (before[0], before[1].sched_priority) == (POLICY, LEVEL):
                # Of a worker that was killed before it could give it back.
                before = os.SCHED_OTHER, os.sched_param(0)
            if before[0] in (os.SCHED_OTHER, os.SCHED_BATCH):
                os.sched_setscheduler(thread, POLICY, os.sched_param(LEVEL))
                self._before = before
        except OSError as error:
            self.refused = str(error)

    @property
    def given(self) -> bool:
        """Whether the thread has it from us."""
        return self._before is not None

    def give_back(self) -> None:
        """Schedule the thread as before; one that has ended is no error."""
        if self._before is None:
            return
        (policy, parameter), self._before = self._before, None
        try:
            os.sched_setscheduler(self._thread, policy, parameter)
        except OSError:
            pass
