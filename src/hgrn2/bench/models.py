"""The language models that are measured, by name; here is our own."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hgrn2.bench import baselines, fla_model
from hgrn2.bench.bench_model import BenchModel, Setup
from hgrn2.bench.settings import Size
from hgrn2.errors import UserError
from hgrn2.generate.config import SamplingConfig
from hgrn2.generate.steps import Steps
from hgrn2.layers.state import ModelState
from hgrn2.models.count import flops_per_token
from hgrn2.models.language import LanguageModel
from hgrn2.ops import backend as backends

SEGMENT = 1024
"""Tokens of a prompt that hgrn2 reads at a time, as `hgrn2 generate` does."""
SEGMENT_BATCH = 32_768
"""Of all sequences together."""


def build(name: str, size: Size, seed: int, *, layers: int | None = None, setup: Setup | None = None) -> BenchModel:
    """A model by name, its weights drawn from `seed`; `layers` in place of the number that makes the sizes equal."""
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
    measured = makers[name](size, layers, setup)
    if layers is None:
        size.check(name, measured.parameters)
    if setup.compile == "blocks":
        for block in measured.blocks:
            block.compile(dynamic=False, fullgraph=name == "hgrn2")
    elif setup.compile == "model":
        return replace(measured, loss=torch.compile(measured.loss, dynamic=False))
    return measured


def check_available(names: Sequence[str]) -> None:
    """A `UserError` where a model needs a library that is missing, before minutes are spent on the others."""
    if any(name.endswith(("-hf", "-static")) for name in names):
        baselines.transformers()
    if "fla" in names:
        fla_model.required()


def hgrn2(size: Size, layers: int | None = None, setup: Setup | None = None) -> BenchModel:
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
    return BenchModel(
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


def hgrn2_graph(size: Size, layers: int | None = None, setup: Setup | None = None) -> BenchModel:
    """HGRN2, decoding over fixed buffers: on a GPU one captured graph, elsewhere the same code call by call."""
    setup = setup or Setup()
    measured = hgrn2(size, layers, setup)
    model = measured.model
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

    return replace(measured, name="hgrn2-graph", steps=steps)
