"""What a configuration costs, computed from it alone: parameters, floating-point operations a token, bytes of state.

No torch here: the numbers are formulas, and tests hold them to the modules that are really built.
"""

from dataclasses import dataclass

from hgrn2.layers.config import NormKind
from hgrn2.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Trained numbers of a language model, each counted once."""

    embedding: int
    """Token embedding and, unless it is tied, the head: V D each."""
    bounds: int
    """Γ of the lower bounds, L D."""
    final_norm: int
    mixer: int
    """One token mixer with the norm before it."""
    glu: int
    """One gated linear unit with the norm before it."""
    layers: int

    @property
    def block(self) -> int:
        """One block."""
        return self.mixer + self.glu

    @property
    def non_embedding(self) -> int:
        """All but the embedding and the head: what papers compare."""
        return self.layers * self.block + self.bounds + self.final_norm

    @property
    def total(self) -> int:
        """Everything."""
        return self.non_embedding + self.embedding


def parameters(config: ModelConfig) -> ParameterCount:
    """Count the parameters of `LanguageModel(config)`.

    With width D, GLU width m and convolution width W, biases and norm weights aside: 4 D² + 3 D W for hgru2, 4 D² for
    hgru1_real, 7 D² + D for hgru1, 3 D m for the GLU, L D for the bounds.
    """
    width, hidden = config.width, config.glu_width
    before = _norm(config.norm, width)
    glu = 3 * width * hidden + (2 * hidden + width if config.glu_bias else 0)
    return ParameterCount(
        embedding=config.vocab_size * width * (1 if config.tie_embeddings else 2),
        bounds=0 if config.lower_bound == "none" else config.layers * width,
        final_norm=before,
        mixer=before + _mixer(config),
        glu=before + glu,
        layers=config.layers,
    )


def flops_per_token(config: ModelConfig, *, training: bool) -> int:
    """Floating-point operations (a multiplication and an addition are two) for one token of the whole model.

        forward = 2 · (matrix weights of L blocks + V D of the head) + L · (scan + short convolution)

    The matrices of a block hold 4 D² (7 D² for hgru1) + 3 D m weights; the head counts whether or not it is tied, the
    embedding is a look-up and counts nothing. The scan counts the recurrence that defines the model, whatever an
    operator does instead (the chunked form works more to wait less), so the number compares models, not kernels:

        hgru2        5 D n    each of the D n numbers of the state: decay 1, k ⊗ i and its sum 2, read-out o S 2
        hgru1_real   3 D      f h, (1-f) c and their sum
        hgru1       10 D      the same with complex h and c: f e^{iθ} h 6, (1-f) c 2, sum 2

    The convolution of width W costs 2 · 3 D W. Biases, norms, gates and activations, all O(D), are left out.
    Training counts three times the forward: the backward has two products for each one of the forward.
    """
    width, mixer = config.width, config.mixer
    matrices = config.layers * (_mixer_matrices(config) + 3 * width * config.glu_width) + config.vocab_size * width
    scan = {"hgru2": 5 * width * mixer.head_size, "hgru1_real": 3 * width, "hgru1": 10 * width}[mixer.kind]
    forward = 2 * matrices + config.layers * (scan + 2 * 3 * width * mixer.conv_width)
    return 3 * forward if training else forward


def state_bytes(config: ModelConfig, dtype: str = "float32") -> int:
    """Bytes that one sequence's state occupies, however long the sequence: `LanguageModel.zeros(1).nbytes`.

    A layer keeps D n numbers for hgru2, D for hgru1_real and 2 D for hgru1 (complex), and 3 D (W-1) for a convolution
    of width W. `dtype` is the model's ("float32", "bfloat16", …): states are float32 unless the model is float64.
    """
    width, mixer = config.width, config.mixer
    numbers = {"hgru2": width * mixer.head_size, "hgru1_real": width, "hgru1": 2 * width}[mixer.kind]
    numbers += 3 * width * max(mixer.conv_width - 1, 0)
    return config.layers * numbers * (8 if str(dtype).removeprefix("torch.") == "float64" else 4)


def _mixer_matrices(config: ModelConfig) -> int:
    """Weights of a mixer's two matrices: into all its projections, and out."""
    return (7 if config.mixer.kind == "hgru1" else 4) * config.width**2


def _mixer(config: ModelConfig) -> int:
    width, mixer = config.width, config.mixer
    is_complex = mixer.kind == "hgru1"
    biases = (6 if is_complex else 4) * width if mixer.bias else 0
    phases = width if is_complex else 0
    norm = _norm(mixer.norm, 2 * width if is_complex else width)
    return _mixer_matrices(config) + biases + phases + norm + 3 * width * mixer.conv_width


def _norm(kind: NormKind, width: int) -> int:
    return {"layer": 2 * width, "simple_rms": 0}.get(kind, width)
