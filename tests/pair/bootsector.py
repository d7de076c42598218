"""A guest of 512 bytes: it counts in memory, touches 64 pages a round, and shows the count.

Each 256 rounds it writes one disk sector (number 64) that holds the count and prints the count in
hex on the serial port. It runs where no ordinary kernel boots (a KVM without guest support).

The source, for GNU as (`as --32 boot.S; ld -m elf_i386 -Ttext 0x7c00 --oformat binary`):

    .code16
    _start: cli; xorw %ax,%ax; movw %ax,%ds; movw %ax,%ss; movw $0x7c00,%sp
            movb %dl,drive; movl $0,0x8000
    main:   incl 0x8000; movw $64,%cx; movw $0x2000,%bx
    1:      movw %bx,%es; movl 0x8000,%eax; movl %eax,%es:0; addw $0x100,%bx; loop 1b
            testb %al,%al; jnz main
            movw $dap,%si; movb $0x43,%ah; xorb %al,%al; movb drive,%dl; int $0x13; cli
            movl 0x8000,%ebp; movw $8,%cx; movw $0x3f8,%dx
    2:      roll $4,%ebp; movw %bp,%ax; andb $15,%al; addb $48,%al; cmpb $58,%al; jb 3f
            addb $39,%al
    3:      outb %al,%dx; loop 2b; movb $10,%al; outb %al,%dx; jmp main
    drive:  .byte 0x80
            .align 4
    dap:    .byte 16,0; .word 1; .word 0x8000,0; .long 64,0
            .org 510; .word 0xaa55
"""

from __future__ import annotations

from pathlib import Path

CODE = bytes.fromhex(
    "fa31c08ed88ed0bc007c8816687c66c70600800000000066ff060080b94000bb00208ec366a100802666a300"
    "0081c30001e2ef84c075e0be6c7cb44330c08a16687ccd13fa668b2e0080b90800baf80366c1c50489e8240f"
    "04303c3a72020427eee2edb00aeeebaf808d7400100001000080000040"
)
SECTOR = 64
COUNTED_PAGES = 64


def write_disk(path: Path, size: int = 1 << 20) -> None:
    """Make a disk image that boots the guest."""
    with path.open("wb") as file:
        file.truncate(size)
        file.write(CODE.ljust(510, b"\0") + b"\x55\xaa")


def count_on_disk(path: Path) -> int:
    """The count that the guest wrote last."""
    with path.open("rb") as file:
        file.seek(SECTOR * 512)
        return int.from_bytes(file.read(4), "little")


def counts_on_serial(path: Path) -> list[int]:
    """All whole counts that the guest printed."""
    lines = path.read_bytes().split(b"\n")[:-1]
    return [int(line, 16) for line in lines if len(line.strip()) == 8]
