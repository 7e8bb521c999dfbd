"""Losses, packing, recomputation, Trainer and accelerate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from small_models import HGRN
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.models.hf import HGRN2Cache, HGRN2Config, HGRN2ForCausalLM

pytest.importorskip("accelerate")
every = pytest.mark.parametrize("name", HGRN)
SMALL = {"vocab_size": 23, "hidden_size": 16, "num_hidden_layers": 2, "num_heads": 2, "intermediate_size": 24}


def gradients(model: Any, **inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def labelled(tokens: Callable) -> tuple[Tensor, Tensor]:
    ids = tokens(3, 14)
    labels = ids.clone()
    labels[0, :5] = labels[2, 9:] = -100
    return ids, labels


@every
def test_loss_is_our_own_and_fused_is_the_same(name: str, twin: Callable, tokens: Callable) -> None:
    own, model = twin(name)
    ids, labels = labelled(tokens)
    model.train()
    loss, plain = gradients(model, input_ids=ids, labels=labels)
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(own(ids)[0][:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert loss.dtype == torch.float32  # the library's own, which rounds logits
    assert float((loss - expected).abs()) <= 20 * torch.finfo(torch.float32).eps * float(expected)
    model.config.fused_loss = True
    output = model(ids, labels=labels)
    assert output.logits is None
    assert model(ids).logits is not None
    fused, found = gradients(model, input_ids=ids, labels=labels)
    assert float((fused - expected).abs()) < 1e-12
    assert set(found) == set(plain)
    for key, value in plain.items():
        assert float((found[key] - value).abs().max()) <= 1e-5 * float(value.abs().max()), key
    pieces = sum(
        model(ids[n : n + 1], labels=labels[n : n + 1], num_items_in_batch=(labels[:, 1:] != -100).sum()).loss
        for n in range(3)
    )
    assert float((pieces - expected).detach().abs()) < 1e-12


@every
def test_padding_takes_no_part_in_training(name: str, twin: Callable, tokens: Callable, padded: Callable) -> None:
    _, model = twin(name)
    model.train()
    rows = [tokens(1, 12)[0], tokens(1, 7, seed=3)[0]]
    weights = torch.tensor([11.0, 6.0], dtype=torch.float64) / 17
    expected: dict[str, Tensor] = {}
    for row, weight in zip(rows, weights, strict=True):
        for key, value in gradients(model, input_ids=row[None], labels=row[None])[1].items():
            expected[key] = expected.get(key, 0) + weight * value
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        labels = ids.masked_fill(mask == 0, -100)
        if side == "left":
            labels[1, 5] = -100  # its text begins here: nothing comes before that could predict it
        for key, value in gradients(model, input_ids=ids, attention_mask=mask, labels=labels)[1].items():
            assert float((value - expected[key]).abs().max()) <= 1e-5 * float(expected[key].abs().max()), key


@every
def test_packed_documents_are_documents(name: str, twin: Callable, tokens: Callable, same: Callable) -> None:
    """Positions that begin again, or offsets: as collators without padding hand over a batch."""
    own, model = twin(name)
    lengths, ids = (9, 1, 13, 6), tokens(1, 29)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    offsets = torch.tensor([0, 9, 10, 23, 29], dtype=torch.int32)
    apart = [own(part) for part in ids.split(lengths, 1)]
    expected = torch.cat([logits for logits, _ in apart], 1)
    for given in (
        {"position_ids": positions},
        {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets, "max_length_q": 13},
    ):
        output = model(ids, use_cache=True, output_hidden_states=True, **given)
        same(output.logits, expected)
        same(output.past_key_values.state, apart[-1][1])
        same(model.lm_head(output.hidden_states[-1]), expected)
    assert float((model(ids).logits - expected).detach().abs().max()) > 1e-3  # the seams matter
    same(model(ids, position_ids=torch.arange(29)[None]).logits, own(ids)[0])
    # Rows with seams of their own, the first documents of which go on from a cache.
    cache = HGRN2Cache()
    with torch.no_grad():
        model(tokens(2, 5, seed=8), past_key_values=cache)
        rows = tokens(2, 10)
        places = torch.tensor([[5, 6, 7, 0, 1, 2, 3, 4, 5, 6], [5, 6, 7, 8, 9, 10, 11, 12, 0, 1]])
        found = model(rows, past_key_values=cache, position_ids=places).logits
        whole = torch.cat((tokens(2, 5, seed=8), rows), 1)
        same(found[:1, :3], own(whole[:1])[0][:, 5:8])
        same(found[:1, 3:], own(rows[:1, 3:])[0])
        same(found[1:, :8], own(whole[1:])[0][:, 5:13])
        same(found[1:, 8:], own(rows[1:, 8:])[0])


def test_packing_refused(twin: Callable, tokens: Callable) -> None:
    _, model = twin("hgru2")
    for ids, offsets, message in (
        (tokens(2, 8), [0, 4, 8], "needs one row of packed documents"),
        (tokens(1, 8), [0, 4, 9], "runs from 0 to 9, the row to 8"),
    ):
        with pytest.raises(UserError, match=message):
            model(ids, cu_seq_lens_q=torch.tensor(offsets))
    with pytest.raises(UserError, match="leave attention_mask out"):
        model(tokens(1, 4), cu_seq_lens_q=torch.tensor([0, 4]), attention_mask=torch.tensor([[0, 1, 1, 1]]))


def switch(model: Any, what: str) -> None:
    """Newer versions have another word for it."""
    newer = getattr(model, f"activation_checkpointing_{what}", None)
    (newer or getattr(model, f"gradient_checkpointing_{what}"))()


@pytest.mark.parametrize("name", ["hgru2", "hgru2 conv", "hgru1"])
def test_recomputation_changes_nothing_but_memory(name: str, twin: Callable, tokens: Callable) -> None:
    _, model = twin(name)
    model.train()
    ids, labels = labelled(tokens)
    loss, plain = gradients(model, input_ids=ids, labels=labels)
    switch(model, "enable")
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        model(ids, labels=labels)
    recomputed = sum(kept)
    again, found = gradients(model, input_ids=ids, labels=labels)
    assert torch.equal(again, loss)
    assert all(torch.equal(found[key], value) for key, value in plain.items())
    switch(model, "disable")
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        model(ids, labels=labels)
    assert recomputed < sum(kept) / 2


def test_outputs(twin: Callable, tokens: Callable, same: Callable) -> None:
    own, model = twin("hgru2")
    ids = tokens()
    output = model(ids, output_hidden_states=True)
    assert len(output.hidden_states) == 4
    same(output.hidden_states[0], own.embedding(ids))
    same(model.lm_head(output.hidden_states[-1]), output.logits)
    tuple_ = model(ids, return_dict=False, use_cache=False)
    assert isinstance(tuple_, tuple)
    assert torch.equal(tuple_[0], output.logits)
    assert model.train()(ids).past_key_values is None
    assert model.eval()(ids, use_cache=False).past_key_values is None


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        ids = (torch.arange(17) * (n % 5 + 1) + n) % 23
        return {"input_ids": ids, "labels": ids}


def trainer(folder: Path, steps: int) -> transformers.Trainer:
    transformers.set_seed(3)
    options = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=8, per_device_train_batch_size=4, learning_rate=3e-2, save_steps=steps,
        report_to=[], disable_tqdm=True, use_cpu=True, seed=3, logging_steps=1, gradient_accumulation_steps=2,
    )  # fmt: skip
    model = HGRN2ForCausalLM(HGRN2Config(**SMALL))
    return transformers.Trainer(model=model, args=options, train_dataset=Rows())


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_trainer_learns_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "a", 4)
    whole.train()
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.3
    resumed = trainer(tmp_path / "b", 100)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert [entry["loss"] for entry in resumed.state.log_history if "loss" in entry][-4:] == losses[-4:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    last = HGRN2ForCausalLM.from_pretrained(tmp_path / "a" / "checkpoint-8")
    assert torch.equal(last.lm_head.weight, whole.model.lm_head.weight)
    scores = whole.evaluate(Rows())  # where outputs carry a cache
    assert scores["eval_loss"] < losses[0]


def test_accelerate(twin: Callable, tokens: Callable) -> None:
    from accelerate import Accelerator, infer_auto_device_map

    _, model = twin("hgru2", torch.float32)
    accelerator = Accelerator(cpu=True)
    wrapped, optimiser = accelerator.prepare(model.train(), torch.optim.AdamW(model.parameters()))
    loss = wrapped(tokens(), labels=tokens()).loss
    accelerator.backward(loss)
    optimiser.step()
    assert set(infer_auto_device_map(model, no_split_module_classes=model._no_split_modules).values())
