"""A guest of 512 bytes that reads KVM's clock and the time stamp counter, again and again.

It asks for kvmclock (MSR_KVM_SYSTEM_TIME_NEW), computes the time as Linux does (arch/x86/kernel/pvclock.c), counts how
often it went back, and prints every 64th reading: nanoseconds, counter, and times that it went back, in hex.

The source, for GNU as (`as --32 c.S; ld -m elf_i386 -Ttext 0x7c00 --oformat binary`):

            .code16
    _start: cli; xorw %ax,%ax; movw %ax,%ds; lgdtl gdtr; movl %cr0,%eax; orb $1,%al; movl %eax,%cr0; ljmp $8,$pm
            .code32
    pm:     movw $16,%ax; movw %ax,%ds; movw %ax,%es; movw %ax,%ss; movl $0x7000,%esp
            movl $0x4b564d01,%ecx; xorl %edx,%edx; movl $0x9001,%eax; wrmsr
            xorl %ebx,%ebx
    again:  movl 0x9000,%esi; testb $1,0x9000; jnz again; rdtsc; movl %eax,tsc; movl %edx,tsc+4
            subl 0x9008,%eax; sbbl 0x900c,%edx; movb 0x901c,%cl; testb %cl,%cl; js 1f
            shldl %cl,%eax,%edx; shll %cl,%eax; jmp 2f
    1:      negb %cl; shrdl %cl,%edx,%eax; shrl %cl,%edx
    2:      movl %edx,%edi; mull 0x9018; movl %edx,%ebp; movl %edi,%eax; mull 0x9018
            addl %ebp,%eax; adcl $0,%edx; addl 0x9010,%eax; adcl 0x9014,%edx; cmpl %esi,0x9000; jne again
            cmpl last+4,%edx; ja 3f; jb 4f; cmpl last,%eax; jae 3f
    4:      incl backs
    3:      movl %eax,last; movl %edx,last+4
            incl %ebx; testl mask,%ebx; jnz again
            movl last+4,%eax; call hex; movl last,%eax; call hex; call gap
            movl tsc+4,%eax; call hex; movl tsc,%eax; call hex; call gap
            movl backs,%eax; call hex; movb $10,%al; outb %al,%dx; jmp again
    gap:    movb $32,%al; outb %al,%dx; ret
    hex:    movl %eax,%ebp; movl $8,%ecx; movw $0x3f8,%dx
    5:      roll $4,%ebp; movl %ebp,%eax; andb $15,%al; addb $48,%al; cmpb $58,%al; jb 6f; addb $39,%al
    6:      outb %al,%dx; loop 5b; ret
            .align 8
    gdt:    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
    gdtr:   .word 23; .long gdt
            .align 8
    tsc:    .quad 0
    last:   .quad 0
    backs:  .long 0
    mask:   .long 0x3f
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

CODE = bytes.fromhex(
    "fa31c08ed8660f0116507d0f20c00c010f22c0ea187c080066b810008ed88ec08ed0bc00700000b9014d564b31d2b8019000000f3031db8b3500"
    "900000f605009000000175f10f31a3587d000089155c7d00002b05089000001b150c9000008a0d1c90000084c978070fa5c2d3e0eb07f6d90fad"
    "d0d3ea89d7f7251890000089d589f8f7251890000001e883d20003051090000013151490000039350090000075953b15647d0000771072083b05"
    "607d00007306ff05687d0000a3607d00008915647d000043851d6c7d00000f8565ffffffa1647d0000e83e000000a1607d0000e834000000e82b"
    "000000a15c7d0000e825000000a1587d0000e81b000000e812000000a1687d0000e80c000000b00aeee921ffffffb020eec389c5b90800000066"
    "baf803c1c50489e8240f04303c3a72020427eee2eec30000000000000000ffff0000009acf00ffff00000092cf001700387d0000669000000000"
    "000000000000000000000000000000003f000000"
)


class Reading(NamedTuple):
    """What the guest printed: its clock in nanoseconds, the time stamp counter, and how often the clock went back."""

    clock: int
    counter: int
    back: int


def write_disk(path: Path, size: int = 1 << 20) -> None:
    """Make a disk image that boots the guest."""
    with path.open("wb") as file:
        file.truncate(size)
        file.write(CODE.ljust(510, b"\0") + b"\x55\xaa")


def readings(path: Path) -> list[Reading]:
    """All whole lines of the serial port's file `path`."""
    lines = path.read_text(encoding="ascii", errors="replace").split("\n")[:-1] if path.exists() else []
    return [Reading(*(int(each, 16) for each in line.split())) for line in lines if len(line) == 42]
