"""What a training run is, as frozen values; no torch here. The resolved form is written to the run folder."""

import re
from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol

from hgrn2.data.shares import parse_mixture
from hgrn2.models.config import LossKind, ModelConfig, Recompute
from hgrn2.parallel.config import ParallelConfig, check_parallel
from hgrn2.settings import refuse, settings

ScheduleKind = Literal["cosine", "linear", "inverse_sqrt", "constant", "wsd"]
Float8Kind = Literal["none", "tensorwise", "emulated"]
TrackerName = Literal["tensorboard", "wandb", "trackio"]
DecayShape = Literal["linear", "1-sqrt"]


@settings
class OptimConfig:
    """The optimiser and how its learning rate moves."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw: everything; muon: Muon for the matrices of the blocks, AdamW for the rest."""
    lr: float = 3e-4
    """Peak learning rate of AdamW."""
    matrix_lr: float = 3e-4
    """Peak learning rate of Muon, scaled to AdamW's step size (0.2 sqrt(max side))."""
    schedule: ScheduleKind = "cosine"
    """How the learning rate falls from its peak after the warm-up; wsd: it stays and falls at the end (decay_share)."""
    decay_share: float = 0.1
    """Of wsd: the share of the run, at its end, over which the rate falls; 0: it stays to the end."""
    decay_shape: DecayShape = "1-sqrt"
    """Of wsd: how it falls over the share x of the decay, linear 1 - x or 1 - sqrt(x), which is steep first."""
    warmup_steps: int = 100
    """Steps of linear rise from 0."""
    warmup_share: float = 0.05
    """Of a time budget, after which the rise is over whatever the machine; step-counted runs do not ask for it."""
    final_lr_ratio: float = 0.1
    """Where cosine, linear and wsd end, as a share of the peak."""
    weight_decay: float = 0.1
    """On matrices; never on norms, biases, lower bounds, phases and convolutions."""
    beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""
    beta2: float = 0.95
    """Decay of AdamW's mean of squared gradients."""
    eps: float = 1e-8
    """Added to AdamW's denominator."""
    momentum: float = 0.95
    """Of Muon."""
    clip: float = 1.0
    """Largest norm of the gradient over all parameters; 0 turns clipping off."""

    def __post_init__(self) -> None:
        for name in ("lr", "matrix_lr", "eps"):
            refuse(getattr(self, name) <= 0, f"{name} is {getattr(self, name)}; it must be positive")
        for name in ("warmup_steps", "weight_decay", "clip"):
            refuse(getattr(self, name) < 0, f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("beta1", "beta2", "momentum"):
            refuse(not 0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        for name in ("warmup_share", "decay_share", "final_lr_ratio"):
            refuse(not 0 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}; it must be in [0, 1]")


_NAMED = re.compile(r"[\w.-]+=.+")


@settings
class DataConfig:
    """Where the tokens come from."""

    source: str = "shakespeare"
    """`shakespeare` (the embedded sample, characters) or the folder of a prepared corpus."""
    mixture: tuple[str, ...] = ()
    """Instead of `source`, several prepared corpora with one tokenizer that are trained on together, each written
    FOLDER=WEIGHT: of the sequences, each has its weight's share."""
    train_split: str = "train"
    """Split of the corpus that is trained on."""
    valid_split: str = "valid"
    """Split that is held out and measured on."""
    validation: tuple[str, ...] = ()
    """Further corpora that are measured, each NAME=FOLDER, in the same tokens as the training data; of each its
    `valid_split`, or the only split that it has."""
    reset_at_documents: bool = True
    """Start states anew at each document inside a training sequence."""
    carry: bool = False
    """Every row of a batch reads on in a stream of documents of its own, and begins a step with the state in which it
    ended the step before (truncated backpropagation through time); false: with an empty one, somewhere in the text."""

    def __post_init__(self) -> None:
        parse_mixture(self.mixture)
        refuse(
            bool(self.mixture) and self.carry, "data.carry reads one corpus from end to end, data.mixture has several"
        )
        wrong = next((text for text in self.validation if _NAMED.fullmatch(text) is None), None)
        refuse(wrong is not None, f"validation {wrong!r}: write it as NAME=FOLDER, the name of letters, digits and ._-")
        refuse(len(self.named) < len(self.validation), "validation: two corpora have one name")

    @property
    def named(self) -> dict[str, str]:
        """Folders of the further corpora by name."""
        return {name: folder for name, _, folder in (text.partition("=") for text in self.validation)}


@settings
class TrainConfig:
    """The loop: how much, how often, in which precision."""

    steps: int = 1000
    """Optimiser steps."""
    budget_s: float = 0.0
    """Seconds of training; the schedule then follows the clock and the run ends on time whatever the machine, but is no
    longer reproducible to the bit. 0: `steps` alone decide."""
    epochs: float = 0.0
    """Passes over the training data after which the run ends, if that is sooner; the schedule then ends there too. 0:
    as many as the steps or the budget take."""
    patience: int = 0
    """Held-out measurements in a row without a new best one after which the run ends; needs `keep_best`. 0: never."""
    keep_best: bool = False
    """Save, and end with, the weights that had the lowest held-out loss, rather than the last ones."""
    sequence_length: int = 512
    """T, tokens of one training sequence."""
    batch_size: int = 16
    """Sequences of one optimiser step, over all accumulation parts and devices."""
    accumulate: int = 1
    """Parts into which a batch is cut to fit into memory."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast around forward and loss; weights, states and gates stay float32."""
    float8: Float8Kind = "none"
    """tensorwise: the linear maps of the blocks in float8 by torchao, one scale a tensor, on GPUs of compute capability
    8.9 and more; use it with precision=bfloat16 and compile_blocks. emulated: the same roundings computed in the usual
    precision, anywhere and slowly, to see what they do to a loss."""
    compile: bool = False
    """torch.compile on the model; the scan stays one operator inside."""
    compile_blocks: bool = False
    """torch.compile on the blocks alone: built once for all of them and for sequences of any length."""
    graphs: bool = False
    """On a GPU, start forward and backward of a step as one CUDA graph, captured once for every shape of batch: for
    small models, whose steps take Python longer to start than the GPU to run. Elsewhere steps are taken as they are.
    Not for language models that reset at documents: where those end is decided before kernels start."""
    loss: LossKind = "auto"
    """full: logits of a whole part in memory; chunked: head and loss in one operator, some thousand tokens at a time;
    auto: chunked for vocabularies of 8,192 and more."""
    recompute: Recompute = "none"
    """Activations computed again in the backward rather than kept: none, those of the GLUs (about half of the memory,
    for a twelfth more work), or everything but the input of each block (least memory, a third more work)."""
    average: float = 0.0
    """Decay of a running mean of the weights, which is then what is measured and saved, such as 0.999; 0: none."""
    seed: int = 0
    """Of the first weights, of dropout and of the order of batches."""
    log_every: int = 10
    """Steps between records of loss, learning rate and speed."""
    eval_every: int = 250
    """Steps between measurements on held-out text, fewer where a run would have less than five; 0 leaves only the last
    one."""
    eval_tokens: int = 100_000
    """Held-out tokens of a measurement during training; the last one takes all."""
    save_every: int = 500
    """Steps between checkpoints; 0 leaves only the last one."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    trackers: tuple[TrackerName, ...] = ()
    """Where measurements go besides metrics.jsonl: tensorboard, wandb, trackio; each needs its package."""
    tracker_project: str = "hgrn2"
    """Project of wandb and trackio in which the run is listed."""
    profile: tuple[int, ...] = ()
    """First and last step, as in 20,22, of which torch.profiler writes a trace into the run folder."""
    spike: float = 2.0
    """Nats by which the loss may exceed its running mean for 20 logged steps before the run stops; 0 turns it off."""

    def __post_init__(self) -> None:
        for name in ("steps", "sequence_length", "batch_size", "accumulate", "log_every", "keep", "eval_tokens"):
            refuse(getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("budget_s", "epochs", "patience", "seed", "eval_every", "save_every", "spike"):
            refuse(getattr(self, name) < 0, f"{name} is {getattr(self, name)}; it must not be negative")
        refuse(self.patience > 0 and not self.keep_best, "train.patience needs train.keep_best=true")
        window = len(self.profile) == 2 and 1 <= self.profile[0] <= self.profile[1]
        refuse(bool(self.profile) and not window, "profile: write it as the first and the last step, such as 20,22")
        refuse(len(set(self.trackers)) < len(self.trackers), "trackers: name each of them once")
        refuse(not self.tracker_project.strip(), "tracker_project: give it a name")
        refuse(self.graphs and self.float8 != "none", "graphs and float8: choose one of them")
        refuse(self.compile and self.compile_blocks, "compile and compile_blocks: choose one of them")
        refuse(not 0 <= self.average < 1, f"average is {self.average}; it must be in [0, 1)")
        refuse(
            self.batch_size % self.accumulate != 0,
            f"batch_size {self.batch_size} does not divide into {self.accumulate} accumulation parts",
        )

    @property
    def tokens_per_step(self) -> int:
        """B·T."""
        return self.batch_size * self.sequence_length


def refuse_alone(train: TrainConfig) -> None:
    """Refuse what a run under torchrun does not offer, whose blocks gather their weights one after the other."""
    refuse(train.compile, "train.compile is not offered under torchrun (parallel): train.compile_blocks is")
    refuse(train.graphs, "train.graphs is not offered under torchrun (parallel): gathering weights is not captured")
    refuse(train.float8 != "none", "train.float8 is not offered under torchrun (parallel)")


ALL_READ: Mapping[str, str] = MappingProxyType({})
"""Of a kind of run that reads every setting of the loop and the optimiser."""


class Run(Protocol):
    """What trainer and runner read of a run, whatever its task; model and data are compared when a run is resumed."""

    unread: ClassVar[Mapping[str, str]]
    """Settings that this kind of run does not read, such as train.loss, with the reason: refused when they are set."""
    frozen: ClassVar[bool]
    """Whether the model's own weights stay as they are."""

    @property
    def kind(self) -> str: ...

    @property
    def model(self) -> Any: ...

    @property
    def data(self) -> Any: ...

    @property
    def train(self) -> TrainConfig: ...

    @property
    def optim(self) -> OptimConfig: ...

    @property
    def shortest(self) -> int:
        """Tokens of a training sequence, at the least: what memory is asked for before the data is opened."""
        ...


@settings
class RunConfig:
    """A whole run: what `config.json` in a run folder holds."""

    unread: ClassVar[Mapping[str, str]] = ALL_READ
    frozen: ClassVar[bool] = False
    kind: Literal["lm"] = "lm"
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        self._check_parallel()
        # A graph would repeat the documents of the batch that it was captured from.
        packed = self.train.graphs and self.data.reset_at_documents
        refuse(packed, "train.graphs needs data.reset_at_documents=false: documents end elsewhere in every batch")
        if self.data.carry:
            self._check_carry()

    def _check_carry(self) -> None:
        """States go from step to step where they are of constant size, and one process has the whole of a row."""
        for mixer in self.model.kinds.values():
            refuse(mixer.direction != "causal", f"data.carry needs direction causal, not {mixer.direction}")
            endless = mixer.grows and not mixer.window
            refuse(endless, "data.carry needs states of constant size, and attention keeps every token: set a window")
            several = mixer.grows and (self.train.compile_blocks or self.parallel.ranks > 1)
            refuse(several, "data.carry with attention is offered on one process, without train.compile_blocks")
        for name in ("compile", "graphs"):
            refuse(getattr(self.train, name), f"train.{name} is not offered with data.carry")
        for name in ("context", "tensor"):
            cut = getattr(self.parallel, name) > 1
            refuse(cut, f"data.carry is offered with parallel.data, not with parallel.{name}, which cuts states")

    def _check_parallel(self) -> None:
        train, parallel = self.train, self.parallel
        if parallel.ranks == 1:
            return
        sizes = {"batch": train.batch_size, "parts": train.accumulate, "tokens": train.sequence_length}
        check_parallel(parallel, self.model, **sizes)
        refuse_alone(train)
        muon = self.optim.optimizer == "muon" and parallel.tensor > 1
        refuse(muon, "optim.optimizer=muon takes whole matrices, which parallel.tensor cuts: use adamw")

    @property
    def shortest(self) -> int:
        """T: every training sequence has as many tokens."""
        return self.train.sequence_length
