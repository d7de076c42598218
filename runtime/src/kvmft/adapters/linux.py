"""Numbers of the Linux x86-64 ABI that this package uses, each once, with its source."""

from __future__ import annotations

PAGE = 4096
"""Bytes of a base page on x86-64."""

# asm/unistd_64.h
SYS_CLOSE = 3
SYS_IOCTL = 16
SYS_USERFAULTFD = 323
SYS_PIDFD_GETFD = 438

# linux/pidfd.h (since Linux 6.9)
PIDFD_THREAD = 0o200

# linux/ptrace.h
PTRACE_CONT = 7
PTRACE_SINGLESTEP = 9
PTRACE_GETREGS = 12
PTRACE_SETREGS = 13
PTRACE_DETACH = 17
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207

# sys/user.h, struct user_regs_struct: 27 words of 64 bits, in this order
REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx",
    "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds",
    "es", "fs", "gs",
)  # fmt: skip

# linux/wait.h
WALL = 0x40000000

# linux/userfaultfd.h
UFFD_API = 0xAA
UFFD_USER_MODE_ONLY = 1
UFFDIO_API = 0xC018AA3F
UFFDIO_REGISTER = 0xC020AA00
UFFDIO_UNREGISTER = 0x8010AA01
UFFDIO_WRITEPROTECT = 0xC018AA06
UFFD_FEATURE_PAGEFAULT_FLAG_WP = 1 << 0
UFFD_FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12
UFFD_FEATURE_WP_UNPOPULATED = 1 << 13
UFFD_FEATURE_WP_ASYNC = 1 << 15
UFFDIO_REGISTER_MODE_WP = 1 << 1
UFFDIO_WRITEPROTECT_MODE_WP = 1 << 0

# linux/fs.h (since Linux 6.7)
PAGEMAP_SCAN = 0xC0606610
PM_SCAN_WP_MATCHING = 1 << 0
PM_SCAN_CHECK_WPASYNC = 1 << 1
PAGE_IS_WRITTEN = 1 << 1
PAGE_IS_PRESENT = 1 << 3
PAGE_IS_SWAPPED = 1 << 4

# linux/kvm.h
KVM_SET_CLOCK = 0x4030AE7B
KVM_GET_CLOCK = 0x8030AE7C
KVM_CLOCK_REALTIME = 1 << 2

# linux/if_tun.h
TUNGETIFF = 0x800454D2
TUNGETVNETHDRSZ = 0x800454D7
IFF_VNET_HDR = 0x4000

# linux/uio.h
UIO_MAXIOV = 1024
