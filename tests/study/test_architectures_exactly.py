"""The attention baseline trained beside transformers' Llama in the same loop, from the same weights: one loss curve."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hgrn2.models.comparison import comparison_config
from hgrn2.models.language import LanguageModel
from hgrn2.study.arms import run_of
from hgrn2.study.protocol import Arm, Case, Study
from hgrn2.study.training import _Timed
from hgrn2.tasks.lm.task import LanguageTask, open_corpora
from hgrn2.train.metrics import read_metrics
from hgrn2.train.view import TrainView

STUDY = Study(
    lrs=(4e-3,),
    set=("model.width=64", "model.layers=2", "model.glu_width=96", "train.log_every=1", "train.batch_size=2"),
)
CASE = Case(arm=Arm(subject="llama", architecture="llama"), lr=4e-3, seed=0, tokens=24 * 1024)


class Theirs(nn.Module):
    """transformers' model as the task asks for one."""

    def __init__(self, library: Any) -> None:
        super().__init__()
        self.library = library

    def loss(self, tokens: Tensor, targets: Tensor, **options: Any) -> Tensor:
        logits = self.library(input_ids=tokens, use_cache=False).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Unmeasured(LanguageTask):
    """Training alone."""

    def evaluate(self, model: Any) -> dict[str, float | None]:
        return {"loss": None, "bits_per_byte": None}


def curve(model: Any, folder: Path) -> list[float]:
    run = run_of(STUDY, CASE, vocab_size=65, precision="float32", on_gpu=False)
    task = Unmeasured(run, *open_corpora(run.data), torch.device("cpu"))
    trainer = _Timed(run, task, model, folder)
    with TrainView("", total_steps=24, quiet=True) as view:
        trainer.fit(view)
    return [one["loss"] for one in read_metrics(folder / "metrics.jsonl") if one["kind"] == "step"]


def library_model(config: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=65, hidden_size=config.width, num_hidden_layers=config.layers, intermediate_size=config.glu_width,
        num_attention_heads=config.heads, num_key_value_heads=config.heads, rms_norm_eps=config.norm_eps,
        tie_word_embeddings=True, attn_implementation="sdpa",
    ))  # fmt: skip


def renamed(theirs: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Their names in ours: q, k and v are one matrix, as are the two of the GLU."""
    found = {
        "embedding.weight": theirs["model.embed_tokens.weight"],
        "backbone.norm.weight": theirs["model.norm.weight"],
    }
    for n in range(layers):
        here, there = f"backbone.blocks.{n}.", f"model.layers.{n}."
        parts = {
            "mixer.in_proj": [f"self_attn.{role}_proj" for role in "qkv"], "mixer.out_proj": ["self_attn.o_proj"],
            "glu.in_proj": ["mlp.gate_proj", "mlp.up_proj"], "glu.out_proj": ["mlp.down_proj"],
            "mixer_norm": ["input_layernorm"], "glu_norm": ["post_attention_layernorm"],
        }  # fmt: skip
        found |= {f"{here}{name}.weight": torch.cat([theirs[f"{there}{part}.weight"] for part in those])
                  for name, those in parts.items()}  # fmt: skip
    return found


def test_the_same_loss_at_every_step(tmp_path: Path) -> None:
    run = run_of(STUDY, CASE, vocab_size=65, precision="float32", on_gpu=False)
    assert run.model.mixer == comparison_config("llama", "small").mixer
    torch.manual_seed(0)
    library = library_model(run.model)
    model = LanguageModel(run.model)
    model.load_state_dict(renamed(library.state_dict(), run.model.layers))
    ours, theirs = curve(model, tmp_path / "ours"), curve(Theirs(library), tmp_path / "theirs")
    assert len(ours) == 24
    assert ours[-1] < ours[0] - 0.3
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 2e-3
