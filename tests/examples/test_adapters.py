"""LoRA through PEFT and packed documents through TRL: which maps adapt, what is saved and merged, what the loss is."""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import hgrn2
from hgrn2.cli.main import entry
from hgrn2.generate.loading import load
from hgrn2.models.saved import load_model
from hgrn2.tasks.tune.adapters import LORA_TARGETS, add_lora, save_merged, transformers_tokenizer

pytest.importorskip("peft", reason="peft is not installed: pip install 'hgrn2[finetune]'")
# The libraries' own: options of one that the other has renamed since, and torchao's remarks about torch.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
MAPS = 8  # in two layers


@pytest.fixture
def shell(base: Path) -> Callable[[], Any]:
    """The run as transformers' class, made anew at each call."""

    def make() -> Any:
        from hgrn2.models.hf import from_language_model

        return from_language_model(load(base, "cpu").model)

    return make


def random_tokens(count: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (2, count), generator=torch.Generator().manual_seed(1))


def trained(model: Any, targets: Any = LORA_TARGETS) -> Any:
    """The model with adapters after a few steps, so that they are not the zero they begin as."""
    torch.manual_seed(0)
    adapted = add_lora(model, 4, targets=targets)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    adapted.train()
    for _ in range(3):
        tokens = random_tokens()
        adapted(tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted.eval()


def test_every_projection_adapts_and_nothing_else(shell: Callable[[], Any]) -> None:
    adapted = add_lora(shell(), 4)
    names = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len(names) == 2 * MAPS
    assert all(any(f".{target}.lora_" in name for target in LORA_TARGETS) for name in names)
    everything = add_lora(shell(), 4, targets="all-linear")
    assert {name for name, parameter in everything.named_parameters() if parameter.requires_grad} == names


def test_saved_loaded_and_merged_give_the_same_logits(shell: Callable[[], Any], base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    tokens, plain = random_tokens(), shell()
    with torch.no_grad():
        before = plain(tokens).logits
    adapted = trained(plain)
    with torch.no_grad():
        wanted = adapted(tokens).logits
        assert (wanted - before).abs().max() > 0.1
        adapted.save_pretrained(tmp_path / "adapter")
        again: Any = PeftModel.from_pretrained(shell(), tmp_path / "adapter")
        torch.testing.assert_close(again(tokens).logits, wanted, atol=0, rtol=0)
        tokenizer = load(base, "cpu").need_tokenizer()
        save_merged(again, tokenizer, tmp_path / "merged")
        merged, _ = load_model(tmp_path / "merged")(tokens)
    torch.testing.assert_close(merged, wanted, atol=2e-5, rtol=1e-5)
    assert entry(["generate", str(tmp_path / "merged"), "--prompt", "line", "--max-tokens", "4"]) == 0


def test_mistakes_are_told_in_a_line(shell: Callable[[], Any], base: Path, tmp_path: Path) -> None:
    with pytest.raises(hgrn2.UserError, match=r"no linear map .* 'q_proj'; choose among mixer.in_proj"):
        add_lora(shell(), targets=["q_proj", "mixer.in_proj"])
    with pytest.raises(hgrn2.UserError, match="rank is 0"):
        add_lora(shell(), 0)
    with pytest.raises(hgrn2.UserError, match="no adapters to merge"):
        save_merged(shell(), load(base, "cpu").need_tokenizer(), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_tokenizer_without_an_end_pads_with_its_first_id() -> None:
    from hgrn2.data.tokenizer import ByteTokenizer, CharTokenizer

    made = transformers_tokenizer(CharTokenizer("abc\n"))
    assert made("ab\nc")["input_ids"] == [1, 2, 0, 3]
    assert made.pad_token_id == 0
    assert transformers_tokenizer(ByteTokenizer()).pad_token_id == 256


def test_adapters_on_int8_weights(shell: Callable[[], Any]) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model, tokens = shell(), random_tokens()
    quantize_(model, Int8WeightOnlyConfig(), filter_fn=lambda _, name: name.endswith(LORA_TARGETS))
    with pytest.warns(UserWarning, match="get_apply_tensor_subclass"):  # it could not merge; loss and gradients work
        adapted = trained(model)
    with torch.no_grad():
        after, before = adapted(tokens, labels=tokens).loss, shell()(tokens, labels=tokens).loss
    assert after < before - 0.05


DOCUMENTS = [[5, 6, 7, 8, 9], [1, 2], [3] * 9, [11, 12, 13], [20, 21, 22, 23, 24, 25, 26], [7, 7, 1]]


@pytest.fixture
def trainer(shell: Callable[[], Any], example: Callable[[str], Any], base: Path, tmp_path: Path) -> Any:
    """TRL's trainer as the example builds it, over rows packed from short documents."""
    pytest.importorskip("trl", reason="trl is not installed: pip install 'hgrn2[finetune]'")
    from datasets import Dataset
    from trl.trainer.sft_trainer import SFTTrainer

    chosen = argparse.Namespace(steps=2, batch_size=2, lr=1e-3, length=16, seed=0, cpu=True)
    return SFTTrainer(
        model=shell(), args=example("sft_lora").arguments(str(tmp_path), chosen),
        processing_class=transformers_tokenizer(load(base, "cpu").need_tokenizer()),
        train_dataset=Dataset.from_dict({"input_ids": DOCUMENTS}),
    )  # fmt: skip


def test_packed_documents_reach_the_model_apart_and_their_loss_is_that_of_each(
    trainer: Any, shell: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, seen = next(iter(trainer.get_train_dataloader())), {}
    forward = type(trainer.model.model).forward
    spy = lambda self, **given: seen.update(given) or forward(self, **given)  # noqa: E731
    monkeypatch.setattr(type(trainer.model.model), "forward", spy)
    found = trainer.compute_loss(trainer.model, dict(batch))
    assert seen["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_q"].tolist()
    bounds = batch["cu_seq_lens_q"].tolist()
    assert len(bounds) > 3  # several documents in the one row
    row = batch["input_ids"][0]
    documents = [row[begin:end] for begin, end in itertools.pairwise(bounds)]
    assert all(document.tolist() in DOCUMENTS for document in documents)
    total, count, model = 0.0, 0, shell()
    for document in documents:
        loss = model(document[None], labels=document[None]).loss.item()
        total, count = total + loss * (len(document) - 1), count + len(document) - 1
    assert found.item() == pytest.approx(total / count, rel=1e-5)
    # And it would not be so without the boundaries.
    bare = model(batch["input_ids"], labels=batch["labels"]).loss
    assert abs(bare.item() - found.item()) > 1e-4


def test_positions_that_begin_again_do_the_same(trainer: Any) -> None:
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["position_ids"] == 0).sum() == len(batch["cu_seq_lens_q"]) - 1
    ids = batch["input_ids"]
    with torch.no_grad():
        by_offsets = trainer.model(ids, cu_seq_lens_q=batch["cu_seq_lens_q"]).logits
        by_positions = trainer.model(ids, position_ids=batch["position_ids"]).logits
    torch.testing.assert_close(by_positions, by_offsets, atol=0, rtol=0)


def test_a_model_trains_by_trl(trainer: Any) -> None:
    before = trainer.model.lm_head.weight.clone()
    assert trainer.train().global_step == 2
    assert not torch.equal(before, trainer.model.lm_head.weight)
