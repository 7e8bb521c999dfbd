"""Models that others have changed: adapters, hooks, quantised, offloaded or copied weights. Right, or refused."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hgrn2.errors import UserError
from hgrn2.models.convert import write_fla
from hgrn2.models.hf import HGRN2Cache, HGRN2ForCausalLM
from hgrn2.models.language import LanguageModel
from hgrn2.models.plain import is_product
from hgrn2.models.quantize.model import quantize
from hgrn2.models.saved import save_model


def refused(message: str, call: Callable[..., Any], *args: Any, **options: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)


def both(model: Any, ids: Tensor, **options: Any) -> list[Tensor]:
    """The loss without and with fused_loss, and the gradient of what comes before the head."""
    found = []
    for fused in (False, True):
        model.config.fused_loss = fused
        model.zero_grad()
        output = model(ids, **{"labels": ids} | options)
        assert (output.logits is None) == fused
        output.loss.backward()
        found.append(output.loss.detach())
        found.append(model.get_input_embeddings().weight.grad.clone())
    return found


def agree(model: Any, ids: Tensor, **options: Any) -> Tensor:
    plain, slope, fused, other = both(model, ids, **options)
    torch.testing.assert_close(fused, plain.to(fused.dtype), rtol=2e-6, atol=2e-6, equal_nan=True)
    torch.testing.assert_close(other, slope, rtol=1e-5, atol=1e-6)
    return plain


class Wrapper(nn.Module):
    """As PEFT's: another function, with the weight of what it wraps."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.base_layer(x)


def negated(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return -output


def wrap(model: Any) -> None:
    model.lm_head = Wrapper(model.lm_head)


def hook(model: Any) -> None:
    model.lm_head.register_forward_hook(negated)


def replace(model: Any) -> None:
    forward = model.lm_head.forward
    model.lm_head.forward = lambda x: 2 * forward(x)


def bias(model: Any) -> None:
    model.lm_head.bias = nn.Parameter(torch.linspace(-3, 3, 23, dtype=model.lm_head.weight.dtype))


def parametrise(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.lm_head)


def own_loss(model: Any) -> None:
    model.loss_function = lambda logits, labels, **_: logits.square().mean()


@pytest.mark.parametrize("change", [wrap, hook, replace, bias, parametrise, own_loss])
def test_a_changed_head_is_called(change: Any, twin: Callable, tokens: Callable) -> None:
    _, model = twin("hgru2", torch.float32)
    before = agree(model, tokens(2, 9))
    change(model)
    after = agree(model, tokens(2, 9))
    assert change is parametrise or abs(float(after - before)) > 1e-3


def test_arguments_of_the_loss_are_honoured(twin: Callable, tokens: Callable) -> None:
    _, model = twin("hgru2", torch.float32)
    ids = tokens(2, 9)
    usual = float(agree(model, ids))
    nothing = torch.full_like(ids, -100)
    for options in (
        {"shift_labels": ids}, {"ignore_index": int(ids[0, 3])}, {"num_items_in_batch": 5},
        {"num_items_in_batch": torch.tensor(5)}, {"label_smoothing": 0.3}, {"labels": nothing, "shift_labels": ids},
    ):  # fmt: skip
        found = float(agree(model, ids, **options))
        assert (found != usual) == ("label_smoothing" not in options), options  # which the library passes over
    assert float(agree(model, ids, labels=nothing, num_items_in_batch=torch.tensor(7))) == 0
    assert float(agree(model, ids[:, :1], labels=ids[:, :1], num_items_in_batch=7)) == 0
    assert agree(model, ids, labels=nothing).isnan()  # a mean over nothing, as the library's
    model.config.fused_loss = True
    with pytest.raises(ValueError, match="batch_size"):  # the library's own: fewer logits than labels
        model(ids, labels=ids, logits_to_keep=3)


def test_our_own_loss_calls_a_changed_head(make: Callable, tokens: Callable) -> None:
    model, ids = make("hgru2", vocab_size=9000), tokens(2, 9)
    assert is_product(model.head, model.hidden(ids)[0])
    before = model.loss(ids, ids)
    torch.testing.assert_close(model.loss(ids, ids, method="full"), before)
    model.head.register_forward_hook(negated)
    after = model.loss(ids, ids)
    torch.testing.assert_close(after, model.loss(ids, ids, method="full"))
    assert abs(float((after - before).detach())) > 1e-2
    refused("method chunked reads the head's weight, and this head", model.loss, ids, ids, method="chunked")
    tied = make("hgru2 conv")
    expected = tied(ids)[0]
    tied.embedding.register_forward_hook(lambda module, args, output: output.requires_grad_())  # as PEFT does
    torch.testing.assert_close(tied(ids)[0], expected)
    with torch.device("meta"):
        assert LanguageModel(tied.config)(ids.to("meta"))[0].is_meta
    tied.embedding = Wrapper(tied.embedding)
    refused("the head is tied to an embedding of class Wrapper", tied.logits, expected[..., :16])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # of PEFT
def test_adapters_and_what_needs_plain_weights(twin: Callable, tokens: Callable, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    own, model = twin("hgru2", torch.float32)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["lm_head", "in_proj"], init_lora_weights=False)
    )
    ids = tokens(2, 9)
    model.config.fused_loss = True
    loss = adapted(input_ids=ids, labels=ids).loss
    loss.backward()
    expected = nn.functional.cross_entropy(adapted(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(loss, expected)
    grads = {name: p.grad for name, p in adapted.named_parameters() if "lm_head.lora" in name}
    assert len(grads) == 2
    assert all(float(grad.norm()) > 0 for grad in grads.values())
    with torch.no_grad():
        cache = adapted.eval()(input_ids=ids, past_key_values=HGRN2Cache()).past_key_values
    path = tmp_path / "c.safetensors"
    for call in (lambda: cache.save(path, adapted), lambda: HGRN2Cache.load(path, adapted), model.to_language_model):
        refused(r"has an adapter in place \(.*merge it first \(merge_and_unload", call)
    assert not path.exists()
    merged = adapted.merge_and_unload()
    with torch.no_grad():
        cache = merged(ids, past_key_values=HGRN2Cache()).past_key_values
    cache.save(path, merged)
    torch.testing.assert_close(HGRN2Cache.load(path, merged).state.tensors(), cache.state.tensors())
    torch.testing.assert_close(merged.to_language_model()(ids)[0], merged(ids).logits)
    wrapped = copy.deepcopy(own)
    wrapped.backbone.blocks[0].glu.in_proj = Wrapper(wrapped.backbone.blocks[0].glu.in_proj)
    refused("has an adapter in place", save_model, tmp_path / "m", wrapped)
    refused("has an adapter in place", quantize, wrapped)
    refused("has an adapter in place", write_fla, tmp_path / "m", wrapped)
    assert not (tmp_path / "m").exists()


def test_weights_quantised_in_place(twin: Callable, tokens: Callable, tmp_path: Path) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    _, model = twin("hgru2", torch.float32)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    with torch.no_grad():
        ids = tokens(2, 9)
        cache = model(ids, past_key_values=HGRN2Cache()).past_key_values
        again = torch.cat([model(ids[:, :4], past_key_values=(other := HGRN2Cache())).logits,
                           model(ids[:, 4:], past_key_values=other).logits], 1)  # fmt: skip
        torch.testing.assert_close(again, model(ids).logits, atol=1e-4, rtol=1e-4)
        model.config.fused_loss = True
        loss = model(ids, labels=ids).loss
        torch.testing.assert_close(
            loss, nn.functional.cross_entropy(again[:, :-1].flatten(0, 1), ids[:, 1:].flatten()), atol=1e-4, rtol=1e-4
        )
    for call in (lambda: cache.save(tmp_path / "c", model), model.to_language_model):
        refused("is quantised or sharded .Int8Tensor.: use the model that this one was made from", call)


def test_offloaded_weights(twin: Callable, tokens: Callable, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    _, model = twin("hgru2 conv", torch.float32)
    model.save_pretrained(tmp_path / "m")
    place = {"model": "disk", "lm_head": "disk"}
    far = HGRN2ForCausalLM.from_pretrained(tmp_path / "m", device_map=place, offload_folder=tmp_path / "off")
    assert far.lm_head.weight.is_meta
    ids, positions = tokens(2, 8), torch.tensor([[5, 6, 7, 0, 1, 2, 3, 4], [5, 6, 0, 1, 2, 0, 1, 2]])
    for options in ({}, {"position_ids": positions}):
        found = []
        for one in (model, far):
            with torch.no_grad():
                cache = HGRN2Cache()
                one(tokens(2, 5, seed=7), past_key_values=cache)
                assert cache.get_seq_length() == 5  # the very cache, not a copy of it
                found.append(one(ids, past_key_values=cache, **options).logits)
                assert {x.device.type for x in cache.state.tensors().values()} == {"cpu"}
        torch.testing.assert_close(found[1], found[0])
    for fused in (False, True):
        model.config.fused_loss = far.config.fused_loss = fused
        torch.testing.assert_close(far(ids, labels=ids).loss, model(ids, labels=ids).loss)
    assert far.model.language.zeros(2).layers[0].recurrent.device.type == "cpu"
    for call in (lambda: cache.save(tmp_path / "c", far), far.to_language_model):
        refused("is offloaded .on the meta device.: load the model onto one device first", call)


def test_a_copy_of_a_model_is_another_model(twin: Callable, tokens: Callable) -> None:
    _, model = twin("hgru2")
    with torch.no_grad():
        cache = model(tokens(1, 5), past_key_values=HGRN2Cache()).past_key_values
    for other in (copy.deepcopy(model), copy.deepcopy(model.model)):
        refused("this cache was filled by another model", other, tokens(1, 1), past_key_values=cache)
    with torch.no_grad():
        model(tokens(1, 1), past_key_values=copy.deepcopy(cache))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # of PEFT
@pytest.mark.parametrize("layout", ["ours", "fla"])
def test_an_adapter_folder_brings_its_base(layout: str, twin: Callable, tokens: Callable, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    own, model = twin("hgru2", torch.float32)
    if layout == "fla":
        write_fla(tmp_path / "base", own)
        model = HGRN2ForCausalLM.from_pretrained(tmp_path / "base")
    else:
        model.save_pretrained(tmp_path / "base")
        model.name_or_path = str(tmp_path / "base")  # where PEFT looks
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["in_proj"], init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted(input_ids=tokens(2, 5)).logits
    for kind in (HGRN2ForCausalLM, transformers.AutoModelForCausalLM):
        found = kind.from_pretrained(tmp_path / "adapter").eval()
        torch.testing.assert_close(found(tokens(2, 5)).logits, expected, rtol=1e-5, atol=1e-6)
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    refused("lacks lm_head.weight", HGRN2ForCausalLM.from_pretrained, tmp_path / "adapter")
