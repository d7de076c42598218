"""The one privileged trick: have a process make a system call by itself.

A userfaultfd belongs to the process that creates it, so QEMU must create the one that tracks its
memory; and KVM takes a virtual machine's ioctls from its own process alone. The main thread is
seized, its registers are set for one `syscall` instruction that exists already in its text, it is
stepped once, and its registers are put back. What an ioctl reads and writes lies below its stack;
nothing else of its memory is written. A system call that the seizure interrupted is restarted by
the kernel, because the restored registers still say so (arch/x86/kernel/signal.c,
arch_do_signal_or_restart).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
from typing import Any, Self

from kvmft.adapters import linux
from kvmft.errors import KvmftError

_SYSCALL = b"\x0f\x05"
_EVENT_STOP = 128
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long
_Registers = ctypes.c_uint64 * len(linux.REGISTERS)
_INDEX = {name: index for index, name in enumerate(linux.REGISTERS)}
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")


def _ptrace(request: int, pid: int, address: int = 0, data: object = None) -> None:
    if _libc.ptrace(request, pid, address, data) < 0:
        code = ctypes.get_errno()
        raise KvmftError(
            "ptrace_refused",
            f"ptrace of process {pid} is refused: {os.strerror(code)}.",
            "kvmft-agent needs CAP_SYS_PTRACE, kernel.yama.ptrace_scope below 3, and no debugger "
            "may be attached to QEMU.",
        )


def _wait(pid: int) -> int:
    """The stop's status word; KvmftError when the process ended instead."""
    while True:
        try:
            __, status = os.waitpid(pid, linux.WALL)
        except InterruptedError:
            continue
        if os.WIFSTOPPED(status):
            return status
        raise _gone(pid)


def _gone(pid: int) -> KvmftError:
    return KvmftError("vm_gone", f"Process {pid} ended.", "Start the VM again.")


def _find_syscall(pid: int, rip: int) -> int:
    """Address of a `syscall` instruction in the process's text."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(rip - 2)
        if memory.read(2) == _SYSCALL:
            return rip - 2
        with open(f"/proc/{pid}/maps", encoding="ascii") as maps:
            for line in maps:
                match = re.match(r"([0-9a-f]+)-([0-9a-f]+) r-xp .*/libc[.-]", line)
                if match is None:
                    continue
                start, end = int(match[1], 16), int(match[2], 16)
                memory.seek(start)
                position = memory.read(end - start).find(_SYSCALL)
                if position >= 0:
                    return start + position
    raise KvmftError(
        "no_syscall_instruction",
        f"Process {pid} has no libc with a system call instruction.",
        "kvmft works with distribution QEMU on x86-64 only.",
    )


class Held:
    """The main thread of a process, held while it makes system calls for us. A context manager.

    Taking it takes about 0.3 ms, during which only that thread stands still. Whatever fails, the
    thread is let go with the registers that it had. All calls must come from one thread of ours
    (ptrace(2)).
    """

    def __init__(self, pid: int, instruction: int | None = None) -> None:
        """`instruction` is what `instruction` was when the same process was held before: it need
        not be looked for again."""
        self._pid = pid
        self.instruction = instruction
        self._deliver: list[int] = []
        self._saved: Any = None

    def __enter__(self) -> Self:
        _ptrace(linux.PTRACE_SEIZE, self._pid)
        try:
            _ptrace(linux.PTRACE_INTERRUPT, self._pid)
            while (status := _wait(self._pid)) >> 16 != _EVENT_STOP:
                # A signal came first: hold it back until we are done.
                self._deliver.append(os.WSTOPSIG(status))
                _ptrace(linux.PTRACE_CONT, self._pid)
            saved = _Registers()
            _ptrace(linux.PTRACE_GETREGS, self._pid, 0, ctypes.addressof(saved))
            self._saved = saved
            if self.instruction is None:
                self.instruction = _find_syscall(self._pid, saved[_INDEX["rip"]])
        except (FileNotFoundError, ProcessLookupError) as error:
            self._let_go()
            raise _gone(self._pid) from error
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._let_go()

    def call(self, number: int, *arguments: int) -> int:
        """Make one system call; its result (negative: -errno)."""
        assert self.instruction is not None
        work = _Registers(*self._saved)
        work[_INDEX["rip"]] = self.instruction
        work[_INDEX["rax"]] = number
        work[_INDEX["orig_rax"]] = ctypes.c_uint64(-1).value
        for name, value in zip(_ARGUMENTS, arguments, strict=False):
            work[_INDEX[name]] = value
        _ptrace(linux.PTRACE_SETREGS, self._pid, 0, ctypes.addressof(work))
        while True:
            _ptrace(linux.PTRACE_SINGLESTEP, self._pid)
            status = _wait(self._pid)
            if os.WSTOPSIG(status) == signal.SIGTRAP:
                break
            self._deliver.append(os.WSTOPSIG(status))
        _ptrace(linux.PTRACE_GETREGS, self._pid, 0, ctypes.addressof(work))
        return ctypes.c_int64(work[_INDEX["rax"]]).value

    def ioctl(self, descriptor: int, request: int, data: bytes) -> bytes:
        """Make one ioctl on the process's `descriptor`: `data` before it, and as it is after it.
        OSError when the kernel refuses.

        The data lies below the thread's stack and its red zone of 128 bytes, where a signal's
        frame might lie as well: nothing there is in use.
        """
        address = (self._saved[_INDEX["rsp"]] - 128 - len(data)) & ~63
        with open(f"/proc/{self._pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(address)
            memory.write(data)
            result = self.call(linux.SYS_IOCTL, descriptor, request, address)
            if result < 0:
                raise OSError(-result, os.strerror(-result))
            memory.seek(address)
            return memory.read(len(data))

    def _let_go(self) -> None:
        if self._saved is not None:
            _libc.ptrace(linux.PTRACE_SETREGS, self._pid, 0, ctypes.addressof(self._saved))
        _libc.ptrace(linux.PTRACE_DETACH, self._pid, 0, None)
        for number in self._deliver:
            try:
                os.kill(self._pid, number)
            except ProcessLookupError:
                break


def inject_syscall(pid: int, number: int, *arguments: int) -> int:
    """Have the main thread of `pid` make one system call; its result (negative: -errno)."""
    with Held(pid) as thread:
        return thread.call(number, *arguments)


def find_descriptor(pid: int, target: str) -> int | None:
    """The number of a descriptor of process `pid` that is `target`, as /proc says it; or None."""
    directory = f"/proc/{pid}/fd"
    for name in os.listdir(directory):
        try:
            if os.readlink(os.path.join(directory, name)) == target:
                return int(name)
        except FileNotFoundError:
            continue
    return None


def find_userfaultfd(pid: int) -> int | None:
    """The number of a userfaultfd that `pid` has, made for an agent that died; or None.

    QEMU itself makes one only for postcopy and background snapshots, which a protected VM never
    has (compliance checks).
    """
    return find_descriptor(pid, "anon_inode:[userfaultfd]")


def make_userfaultfd(pid: int) -> int:
    """Have `pid` make a userfaultfd; its descriptor number over there."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK | linux.UFFD_USER_MODE_ONLY
    result = inject_syscall(pid, linux.SYS_USERFAULTFD, flags)
    if result < 0:
        raise KvmftError(
            "userfaultfd_refused",
            f"QEMU (process {pid}) may not make a userfaultfd: {os.strerror(-result)}.",
            "The kernel needs CONFIG_USERFAULTFD; a seccomp filter or container may forbid it.",
        )
    return result


def close_remote_fd(pid: int, descriptor: int) -> None:
    """Have `pid` close its `descriptor`."""
    result = inject_syscall(pid, linux.SYS_CLOSE, descriptor)
    if result not in (0, -errno.EBADF):
        raise OSError(-result, os.strerror(-result))


def fetch_fd(pid: int, descriptor: int) -> int:
    """A duplicate, here, of `descriptor` of process `pid` (pidfd_getfd)."""
    pidfd = os.pidfd_open(pid)
    try:
        fetched = _libc.syscall(linux.SYS_PIDFD_GETFD, pidfd, descriptor, 0)
    finally:
        os.close(pidfd)
    if fetched < 0:
        code = ctypes.get_errno()
        raise KvmftError(
            "pidfd_getfd_refused",
            f"Descriptor {descriptor} of process {pid} cannot be fetched: {os.strerror(code)}.",
            "kvmft-agent needs CAP_SYS_PTRACE and Linux 5.6 or newer.",
        )
    return int(fetched)
