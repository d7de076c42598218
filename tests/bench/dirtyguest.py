"""A guest of 512 bytes that dirties as many pages as it is told, again and again.

In 32-bit mode, so that up to 2 GiB can be dirtied, from 16 MiB on. Each round writes once to each page, then
spins; every (mask + 1)th round prints its number in hex on the serial port, as tests/pair/bootsector.py does.

The source, for GNU as (`as --32 d.S; ld -m elf_i386 -Ttext 0x7c00 --oformat binary`):

    .code16
    _start: cli; xorw %ax,%ax; movw %ax,%ds; lgdtl gdtr; movl %cr0,%eax; orb $1,%al; movl %eax,%cr0; ljmp $8,$pm
    .code32
    pm:     movw $16,%ax; movw %ax,%ds; movw %ax,%es; movw %ax,%ss; xorl %ebx,%ebx
    round:  incl %ebx; movl pages,%ecx; jecxz rest; movl $0x1000000,%edi
    1:      movl %ebx,(%edi); addl $4096,%edi; loop 1b
    rest:   movl spins,%ecx; jecxz show
    2:      incl %eax; loop 2b
    show:   testl %ebx,mask; jnz round; movl %ebx,%ebp; movl $8,%ecx; movw $0x3f8,%dx
    3:      roll $4,%ebp; movl %ebp,%eax; andb $15,%al; addb $48,%al; cmpb $58,%al; jb 4f; addb $39,%al
    4:      outb %al,%dx; loop 3b; movb $10,%al; outb %al,%dx; jmp round
            .align 8
    gdt:    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
    gdtr:   .word 23; .long gdt; .align 4
    pages:  .long 0
    spins:  .long 0
    mask:   .long 0
"""

from __future__ import annotations

import struct
from pathlib import Path

CODE = bytes.fromhex(
    "fa31c08ed8660f0116907c0f20c00c010f22c0ea187c080066b810008ed88ec08ed031db438b0d987c0000e30fbf0000"
    "0001891f81c700100000e2f68b0d9c7c0000e30340e2fd851da07c000075d589ddb90800000066baf803c1c50489e824"
    "0f04303c3a72020427eee2eeb00aeeebb38db426000000000000000000000000ffff0000009acf00ffff00000092cf00"
    "1700787c00006690"
)
FIRST_BYTE = 16 << 20
"""Where the dirtied pages begin."""


def write_disk(path: Path, pages: int, spins: int = 0, mask: int = 255, size: int = 1 << 20) -> None:
    """Make a disk image that boots the guest; `mask` is a power of two minus 1."""
    code = CODE + struct.pack("<3I", pages, spins, mask)
    with path.open("wb") as file:
        file.truncate(size)
        file.write(code.ljust(510, b"\0") + b"\x55\xaa")
