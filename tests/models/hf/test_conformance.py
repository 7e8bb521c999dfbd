"""One function, however it is asked for: loop = chunked = generate = cached = padded = converted = ONNX.

In float64 every way must give the same numbers but for a thousand roundings, and in float32 what float32 allows: the
fixture `same` measures in roundings of the dtype. The first truth is the operator's definition, a loop over tokens.
Run under two versions of transformers; nothing here asks which one it is.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import pytest
import torch
import transformers
from small_models import HGRN, VOCABULARY
from torch import Tensor

from hgrn2.files import read_json
from hgrn2.generate.loading import Loaded
from hgrn2.models.convert import write_fla
from hgrn2.models.hf import HGRN2Cache
from hgrn2.models.saved import Found, load_model, save_model

NEW = 9
every = pytest.mark.parametrize("name", HGRN)
both = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def rows() -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(1, VOCABULARY, (n,), generator=generator) for n in (11, 3, 17)]


def by_tokens(own: Any, ids: Tensor) -> Tensor:
    """Logits of a text read one token after the other, through states of our own."""
    state, found = own.zeros(ids.shape[0]), []
    for t in range(ids.shape[1]):
        logits, state = own(ids[:, t : t + 1], state)
        found.append(logits)
    return torch.cat(found, 1)


def greedy(own: Any, row: Tensor, count: int = NEW) -> tuple[Tensor, Tensor]:
    """The continuation of one text without a state: everything is read again for each token. (ids, logits)."""
    text, seen = row[None], []
    for _ in range(count):
        logits = own(text)[0][:, -1]
        seen.append(logits)
        text = torch.cat((text, logits.argmax(-1, keepdim=True)), 1)
    return text[0], torch.cat(seen)


def margin(seen: Tensor) -> float:
    """By how much the winner leads, at the least: ids can be compared only where that is more than rounding."""
    best = seen.topk(2, -1).values
    return float((best[:, 0] - best[:, 1]).min())


def generated(model: Any, ids: Tensor, **options: Any) -> Any:
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None} | options
    return model.generate(ids, return_dict_in_generate=True, output_logits=True, **options)


@every
@both
def test_loop_chunked_and_cached(
    name: str, dtype: torch.dtype, twin: Callable, tokens: Callable, same: Callable
) -> None:
    own, model = twin(name, dtype)
    ids = tokens()
    with torch.no_grad():
        expected = by_tokens(own, ids)
        same(own(ids)[0], expected)
        same(model(ids).logits, expected)
        same(model(ids, logits_to_keep=3).logits, expected[:, -3:])
        same(model(ids, logits_to_keep=torch.tensor([0, 7])).logits, expected[:, [0, 7]])
        same(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, expected)
        for cuts in ((1, 28), (13, 1, 1, 14), (29,)):
            cache, found = HGRN2Cache(), []
            for part in ids.split(cuts, 1):
                output = model(part, past_key_values=cache)
                assert output.past_key_values is cache
                found.append(output.logits)
            same(torch.cat(found, 1), expected)
            assert cache.get_seq_length() == ids.shape[1]
            assert {x.dtype.to_real() for x in cache.state.tensors().values()} == {dtype}  # pyright: ignore


@every
def test_padded_anywhere_is_alone(name: str, twin: Callable, padded: Callable, same: Callable) -> None:
    own, model = twin(name)
    with torch.no_grad():
        for side in ("left", "right"):
            ids, mask = padded(rows(), side)
            output = model(ids, attention_mask=mask)
            for n, row in enumerate(rows()):
                expected, state = own(row[None])
                same(output.logits[n : n + 1, mask[n].bool()], expected)
                same(output.past_key_values.state.select([n]), state)
        ids, mask = padded(rows())
        for n in range(3):  # batch 1
            same(
                model(ids[n : n + 1], attention_mask=mask[n : n + 1]).logits[:, mask[n].bool()], own(rows()[n][None])[0]
            )


@every
def test_generate_is_the_loop_and_batches_are_rows(name: str, twin: Callable, padded: Callable, same: Callable) -> None:
    own, model = twin(name)
    with torch.no_grad():
        expectations = [greedy(own, row) for row in rows()]
    assert min(margin(seen) for _, seen in expectations) > 1e-9
    ids, mask = padded(rows())
    batch = generated(model, ids, attention_mask=mask)
    uncached = generated(model, ids, attention_mask=mask, use_cache=False)
    pieces = generated(model, ids, attention_mask=mask, prefill_chunk_size=4)
    assert batch.past_key_values.get_seq_length() == ids.shape[1] + NEW - 1
    assert getattr(uncached, "past_key_values", None) is None
    for n, (row, (text, seen)) in enumerate(zip(rows(), expectations, strict=True)):
        alone = generated(model, row[None])
        left = generated(model, ids[n : n + 1], attention_mask=mask[n : n + 1])  # padding at batch 1
        assert torch.equal(alone.sequences[0], text)
        same(torch.cat(alone.logits), seen.float())
        for found, place in ((batch, n), (uncached, n), (pieces, n), (left, 0)):
            assert torch.equal(found.sequences[place, ids.shape[1] :], text[len(row) :])
            same(torch.stack([step[place] for step in found.logits]), seen.float())


@pytest.mark.parametrize("name", ["hgru2", "hgru2 conv", "hgru1"])
def test_a_returned_cache_goes_on_where_it_stood(name: str, twin: Callable, padded: Callable) -> None:
    _, model = twin(name)
    ids, mask = padded(rows())
    whole = generated(model, ids, attention_mask=mask).sequences
    begun = generated(model, ids, attention_mask=mask, max_new_tokens=4)
    grown = torch.cat((mask, mask.new_ones(3, 4)), 1)
    kept = begun.past_key_values.fork()
    ended = generated(
        model, begun.sequences, attention_mask=grown, past_key_values=begun.past_key_values, max_new_tokens=5
    )
    assert torch.equal(ended.sequences, whole)
    # A row of the batch by itself, from the fork; and only what the cache has not read.
    kept.batch_select_indices(torch.tensor([1]))
    alone = generated(
        model, begun.sequences[1:2, -1:], attention_mask=grown[1:2], past_key_values=kept, max_new_tokens=5
    )
    assert torch.equal(alone.sequences[0, 1:], whole[1, -5:])
    assert begun.past_key_values.get_seq_length() == whole.shape[1] - 1


@pytest.mark.parametrize("name", ["hgru2", "hgru2 conv", "hgru1"])
def test_beams_and_samples_do_not_depend_on_the_cache(name: str, twin: Callable, padded: Callable) -> None:
    _, model = twin(name)
    ids, mask = padded(rows())
    for options in ({"num_beams": 3, "num_return_sequences": 2}, {"do_sample": True, "top_k": 9, "temperature": 2.0}):
        found = []
        for use_cache in (True, False):
            torch.manual_seed(7)
            found.append(generated(model, ids, attention_mask=mask, use_cache=use_cache, **options).sequences)
        assert torch.equal(*found)


def assistants(twin: Callable, name: str) -> dict[str, dict[str, Any]]:
    _, same_weights = twin(name)
    _, stranger = twin(name, seed=5)
    return {
        "lookup": {"prompt_lookup_num_tokens": 4},
        "a model that agrees": {"assistant_model": same_weights},
        "a model that does not": {"assistant_model": stranger},
    }


@pytest.mark.parametrize("name", ["hgru2", "hgru2 conv", "hgru1"])
@pytest.mark.parametrize("help_", ["lookup", "a model that agrees", "a model that does not"])
def test_assisted_is_greedy(
    name: str, help_: str, twin: Callable, tokens: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recurrent state cannot be cut back; it is put back, and what was accepted is read again."""
    own, model = twin(name)
    row = tokens(1, 7)[0].repeat(3)  # repeats itself, so that looking it up finds something
    text, _ = greedy(own, row, 24)
    options = assistants(twin, name)[help_]
    taken: list[int] = []
    crop = HGRN2Cache.crop
    monkeypatch.setattr(HGRN2Cache, "crop", lambda self, count: (taken.append(count), crop(self, count))[1])
    found = generated(model, row[None], max_new_tokens=24, **options)
    assert torch.equal(found.sequences[0], text)
    assert bool(min(taken) < 0) == (help_ != "a model that agrees")
    after, longer = found.past_key_values, torch.cat((text, torch.tensor([5])))[None]
    with torch.no_grad():  # the cache that comes back goes on from what it says it has read
        going_on = model(longer[:, after.get_seq_length() :], past_key_values=after).logits[:, -1]
        expected = own(longer)[0][:, -1]
    assert float((going_on - expected).abs().max()) < 1e-9 * float(expected.abs().max())


def test_a_prompt_as_embeddings(twin: Callable, tokens: Callable) -> None:
    _, model = twin("hgru2 conv")
    ids = tokens(2, 8)
    embedded = model.get_input_embeddings()(ids)
    options = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(model.generate(inputs_embeds=embedded, **options), generated(model, ids).sequences[:, 8:])


def test_streaming(twin: Callable, tokens: Callable) -> None:
    _, model = twin("hgru2")

    class Collect(transformers.generation.BaseStreamer):
        def __init__(self) -> None:
            self.found: list[int] = []

        def put(self, value: Tensor) -> None:
            self.found += value.flatten().tolist()

        def end(self) -> None:
            self.found.append(-1)

    collect = Collect()
    output = generated(model, tokens(1, 6), streamer=collect)
    assert collect.found == [*output.sequences[0].tolist(), -1]


def test_the_librarys_cache_forgets_and_ours_does_not(twin: Callable, tokens: Callable) -> None:
    """Its layer for linear attention remembers a recurrent state only beside a convolution; that trap stays shut."""
    from transformers.cache_utils import DynamicCache

    from hgrn2.errors import UserError

    own, model = twin("hgru2")
    text, _ = greedy(own, tokens(1, 12)[0])
    assert torch.equal(generated(model, tokens(1, 12)).sequences[0], text)
    with torch.no_grad():
        first = model(tokens(1, 12))
        cold = model(text[None, 12:13]).logits
        warm = model(text[None, 12:13], past_key_values=first.past_key_values).logits
    assert first.past_key_values.has_previous_state()
    assert float((warm - cold).abs().max()) > 1e-3  # the past matters to this model
    with pytest.raises(UserError, match="is a DynamicCache; this model needs an HGRN2Cache"):
        model(tokens(1, 12), past_key_values=DynamicCache())
    with pytest.raises(UserError, match="takes no keys and values"):
        HGRN2Cache().update(torch.zeros(1), torch.zeros(1), 0)


@every
def test_saved_and_loaded(name: str, twin: Callable, tokens: Callable, same: Callable, tmp_path: Path) -> None:
    own, model = twin(name, torch.float32)
    save_model(tmp_path / "own", own)
    model.save_pretrained(tmp_path / "hf", max_shard_size="6KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert type(again) is type(model)
    back = again.to_language_model()
    assert back.config == own.config == load_model(tmp_path / "own").config
    for key, value in own.state_dict().items():
        assert torch.equal(back.state_dict()[key], value), key
    with torch.no_grad():
        assert torch.equal(again(tokens()).logits, model(tokens()).logits)
        same(again(tokens()).logits, own(tokens())[0])


@pytest.mark.parametrize("variant", [name for name in published.VARIANTS if name.startswith("fla")])
@pytest.mark.parametrize("shards", [1, 3])
def test_converted(tmp_path: Path, variant: str, shards: int, same: Callable) -> None:
    """A folder of fla-hub, read as it stands, computes what flash-linear-attention computes; and goes back."""
    config = published.VARIANTS[variant]
    tensors = published.randomised(published.shapes(config))
    folder = published.write(tmp_path / "hub", config, tensors, shards)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    expected = published.logits(config, tensors)
    with torch.no_grad():
        found = model.double()(published.TOKENS).logits
    assert float((found - expected).abs().max()) <= 1e-11 * float(expected.abs().max())
    model.float().save_pretrained(tmp_path / "ours")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    write_fla(tmp_path / "back", again.to_language_model())
    from safetensors.torch import load_file

    returned = load_file(tmp_path / "back" / "model.safetensors")
    assert set(returned) == set(tensors)
    assert all(torch.equal(returned[key], value) for key, value in tensors.items())
    names = {"hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size", "norm_eps", "model_type"}
    written = read_json(tmp_path / "ours" / "config.json")
    assert {key: written[key] for key in names} == {key: config[key] for key in names}


@pytest.mark.parametrize("name", ["hgru2", "hgru2 conv", "hgru2 modules"])
def test_the_exported_graph_is_the_loop(
    name: str, twin: Callable, tokens: Callable, same: Callable, tmp_path: Path
) -> None:
    for library in ("onnx", "onnxruntime"):
        pytest.importorskip(library, reason="the ONNX export is an extra: pip install 'hgrn2[onnx]'")
    from hgrn2.export.config import OnnxConfig
    from hgrn2.export.onnx_folder import GRAPH, write
    from hgrn2.export.runtime import Session

    own, model = twin(name, torch.float32)
    ids = tokens()
    with torch.no_grad():
        expected = by_tokens(own, ids)
    write(tmp_path / "graph", Loaded(model.to_language_model(), Found(tmp_path), None), OnnxConfig())
    session = Session(tmp_path / "graph" / GRAPH)
    state, found = session.zeros(ids.shape[0]), []
    for part in ids.split((13, 1, 1, 14), 1):
        logits, state = session(part.numpy(), state, keep=0)
        found.append(torch.from_numpy(logits))
    same(torch.cat(found, 1), expected)
