"""What to measure, as frozen values with defaults; no torch here, so that the command line starts quickly."""

import re
from collections.abc import Sequence
from dataclasses import field
from typing import Any, Literal

from hgrn2.generate.config import StateDtype
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import LossKind, ModelConfig, Recompute
from hgrn2.models.count import parameters
from hgrn2.settings import refuse, settings

Op = Literal["hgru2", "gated_outer_scan", "gated_scan", "causal_conv"]
Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16", "float16"]
ModelDtype = Literal["float32", "bfloat16"]
Compile = Literal["none", "blocks", "model"]
Preset = Literal["374m", "1.36b"]
Trained = Literal["hgrn2", "llama-hf", "mamba-hf", "fla"]
Decoded = Literal["hgrn2", "hgrn2-graph", "llama-hf", "llama-hf-static", "mamba-hf", "fla"]
MAX_DIFFERENCE = 0.05  # of parameter counts, between a baseline and hgrn2


@settings
class Limits:
    """How often and for how long."""

    repeats: int = 5
    """Timed rounds; everything that is compared has its turn in each."""
    max_seconds: float = 60.0
    """Of wall time for one model in one case, after which it is not repeated again."""
    threads: int | None = None
    """To compute with; none given: PyTorch's choice."""

    def __post_init__(self) -> None:
        refuse(self.repeats < 1, f"--repeats is {self.repeats}; it must be at least 1")
        refuse(self.max_seconds <= 0, f"--max-seconds is {self.max_seconds}; it must be positive")
        refuse(self.threads is not None and self.threads < 1, f"--threads is {self.threads}; it must be at least 1")


@settings
class Size:
    """HGRN2's shape; every other model is fitted to its number of parameters at the same width and vocabulary."""

    width: int = 256
    """D."""
    layers: int = 8
    """Blocks of hgrn2 and of Llama; Mamba, whose blocks are smaller, gets as many as the parameters allow."""
    head_size: int = 64
    """n of hgrn2, and the head size of Llama."""
    glu_width: int = 1280
    """Hidden width of hgrn2's GLU; 1280 makes 10 M parameters."""
    vocab_size: int = 256
    """Small, so that the head does not outweigh what is compared. Embedding and head are not tied."""

    def __post_init__(self) -> None:
        self.config()  # refuses what does not fit together
        refuse(self.head_size % 2 != 0, f"head_size is {self.head_size}; Llama's rotary positions need an even one")

    def config(self) -> ModelConfig:
        """HGRN2 of this size."""
        return ModelConfig(
            vocab_size=self.vocab_size,
            width=self.width,
            layers=self.layers,
            mixer=MixerConfig(head_size=self.head_size),
            glu_width=self.glu_width,
        )

    @property
    def parameters(self) -> int:
        """Of hgrn2: what the others are fitted to."""
        return parameters(self.config()).total

    def check(self, name: str, count: int) -> None:
        """Refuse to compare with a model whose number of parameters is more than 5 % off."""
        refuse(
            abs(count / self.parameters - 1) > MAX_DIFFERENCE,
            f"{name} has {count:,} parameters, hgrn2 {self.parameters:,}: more than {MAX_DIFFERENCE:.0%} apart; "
            "choose more layers, or leave it out with --models",
        )


PRESETS: dict[str, Size] = {
    "374m": Size(width=1024, layers=24, head_size=128, glu_width=2816, vocab_size=32_000),
    "1.36b": Size(width=2048, layers=24, head_size=128, glu_width=5632, vocab_size=32_000),
}
"""The shapes of flash-linear-attention's published HGRN2 models: 373,916,672 and 1,364,396,032 parameters."""
MODEL_BASELINES: dict[str, Trained] = {"sdpa": "llama-hf", "llama": "llama-hf", "mamba": "mamba-hf", "fla": "fla"}
"""What `--against` calls the models beside hgrn2."""
BASELINES = ("sdpa", "fla")
SHAPES: dict[str, tuple[str, ...]] = {
    "cpu": ("8x512x256x64", "2x2048x256x64", "4x1024x512x128"),
    "cuda": ("16x2048x2048x128", "4x8192x2048x128", "1x32768x2048x128", "16x2048x1024x128"),
}
"""What is measured where no shapes are named; on a GPU those of the published comparison."""


@settings
class OpsBench:
    """Operators on each backend."""

    device: Device = "cpu"
    """Where."""
    dtype: Dtype | None = None
    """Of the inputs; none given: float32 on a CPU, bfloat16 on a GPU."""
    ops: tuple[Op, ...] = ("hgru2", "gated_outer_scan", "gated_scan", "causal_conv")
    """Which operators."""
    backends: tuple[str, ...] = ()
    """Which backends; none given: all that can serve on this machine, on a GPU without the loop over tokens."""
    shapes: tuple[str, ...] = ()
    """BxTxDxn: sequences, tokens, channels, head size; element-wise operators have no heads and ignore the last. None
    given: a few that suit the device."""
    bound: tuple[float, ...] = (0.0, 0.5)
    """γ of hgru2, the same for every channel: small ones and those from 0.3 on take different paths."""
    against: tuple[str, ...] = ("sdpa",)
    """Baselines beside hgru2: sdpa, fla (flash-linear-attention, GPU), none; separated by blanks or commas."""
    against_shapes: tuple[str, ...] = ()
    """The shapes that fla is measured at, which it tunes itself for at great length; none given: all."""
    sweep: tuple[int, ...] = ()
    """Lengths at which hgru2 and its baselines are measured with equal B x T, for the figure of cost against length."""
    sweep_tokens: int = 131072
    """B x T of the sweep; its channels and heads are those of the first shape."""
    first_call: bool = False
    """Also time the first call of hgru2 at the first shape, in a new process that finds no kernel built before."""
    limits: Limits = field(default_factory=lambda: Limits(repeats=9, max_seconds=10.0))

    def __post_init__(self) -> None:
        _check_distinct("--ops", self.ops)
        refuse(len(set(self.backends)) < len(self.backends), "--backends: a value is repeated")
        _check_distinct("--bound", self.bound)
        refuse(not all(0 <= x < 1 for x in self.bound), f"--bound has {self.bound}; every lower bound must be in [0,1)")
        unknown = [name for name in self.baselines if name not in BASELINES]
        refuse(bool(unknown), f"--against has {', '.join(unknown)!r}; choose from {', '.join(BASELINES)}, none")
        refuse("fla" in self.baselines and self.device != "cuda", "--against fla runs on a GPU only: add --device cuda")
        for shapes in filter(None, (self.shapes, self.against_shapes)):
            _check_distinct("--shapes", shapes)
        for shape in (*self.shapes, *self.against_shapes):
            parse_shape(shape)
        unmeasured = [shape for shape in self.against_shapes if shape not in self.measured_shapes]
        refuse(bool(unmeasured), f"--against-shapes has {', '.join(unmeasured)}, which --shapes does not")
        refuse(len(set(self.sweep)) < len(self.sweep), "--sweep: a value is repeated")
        for length in self.sweep:
            refuse(
                length < 1 or self.sweep_tokens % length != 0,
                f"--sweep has {length}; it must divide --sweep-tokens, {self.sweep_tokens}",
            )

    @property
    def baselines(self) -> tuple[str, ...]:
        """`against` as names, each once."""
        names = (name.strip() for text in self.against for name in text.split(","))
        return tuple(dict.fromkeys(name for name in names if name and name != "none"))

    @property
    def measured_shapes(self) -> tuple[str, ...]:
        """The shapes named, or those of the device."""
        return self.shapes or SHAPES[self.device]

    @property
    def measured_dtype(self) -> Dtype:
        """The dtype named, or that of the device."""
        return self.dtype or ("float32" if self.device == "cpu" else "bfloat16")


@settings
class TrainBench:
    """Whole training steps of language models."""

    device: Device = "cpu"
    """Where. On a GPU models follow one another, each with the memory to itself, and one that fails is left out."""
    dtype: ModelDtype | None = None
    """Of weights, activations and AdamW's moments; none given: float32 on a CPU, bfloat16 on a GPU."""
    models: tuple[Trained, ...] = ("hgrn2", "llama-hf", "mamba-hf")
    """Which models."""
    against: tuple[str, ...] = ()
    """Short for the models hgrn2 and these: sdpa (Llama), mamba, fla (flash-linear-attention's HGRN2, which tunes
    itself for minutes; GPU), none; separated by blanks or commas."""
    lengths: tuple[int, ...] = (512, 2048)
    """Tokens of a sequence."""
    tokens: int = 4096
    """Tokens of a step, at every length."""
    compile: Compile = "none"
    """torch.compile: of each block by itself, which compiles once whatever the depth, or of the model as a whole."""
    recompute: tuple[Recompute, ...] = ("none",)
    """What is computed again in the backward rather than kept, one row each: nothing, hgrn2's GLUs, whole blocks."""
    loss: LossKind = "auto"
    """Head and loss of hgrn2: with all logits in memory, in chunks, or chunks for vocabularies of 8,192 and more."""
    model_seconds: float = 600.0
    """On a GPU: what a model may take in all, compiling and tuning included, before it is given up."""
    seed: int = 0
    """Of weights and tokens."""
    preset: Preset | None = None
    """A published shape in place of the sizes below; parameters agree to the digit."""
    size: Size = field(default_factory=Size)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        _check_distinct("--models", self.models)
        _check_distinct("--lengths", self.lengths)
        _check_distinct("--recompute", self.recompute)
        _check_models(self.device, self.measured)
        refuse(self.model_seconds <= 0, "--model-seconds must be positive")
        for length in self.lengths:
            refuse(length < 1, f"--lengths has {length}; it must be at least 1")
            refuse(
                self.tokens < 1 or self.tokens % length != 0,
                f"--tokens is {self.tokens}; it must be a multiple of the length {length}",
            )

    @property
    def measured(self) -> tuple[Trained, ...]:
        """The models, with `against` resolved."""
        return ("hgrn2", *_baselines(self.against)) if self.against else self.models

    @property
    def measured_size(self) -> Size:
        """The shape, with the preset resolved."""
        return PRESETS[self.preset] if self.preset else self.size

    @property
    def measured_dtype(self) -> ModelDtype:
        """The dtype named, or that of the device."""
        return self.dtype or ("float32" if self.device == "cpu" else "bfloat16")


@settings
class DecodeBench:
    """Decoding with language models, one token at a time."""

    device: Device = "cpu"
    """Where. On a GPU models follow one another, each with the memory to itself, and one that fails is left out."""
    dtype: ModelDtype | None = None
    """Of the weights; none given: float32 on a CPU, bfloat16 on a GPU."""
    state_dtype: StateDtype = "float32"
    """Of hgrn2's states."""
    models: tuple[Decoded, ...] = ("hgrn2", "llama-hf", "llama-hf-static", "mamba-hf")
    """Which models. hgrn2-graph replays its step as a CUDA graph (on a CPU: the same buffers, call by call)."""
    against: tuple[str, ...] = ()
    """Short for the models hgrn2, hgrn2-graph and these: sdpa (Llama), mamba, fla (flash-linear-attention's HGRN2,
    GPU), none; separated by blanks or commas."""
    contexts: tuple[int, ...] = (128, 8192)
    """Tokens of the prompt."""
    batches: tuple[int, ...] = (1,)
    """Sequences side by side."""
    tokens: int = 200
    """Tokens decoded after it, from the same state at every repeat."""
    compile: bool = False
    """Let torch.compile fuse the step of hgrn2-graph."""
    model_seconds: float = 600.0
    """On a GPU: what a model may take in all, compiling and tuning included, before it is given up."""
    seed: int = 0
    """Of weights and tokens."""
    preset: Preset | None = None
    """A published shape in place of the sizes below; parameters agree to the digit."""
    size: Size = field(default_factory=Size)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        _check_distinct("--models", self.models)
        _check_distinct("--contexts", self.contexts)
        _check_distinct("--batches", self.batches)
        _check_models(self.device, self.measured)
        refuse(self.model_seconds <= 0, "--model-seconds must be positive")
        refuse(min(self.contexts) < 1, f"--contexts has {min(self.contexts)}; it must be at least 1")
        refuse(min(self.batches) < 1, f"--batches has {min(self.batches)}; it must be at least 1")
        refuse(self.tokens < 1, f"--tokens is {self.tokens}; it must be at least 1")

    @property
    def measured(self) -> tuple[Decoded, ...]:
        """The models, with `against` resolved."""
        return ("hgrn2", "hgrn2-graph", *_baselines(self.against)) if self.against else self.models

    @property
    def measured_size(self) -> Size:
        """The shape, with the preset resolved."""
        return PRESETS[self.preset] if self.preset else self.size

    @property
    def measured_dtype(self) -> ModelDtype:
        """The dtype named, or that of the device."""
        return self.dtype or ("float32" if self.device == "cpu" else "bfloat16")


def _baselines(against: Sequence[str]) -> tuple[Trained, ...]:
    names = [name.strip() for text in against for name in text.split(",")]
    unknown = [name for name in names if name not in MODEL_BASELINES and name not in ("", "none")]
    refuse(bool(unknown), f"--against has {', '.join(unknown)!r}; choose from {', '.join(MODEL_BASELINES)}, none")
    return tuple(dict.fromkeys(MODEL_BASELINES[name] for name in names if name in MODEL_BASELINES))


def _check_models(device: Device, measured: Sequence[str]) -> None:
    refuse("fla" in measured and device != "cuda", "fla runs on a GPU only: add --device cuda")


def parse_shape(text: str) -> tuple[int, int, int, int]:
    """(B, T, D, n) from BxTxDxn."""
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)x(\d+)", text)
    refuse(match is None, f"--shapes has {text!r}; write BxTxDxn, as in 8x512x256x64")
    assert match is not None
    batch, tokens, width, head = (int(part) for part in match.groups())
    refuse(min(batch, tokens, width, head) < 1, f"--shapes has {text!r}; every number must be at least 1")
    refuse(width % head != 0, f"--shapes has {text!r}: {width} channels do not divide into heads of {head}")
    return batch, tokens, width, head


def _check_distinct(option: str, values: Sequence[Any]) -> None:
    refuse(not values, f"{option}: name at least one")
    refuse(len(set(values)) < len(values), f"{option}: a value is repeated")
