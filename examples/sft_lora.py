"""Supervised fine-tuning with TRL and LoRA on packed documents, states reset between them; merged back at the end.

    python examples/sft_lora.py runs/wiki --data mine.jsonl --out models/mine
    hgrn2 generate models/mine --prompt "..."

DATA is a text or JSONL file (one document per line); without it, the speeches of the embedded Shakespeare. Everything
is local. TRL packs whole documents into rows (`packing`, `padding_free`) and says where each begins; our transformers
class starts the state anew there, so the loss is that of the documents one by one.
Needs `pip install 'hgrn2[finetune]'`.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from hgrn2.data.samples import shakespeare
from hgrn2.data.sources import Sources
from hgrn2.data.tokenizer import Tokenizer
from hgrn2.errors import UserError
from hgrn2.generate.loading import load
from hgrn2.models.hf import from_language_model
from hgrn2.settings import refuse
from hgrn2.tasks.tune.adapters import check_targets, lora_config, save_merged, transformers_tokenizer


def documents(path: Path | None) -> list[str]:
    """Texts of a file; speeches of the embedded sample."""
    if path is None:
        return [speech for speech in shakespeare().split("\n\n") if speech]
    texts, parts = [], []
    for piece in Sources([path]).pieces():
        parts.append(piece.text)
        if piece.ends:
            texts.append("".join(parts))
            parts = []
    return texts


def dataset(texts: list[str], tokenizer: Tokenizer, longest: int) -> Any:
    """Token ids per document, the end-of-document mark last; longer documents are cut into several, none is dropped."""
    from datasets import Dataset

    end = [] if tokenizer.eot is None else [tokenizer.eot]
    rows = [[*ids.tolist(), *end] for ids in tokenizer.encode_documents(texts)]
    return Dataset.from_dict({"input_ids": [row[n : n + longest] for row in rows for n in range(0, len(row), longest)]})


def arguments(folder: str, chosen: argparse.Namespace) -> Any:
    """TRL's settings: packed rows, no reports, nothing written on the way."""
    from trl.trainer.sft_config import SFTConfig

    return SFTConfig(
        output_dir=folder, max_steps=chosen.steps, per_device_train_batch_size=chosen.batch_size,
        per_device_eval_batch_size=chosen.batch_size, learning_rate=chosen.lr, lr_scheduler_type="linear",
        warmup_steps=min(10, chosen.steps // 10), max_length=chosen.length, packing=True, packing_strategy="bfd",
        gradient_checkpointing=False, logging_steps=10, save_strategy="no", report_to="none", seed=chosen.seed,
        use_cpu=chosen.cpu, bf16=False, dataloader_pin_memory=False,
    )  # fmt: skip


def main(given: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="model folder for the merged model")
    parser.add_argument("--adapter", type=Path, help="keep the adapter by itself in this folder")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=256, help="tokens of a packed row, and of a document at most")
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--held-out", type=int, default=100, help="documents")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu", action="store_true")
    chosen = parser.parse_args(given)

    refuse((chosen.out / "config.json").exists(), f"{chosen.out} already exists; it is not overwritten")
    loaded = load(chosen.run, "cpu")
    tokenizer = loaded.need_tokenizer()
    model = from_language_model(loaded.model, eos_token_id=tokenizer.eot)
    config = lora_config(chosen.rank)
    check_targets(model, config.target_modules)
    texts = documents(chosen.data)[: chosen.documents]
    refuse(
        len(texts) <= chosen.held_out,
        f"{len(texts)} documents, --held-out {chosen.held_out}: nothing is left to train on",
    )
    train, valid = texts[: -chosen.held_out], texts[-chosen.held_out :]

    from trl.trainer.sft_trainer import SFTTrainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model, args=arguments(folder, chosen), processing_class=transformers_tokenizer(tokenizer),
            train_dataset=dataset(train, tokenizer, chosen.length),
            eval_dataset=dataset(valid, tokenizer, chosen.length), peft_config=config,
        )  # fmt: skip
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        after = trainer.evaluate()["eval_loss"]
        print(f"held-out nats/token: {before:.4f} before, {after:.4f} after {chosen.steps} steps")
        adapted: Any = trainer.model
        if chosen.adapter:
            adapted.save_pretrained(chosen.adapter)
        save_merged(adapted.cpu(), tokenizer, chosen.out)
    print(f"merged into {chosen.out}")
    return {"before": before, "after": after}


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
