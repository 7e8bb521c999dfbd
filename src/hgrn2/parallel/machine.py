"""What a plan takes a GPU and its links to be, with the source of every figure; no torch here."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Machine:
    """GPUs of one kind in machines of equal size."""

    name: str
    memory: float
    """Bytes of one GPU."""
    matrix: float
    """bfloat16 operations per second of a large matrix product, measured."""
    copied: float
    """Bytes per second of its memory, read and written, measured."""
    link: float
    """Bytes per second that a GPU sends to others of its machine, as its maker says."""
    network: float
    """Bytes per second that a GPU sends to other machines; assumed."""
    gpus: int = 8
    """In one machine."""


H200 = Machine(name="NVIDIA H200", memory=141e9, matrix=769.7e12, copied=4248e9, link=450e9, network=50e9)
"""matrix and copied: medians of `hgrn2 bench ops --device cuda`, results/peaks.jsonl. memory and link (NVLink, 900 GB/s
both ways together): NVIDIA's data sheet of the H200. network: one 400 Gbit/s adapter for each GPU, as in NVIDIA's DGX
H200; that of other clusters differs."""
