"""Settings of the layers, as frozen values: no torch here, so that the command line starts quickly."""

from typing import Any, ClassVar, Literal

from hgrn2.layers.kinds import GATE_RANK, KINDS, OPTIONAL, Direction, ExpansionMap, MixerKind
from hgrn2.settings import refuse, settings

__all__ = ["GATE_RANK", "KINDS", "Direction", "MixerConfig", "MixerKind"]

NormKind = Literal["rms", "layer", "simple_rms", "head_rms", "batch", "none"]
InputActivation = Literal["none", "silu"]
OutputActivation = Literal["silu", "sigmoid"]
OutputGate = Literal["none", "silu", "sigmoid"]
GLUActivation = Literal["none", "silu", "gelu"]
LowerBoundKind = Literal["inclusive", "exclusive", "none"]


@settings
class MixerConfig:
    """How a block mixes time: the recurrent unit and the options in which published versions differ."""

    retired: ClassVar[dict[str, Any]] = {"norm_first": True, "count_once": False}

    kind: MixerKind = "hgru2"
    """hgru2: matrix state by outer product; hgru1: complex vector state; hgru1_real: real vector state; wide_hgru1: the
    same on n D channels, made by `expansion_map`; gla: matrix state with a key of its own; mamba: vector state of
    several numbers per channel; mamba2: matrix state with one gate a head; mingru, rglru, lru: cells of other papers
    with a vector state or, with `expansion`, a matrix by outer product; attention: softmax over all keys (those so far,
    or with direction bidirectional those of the whole sequence). The HGRN kinds alone have lower bounds."""
    head_size: int = 128
    """n, the state expansion of hgru2: keys and values of one head. hgru1 has no heads and ignores it."""
    key_size: int = 0
    """gla only: key channels of one head, where values have head_size; 0: as many. The published models have half."""
    expansion: int = 0
    """n. mingru, rglru and lru: the state is expanded by an outer product to heads of n channels, as HGRN2's, without
    more parameters; 0: a vector, as published. wide_hgru1: copies of each channel; 0: 4."""
    expansion_map: ExpansionMap = "dense"
    """wide_hgru1 only: how D numbers become n D (layers/maps.py): dense, low_rank, grouped, grouped_mixed, khatri_rao,
    kronecker or hadamard."""
    expand: int = 2
    """mamba and mamba2: E = expand · D channels inside."""
    state_size: int = 0
    """mamba: numbers of the state of one channel; mamba2: channels of a key; 0: 16 and 128, as published."""
    groups: int = 1
    """mamba2: groups of heads that share keys and queries; the norm is then that of each group. rglru: blocks of the
    matrices of its gates (Griffin: as many as heads of its attention); wide_hgru1: groups of channels of grouped
    maps."""
    step_min: float = 1e-3
    """mamba and mamba2: the least step size of a channel at the start."""
    step_max: float = 0.1
    """The largest."""
    input_activation: InputActivation = "none"
    """On i_t. none: paper figure, language models; silu: the hgru2 modules for images and long range, and HGRN1."""
    output_activation: OutputActivation = "silu"
    """On o_t. silu: language models; sigmoid: the hgru2 modules."""
    output_gate: OutputGate = "none"
    """hgru2 in directions other than causal: a gate of its own on the normalised output, from one projection more (D²
    weights), as HGRN1 and GLA have it; none: the paper's form, in which o_t alone gates, before the norm."""
    norm: NormKind = "rms"
    """Norm of the output over the full width (head_rms: each head by itself; none: mingru, rglru and lru, as
    published)."""
    norm_eps: float = 1e-5
    """Added to the mean square (or variance) under the root of that norm."""
    scale_scores: bool = False
    """Multiply the output by n^-1/2 (flash-linear-attention does, the paper does not)."""
    bias: bool = False
    """Biases in the projections (the hgru2 modules and HGRN1 have them)."""
    conv_width: int = 0
    """Width of a causal depthwise convolution on the three projections, no activation; 0 leaves it out."""
    rotary: bool = True
    """attention only: turn queries and keys by where they stand; false: order is seen only in positions that were added
    to the embedding, as in the first Transformer."""
    qk_norm: bool = False
    """attention only: an rms norm with a weight on the queries and on the keys of each head, before they are turned."""
    window: int = 0
    """causal attention only: a token sees itself and the window - 1 tokens before it, and the state holds no more; 0:
    all of them."""
    direction: Direction = "causal"
    """causal: each token sees those before it, and a state can be carried; bidirectional: a second scan reads from the
    end; parallel_2d: four scans over an image, along rows and columns both ways; series_2d: the bidirectional mixer
    along columns, then along rows with the same weights."""
    separate_scans: bool = False
    """Each scan has its own input, gates and (hgru2) output gate; false: all share them (the published form), and
    a classifier without positions cannot tell a sequence from its reverse (layers/directions.py). The norm, the output
    projection and, in series_2d, the weights of the two axes are shared always."""
    local_width: int = 0
    """Width W of a centred depthwise convolution whose result is added to the mixer's input, before all projections: W
    taps of a line, W x W of an image; odd. For directions other than causal, hgru2 and hgru1 alike; 0 (the published
    form) leaves it out."""

    def __post_init__(self) -> None:
        refuse(self.head_size < 1, f"head_size is {self.head_size}; it must be at least 1")
        refuse(self.norm_eps <= 0, f"norm_eps is {self.norm_eps}; it must be positive")
        refuse(self.conv_width < 0 or self.conv_width == 1, f"conv_width is {self.conv_width}; use 0 or at least 2")
        kind = KINDS[self.kind]
        for name, without in OPTIONAL.items():
            value = getattr(self, name)
            refuse(value != without and name not in kind.offers, _not_offered(name, value, self.kind))
        refuse(not kind.heads and self.norm == "head_rms", f"norm head_rms needs heads, which {self.kind} has not")
        bare = ", ".join(name for name, known in KINDS.items() if known.bare)
        refuse(self.norm == "none" and not kind.bare, f"norm none is offered for {bare}, not for {self.kind}")
        refuse(self.direction not in kind.directions, f"direction {self.direction} is not offered for {self.kind}")
        refuse(
            self.kind == "attention" and self.rotary and self.head_size % 2 != 0,
            f"head_size is {self.head_size}; rotary positions of attention need an even one",
        )
        refuse(self.key_size < 0, f"key_size is {self.key_size}; use 0 or at least 1")
        for name in ("expand", "groups"):
            refuse(getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        refuse(self.expansion < 0, f"expansion is {self.expansion}; use 0 or at least 1")
        refuse(self.state_size < 0, f"state_size is {self.state_size}; use 0 or at least 1")
        refuse(
            not 0 < self.step_min <= self.step_max,
            f"step_min {self.step_min:g} and step_max {self.step_max:g} must be above 0 and in that order",
        )
        refuse(self.window < 0, f"window is {self.window}; use 0 or at least 1")
        refuse(self.norm == "batch", "norm batch is offered between blocks, not inside the mixer")
        self._check_direction()

    def _check_direction(self) -> None:
        causal, direction = self.direction == "causal", self.direction
        refuse(
            not causal and self.conv_width > 0,
            f"conv_width {self.conv_width} looks back along one line; direction {direction} needs conv_width 0",
        )
        refuse(not causal and self.window > 0, f"window looks back; direction {direction} needs window 0")
        refuse(
            causal and self.output_gate != "none",
            f"output_gate {self.output_gate} is offered for hgru2 in directions other than causal",
        )
        refuse(causal and self.separate_scans, "separate_scans needs a direction of more than one scan, not causal")
        refuse(
            self.local_width < 0 or (self.local_width > 0 and self.local_width % 2 == 0) or self.local_width == 1,
            f"local_width is {self.local_width}; use 0 or an odd number from 3",
        )
        refuse(
            causal and self.local_width > 0,
            f"local_width {self.local_width} looks both ways; it needs a direction other than causal",
        )

    @staticmethod
    def fitted(kind: MixerKind, values: dict[str, Any]) -> dict[str, Any]:
        """Settings of another kind made to fit: those that `kind` does not offer take the value that leaves them out.
        What would change which tokens see each other (direction, scans, local_width) is left to be refused."""
        left = ("separate_scans", "local_width")
        found = values | {name: x for name, x in OPTIONAL.items() if name not in (*KINDS[kind].offers, *left)}
        wrong = {"head_rms": not KINDS[kind].heads, "none": not KINDS[kind].bare}.get(str(values.get("norm")), False)
        return found | ({"norm": "rms"} if wrong else {})

    @staticmethod
    def beside(kind: MixerKind, values: dict[str, Any]) -> dict[str, Any]:
        """Settings of a second kind in a stack of mixers with these settings: the same, as far as it has them."""
        found = MixerConfig.fitted(kind, values) | {"kind": kind}
        found |= {name: x for name, x in OPTIONAL.items() if name not in KINDS[kind].offers}
        if found.get("direction") in ("parallel_2d", "series_2d") and found["direction"] not in KINDS[kind].directions:
            found["direction"] = "bidirectional"  # sees a whole image as well
        return found

    @property
    def grows(self) -> bool:
        """Whether the state holds tokens that were read, and grows with the text (to the window at most)."""
        return KINDS[self.kind].grows

    @property
    def scans(self) -> int:
        """How many scans read the tokens in one pass: 1, 2 or 4; series_2d has two passes of 2."""
        return {"causal": 1, "parallel_2d": 4}.get(self.direction, 2)

    @property
    def is_2d(self) -> bool:
        """Whether the mixer reads images, and must be told their height and width."""
        return self.direction in ("parallel_2d", "series_2d")


def _not_offered(name: str, value: Any, kind: MixerKind) -> str:
    others = ", ".join(other for other, known in KINDS.items() if name in known.offers)
    shown = f"{name}={str(value).lower()}" if isinstance(value, bool) else f"{name} {value}"
    return f"{shown} is offered for {others}, not for {kind}"
