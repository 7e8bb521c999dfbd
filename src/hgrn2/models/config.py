"""What a model is, as frozen values: no torch here, so that the command line starts quickly.

Every field names its effect and, where published implementations differ, who uses which value (docs/math.md).
A configuration that cannot work is refused when it is made, with one line that says why.
"""

from dataclasses import asdict, field
from typing import Any, ClassVar, Literal

from hgrn2.errors import UserError
from hgrn2.layers.config import KINDS, GLUActivation, LowerBoundKind, MixerConfig, MixerKind, NormKind
from hgrn2.settings import refuse, settings

InitKind = Literal["normal", "scaled_normal"]
LossKind = Literal["auto", "full", "chunked"]
Recompute = Literal["none", "glu", "block"]
PositionKind = Literal["none", "learned", "sine"]
HeadNorm = Literal["tokens", "rms", "layer", "simple_rms"]


@settings
class InitConfig:
    """Initial weights (models/init.py holds the code and the sources)."""

    retired: ClassVar[dict[str, Any]] = {"zero_outputs": False}

    kind: InitKind = "normal"
    """normal: std everywhere; scaled_normal: projections that write to the residual stream divided by sqrt(2 layers)
    (GPT-2)."""
    std: float = 0.02
    """Standard deviation of normal weights."""
    input_std: float = 0.0
    """Of token embeddings, and of the map from real-valued steps of a sequence; 0: std. Sines beside them are of size
    0.7, and tokens of size 0.02 are hardly seen there."""
    memory: float = 0.0
    """Tokens that the slowest channels remember at the start: biases of the forget gates (hgru2, hgru1) such that, but
    for lower bounds and inputs, they are 1 - 1/4 to 1 - 1/memory over the channels of a head (models/open_gates.py); 0:
    they start at a half, and remember two tokens."""

    def __post_init__(self) -> None:
        refuse(self.std <= 0, f"init std is {self.std}; it must be positive")
        refuse(self.input_std < 0, f"init input_std is {self.input_std}; it must not be negative")
        refuse(self.memory != 0 and not 4 <= self.memory <= 1e6, f"init memory is {self.memory}; use 0, or 4 to 1e6")


@settings
class StackConfig:
    """A stack of pre-norm blocks (token mixer, GLU): what language models and classifiers share."""

    width: int
    """D, the residual width."""
    layers: int
    """L, the number of blocks."""
    mixer: MixerConfig = field(default_factory=MixerConfig)
    pattern: tuple[MixerKind, ...] = ()
    """Kinds of mixers, layer by layer and then again from its start: hgru2,hgru2,hgru2,attention makes every fourth
    layer attention. mixer.kind is one of them, and one more is possible. Empty: all layers are of mixer.kind."""
    other: MixerConfig | None = None
    """Settings of the second kind in pattern, with the names that mixer has (other.head_size=64); what is not given is
    as in mixer, as far as that kind has it."""
    glu_width: int
    """Hidden width of the gated linear unit; 0: there is none, as in mamba and mamba2, which alone may do without."""
    glu_activation: GLUActivation = "silu"
    """silu: flash-linear-attention; none (a plain product): HGRN1 and the hgru2 language model."""
    glu_bias: bool = False
    """Biases in the three matrices of the gated linear unit."""
    norm: NormKind = "rms"
    """Before each mixer and gated linear unit, and after the last block."""
    norm_eps: float = 1e-6
    """Added to the mean square (or variance) under the root of that norm."""
    dropout: float = 0.0
    """On the embedding and on what each mixer and GLU adds to the residual stream."""
    drop_path: float = 0.0
    """Stochastic depth: share of sequences for which the last block's branches are left out; 0 at the first block."""
    lower_bound: LowerBoundKind = "inclusive"
    """Lower bounds of the forget gate from a softmax over the layers that have such gates. inclusive: cumulative sum
    minus the first row (language models); exclusive: sum of the rows below (HGRN1's formula, images, long range); none:
    no lower bound."""
    init: InitConfig = field(default_factory=InitConfig)

    def __post_init__(self) -> None:
        for name in ("width", "layers"):
            refuse(getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        alone = all(KINDS[kind].alone for kind in self.kinds)
        refuse(self.glu_width < (0 if alone else 1), f"glu_width is {self.glu_width}; it must be at least "
               f"{'0' if alone else '1'} beside {self.named_kinds}")  # fmt: skip
        self._check_pattern()
        for mixer in self.kinds.values():
            refuse(
                KINDS[mixer.kind].heads and self.width % mixer.head_size != 0,
                f"width {self.width} does not divide into heads of head_size {mixer.head_size}"
                f"{'' if mixer is self.mixer else ' (other)'}",
            )
            self._check_parts(mixer)
            refuse(
                self.init.memory > 0 and mixer.kind.startswith("hgru") and not mixer.bias,
                "init.memory is the bias of the forget gates: "
                f"{'mixer' if mixer is self.mixer else 'other'}.bias must be true",
            )
        for name in ("dropout", "drop_path"):
            refuse(not 0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        refuse(
            not any(KINDS[kind].lower_bounds for kind in self.kinds) and self.lower_bound != "none",
            f"{self.named_kinds} has no lower bounds: lower_bound {self.lower_bound} must be none",
        )
        refuse(self.norm in ("head_rms", "none"), f"norm {self.norm} is offered inside the mixer only")
        refuse(self.norm_eps <= 0, f"norm_eps is {self.norm_eps}; it must be positive")

    def _check_parts(self, mixer: MixerConfig) -> None:
        """Refuse channels or heads that do not divide into what a mixer cuts them into."""
        heads, kind, cuts = self.width * mixer.expand // mixer.head_size, mixer.kind, mixer.groups
        refuse(kind == "mamba2" and heads % cuts != 0, f"{heads} heads of {kind} do not divide into groups of {cuts}")
        refuse(
            kind != "mamba2" and self.width % cuts != 0,
            f"width {self.width} of {kind} does not divide into {cuts} groups",
        )
        refuse(
            KINDS[kind].bare and self.width % max(1, mixer.expansion) != 0,
            f"width {self.width} of {kind} does not divide into heads of expansion {mixer.expansion}",
        )

    def _check_pattern(self) -> None:
        kind = self.mixer.kind
        others: list[MixerKind] = [one for one in dict.fromkeys(self.pattern) if one != kind]
        shown = ",".join(self.pattern)
        refuse(bool(self.pattern) and kind not in self.pattern, f"pattern {shown} has no layer of mixer.kind {kind}")
        refuse(len(others) > 1, f"pattern {shown} has {len(others) + 1} kinds; mixer and other are settings of two")
        refuse(len(self.pattern) > self.layers, f"pattern {shown} is longer than the stack: layers is {self.layers}")
        refuse(
            self.other is not None and self.other.kind not in others,
            f"other is {self.other and self.other.kind}; pattern ({shown or 'empty'}) has no such layer beside {kind}",
        )
        second = self.kinds.get(others[0]) if others else None
        refuse(
            second is not None and (second.direction == "causal") != (self.mixer.direction == "causal"),
            f"mixer and other must both be causal or both not: they are {self.mixer.direction} and "
            f"{second and second.direction}",
        )

    @property
    def kinds(self) -> dict[MixerKind, MixerConfig]:
        """The settings of each kind of mixer in the stack, `mixer` first."""
        found: dict[MixerKind, MixerConfig] = {self.mixer.kind: self.mixer}
        for kind in self.pattern:
            if kind not in found:
                found[kind] = self.other or _beside(kind, self.mixer)
        return found

    @property
    def mixer_counts(self) -> tuple[tuple[MixerConfig, int], ...]:
        """The settings of each kind and of how many layers they are, without going through the layers."""
        pattern = self.pattern or (self.mixer.kind,)
        rounds, rest = divmod(self.layers, len(pattern))
        return tuple(
            (mixer, rounds * pattern.count(kind) + pattern[:rest].count(kind)) for kind, mixer in self.kinds.items()
        )

    @property
    def mixers(self) -> tuple[MixerConfig, ...]:
        """The settings of the mixer of every layer."""
        kinds, pattern = self.kinds, self.pattern or (self.mixer.kind,)
        return tuple(kinds[pattern[layer % len(pattern)]] for layer in range(self.layers))

    @property
    def named_kinds(self) -> str:
        """The kinds of mixers, for messages."""
        return " with ".join(self.kinds)

    @property
    def with_lower_bound(self) -> tuple[int, ...]:
        """Layers whose forget gates can have lower bounds: the softmax of the lower bounds runs over these alone."""
        return tuple(layer for layer, mixer in enumerate(self.mixers) if KINDS[mixer.kind].lower_bounds)

    @property
    def grows(self) -> bool:
        """Whether the state of any layer grows with the text."""
        return any(mixer.grows for mixer in self.kinds.values())

    @property
    def is_2d(self) -> bool:
        """Whether any mixer reads images, and must be told their height and width."""
        return any(mixer.is_2d for mixer in self.kinds.values())

    @property
    def heads(self) -> int:
        """H = D / n of `mixer` for kinds with heads; 1 for the vector states of HGRN1."""
        return self.width // self.mixer.head_size if KINDS[self.mixer.kind].heads else 1

    @staticmethod
    def settled(values: dict[str, Any], given: set[str]) -> dict[str, Any]:
        """What follows from the settings `given` by name: with other kinds (`mixer.kind`, `pattern`) come the settings
        that they need, except those that are given too."""
        kind, given_pattern = values["mixer"]["kind"], values["pattern"]
        text = isinstance(given_pattern, str)
        pattern: list[Any] = [one.strip() for one in given_pattern.split(",")] if text else list(given_pattern)
        if not {kind, *pattern} <= set(KINDS):
            return values
        found = dict(values)
        if "mixer.kind" in given:
            own = {name: value for name, value in values["mixer"].items() if f"mixer.{name}" in given}
            found["mixer"] = MixerConfig.fitted(kind, values["mixer"]) | own
        if not any(KINDS[one].lower_bounds for one in (kind, *pattern)) and "lower_bound" not in given:
            found["lower_bound"] = "none"
        if values["other"] is not None:
            second = next((one for one in pattern if one != kind), None)
            own = {name: value for name, value in values["other"].items() if f"other.{name}" in given}
            refuse(
                second is None and bool(own), f"other.{next(iter(own), '')} needs a second kind of mixers in pattern"
            )
            if second is None:
                found["other"] = None
            elif values["other"]["kind"] != second or None in values["other"].values():
                found["other"] = MixerConfig.beside(second, found["mixer"]) | own
        return found

    def drop_path_of(self, layer: int) -> float:
        """The rate of one block, 0 at the first and `drop_path` at the last."""
        return self.drop_path * layer / (self.layers - 1) if self.layers > 1 else self.drop_path


def _beside(kind: MixerKind, mixer: MixerConfig) -> MixerConfig:
    try:
        return MixerConfig(**MixerConfig.beside(kind, asdict(mixer)))
    except UserError as error:
        raise UserError(
            f"layers of {kind} beside {mixer.kind}: {error} (give them settings of their own: other)"
        ) from None


@settings
class ModelConfig(StackConfig):
    """A language model: the stack between a token embedding and a next-token head."""

    vocab_size: int
    """V: token ids lie below it. hgrn2 train lm sets it to that of the data unless it is given."""
    tie_embeddings: bool = False
    """The head has the weights of the embedding."""
    scale_embeddings: bool = False
    """Multiply embeddings by sqrt(width), as HGRN1's code base does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self.vocab_size < 1, f"vocab_size is {self.vocab_size}; it must be at least 1")
        direction = self.mixer.direction
        refuse(direction != "causal", f"a language model must not see later tokens: direction {direction} is for "
               "classifiers")  # fmt: skip
        refuse(self.norm == "batch", "norm batch mixes sequences and later tokens; a language model needs another norm")


@settings
class ClassifierConfig(StackConfig):
    """What classifiers of sequences and of images share: the stack, the mean over tokens, a linear head."""

    classes: int
    """Number of classes."""
    positions: PositionKind = "none"
    """Added to the embedding. learned: a table; sine: sines and cosines, no weights; none."""
    head_norm: HeadNorm = "tokens"
    """tokens: the stack's own norm of every token, then the mean; else the mean comes first, then this norm instead
    (simple_rms: the published image models)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self.classes < 2, f"classes is {self.classes}; it must be at least 2")


@settings
class SequenceConfig(ClassifierConfig):
    """A classifier of sequences, or of pairs of them: token ids or one real-valued vector per step."""

    tag: ClassVar[str] = "sequence"
    untagged: ClassVar[tuple[str, ...]] = ("mixer", "vocab_size")
    """See hgrn2.settings: the fields by which files without a tag are told."""

    vocab_size: int = 0
    """Token ids below it are the input; 0: the input is real-valued."""
    channels: int = 0
    """Numbers a step of a real-valued input; 0: the input is token ids."""
    max_length: int = 0
    """Rows of the table of learned positions: the longest sequence; not used otherwise."""
    pair: bool = False
    """The input is two sequences, encoded by the same weights and compared: do they match?"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one = (self.vocab_size > 0) != (self.channels > 0) and min(self.vocab_size, self.channels) >= 0
        refuse(not one, f"give vocab_size for token ids or channels for real-valued inputs, one of them, not "
               f"{self.vocab_size} and {self.channels}")  # fmt: skip
        learned = self.positions == "learned"
        refuse(learned and self.max_length < 1, "learned positions need max_length, the longest sequence")
        refuse(self.max_length < 0, f"max_length is {self.max_length}; it must be at least 1, or 0 for none")
        sine = self.positions == "sine"
        refuse(sine and self.width % 2 != 0, f"sine positions need an even width, not {self.width}")


@settings
class VisionConfig(ClassifierConfig):
    """A classifier of images: patches (or pixels) as tokens, no class token."""

    tag: ClassVar[str] = "vision"
    untagged: ClassVar[tuple[str, ...]] = ("mixer", "image_size")
    """See hgrn2.settings: the fields by which files without a tag are told."""

    image_size: int = 224
    """Height and width in pixels for which learned positions have one row per patch; other sizes interpolate them."""
    patch: int = 16
    """Pixels along each side of a patch; 1: every pixel is a token."""
    channels: int = 3
    """3 for colour, 1 for grey."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("image_size", "patch", "channels"):
            refuse(getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        fits = self.image_size % self.patch == 0
        refuse(not fits, f"image_size {self.image_size} is no multiple of patch {self.patch}")
        sine = self.positions == "sine"
        refuse(
            sine and self.width % 4 != 0,
            f"sine positions of an image need a width that divides by 4, not {self.width}",
        )

    @property
    def grid(self) -> int:
        """Patches along each side of an image of `image_size`."""
        return self.image_size // self.patch


@settings
class DeiTConfig:
    """DeiT (arXiv 2012.12877), the softmax-attention baseline for images; models/deit.py builds it from transformers.

    Class token, learned positions, pre-norm blocks of attention and a GELU network of 4 D, linear head on the class
    token; no distillation token.
    """

    tag: ClassVar[str] = "deit"
    untagged: ClassVar[tuple[str, ...]] = ("head_size", "image_size")
    """See hgrn2.settings: the fields by which files without a tag are told."""

    classes: int
    """Number of classes."""
    image_size: int = 224
    """Height and width in pixels for which there is one position per patch; other sizes interpolate them."""
    patch: int = 16
    """Pixels along each side of a patch."""
    channels: int = 3
    """3 for colour, 1 for grey."""
    width: int = 192
    """D."""
    layers: int = 12
    """L."""
    head_size: int = 64
    """n: width / n attention heads; 64 as published."""
    dropout: float = 0.0
    """On the embedding and on what attention and network add to the residual stream."""
    drop_path: float = 0.0
    """Stochastic depth: share of images for which the last block's branches are left out; 0 at the first block."""

    def __post_init__(self) -> None:
        for name in ("image_size", "patch", "channels", "width", "layers", "head_size"):
            refuse(getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        refuse(self.classes < 2, f"classes is {self.classes}; it must be at least 2")
        for name in ("dropout", "drop_path"):
            refuse(not 0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        refuse(self.image_size % self.patch != 0, f"image_size {self.image_size} is no multiple of patch {self.patch}")
        refuse(
            self.width % self.head_size != 0,
            f"width {self.width} does not divide into heads of head_size {self.head_size}",
        )

    @property
    def heads(self) -> int:
        """H = D / n."""
        return self.width // self.head_size

    def drop_path_of(self, layer: int) -> float:
        """The rate of one block, 0 at the first and `drop_path` at the last."""
        return self.drop_path * layer / (self.layers - 1) if self.layers > 1 else self.drop_path
