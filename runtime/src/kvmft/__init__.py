"""kvmft: fault tolerance for KVM virtual machines on stock QEMU and libvirt."""

__version__ = "0.1.0"
