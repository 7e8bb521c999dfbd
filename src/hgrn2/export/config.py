"""How a model is exported, as a frozen value: no torch here, so that the command line starts quickly."""

from typing import Literal

from hgrn2.settings import refuse, settings

Weights = Literal["float32", "int8", "int4"]
HeadWeights = Literal["same", "float32", "int8", "int4"]
Activations = Literal["int8", "float32"]
Operator = Literal["auto", "standard", "onnxruntime"]
PAGE_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "worker-src 'self'; base-uri 'none'; form-action 'none'"
)
"""What the page of a model may do in a browser: nothing but read what lies beside it."""
BITS: dict[str, int | None] = {"float32": None, "int8": 8, "int4": 4}


@settings
class OnnxConfig:
    """What the graph holds its matrices in."""

    weights: Weights = "float32"
    """Of the matrices in the blocks. int8, int4: whole numbers, with a float32 scale per block of a row."""
    head: HeadWeights = "same"
    """Of the embedding and the head; same is what the blocks have."""
    block_size: int = 32
    """Weights that share a scale (int8, int4): a power of two from 16 to 256."""
    activations: Activations = "int8"
    """Of quantised products. int8 rounds blocks of activations too, which is far faster; float32 does not."""

    operator: Operator = "auto"
    """LinearAttention of the ONNX standard, for any engine, or onnxruntime's own of the same name, for which it has a
    quick kernel (it runs the standard one as a loop). auto: its own where the weights need it anyhow."""

    def __post_init__(self) -> None:
        fits = self.block_size in (16, 32, 64, 128, 256)
        refuse(not fits, f"block_size is {self.block_size}; choose one of: 16, 32, 64, 128, 256")

    @property
    def bits(self) -> int | None:
        """Of a weight in the blocks; None is float32."""
        return BITS[self.weights]

    @property
    def head_bits(self) -> int | None:
        """Of a weight in embedding and head; None is float32."""
        return self.bits if self.head == "same" else BITS[self.head]

    @property
    def standard(self) -> bool:
        """Whether the recurrence is the standard's operator."""
        plain = self.bits is None and self.head_bits is None
        return self.operator == "standard" or (self.operator == "auto" and plain)

    @property
    def rounds_activations(self) -> bool:
        """Whether any product is taken between 8-bit numbers."""
        return self.activations == "int8" and (self.bits is not None or self.head_bits is not None)
