"""Language models under one description, so that every measurement treats them alike; here is our own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from hgrn2.bench.settings import Compile, Size
from hgrn2.errors import UserError
from hgrn2.generate.config import SamplingConfig
from hgrn2.generate.steps import Steps
from hgrn2.layers.state import ModelState
from hgrn2.models.config import LossKind, Recompute
from hgrn2.models.count import flops_per_token
from hgrn2.models.language import LanguageModel
from hgrn2.ops import backend as backends

SEGMENT = 1024
"""Tokens of a prompt that hgrn2 reads at a time, as `hgrn2 generate` does."""
SEGMENT_BATCH = 32_768
"""Of all sequences together."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Where and how a model is run."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    compile: Compile = "none"
    recompute: Recompute = "none"
    loss: LossKind = "auto"
    state_dtype: torch.dtype | None = None
    """Of hgrn2's states in decoding; None is the model's choice."""
    compile_steps: bool = False


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A language model with random weights, and how it is called."""

    name: str
    backend: str
    step_backend: str = ""
    """Of single tokens, where it is another."""
    model: nn.Module
    logits: Callable[[Tensor], Tensor]
    """Tokens [B,T] -> logits [B,T,V]."""
    loss: Callable[[Tensor, Tensor], Tensor]
    """Training: tokens, targets [B,T] -> mean loss."""
    prefill: Callable[[Tensor, int], tuple[Tensor, Any]]
    """(prompt [B,T], number of tokens that will follow) -> (logits of the last position [B,V], state)."""
    step: Callable[[Tensor, Any], tuple[Tensor, Any]]
    """(token [B,1], state) -> (logits [B,V], state)."""
    fork: Callable[[Any], Any]
    """A state to go on from that leaves the given one as it was."""
    state_bytes: Callable[[Any], int]
    blocks: Sequence[nn.Module] = ()
    """What `compile="blocks"` compiles one by one."""
    flops: Callable[[int], float] | None = None
    """Floating-point operations that a token of a training sequence of this length needs; None: not counted."""
    steps: Callable[[int], Steps] | None = None
    """Decoding over fixed buffers for this many sequences, in place of `step`."""

    @property
    def parameters(self) -> int:
        """Trained numbers, each counted once."""
        return sum(p.numel() for p in self.model.parameters())


def full_loss(logits: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss from all logits at once, in float32."""

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits(tokens).flatten(0, 1).float(), targets.flatten())

    return loss


def build(name: str, size: Size, seed: int, *, layers: int | None = None, setup: Setup | None = None) -> Subject:
    """A subject by name, its weights drawn from `seed`; `layers` in place of the number that makes the sizes equal."""
    from hgrn2.bench import baselines, fla_model

    setup = setup or Setup()
    makers = {
        "hgrn2": hgrn2,
        "hgrn2-graph": hgrn2_graph,
        "llama-hf": baselines.llama,
        "llama-hf-static": baselines.llama_static,
        "mamba-hf": baselines.mamba,
        "fla": fla_model.fla,
    }
    torch.manual_seed(seed)
    subject = makers[name](size, layers, setup)
    if layers is None:
        size.check(name, subject.parameters)
    if setup.compile == "blocks":
        for block in subject.blocks:
            block.compile(dynamic=False, fullgraph=name == "hgrn2")
    elif setup.compile == "model":
        return replace(subject, loss=torch.compile(subject.loss, dynamic=False))
    return subject


def check_available(names: Sequence[str]) -> None:
    """A `UserError` where a subject needs a library that is missing, before minutes are spent on the others."""
    from hgrn2.bench import baselines, fla_model

    if any(name.endswith(("-hf", "-static")) for name in names):
        baselines.transformers()
    if "fla" in names:
        fla_model.required()


def hgrn2(size: Size, layers: int | None = None, setup: Setup | None = None) -> Subject:
    """HGRN2, decoding call by call; its state is updated in place."""
    setup = setup or Setup()
    config = replace(size.config(), layers=layers or size.layers)
    with setup.device:
        model = LanguageModel(config).to(setup.dtype)
    model.backbone.set_recompute(setup.recompute)

    def logits(tokens: Tensor) -> Tensor:
        return model(tokens, output_state=False)[0]

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        return model.loss(tokens, targets, method=setup.loss)

    def prefill(prompt: Tensor, following: int) -> tuple[Tensor, ModelState]:
        batch = prompt.shape[0]
        features, state = torch.empty(0), model.zeros(batch)
        for part in prompt.split(min(SEGMENT, max(1, SEGMENT_BATCH // batch)), 1):
            features, after = model.hidden(part, state, inplace=True)
            assert after is not None  # asked for, as `output_state` is by default
            state = after
        if setup.state_dtype is not None:
            state = model.zeros(batch, setup.state_dtype).overwrite(state)
        return model.logits(features[:, -1]), state

    def step(token: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        logits, after = model(token, state, inplace=True)
        assert after is not None  # asked for, as `output_state` is by default
        return logits[:, -1], after

    n = size.head_size
    scan, one = (
        backends.choose(setup.device, op=op, dtype=setup.dtype, keys=n, values=n) for op in ("hgru2", "hgru2_step")
    )
    return Subject(
        name="hgrn2",
        backend=scan.backend,
        step_backend=one.backend,
        model=model,
        logits=logits,
        loss=loss,
        prefill=prefill,
        step=step,
        fork=lambda state: state.map(Tensor.clone),
        state_bytes=lambda state: state.nbytes,
        blocks=tuple(model.backbone.blocks),
        flops=lambda length: flops_per_token(config, training=True),
    )


def hgrn2_graph(size: Size, layers: int | None = None, setup: Setup | None = None) -> Subject:
    """HGRN2, decoding over fixed buffers: on a GPU one captured graph, elsewhere the same code call by call."""
    setup = setup or Setup()
    subject = hgrn2(size, layers, setup)
    model = subject.model
    if not isinstance(model, LanguageModel):
        raise UserError("hgrn2-graph decodes with a LanguageModel")

    def steps(batch: int) -> Steps:
        return Steps(
            model,
            batch,
            SamplingConfig(greedy=True),
            state_dtype=setup.state_dtype,
            graph=setup.device.type == "cuda",
            compile=setup.compile_steps,
        )

    return replace(subject, name="hgrn2-graph", steps=steps)
