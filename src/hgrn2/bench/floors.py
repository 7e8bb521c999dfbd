"""The least time that each group of a step of hgrn2 can take: its operations and its bytes at the measured peaks."""

from dataclasses import dataclass

from hgrn2.models.config import ModelConfig
from hgrn2.models.count import parameters, state_bytes

TRAINED_ACCESSES = {"scan": 11, "norms": 5, "activations": 8}
"""Numbers read and written for one number of the width, forward and backward: the scan 3 + 1 and 4 + 3 (three
projections, the output, and their gradients), a norm 1 + 1 and 2 + 1, a gated unit 2 + 1 and 3 + 2."""
DECODED_ACCESSES = {"norms": 2, "activations": 3}
ADAMW_ACCESSES = 7
"""Weight, gradient and two moments read, all but the gradient written."""


@dataclass(frozen=True)
class Peaks:
    """What the machine does at most, measured beside the profile."""

    flops: float
    """Of a large matrix product, operations per second."""
    copied: float
    """Bytes per second of a copy, read and written."""

    def ms(self, flops: float, moved: float) -> float:
        """The least time of operations and bytes that may overlap."""
        return 1e3 * max(flops / self.flops, moved / self.copied)


def floors(
    config: ModelConfig, peaks: Peaks, *, tokens: int, training: bool, itemsize: int, state: str = "float32"
) -> dict[str, float]:
    """Milliseconds of a step of so many tokens of all sequences; groups that are not counted are absent.

    Matrix products count the weights of all blocks and of the head: three products in training, in decoding one, which
    reads every weight once. Decoding reads and writes the states. The loss is not counted.
    """
    total = parameters(config).total
    width, layers, hidden = config.width, config.layers, config.glu_width
    matrices = layers * (4 * width * width + 3 * width * hidden) + config.vocab_size * width
    norms = (2 * layers + layers + 1) * width
    if training:
        accesses = TRAINED_ACCESSES
        found = {
            "matrix products": peaks.ms(6 * matrices * tokens, 0),
            "scan": peaks.ms(0, accesses["scan"] * layers * width * tokens * itemsize),
            "optimiser": peaks.ms(0, ADAMW_ACCESSES * total * itemsize),
        }
    else:
        accesses = DECODED_ACCESSES
        states = 2 * state_bytes(config) // (2 if state == "bfloat16" else 1)
        found = {
            "matrix products": peaks.ms(2 * matrices * tokens, matrices * itemsize),
            "scan": peaks.ms(0, states * tokens),
        }
    found["norms"] = peaks.ms(0, accesses["norms"] * norms * tokens * itemsize)
    found["activations"] = peaks.ms(0, accesses["activations"] * layers * hidden * tokens * itemsize)
    return found
