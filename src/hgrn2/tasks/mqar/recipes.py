"""Named recall runs, every one a complete `MQARRun`, and the models that are compared; no torch here."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from hgrn2.errors import UserError, unknown
from hgrn2.layers.config import MixerConfig, MixerKind
from hgrn2.models.config import InitConfig, LowerBoundKind, ModelConfig
from hgrn2.settings import refuse, with_overrides
from hgrn2.tasks.mqar.config import MQARData, MQARRun
from hgrn2.tasks.named import recipe_of
from hgrn2.train.config import OptimConfig, TrainConfig

CONV_WIDTH = 4


class Variant(NamedTuple):
    """A mixer as it is compared."""

    kind: MixerKind
    bounds: LowerBoundKind
    conv: bool
    """Short convolution in front of it."""
    sized: bool
    """Whether its state grows with n: one run for each n, or one for all."""


VARIANTS: dict[str, Variant] = {
    "hgrn2": Variant("hgru2", "inclusive", False, True),
    "hgrn2-conv": Variant("hgru2", "inclusive", True, True),
    "hgrn1": Variant("hgru1", "inclusive", False, False),
    "gla": Variant("gla", "none", False, True),
    "gla-conv": Variant("gla", "none", True, True),
    "attention": Variant("attention", "none", False, False),
    "attention-conv": Variant("attention", "none", True, False),
}


def variant(name: str) -> Variant:
    """The compared mixer of this name; an unknown name is a `UserError` with the nearest one."""
    if name not in VARIANTS:
        raise unknown("model", name, VARIANTS)
    return VARIANTS[name]


def name_of(model: ModelConfig) -> tuple[str, bool]:
    """The compared mixer that a model has, and whether its state grows with n."""
    conv = model.mixer.conv_width > 0
    for name, one in VARIANTS.items():
        if (one.kind, one.conv) == (model.named_kinds, conv) and not model.mixer.window:
            return name, one.sized
    raise UserError(f"{model.named_kinds} is not among the models that are compared ({', '.join(VARIANTS)})")


def with_variant(run: MQARRun, name: str, *, head_size: int, width: int) -> MQARRun:
    """The run with another mixer and size: GLUs of twice the width, attention with one head of the full width."""
    kind, bounds, conv, sized = variant(name)
    refuse(width < 1, f"width is {width}; it must be at least 1")
    mixer = MixerConfig(
        kind=kind, head_size=head_size if sized else width, conv_width=CONV_WIDTH if conv else 0,
        bias=run.model.mixer.bias,
    )  # fmt: skip
    model = replace(
        run.model, width=width, glu_width=2 * width, lower_bound=bounds, mixer=mixer, pattern=(), other=None
    )
    return replace(run, model=model)


def small() -> MQARRun:
    """Half a minute on one CPU core: up to 8 pairs in 32 tokens of a vocabulary of 64, one layer with the short
    convolution. Sequences of one and two pairs among them, and gates that start near one, are what makes it learn so
    soon (docs/mqar.md)."""
    data = MQARData(
        train=("32x1x9600", "32x2x9600", "32x4x19200", "32x8x19200"), test=("32x2x1000", "32x4x1000", "32x8x1000")
    )
    model = _model(vocab_size=64, width=64, layers=1, tie_embeddings=False, memory=32)
    train = TrainConfig(
        steps=800, sequence_length=32, batch_size=64, eval_every=200, eval_tokens=6_400, save_every=400, log_every=20,
        keep=1, spike=0,
    )  # fmt: skip
    optim = OptimConfig(lr=2e-2, warmup_steps=80, final_lr_ratio=0.0, weight_decay=0.01)
    return MQARRun(model=model, data=data, train=train, optim=optim)


def zoology() -> MQARRun:
    """The sets and the amount of training that Zoology's comparisons publish: vocabulary 8,192, 180,000 sequences with
    4 to 64 pairs, 32 epochs in batches of 256, AdamW, two layers, cosine to zero; for a GPU (docs/mqar.md). How weights
    and gates start is ours."""
    epoch = 100_000 // 256 + 4 * (20_000 // 256)
    train = TrainConfig(
        steps=32 * epoch, sequence_length=256, batch_size=256, eval_every=epoch, eval_tokens=100_000,
        save_every=3 * epoch, log_every=50, keep=1, spike=0,
    )  # fmt: skip
    optim = OptimConfig(lr=3.2e-3, warmup_steps=500, final_lr_ratio=0.0, weight_decay=0.1)
    model = _model(vocab_size=8192, width=128, layers=2, tie_embeddings=True, memory=150)
    return MQARRun(model=model, train=train, optim=optim)


def h100() -> MQARRun:
    """The published task, learned within minutes on a GPU; a recipe of ours (docs/mqar.md says how it was found).

    HGRN2 without convolution whose gates start near one, short sequences with few pairs among the long ones, none of
    them twice, a large learning rate. In float32: bfloat16 would keep three digits of the 8,192 logits to be ranked.
    """
    data = MQARData(train=("64x4x160000", "64x8x100000", "64x16x100000", "128x32x100000", "256x64x160000"))
    train = TrainConfig(
        steps=4000, sequence_length=256, batch_size=128, eval_every=500, eval_tokens=50_000, save_every=0, log_every=25,
        keep=1, spike=0,
    )  # fmt: skip
    optim = OptimConfig(lr=1e-2, warmup_steps=100, final_lr_ratio=0.0, weight_decay=0.1)
    model = _model(vocab_size=8192, width=128, layers=2, tie_embeddings=True, memory=150)
    model = replace(model, mixer=replace(model.mixer, conv_width=0))
    return MQARRun(model=model, data=data, train=train, optim=optim)


RECIPES: dict[str, Callable[[], MQARRun]] = {"small": small, "zoology": zoology, "h100": h100}


def recipe(name: str) -> MQARRun:
    """The run of this name, or one's own MODULE:NAME; an unknown name is a `UserError` with the nearest one."""
    return recipe_of(name, RECIPES, MQARRun)


def changed(
    run: MQARRun, *, model: str | None = None, head_size: int | None = None, width: int | None = None,
    assignments: tuple[str, ...] = (),
) -> MQARRun:  # fmt: skip
    """The run with another mixer, head size or width, then with `name=value` settings; its length is that of the data.

    A width that is given alone keeps the head size, a mixer that is given alone keeps both.
    """
    if (model, head_size, width) != (None, None, None):
        conv = "-conv" if run.model.mixer.conv_width else ""
        name = f"hgrn2{conv}" if model is None else model
        size = run.model.mixer.head_size if head_size is None else head_size
        run = with_variant(run, name, head_size=size, width=run.model.width if width is None else width)
    data = with_overrides(run.data, tuple(text.strip()[5:] for text in assignments if text.strip().startswith("data.")))
    longest = max(one.length for one in data.train_segments)
    return with_overrides(run, (f"train.sequence_length={longest}", *assignments))


def _model(*, vocab_size: int, width: int, layers: int, tie_embeddings: bool, memory: float) -> ModelConfig:
    """HGRN2 with the short convolution and one head; biases are what `memory` sets. Weights of 0.1, not 0.02, and for
    more than one layer embeddings as large as what a layer adds to them: both shorten the time in which nothing is
    learned (docs/mqar.md)."""
    return ModelConfig(
        vocab_size=vocab_size, width=width, layers=layers, glu_width=2 * width, tie_embeddings=tie_embeddings,
        scale_embeddings=layers > 1, mixer=MixerConfig(head_size=width, conv_width=CONV_WIDTH, bias=True),
        init=InitConfig(std=0.1, memory=memory),
    )  # fmt: skip
