"""State tuning beside LoRA: as many trained numbers, the same steps and batches, several seeds; rows for results/.

    python examples/state_tuning.py runs/wiki --data shakespeare --out results

Both adapt the frozen model RUN to another text. State tuning learns the state from which every text begins; LoRA adds
low-rank matrices to the projections of all blocks, its rank chosen so that the counts of trained numbers are as near
as a whole rank allows. Needs `pip install 'hgrn2[finetune]'`.
"""

import argparse
import copy
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model

from hgrn2 import perplexity
from hgrn2.errors import UserError
from hgrn2.generate.loading import Loaded, load
from hgrn2.models.language import LanguageModel
from hgrn2.models.tuned import StateTuned
from hgrn2.rows import append, measurement, prepare_folder
from hgrn2.tasks.lm.task import LanguageTask
from hgrn2.tasks.tune.config import TuneConfig, TuneSettings, short_training
from hgrn2.tasks.tune.run import corpora, opening_token, with_data
from hgrn2.train.trainer import Trainer
from hgrn2.train.view import TrainView

TARGETS = ("mixer.in_proj", "mixer.out_proj", "glu.in_proj", "glu.out_proj")


def matched_rank(model: LanguageModel, numbers: int) -> int:
    """The LoRA rank whose count of numbers is nearest: a map of m x n costs m + n a rank."""
    named = model.named_modules()
    maps = [m for name, m in named if name.endswith(TARGETS) and isinstance(m, torch.nn.Linear)]
    return max(1, round(numbers / sum(m.in_features + m.out_features for m in maps)))


def with_lora(base: LanguageModel, rank: int) -> LanguageModel:
    """A copy of the model with adapters, alone trainable, in the projections of all blocks."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(TARGETS))
    adapted = cast(Any, inject_adapter_in_model(config, copy.deepcopy(base)))
    adapted.kind = "adapted"  # of its checkpoints, which are no models by themselves
    return cast(LanguageModel, adapted)


def trained(kind: str, loaded: Loaded, settings: TuneSettings, quiet: bool) -> tuple[LanguageModel, int, float]:
    """(the adapted model, how many numbers were trained, seconds)."""
    base = loaded.model
    train, valid = corpora(settings.data, loaded)
    torch.manual_seed(settings.train.seed)
    model = tuned = StateTuned(base, opening_token(loaded.need_tokenizer()))
    if kind == "lora":
        model = with_lora(base, matched_rank(base, sum(p.numel() for p in tuned.parameters())))
    run = TuneConfig(base="", base_hash="", model=base.config, settings=settings)
    task = LanguageTask(run, train, valid, base.embedding.weight.device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(run, task, model, Path(folder))
        with TrainView(f"{kind}, seed {run.train.seed}", total_steps=run.train.steps, quiet=quiet) as view:
            trainer.fit(view)
        if trainer.interrupted:  # Ctrl-C ends a run early and tidily; half a run is no measurement
            raise KeyboardInterrupt
    numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return model.eval(), numbers, trainer.elapsed_s


def measured(model: LanguageModel, loaded: Loaded, settings: TuneSettings, tokens: int) -> dict[str, float]:
    """Held-out nats/token: each document from the beginning, or one long text in windows and with carried state."""
    _, valid = corpora(settings.data, loaded)
    part = perplexity.Beginning(valid, tokens, loaded.need_tokenizer())
    if valid.n_documents > 1:
        found = perplexity.carried(model, part, reset_documents=True)
        return {"each document by itself": found.nats_per_token}
    window = settings.train.sequence_length
    found = (perplexity.windows(model, part, window=window), perplexity.carried(model, part))
    return {f"windows of {window}": found[0].nats_per_token, "carried state": found[1].nats_per_token}


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", default="shakespeare")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--state-lr", type=float, default=TuneSettings().optim.lr)
    parser.add_argument("--lora-lr", type=float, default=1e-2)
    parser.add_argument("--eval-tokens", type=int, default=50_000)
    parser.add_argument("--name", help="of the model in the rows; default: the folder's")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="folder of results to which rows are added")
    chosen = parser.parse_args(given)
    if chosen.out:
        prepare_folder(chosen.out)
    loaded = load(chosen.run, chosen.device)
    settings = with_data(TuneSettings(), chosen.data)
    train = replace(
        short_training(), steps=chosen.steps, batch_size=chosen.batch_size, sequence_length=chosen.sequence_length,
        eval_every=0, save_every=0, eval_tokens=chosen.sequence_length + 1,
    )  # fmt: skip
    case: dict[str, Any] = {
        "model": chosen.name or chosen.run.name, "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "data": Path(chosen.data).name, "steps": chosen.steps, "tokens": chosen.steps * train.tokens_per_step,
        "held_out_tokens": chosen.eval_tokens,
    }  # fmt: skip
    # The opening token by itself, before an empty state, helps a little too: told apart from what was learned.
    before = {"none": loaded.model, "opening": StateTuned(loaded.model, opening_token(loaded.need_tokenizer()))}
    rows = {
        kind: [measured(model, loaded, replace(settings, train=train), chosen.eval_tokens)]
        for kind, model in before.items()
    }
    print("before:", rows, flush=True)
    details: dict[str, dict[str, Any]] = {kind: {"trained": 0} for kind in before}
    for kind, lr in (("state", chosen.state_lr), ("lora", chosen.lora_lr)):
        rows[kind] = []
        for seed in range(chosen.seeds):
            one = replace(settings, train=replace(train, seed=seed), optim=replace(settings.optim, lr=lr))
            model, numbers, seconds = trained(kind, loaded, one, quiet=False)
            rows[kind].append(measured(model, loaded, one, chosen.eval_tokens))
            details[kind] = {"trained": numbers, "lr": lr, "seconds": round(seconds, 1)}
            print(f"{kind}, seed {seed}, {numbers:,} numbers:", rows[kind][-1], flush=True)
    for kind, found in rows.items():
        for method in found[0]:
            samples = [one[method] for one in found]
            more = {**details[kind], "seeds": samples}
            row = measurement("tune", {**case, "method": method}, kind, "torch", samples, "nats/token", more)
            print(f"{kind:8}{method:24} {row.median:.4f}  {min(samples):.4f} to {max(samples):.4f}")
            if chosen.out:
                append(chosen.out, row)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
