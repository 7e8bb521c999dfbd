"""Baselines are what others call by their names: whole models against transformers', in float64, by their weights."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel

WIDTH, LAYERS, HIDDEN, VOCABULARY, HEADS = 32, 3, 48, 41, 4
TOKENS = torch.randint(0, VOCABULARY, (2, 37), generator=torch.Generator().manual_seed(1))


def ours(mixer: MixerConfig, **options: Any) -> LanguageModel:
    values = {"vocab_size": VOCABULARY, "width": WIDTH, "layers": LAYERS, "glu_width": HIDDEN, "lower_bound": "none"}
    return LanguageModel(ModelConfig(mixer=mixer, **values | options)).double()  # type: ignore[arg-type]


def filled(model: nn.Module) -> nn.Module:
    """Every parameter at random, norms around one, so that no weight or bias may be left out."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.double().eval().named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
            if "norm" in name:
                parameter += 1
    return model


def close(found: Tensor, truth: Tensor) -> None:
    """Equal but for roundings of float64."""
    error = float((found - truth).detach().abs().max() / truth.detach().abs().max())
    assert error < 1e-12, error


@pytest.mark.parametrize("normed", [False, True], ids=["Llama", "Qwen3"])
def test_attention_is_llama_and_with_normed_keys_qwen3(normed: bool) -> None:
    """Logits, every gradient, and decoding with a cache, of blocks, norms, GLU and head together."""
    kind, made = (
        (transformers.Qwen3Config, transformers.Qwen3ForCausalLM)
        if normed
        else (transformers.LlamaConfig, transformers.LlamaForCausalLM)
    )
    config = kind(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, intermediate_size=HIDDEN,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=WIDTH // HEADS, rms_norm_eps=1e-6,
        attn_implementation="eager", tie_word_embeddings=False,
    )  # fmt: skip
    theirs = filled(made(config))
    inner = theirs.model.rotary_emb  # its angles are made in float32
    inner.inv_freq = 10_000.0 ** (-torch.arange(0, WIDTH // HEADS, 2, dtype=torch.float64) / (WIDTH // HEADS))
    inner.forward = lambda x, position_ids: angles(inner.inv_freq, position_ids)
    model = ours(MixerConfig(kind="attention", head_size=WIDTH // HEADS, qk_norm=normed, norm_eps=1e-6))
    model.load_state_dict(renamed(dict(theirs.state_dict()), normed))
    truth = exact(lambda: theirs(TOKENS).logits)
    logits, _ = model(TOKENS)
    close(logits, truth)
    weights = torch.randn(truth.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (truth * weights).sum().backward()
    (logits * weights).sum().backward()
    gradients = renamed({name: p.grad for name, p in theirs.named_parameters()}, normed)
    for name, parameter in model.named_parameters():
        close(parameter.grad, gradients[name])  # type: ignore[arg-type]
    with torch.no_grad():
        _, state = model(TOKENS[:, :20])
        steps = []
        for token in TOKENS[:, 20:].split(1, 1):
            y, state = model(token, state)
            steps.append(y)
        close(torch.cat(steps, 1), truth[:, 20:])


def angles(speed: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    angle = torch.cat((positions.unsqueeze(-1) * speed,) * 2, -1)
    return angle.cos(), angle.sin()


def exact(compute: Any) -> Tensor:
    """Without the places at which transformers narrows to float32 whatever it is given."""
    with pytest.MonkeyPatch.context() as patch:
        to, softmax = Tensor.to, nn.functional.softmax
        patch.setattr(Tensor, "float", lambda self: self)
        patch.setattr(
            Tensor, "to", lambda self, *a, **k: self if torch.float32 in (*a, *k.values()) else to(self, *a, **k)
        )
        patch.setattr(nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim))
        return compute()


def renamed(theirs: dict[str, Tensor], normed: bool) -> dict[str, Tensor]:
    """Their names in ours: q, k and v are one matrix, as are the two of the GLU."""
    found = {
        "embedding.weight": theirs["model.embed_tokens.weight"], "head.weight": theirs["lm_head.weight"],
        "backbone.norm.weight": theirs["model.norm.weight"],
    }  # fmt: skip
    for n in range(LAYERS):
        here, there = f"backbone.blocks.{n}.", f"model.layers.{n}."
        fused = {
            "mixer.in_proj": [f"self_attn.{role}_proj" for role in "qkv"],
            "glu.in_proj": ["mlp.gate_proj", "mlp.up_proj"],
        }
        single = {
            "mixer.out_proj": "self_attn.o_proj", "glu.out_proj": "mlp.down_proj", "mixer_norm": "input_layernorm",
            "glu_norm": "post_attention_layernorm",
        }  # fmt: skip
        single |= {f"mixer.{role}_norm": f"self_attn.{role}_norm" for role in "qk"} if normed else {}
        found |= {
            f"{here}{name}.weight": torch.cat([theirs[f"{there}{p}.weight"] for p in parts])
            for name, parts in fused.items()
        }
        found |= {f"{here}{name}.weight": theirs[f"{there}{part}.weight"] for name, part in single.items()}
    return found
