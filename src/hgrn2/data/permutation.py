"""A random order that is a formula: place i of a shuffled range in O(1) memory, the same on every machine.

A Feistel network over the smallest even number of bits that holds the range is a bijection of that power of four
whatever its round function; walking along its cycle until the value is inside the range makes it one of the range
(Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). The round function is the finaliser of SplitMix64
(Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
"""

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
ROUNDS = 8


def mix(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, element by element over uint64 arrays (which wrap around, as wanted)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def keys(seed: int, stream: np.ndarray) -> np.ndarray:
    """One uint64 key for each number of a stream [n] (an epoch, say) under a seed in [0, 2^64)."""
    start = mix(np.array([seed], dtype=np.uint64) + np.uint64(GOLDEN))
    return mix(start + np.asarray(stream).astype(np.uint64) * np.uint64(GOLDEN))


def permute(index: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """Where each index [n] in [0, size) goes under its key [n] (or [1]): int64 [n], a bijection for each key."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    value = np.asarray(index).astype(np.uint64)
    key = np.broadcast_to(key, value.shape)
    pending = np.arange(value.size)
    while pending.size:
        value[pending] = _feistel(value[pending], key[pending], half)
        pending = pending[value[pending] >= size]
    return value.astype(np.int64)


def _feistel(value: np.ndarray, key: np.ndarray, half: int) -> np.ndarray:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = value >> bits, value & mask
    for turn in range(ROUNDS):
        scrambled = mix((right ^ key) + np.uint64((turn + 1) * GOLDEN % 2**64))
        left, right = right, left ^ (scrambled & mask)
    return (left << bits) | right
