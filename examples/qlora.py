"""QLoRA: adapters trained on a base whose projections are stored in 8 or 4 bits (torchao), on a CPU or a GPU.

    python examples/qlora.py runs/wiki --bits 4 --data shakespeare --out models/mine

The adapter is trained in front of the quantised weights and merged into the float ones, which gives a model folder for
every verb. Printed are held-out nats/token of each combination, so that you see what quantising and merging cost.
4 bits are stored one per byte here (`IntxWeightOnlyConfig`), which computes everywhere; torchao's packed int4 kernels
need a GPU and its `mslk` package. Needs `pip install 'hgrn2[finetune]' torchao`.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hgrn2.data.corpus import Corpus
from hgrn2.data.packing import Batches, BatchPlan
from hgrn2.errors import UserError
from hgrn2.generate.loading import Loaded, load
from hgrn2.models.hf import HGRN2ForCausalLM, from_language_model
from hgrn2.models.hf.writing import write_hf
from hgrn2.rows import append, measurement, prepare_folder
from hgrn2.settings import refuse
from hgrn2.tasks.tune.adapters import add_lora, save_merged
from hgrn2.tasks.tune.run import corpora
from hgrn2.train.config import DataConfig


def quantised(loaded: Loaded, bits: int) -> Any:
    """The transformers model with int8 or int4 projections; embedding and head stay as they are.

    It is read from a folder by transformers, because PEFT then knows how to quantise again after a merge.
    """
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from transformers import TorchAoConfig

    four = IntxWeightOnlyConfig(weight_dtype=torch.int4)  # pyright: ignore[reportAttributeAccessIssue] (no stub has it)
    kind = Int8WeightOnlyConfig() if bits == 8 else four
    config = TorchAoConfig(kind, modules_to_not_convert=["lm_head"])
    with tempfile.TemporaryDirectory() as folder:
        write_hf(Path(folder) / "model", loaded.model)
        made = HGRN2ForCausalLM.from_pretrained(Path(folder) / "model", quantization_config=config)
    made.config.name_or_path = made.name_or_path = ""  # PEFT would look there, or on the hub, when it saves
    return made


def nats(model: Any, valid: Corpus, windows: int, length: int) -> float:
    """Held-out nats/token over the first windows of a text."""
    tokens = torch.from_numpy(np.stack([valid.read(n * length, length) for n in range(windows)]))
    with torch.no_grad():
        return model(tokens, labels=tokens).loss.item()


def train(model: Any, text: Corpus, chosen: argparse.Namespace) -> None:
    """Adam on whatever is trainable, the rate falling to zero."""
    plan = BatchPlan(sequence_length=chosen.length, batch_size=chosen.batch_size, seed=chosen.seed)
    batches = Batches(text, plan)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=chosen.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=chosen.steps)
    model.train()
    for step in range(chosen.steps):
        tokens = torch.from_numpy(batches.batch(step).inputs)
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 10 == 0 or step == chosen.steps - 1:
            print(f"step {step + 1}  loss {loss.item():.4f}", flush=True)
    model.eval()


def main(given: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", default="shakespeare", help="prepared corpus, or shakespeare")
    parser.add_argument("--out", type=Path, required=True, help="model folder for the merged model")
    parser.add_argument("--bits", type=int, choices=(4, 8), default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--held-out", type=int, default=32, help="windows of that length")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="of the model in the rows; default: the folder's")
    parser.add_argument("--results", type=Path, help="folder of results to which rows are added")
    chosen = parser.parse_args(given)
    if chosen.results:
        prepare_folder(chosen.results)

    from peft import PeftModel

    torch.manual_seed(chosen.seed)
    refuse((chosen.out / "config.json").exists(), f"{chosen.out} already exists; it is not overwritten")
    loaded = load(chosen.run, "cpu")
    text, valid = corpora(DataConfig(source=chosen.data), loaded)
    chosen.held_out = min(chosen.held_out, valid.n_tokens // chosen.length)
    measure = lambda model: nats(model, valid, chosen.held_out, chosen.length)  # noqa: E731
    whole = from_language_model(loaded.model)
    found = {"float base": measure(whole)}
    base = quantised(loaded, chosen.bits)
    found[f"int{chosen.bits} base"] = measure(base)
    adapted = add_lora(base, chosen.rank)
    train(adapted, text, chosen)
    found[f"int{chosen.bits} base with adapter"] = measure(adapted)
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder)
        on_float: Any = PeftModel.from_pretrained(whole, folder)
        found["float base with the same adapter"] = measure(on_float)
        save_merged(on_float, loaded.need_tokenizer(), chosen.out)
    found["float base, merged"] = measure(from_language_model(load(chosen.out, "cpu").model))
    found[f"int{chosen.bits} base, merged and quantised again"] = measure(adapted.merge_and_unload())
    case = {
        "model": chosen.name or chosen.run.name, "bits": chosen.bits, "data": Path(chosen.data).name,
        "steps": chosen.steps, "held_out_tokens": chosen.held_out * chosen.length,
    }  # fmt: skip
    for name, value in found.items():
        print(f"{value:.4f} nats/token  {name}")
        if chosen.results:
            details = {"rank": chosen.rank, "lr": chosen.lr, "seed": chosen.seed}
            append(chosen.results, measurement("qlora", case, name, "torchao", [value], "nats/token", details))
    return found


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
