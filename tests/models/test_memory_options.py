"""What a training step keeps in memory changes no result: loss in chunks, activations computed again."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from small_models import config_of
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from hgrn2.models import language
from hgrn2.models.language import LanguageModel

Grads = list[Tensor]


def step(model: LanguageModel, ids: Tensor, **options: Any) -> Grads:
    """Loss and all gradients of a training step."""
    torch.manual_seed(7)  # of dropout
    model.zero_grad()
    loss = model.train().loss(ids[:, :-1], ids[:, 1:], **options)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def equal(mine: Grads, theirs: Grads) -> bool:
    return len(mine) == len(theirs) and all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("what", ["glu", "block"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_recomputing_changes_no_bit(name: str, what: Any, dropout: float, make: Callable, tokens: Callable) -> None:
    model, ids = make(name, dropout=dropout), tokens()
    kept = step(model, ids)
    model.backbone.set_recompute(what)
    assert equal(step(model, ids), kept)
    model.backbone.set_recompute("none")
    assert equal(step(model, ids), kept)


def saved_bytes(model: LanguageModel, ids: Tensor) -> int:
    """What the forward keeps for the backward, parameters left out."""
    own, seen = {p.data_ptr() for p in model.parameters()}, {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        model.hidden(ids, output_state=False)
    return sum(seen.values())


def test_recomputing_keeps_less(make: Callable, tokens: Callable) -> None:
    model, ids = make("hgru2", layers=4, glu_width=64), tokens(4, 64)
    everything = saved_bytes(model, ids)
    model.backbone.set_recompute("glu")
    without_glus = saved_bytes(model, ids)
    model.backbone.set_recompute("block")
    assert saved_bytes(model, ids) < 0.3 * everything
    assert without_glus < 0.7 * everything


def test_states_pass_through_recomputed_blocks(make: Callable, tokens: Callable) -> None:
    """Truncated backpropagation hands states on, and packed documents their offsets."""
    model, ids = make("hgru2 conv"), tokens(1)
    cuts = torch.tensor([0, 5, 5, 28])

    def both() -> Grads:
        model.zero_grad()
        _, state = model(ids[:, :9])
        loss = model(ids[:, 9:], state)[0].square().mean() + model.loss(ids[:, :-1], ids[:, 1:], cu_seqlens=cuts)
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters())]

    kept = both()
    model.backbone.set_recompute("block")
    assert equal(both(), kept)


def test_loss_in_chunks_is_the_loss(name: str, make: Callable, tokens: Callable) -> None:
    model, ids = make(name).double(), tokens()
    for mine, theirs in zip(step(model, ids, method="chunked"), step(model, ids, method="full"), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_auto_chunks_large_vocabularies(make: Callable, tokens: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    inner = language.linear_cross_entropy
    monkeypatch.setattr(language, "linear_cross_entropy", lambda *a: calls.append(len(a[1])) or inner(*a))
    ids = tokens()
    for vocabulary in (language.LARGE_VOCABULARY - 1, language.LARGE_VOCABULARY):
        make("hgru2", vocab_size=vocabulary).loss(ids, ids)
    assert calls == [language.LARGE_VOCABULARY]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of a block's input: torch.compile looks at it
@pytest.mark.parametrize("what", ["none", "glu", "block"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_graph_under_compile(
    what: Any, dtype: torch.dtype, make: Callable, tokens: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embedding to loss without a break, in weights of either precision; blocks one by one are the same again."""
    for operator in ("rms_norm", "gated_unit"):  # a compiler is given PyTorch's own to fuse: so is the eager step here
        monkeypatch.setattr(import_module(f"hgrn2.ops.{operator}"), "seen_by_others", lambda *tensors: True)
    model, ids = make("hgru2 conv").to(dtype), tokens()
    plain = step(model, ids, method="chunked")
    model.backbone.set_recompute(what)
    torch.compiler.reset()
    whole = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    model.zero_grad()
    loss = whole(ids[:, :-1], ids[:, 1:], method="chunked")
    loss.backward()
    assert equal([loss.detach(), *(p.grad for p in model.parameters())], plain)
    for block in model.backbone.blocks:
        block.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    assert equal(step(model, ids, method="chunked"), plain)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_compiled_code_agrees(make: Callable, tokens: Callable) -> None:
    model, ids = make("hgru2"), tokens()
    plain = step(model, ids, method="chunked")
    torch.compiler.reset()
    model.loss = torch.compile(model.loss, fullgraph=True)
    for mine, theirs in zip(step(model, ids, method="chunked"), plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


class Strides(TorchDispatchMode):
    """Notes the strides of what the scan is given."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.hgrn2.hgru2.default:
            self.found += [x.stride() for x in args[:3]]
        return function(*args, **(kwargs or {}))


def test_the_scan_reads_the_projection_in_place(make: Callable, tokens: Callable) -> None:
    """Views of one product, 3 D apart from token to token: nothing is copied between the two."""
    model, ids = make("hgru2", layers=2), tokens(2, 29)
    with Strides() as seen:
        model.loss(ids, ids)
    width = model.config.width
    assert seen.found == [(29 * 3 * width, 3 * width, 1)] * 3 * 2


def test_lower_bounds_of_a_bfloat16_model_are_float32() -> None:
    model = LanguageModel(config_of("hgru2")).bfloat16()
    assert {lower_bound.dtype for lower_bound in model.backbone.layer_lower_bounds() if lower_bound is not None} == {
        torch.float32
    }
    step(model, torch.randint(23, (2, 9)))
    assert model.backbone.lower_bounds.grad.dtype == torch.bfloat16
