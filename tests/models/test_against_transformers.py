"""Baselines are what others call by their names: whole models against transformers', in float64, by their weights."""

from collections.abc import Callable
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


def close(found: Tensor, expected: Tensor) -> None:
    """Equal but for roundings of float64."""
    error = float((found - expected).detach().abs().max() / expected.detach().abs().max())
    assert error < 1e-12, error


def held(model: LanguageModel, theirs: Any, rename: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Logits, every gradient, and decoding after 20 tokens one by one, with their weights in ours."""
    model.load_state_dict(rename(dict(theirs.state_dict())))
    expected = exact(lambda: theirs(TOKENS).logits)
    logits, _ = model(TOKENS)
    close(logits, expected)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (expected * weights).sum().backward()
    (logits * weights).sum().backward()
    gradients = rename({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in model.named_parameters():
        close(parameter.grad, gradients[name])  # type: ignore[arg-type]
    with torch.no_grad():
        _, state = model(TOKENS[:, :20])
        steps = []
        for token in TOKENS[:, 20:].split(1, 1):
            y, state = model(token, state)
            steps.append(y)
        close(torch.cat(steps, 1), expected[:, 20:])


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
    held(model, theirs, lambda tensors: renamed(tensors, normed))


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
@torch.no_grad()
def test_their_steps_are_ours(kind: str) -> None:
    """Decoding with the library's cache: a convolution and a state that are carried, in its own one-token forms."""
    theirs, rename = mamba() if kind == "mamba" else mamba2()
    model = ours(OURS[kind], glu_width=0, norm_eps=1e-5)
    model.load_state_dict(rename(dict(theirs.state_dict())))
    outputs = exact(lambda: steps_of(theirs))
    close(model(TOKENS)[0][:, 19:], outputs)


def steps_of(theirs: Any) -> Tensor:
    """Logits of the 20th token and those after it, from a first call with 20 tokens and then one per call."""
    found = theirs(TOKENS[:, :20], use_cache=True)
    logits = [found.logits[:, -1:]]
    for token in TOKENS[:, 20:].split(1, 1):
        found = theirs(token, cache_params=found.cache_params, use_cache=True)
        logits.append(found.logits)
    return torch.cat(logits, 1)


def test_mamba_is_mamba() -> None:
    theirs, rename = mamba()
    held(ours(OURS["mamba"], glu_width=0, norm_eps=1e-5), theirs, rename)


def test_mamba2_is_mamba2() -> None:
    """In chunks of 8 tokens there, with two groups of heads."""
    theirs, rename = mamba2()
    held(ours(OURS["mamba2"], glu_width=0, norm_eps=1e-5), theirs, rename)


OURS = {
    "mamba": MixerConfig(kind="mamba", state_size=5, conv_width=4, bias=True),
    "mamba2": MixerConfig(kind="mamba2", head_size=8, state_size=5, groups=2, conv_width=4, bias=True),
}
_SHARED = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 5, "expand": 2,
    "conv_kernel": 4, "use_bias": True, "layer_norm_epsilon": 1e-5, "residual_in_fp32": False,
    "tie_word_embeddings": False,
}  # fmt: skip


def mamba() -> tuple[Any, Callable[[dict[str, Tensor]], dict[str, Tensor]]]:
    theirs = filled(transformers.MambaForCausalLM(transformers.MambaConfig(**_SHARED)))
    own = {"step_proj.weight": "dt_proj.weight", "step_proj.bias": "dt_proj.bias", "x_proj.weight": "x_proj.weight"}
    return theirs, lambda tensors: mamba_renamed(tensors, own)


def mamba2() -> tuple[Any, Callable[[dict[str, Tensor]], dict[str, Tensor]]]:
    config = transformers.Mamba2Config(**_SHARED, num_heads=8, head_dim=8, n_groups=2, chunk_size=8)
    own = {"step_bias": "dt_bias", "norm.weight": "norm.weight"}
    return filled(transformers.Mamba2ForCausalLM(config)), lambda tensors: mamba_renamed(tensors, own)


def mamba_renamed(theirs: dict[str, Tensor], own: dict[str, str]) -> dict[str, Tensor]:
    """Taps come in the other order: here the first one meets the current token."""
    found = {
        "embedding.weight": theirs["backbone.embeddings.weight"], "head.weight": theirs["lm_head.weight"],
        "backbone.norm.weight": theirs["backbone.norm_f.weight"],
    }  # fmt: skip
    own = own | {"conv_bias": "conv1d.bias", "log_decay": "A_log", "skip": "D"}
    own |= {f"{name}.{kind}": f"{name}.{kind}" for name in ("in_proj", "out_proj") for kind in ("weight", "bias")}
    for n in range(LAYERS):
        here, there = f"backbone.blocks.{n}.", f"backbone.layers.{n}."
        found[f"{here}mixer_norm.weight"] = theirs[f"{there}norm.weight"]
        found[f"{here}mixer.conv"] = theirs[f"{there}mixer.conv1d.weight"].squeeze(1).flip(1)
        found |= {f"{here}mixer.{name}": theirs[f"{there}mixer.{part}"] for name, part in own.items()}
    return found


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
