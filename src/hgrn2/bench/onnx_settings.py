"""What `hgrn2 bench onnx` measures, as a frozen value: no torch here, so that the command line starts quickly."""

from hgrn2.export.config import Activations, Operator, Weights
from hgrn2.settings import refuse, settings


@settings
class OnnxBench:
    """Decoding with a saved model on the CPU, in PyTorch and exported."""

    weights: tuple[Weights, ...] = ("float32", "int8", "int4")
    """What exported matrices are held in, one export each."""
    operators: tuple[Operator, ...] = ("standard", "onnxruntime")
    """Whose LinearAttention, one export each."""
    threads: tuple[int, ...] = (1, 2)
    """Threads of both runtimes, one round of measurements each."""
    block_size: int = 32
    """Weights that share a scale (int8, int4)."""
    activations: Activations = "int8"
    """Of quantised products."""
    context: int = 128
    """Tokens of the prompt."""
    tokens: int = 100
    """Tokens decoded after it, from the same state at every repeat."""
    repeats: int = 7
    """How often; all take turns."""
    seed: int = 0
    """Of the prompt's random tokens."""

    def __post_init__(self) -> None:
        lists = {"--weights": self.weights, "--operators": self.operators, "--threads": self.threads}
        for name, values in lists.items():
            refuse(not values, f"{name}: name at least one")
            refuse(len(set(values)) < len(values), f"{name}: a value is repeated")
        refuse(min(self.threads) < 1, f"--threads has {min(self.threads)}; it must be at least 1")
        for name in ("context", "tokens", "repeats"):
            refuse(getattr(self, name) < 1, f"--{name} is {getattr(self, name)}; it must be at least 1")
