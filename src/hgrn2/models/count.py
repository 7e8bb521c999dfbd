"""What a configuration costs, computed from it alone: parameters, floating-point operations per token, bytes of state.

No torch here: the numbers are formulas, and tests hold them to the modules that are really built.
"""

from dataclasses import dataclass

from hgrn2.layers.config import KINDS, MixerConfig, NormKind
from hgrn2.models.config import ClassifierConfig, ModelConfig, SequenceConfig, StackConfig, VisionConfig


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Trained numbers of a model, each counted once."""

    embedding: int
    """What stands around the stack: a language model's token embedding and, unless it is tied, its head, V D each; a
    classifier's input map, learned positions and head."""
    lower_bounds: int
    """Γ of the lower bounds: D for each layer that has them."""
    final_norm: int
    mixers: int
    """All token mixers with the norms before them."""
    glus: int
    """All gated linear units with the norms before them."""

    @property
    def non_embedding(self) -> int:
        """All but the embedding and the head: what papers compare."""
        return self.mixers + self.glus + self.lower_bounds + self.final_norm

    @property
    def total(self) -> int:
        """Everything."""
        return self.non_embedding + self.embedding


def parameters(config: StackConfig) -> ParameterCount:
    """Count the parameters of `LanguageModel(config)`, `SequenceClassifier(config)` or `VisionClassifier(config)`.

    With width D, GLU width m and convolution width W, biases and norm weights aside: 4 D² + 3 D W for hgru2 and
    attention, 4 D² for hgru1_real, 7 D² + D for hgru1, 5 D² + 33 D + 3 D W for gla with keys as wide as values, 3 D m
    for the GLU, L D for the lower bounds of the L layers that have them; `hgrn2.layers.kinds` has each kind's in full.
    Every scan with projections of its own beside the first adds 3 D² (2 D² for hgru1_real), an output gate D², a local
    convolution of width W D W (D W² for images).
    """
    width, hidden = config.width, config.glu_width
    before = _norm(config.norm, width)
    glu = 3 * width * hidden + (2 * hidden + width if config.glu_bias else 0)
    with_lower_bound = sum(layers for mixer, layers in config.mixer_counts if KINDS[mixer.kind].lower_bounds)
    return ParameterCount(
        embedding=_around(config),
        lower_bounds=0 if config.lower_bound == "none" else with_lower_bound * width,
        final_norm=before if not isinstance(config, ClassifierConfig) or config.head_norm == "tokens" else 0,
        mixers=config.layers * before + sum(n * _mixer(width, mixer) for mixer, n in config.mixer_counts),
        glus=config.layers * (before + glu) if hidden else 0,
    )


def flops_per_token(config: ModelConfig, *, training: bool, tokens: int = 0) -> int:
    """Floating-point operations (a multiplication and an addition are two) for one token of the whole model.

        forward = 2 · (matrix weights of all blocks + V D of the head) + Σ_layers (scan + short convolution)

    The matrices of a block hold 4 D² (7 D² for hgru1, 5 D² + 32 D for gla) + 3 D m weights; the head counts whether or
    not it is tied, the embedding is a look-up and counts nothing. The scan counts the recurrence that defines the
    model, whatever an operator does instead (the chunked form works more to wait less), so the number compares models,
    not kernels:

        hgru2, gla   5 D n    each of the D n numbers of the state (gla: D k): decay 1, k ⊗ i and its sum 2, output 2
        hgru1_real   3 D      f h, (1-f) c and their sum
        hgru1       10 D      the same with complex h and c: f e^{iθ} h 6, (1-f) c 2, sum 2
        mamba, 2     5 E N    the same of the E N numbers of their states
        attention    4 D S    scores and their weighted sum over the S = `tokens` it sees, at most its window

    The convolution of width W costs 2 W a channel. Biases, norms, gates and activations, all O(D), are left out.
    Training counts three times the forward: the backward has two products for each one of the forward.
    """
    width, counts = config.width, config.mixer_counts
    matrices = sum(n * (KINDS[mixer.kind].matrices(width, mixer) + 3 * width * config.glu_width) for mixer, n in counts)
    forward = 2 * (matrices + config.vocab_size * width)
    for mixer, n in counts:
        seen = min(tokens, mixer.window) if mixer.window else tokens
        forward += n * (KINDS[mixer.kind].scan(width, mixer, seen) + 2 * _taps(width, mixer))
    return 3 * forward if training else forward


def state_bytes(config: ModelConfig, dtype: str = "float32", *, tokens: int = 0) -> int:
    """Bytes of one sequence's state: `LanguageModel.zeros(1).nbytes`, and after `tokens` of them for attention.

    A layer keeps D n numbers for hgru2 and gla (there n is that of keys), D for hgru1_real, 2 D for hgru1 (complex)
    and 2 D S for attention, the only one that asks for the S = `tokens` that were read (with a window at most window -
    1 of them, and 8 bytes that count the others); and 3 D (W-1) for a convolution of width W. `dtype` is the model's
    ("float32", "bfloat16", …): states are float32 unless the model is float64, but keys and values of attention have
    the model's dtype.
    """
    width, dtype, total = config.width, str(dtype).removeprefix("torch."), 0
    work = 8 if dtype == "float64" else 4
    for mixer, n in config.mixer_counts:
        kind, held = KINDS[mixer.kind], min(tokens, mixer.window - 1) if mixer.window else tokens
        numbers = kind.state(width, mixer, held) * (2 if kind.grows and "16" in dtype else work)
        taps = kind.convolved(width, mixer) * max(mixer.conv_width - 1, 0)
        total += n * (numbers + taps * work + (8 if mixer.window else 0))
    return total


def _around(config: StackConfig) -> int:
    """Input and head of a model."""
    width = config.width
    if isinstance(config, ModelConfig):
        return config.vocab_size * width * (1 if config.tie_embeddings else 2)
    assert isinstance(config, (SequenceConfig, VisionConfig))
    if isinstance(config, VisionConfig):
        inputs, places = (config.channels * config.patch**2 + 1) * width, config.grid**2
    else:
        inputs = config.vocab_size * width if config.vocab_size else (config.channels + 1) * width
        places = config.max_length
    head = (width + 1) * config.classes + (0 if config.head_norm == "tokens" else _norm(config.head_norm, width))
    if isinstance(config, SequenceConfig) and config.pair:
        head += (4 * width + 1) * width
    return inputs + (places * width if config.positions == "learned" else 0) + head


def _taps(width: int, mixer: MixerConfig) -> int:
    """Weights of the short convolution."""
    return KINDS[mixer.kind].convolved(width, mixer) * mixer.conv_width


def _mixer(width: int, mixer: MixerConfig) -> int:
    kind = KINDS[mixer.kind]
    biases = kind.biases(width, mixer) if mixer.bias else 0
    norm = _norm(mixer.norm, kind.normed(width, mixer)) if kind.norm else 0
    scan = kind.scanned * width * (width + mixer.bias)  # input and gates of one more scan
    more = (mixer.scans - 1) * scan if mixer.separate_scans else 0
    more += width * mixer.local_width ** (2 if mixer.is_2d else 1)
    more += width * (width + mixer.bias) if mixer.output_gate != "none" else 0
    own = kind.matrices(width, mixer) + kind.vectors(width, mixer)
    return own + biases + norm + _taps(width, mixer) + more


def _norm(kind: NormKind, width: int) -> int:
    return {"layer": 2 * width, "batch": 2 * width, "simple_rms": 0, "none": 0}.get(kind, width)
