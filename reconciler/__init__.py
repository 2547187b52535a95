"""virt-chain: keeps the disk snapshot chains of KVM/QEMU guests as a TOML spec says."""

__version__ = "0.1.0"
