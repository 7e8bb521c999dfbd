"""Named language-model runs: one function each, every one a complete `RunConfig`; no torch here."""

from collections.abc import Callable
from dataclasses import replace

from hgrn2.models.presets import preset
from hgrn2.tasks.named import recipe_of
from hgrn2.train.config import DataConfig, OptimConfig, RunConfig, TrainConfig


def demo() -> RunConfig:
    """Characters of the embedded text, five minutes on two CPU cores; docs/log.md tells how its numbers were found."""
    return RunConfig(
        model=preset("hgrn2_demo"),
        train=TrainConfig(
            steps=100_000, budget_s=275, epochs=3, sequence_length=256, batch_size=8, eval_every=200,
            eval_tokens=16_385, keep_best=True, patience=5, save_every=400, keep=1,
        ),
        optim=OptimConfig(
            optimizer="muon", lr=8e-3, matrix_lr=8e-3, schedule="linear", warmup_steps=20, final_lr_ratio=0.0,
            beta2=0.98,
        ),
    )  # fmt: skip


def small() -> RunConfig:
    """A few minutes on a CPU for a prepared corpus of your own (`--data FOLDER`): GPT-2-sized vocabularies fit."""
    model = replace(preset("hgrn2_demo"), vocab_size=50_257, tie_embeddings=True)
    return RunConfig(
        model=model,
        train=TrainConfig(
            steps=100_000, budget_s=600, epochs=3, sequence_length=256, batch_size=8, eval_every=200,
            eval_tokens=20_000, keep_best=True, patience=5, save_every=500,
        ),
        optim=OptimConfig(
            optimizer="muon", lr=4e-3, matrix_lr=6e-3, schedule="linear", warmup_steps=50, final_lr_ratio=0.0
        ),
    )  # fmt: skip


def wikitext103() -> RunConfig:
    """The paper's WikiText-103 recipe as far as it is published (docs/reproduce.md): 44 M parameters, 50k updates of
    65,536 tokens, Adam (0.9, 0.98) at 5e-4 with inverse square root, weight decay 0.1, clipping at 1, dropout 0.1."""
    return RunConfig(
        model=replace(preset("hgrn2_44m_wikitext103"), dropout=0.1),
        data=DataConfig(source="wikitext103", reset_at_documents=False),
        train=TrainConfig(
            steps=50_000, sequence_length=512, batch_size=128, precision="bfloat16", eval_every=2_000, save_every=2_000
        ),
        optim=OptimConfig(lr=5e-4, schedule="inverse_sqrt", warmup_steps=4_000, beta2=0.98),
    )


RECIPES: dict[str, Callable[[], RunConfig]] = {"demo": demo, "small": small, "wikitext103": wikitext103}


def recipe(name: str) -> RunConfig:
    """The run of this name, or one's own MODULE:NAME; an unknown name is a `UserError` with the nearest ones."""
    return recipe_of(name, RECIPES, RunConfig)
