"""A model on several processes: loss, gradients, their norm and the next step are those of one process."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.testing import CompileCounterWithBackend

from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.parallel.config import ParallelConfig, check_parallel
from hgrn2.parallel.pieces import local
from hgrn2.parallel.ranks import Ranks
from hgrn2.parallel.sharding import compile_blocks
from hgrn2.settings import with_overrides

TOKENS, ROWS = 12, 12
SMALL: dict[str, Any] = {"vocab_size": 17, "width": 12, "layers": 2, "glu_width": 24}
MODELS: dict[str, ModelConfig] = {
    "hgru2": ModelConfig(**SMALL, mixer=MixerConfig(head_size=2, conv_width=3), tie_embeddings=True),
    "hgru2 modules": ModelConfig(
        **SMALL, mixer=MixerConfig(head_size=2, norm="layer", bias=True, input_activation="silu"), norm="layer",
        glu_bias=True, lower_bound="exclusive",
    ),
    "hgru1": ModelConfig(**SMALL, mixer=MixerConfig(kind="hgru1", norm="layer", bias=True)),
    # Vocabularies of 24 are cut by `tensor`, tied and untied; 17 classes are not.
    "hgru1_real": ModelConfig(**SMALL | {"vocab_size": 24}, mixer=MixerConfig(kind="hgru1_real")),
    "gla": ModelConfig(**SMALL, mixer=MixerConfig(kind="gla", head_size=2, conv_width=2), lower_bound="none"),
    "attention": ModelConfig(
        **SMALL | {"vocab_size": 24}, mixer=MixerConfig(kind="attention", head_size=2, qk_norm=True),
        lower_bound="none", tie_embeddings=True,
    ),
    "hybrid": ModelConfig(
        **SMALL | {"layers": 3}, mixer=MixerConfig(head_size=2, norm="head_rms"), pattern=("hgru2", "attention"),
        other=MixerConfig(kind="attention", head_size=2, window=5),
    ),
}  # fmt: skip
LAYOUTS = {
    2: [
        ParallelConfig(data=2), ParallelConfig(data=2, shard=1), ParallelConfig(tensor=2), ParallelConfig(context=2),
    ],
    3: [ParallelConfig(data=3), ParallelConfig(tensor=3), ParallelConfig(context=3)],
    4: [
        ParallelConfig(data=2, tensor=2), ParallelConfig(data=2, context=2), ParallelConfig(tensor=2, context=2),
        ParallelConfig(data=4, shard=2), ParallelConfig(data=2, context=2, shard=2),
    ],
}  # fmt: skip


@functools.cache
def ranks_of(layout: ParallelConfig) -> Ranks:
    """Making groups of processes takes longer than what is tested here."""
    return Ranks(layout, torch.device("cpu"))


def model_of(config: ModelConfig, dtype: torch.dtype = torch.float64) -> LanguageModel:
    """The same in every process, with no weight at a value that hides something."""
    torch.manual_seed(3)
    model = LanguageModel(config).to(dtype)
    for parameter in model.parameters():
        parameter.data = 0.5 * torch.randn_like(parameter)
    return model


def batch_of(packed: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    torch.manual_seed(4)
    tokens, targets = torch.randint(17, (2, ROWS, TOKENS))
    return tokens, targets, torch.tensor([0, 5, 12, 24, 30, 36]) if packed else None


def shares(ranks: Ranks, packed: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """This process's sequences, and its slice of them."""
    tokens, targets, _ = batch_of(packed)
    rows = ROWS // ranks.config.data
    mine = [x[ranks.data * rows : (ranks.data + 1) * rows] for x in (tokens, targets)]
    if not packed:
        return ranks.slice(mine[0]), ranks.slice(mine[1]), None
    return *(ranks.slice(x.reshape(1, -1)) for x in mine), documents(rows)  # type: ignore[return-value]


def documents(rows: int) -> torch.Tensor:
    """Offsets of packed sequences: every one begins anew, and in every third a document ends inside."""
    ends = {row * TOKENS for row in range(rows + 1)} | {row * TOKENS + 5 for row in range(0, rows, 3)}
    return torch.tensor(sorted(ends))


def alone(model: LanguageModel, parts: int, packed: bool) -> torch.Tensor:
    """The loss of the whole batch in one process; packed rows are cut as for so many readers."""
    tokens, targets, _ = batch_of(packed)
    if not packed:
        return model.loss(tokens, targets)
    rows, losses = ROWS // parts, []
    for x, y in zip(tokens.split(rows), targets.split(rows), strict=True):
        losses.append(model.loss(x.reshape(1, -1), y.reshape(1, -1), cu_seqlens=documents(rows)))
    return torch.stack(losses).mean()


def agrees(
    config: ModelConfig, layout: ParallelConfig, *, packed: bool, recompute: str = "none", compiled: str = ""
) -> None:
    """Loss, every gradient, the norm of all and the parameters after one step of AdamW, in float64."""
    what = f"{layout} {'packed' if packed else 'rows'} {config.named_kinds}"
    one = model_of(config)
    ranks = ranks_of(layout)
    model = copy.deepcopy(one)
    model.set_recompute(recompute)  # type: ignore[arg-type]
    ranks.spread(model)
    if compiled:
        compile_blocks(model, backend=compiled)
    wanted = alone(one, layout.data, packed)
    wanted.backward()
    tokens, targets, cu = shares(ranks, packed)
    loss = model.loss(tokens, targets, cu_seqlens=cu, method="chunked" if packed else "full")
    loss.backward()
    assert abs(float(ranks.mean(loss.detach()) - wanted.detach())) < 1e-12, what
    expected = dict(one.named_parameters())
    assert [name for name, _ in model.named_parameters()] == list(expected)
    for name, parameter in model.named_parameters():
        grad = ranks.whole(name, parameter.grad, parameter)  # type: ignore[arg-type]
        error = float((grad - expected[name].grad).abs().max())  # type: ignore[operator]
        assert error <= 1e-12 * max(1.0, float(expected[name].grad.abs().max())), (what, name, error)  # type: ignore[union-attr]
    norm = ranks.clip(model.named_parameters(), 0.3)
    assert abs(float(norm - torch.nn.utils.clip_grad_norm_(one.parameters(), 0.3))) < 1e-12, what
    for each in (one, model):
        torch.optim.AdamW(each.parameters(), lr=0.1).step()
    for name, parameter in model.named_parameters():
        error = float((ranks.whole(name, parameter, parameter) - expected[name]).detach().abs().max())
        assert error < 1e-9, (what, name, error)  # the first step divides by the gradient's own size
        own = ranks.own(name, expected[name].detach(), parameter)
        assert own.shape == local(parameter).shape, (what, name)
        assert float((own - local(parameter)).detach().abs().max() if own.numel() else 0.0) < 1e-9, (what, name)


def layouts() -> None:
    for number, layout in enumerate(LAYOUTS[dist.get_world_size()]):
        for which, config in enumerate(MODELS.values()):
            # What `data` does is the same for every mixer, and what `context` does is tested mixer by mixer.
            if layout.tensor > 1 or which % 3 == number % 3:
                agrees(config, layout, packed=bool((which + number) % 2))


def recomputed() -> None:
    """Blocks that are computed again in the backward gather and exchange again."""
    for layout in (ParallelConfig(data=2), ParallelConfig(context=2)):
        agrees(MODELS["hgru2"], layout, packed=True, recompute="block")


def compiled() -> None:
    """Blocks compiled around what they exchange; `eager` is torch.compile's tracing without its code."""
    plain = with_overrides(MODELS["hgru2"], ("mixer.conv_width=0",))
    agrees(plain, ParallelConfig(tensor=2), packed=False, compiled="eager")
    agrees(MODELS["hgru2"], ParallelConfig(context=2), packed=True, compiled="eager")


def compiled_in_one_piece() -> None:
    """With weights that are gathered in bfloat16 a block is one graph: one of the first layer, without lower bounds,
    and one of all others; with blocks recomputed too, and where one process has everything."""
    config = ModelConfig(**SMALL | {"layers": 3}, mixer=MixerConfig(head_size=2))
    ranks = ranks_of(ParallelConfig(data=2))
    tokens, targets, _ = shares(ranks, False)
    for recompute in ("none", "block"):
        found = []
        for graphs in (None, CompileCounterWithBackend("eager")):
            model = model_of(config, torch.float32)
            model.set_recompute(recompute)  # type: ignore[arg-type]
            ranks.spread(model, bfloat16=True)
            if graphs is not None:
                torch._dynamo.reset()
                compile_blocks(model, backend=graphs, fullgraph=True)
            for _ in range(2):
                with torch.autocast("cpu", torch.bfloat16):
                    loss = model.loss(tokens, targets)
                model.zero_grad()
                loss.backward()
            assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}  # type: ignore[union-attr]
            found.append(torch.cat([local(parameter.grad).flatten() for parameter in model.parameters()]))  # type: ignore[arg-type]
            assert graphs is None or graphs.frame_count == 2
        assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-2


def float32_and_bfloat16() -> None:
    """Other orders of sums lose what they cost in float32. In bfloat16 nothing is lost beside autocast in one process:
    bounds and phases stay float32."""
    config, ranks = MODELS["hgru1"], ranks_of(ParallelConfig(data=2))
    tokens, targets, _ = shares(ranks, False)
    expected = model_of(config)
    alone(expected, 2, False).backward()
    for bfloat16, tolerance in ((False, 2e-5), (True, 0.0)):
        one = model_of(config, torch.float32)
        model = copy.deepcopy(one)
        ranks.spread(model, bfloat16=bfloat16)
        seen: list[Any] = []
        for block in model.backbone.blocks:
            block.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[1]))
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            wanted, loss = alone(one, 2, False), model.loss(tokens, targets)
        wanted.backward()
        loss.backward()
        assert {x.dtype for x in seen if x is not None} == {torch.float32}
        for (name, parameter), plain, exact in zip(
            model.named_parameters(), one.parameters(), expected.parameters(), strict=True
        ):
            grad = ranks.whole(name, parameter.grad, parameter)  # type: ignore[arg-type]
            assert grad.dtype == torch.float32
            lost, usual = (float((x - exact.grad).norm() / exact.grad.norm()) for x in (grad, plain.grad))  # type: ignore[operator, union-attr]
            assert lost <= max(tolerance, 2 * usual), (name, lost, usual)


def other_numbers() -> None:
    with pytest.raises(UserError, match="2 processes were started, but"):
        Ranks(ParallelConfig(data=3), torch.device("cpu"))


def test_two_processes_are_one(ranks: Callable[..., None]) -> None:
    ranks(2, layouts, recomputed, float32_and_bfloat16, compiled, compiled_in_one_piece, other_numbers, timeout_s=200)


@pytest.mark.full
@pytest.mark.parametrize("world", [3, 4])
def test_several_processes_are_one(ranks: Callable[..., None], world: int) -> None:
    ranks(world, layouts, timeout_s=200)


@pytest.mark.parametrize(
    ("settings", "model", "said"),
    [
        ({"data": 5}, "hgru2", "batch_size 12 does not divide into parallel.data 5 times accumulate 1 parts"),
        ({"context": 5}, "hgru2", "sequence_length 12 does not divide into parallel.context 5"),
        ({"tensor": 4}, "hgru2", "6 heads of hgru2 do not divide by parallel.tensor 4"),
        (
            {"tensor": 2},
            "mamba2",
            "parallel.tensor is offered for hgru2, hgru1, hgru1_real, gla, attention, not for mamba2",
        ),
        ({"context": 2}, "mamba", "parallel.context is offered for hgru2, .*, not for mamba"),
        ({"tensor": 5}, "hgru1", "width 12 of hgru1 do not divide by parallel.tensor 5"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(settings: dict[str, int], model: str, said: str) -> None:
    config = MODELS.get(model) or with_overrides(MODELS["gla"], (f"mixer.kind={model}",))
    with pytest.raises(UserError, match=said):
        check_parallel(ParallelConfig(**settings), config, batch=ROWS, parts=1, tokens=TOKENS)


def test_settings_refuse_nonsense() -> None:
    with pytest.raises(UserError, match=r"parallel\.tensor is 0"):
        ParallelConfig(tensor=0)
    with pytest.raises(UserError, match=r"parallel\.shard 3 does not divide data · context, 2 · 2"):
        ParallelConfig(data=2, context=2, shard=3)
    assert ParallelConfig(data=2, context=3, tensor=2).ranks == 12
