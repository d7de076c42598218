"""The clock that KVM shows to a guest (kvmclock, and the reference time of Hyper-V's interface), read and set.

KVM takes these ioctls from the process alone to which the virtual machine belongs, so QEMU's main thread makes them
(Documentation/virt/kvm/api.rst, 4.29 and 4.30).
"""

from __future__ import annotations

import struct
import time

from kvmft.adapters import linux
from kvmft.adapters.inject import Held, find_descriptor

_DATA = struct.Struct("<QIIQQ16x")
"""struct kvm_clock_data: clock, flags, padding, realtime, host_tsc, padding."""


def find_machine(pid: int) -> int | None:
    """The descriptor of process `pid` that is its virtual machine, or None when it does not use KVM."""
    return find_descriptor(pid, "anon_inode:kvm-vm")


def read_clock(thread: Held, machine: int) -> int:
    """Nanoseconds of the guest's clock."""
    return int(_DATA.unpack(thread.ioctl(machine, linux.KVM_GET_CLOCK, bytes(_DATA.size)))[0])


def set_clock(thread: Held, machine: int, clock: int, realtime: int) -> None:
    """Have the guest's clock be what it is when it was `clock` at `realtime` (CLOCK_REALTIME), both nanoseconds: the
    kernel adds the time since. It must not go back."""
    thread.ioctl(machine, linux.KVM_SET_CLOCK, _DATA.pack(clock, linux.KVM_CLOCK_REALTIME, 0, realtime, 0))


def host_clock() -> int:
    """Nanoseconds of the clock that KVM's runs with (arch/x86/kvm/x86.c, get_kvmclock_base_ns)."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
