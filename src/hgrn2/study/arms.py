"""Who is compared in each study, and the whole settings of a run; no torch here."""

from collections.abc import Sequence
from dataclasses import replace

from hgrn2.errors import UserError, unknown
from hgrn2.layers.config import KINDS
from hgrn2.models.comparison import COMPARED, comparison_config
from hgrn2.models.config import ModelConfig
from hgrn2.models.expansions import CELLS, STRUCTURED
from hgrn2.settings import refuse, with_overrides
from hgrn2.study import applications
from hgrn2.study.protocol import APPLICATIONS, Arm, Case, OptimizerName, Study
from hgrn2.train.config import DataConfig, OptimConfig, RunConfig, TrainConfig

OURS = "hgrn2"
CONV_WIDTH = 4
HEAD_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SMALL = ("hgrn2", "hgrn2-conv", "hgrn1", "llama", "gla", "mamba2")
"""Subjects of the small comparison where none is named: with them it ends in minutes on a CPU."""
SMALL_MUON = ("hgrn2", "llama")
LENGTHS = 16
"""The study of lengths reads texts of so many times the training length."""
RECORDS = 200
"""Points of a loss curve."""
CHECKPOINTS = 1000
"""Steps between checkpoints of long runs."""

ABLATIONS: dict[str, tuple[str, ...]] = {
    "hgrn2": (),
    "no-bound": ("lower_bound=none",),
    "exclusive-bound": ("lower_bound=exclusive",),
    "sigmoid-output": ("mixer.output_activation=sigmoid",),
    "no-output-activation": ("mixer.output_activation=none",),
    "silu-input": ("mixer.input_activation=silu",),
    "scaled-scores": ("mixer.scale_scores=true",),
    "conv": (f"mixer.conv_width={CONV_WIDTH}",),
    "head-norm": ("mixer.norm=head_rms",),
    "layer-norm": ("mixer.norm=layer", "norm=layer"),
    "norm-without-weights": ("mixer.norm=simple_rms", "norm=simple_rms"),
    "glu-without-activation": ("glu_activation=none",),
    "open-gates": ("mixer.bias=true", "init.memory=32"),
    "zero-outputs": ("init.zero_outputs=true",),
}
"""What is changed of HGRN2, one thing at a time."""
NOT_SETTINGS = {
    "fixed-bound": "bounds are learned or left out",
    "untied-key": "hgru2 ties the key to its gate; gla is the mixer with a key of its own",
}
"""Ablations of the paper's kind that no setting offers, and why."""


def arms(study: Study, models: Sequence[str] = (), optimizers: Sequence[OptimizerName] = ()) -> list[Arm]:
    """The sides of a study.

    Args:
        study: which one, and at which size.
        models: subjects by name; none named: all of the study.
        optimizers: none named: AdamW for all, in the comparison of architectures also Muon for the published forms.

    Raises:
        UserError: an unknown model, one that the size cannot have, or settings that do not fit, with the reason.
    """
    known = subjects(study)
    for name in models:
        if study.study == "ablation" and name in NOT_SETTINGS:
            raise UserError(f"{name} is not offered: {NOT_SETTINGS[name]}")
        if study.study == "expansion" and name not in known:
            _refuse_head_size(name, study)
        if name not in known:
            raise unknown("model of this study", name, known)
    chosen = {name: known[name] for name in models or _usual(known, study)}
    refuse(len(chosen) < len(models), "--models: a model is repeated")
    found = [replace(arm, optimizer=optimizer) for optimizer in optimizers or ("adamw",) for arm in chosen.values()]
    if study.study == "compare" and not optimizers and not models:
        by_muon = [arm for name, arm in chosen.items() if not arm.set and (study.size != "small" or name in SMALL_MUON)]
        found += [replace(arm, optimizer="muon") for arm in by_muon]
    for arm in found:
        run_of(study, first_case(study, arm), vocab_size=256, precision="float32", on_gpu=False)
    return found


def first_case(study: Study, arm: Arm) -> Case:
    """A run of an arm, to look at its settings."""
    return Case(arm=arm, lr=study.lrs[0], seed=study.all_seeds[0], tokens=study.sweep)


def subjects(study: Study) -> dict[str, Arm]:
    """Every subject that a study has at its size, by name."""
    if study.study == "compare":
        return {arm.subject: arm for name in COMPARED for arm in _forms(study, name)}
    if study.study == "length":
        return {arm.subject: arm for name in COMPARED for arm in _carried(study, name)}
    if study.study in APPLICATIONS:
        return applications.arms_of(study)
    if study.study == "expansion":
        width = comparison_config(OURS, study.size).width
        return {
            f"n{n}": Arm(subject=f"n{n}", architecture=OURS, set=(f"mixer.head_size={n}",))
            for n in HEAD_SIZES if width % n == 0
        }  # fmt: skip
    if study.study == "others":
        return {arm.subject: arm for arm in _expanded(study)}
    if study.study == "structured":
        return {name: Arm(subject=name, architecture=f"structured-{name}") for name in STRUCTURED}
    found = {name: Arm(subject=name, architecture=OURS, set=changes) for name, changes in ABLATIONS.items()}
    return {name: arm for name, arm in found.items() if not refused(study, arm)}


def not_offered(study: Study) -> dict[str, str]:
    """Ablations that the settings do not allow, and why."""
    if study.study != "ablation":
        return {}
    made = {name: refused(study, Arm(subject=name, architecture=OURS, set=set_)) for name, set_ in ABLATIONS.items()}
    return {name: why for name, why in made.items() if why} | NOT_SETTINGS


def _usual(known: dict[str, Arm], study: Study) -> list[str]:
    """Those that are run where none is named: stacks of two kinds are not."""
    if (study.study, study.size) == ("compare", "small"):
        return list(SMALL)
    return [name for name, arm in known.items() if not comparison_config(arm.architecture, study.size).pattern]


def refused(study: Study, arm: Arm) -> str:
    """Why a model cannot be made with an arm's settings; empty where it can."""
    try:
        model_of(study, arm)
    except UserError as error:
        return str(error)
    return ""


def model_of(study: Study, arm: Arm, vocab_size: int = 256) -> ModelConfig:
    """The model of an arm."""
    return with_overrides(comparison_config(arm.architecture, study.size, vocab_size), arm.set)


def run_of(study: Study, case: Case, *, vocab_size: int, precision: str, on_gpu: bool) -> RunConfig:
    """The whole settings of a run.

    Args:
        vocab_size: that of the data.
        precision: float32 or bfloat16.
        on_gpu: blocks are compiled there, unless the study says otherwise.
    """
    steps = case.tokens // study.tokens_per_step
    compiled = ("blocks" if on_gpu else "none") if study.compile == "auto" else study.compile
    train = TrainConfig(
        steps=steps, sequence_length=study.length, batch_size=study.tokens_per_step // study.length,
        precision="bfloat16" if precision == "bfloat16" else "float32", compile=compiled == "whole",
        compile_blocks=compiled == "blocks", log_every=max(1, steps // RECORDS), eval_every=0,
        eval_tokens=study.budget.held_out, save_every=CHECKPOINTS if steps > 2 * CHECKPOINTS else 0, keep=1,
        seed=case.seed,
    )  # fmt: skip
    optim = OptimConfig(
        optimizer=case.arm.optimizer, lr=case.lr, matrix_lr=case.lr, schedule="cosine", final_lr_ratio=0.1,
        warmup_steps=study.warmup_steps, weight_decay=0.1, beta1=0.9, beta2=0.95, clip=1.0,
    )  # fmt: skip
    run = RunConfig(
        model=model_of(study, case.arm, vocab_size), train=train, optim=optim,
        data=DataConfig(source=study.source, reset_at_documents=study.reset_at_documents),
    )  # fmt: skip
    return with_overrides(run, (*case.arm.run, *study.set))


def _forms(study: Study, name: str) -> list[Arm]:
    """An architecture as published; where it is recurrent and a short convolution can be added or left out, also so;
    attention also with normed queries and keys."""
    arm = Arm(subject=name, architecture=name)
    config = comparison_config(name, study.size)
    if config.pattern:
        return [arm]
    if config.grows:
        return [arm, replace(arm, subject=f"{name}-qknorm", set=("mixer.qk_norm=true",))]
    published = config.mixer.conv_width
    other = replace(
        arm, subject=f"{name}-noconv" if published else f"{name}-conv",
        set=(f"mixer.conv_width={0 if published else CONV_WIDTH}",),
    )  # fmt: skip
    return [arm] if refused(study, other) else [arm, other]


def _carried(study: Study, name: str) -> list[Arm]:
    """An architecture trained on windows of the text; where its states are of constant size, also with states that are
    carried from step to step and start anew at documents, and HGRN2 with windows that start anew at documents."""
    arm, reset = Arm(subject=name, architecture=name), ("data.reset_at_documents=true",)
    found = [arm]
    if name == OURS:
        found.append(replace(arm, subject=f"{name}-reset", run=reset))
    if not comparison_config(name, study.size).grows:
        found.append(replace(arm, subject=f"{name}-carry", run=("data.carry=true", *reset)))
    return found


def _expanded(study: Study) -> list[Arm]:
    """Every cell with a vector state, and expanded to a state as large as HGRN2's: LRU, whose state is complex, by half
    as much. HGRN1 expanded is HGRN2 with an activation on its input."""
    n = comparison_config(OURS, study.size).mixer.head_size
    sets = {"hgrn1": ("mixer.kind=hgru2", f"mixer.head_size={n}")}
    sets |= {cell: (f"mixer.expansion={n // 2 if cell == 'lru' else n}",) for cell in CELLS}
    return [
        arm
        for cell, changes in sets.items()
        for arm in (
            Arm(subject=cell, architecture=cell),
            Arm(subject=f"{cell}-expanded", architecture=cell, set=changes),
        )
    ]


def _refuse_head_size(name: str, study: Study) -> None:
    """A head size that does not divide the width."""
    width, n = comparison_config(OURS, study.size).width, name.removeprefix("n")
    refuse(n.isdigit() and KINDS["hgru2"].heads and (n == "0" or width % int(n) != 0),
           f"a head size of {n} does not divide the width {width} of size {study.size}")  # fmt: skip
