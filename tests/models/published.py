"""Published checkpoints made for tests, and what they compute: float64, one token after the other, nothing of ours."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hgrn2.files import write_json

WIDTH, LAYERS, VOCABULARY, HIDDEN, SIZE = 16, 3, 23, 24, 8
TOKENS = torch.randint(VOCABULARY, (2, 21), generator=torch.Generator().manual_seed(5))
FLA = {
    "model_type": "hgrn2", "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY,
    "intermediate_size": HIDDEN, "expand_ratio": SIZE, "norm_eps": 1e-3, "hidden_act": "swish",
}  # fmt: skip
HGRU2 = {
    "model_type": "hgrn2", "decoder_embed_dim": WIDTH, "decoder_layers": LAYERS, "vocab_size": VOCABULARY,
    "glu_dim": HIDDEN, "expand_ratio": SIZE, "norm_type": "simplermsnorm", "glu_act": "none", "bias": False,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "fla": FLA,
    "fla, short convolutions": FLA | {"use_short_conv": True, "conv_size": 4},
    "fla, no bounds": FLA | {"use_lower_bound": False, "expand_ratio": None, "num_heads": 4},
    "fla, no weight in the output norm": FLA | {"elementwise_affine": False},
    "fla, tied": FLA | {"tie_word_embeddings": True},
    "fla, HGRN": FLA | {"model_type": "hgrn", "expand_ratio": 1},
    "hgru2": HGRU2,
    "hgru2, LayerNorm and biases": HGRU2 | {
        "norm_type": "layernorm", "bias": True, "glu_act": "silu", "out_act": "sigmoid", "in_act": "silu",
        "no_scale_embedding": False,
    },
}  # fmt: skip


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state dict that belongs to a config.json, as the two projects write them."""
    if "decoder_layers" in config:
        return _shapes_hgru2(config)
    square, vector = (WIDTH, WIDTH), (WIDTH,)
    found = {"model.embeddings.weight": (VOCABULARY, WIDTH), "model.norm.weight": vector}
    if config.get("use_lower_bound", True):
        found["model.lower_bounds"] = (LAYERS, WIDTH)
    if not config.get("tie_word_embeddings", False):
        found["lm_head.weight"] = (VOCABULARY, WIDTH)
    first = config["model_type"] == "hgrn"
    for n in range(LAYERS):
        attn, mlp = f"model.layers.{n}.attn", f"model.layers.{n}.mlp"
        found |= {f"{attn}_norm.weight": vector, f"{mlp}_norm.weight": vector}
        found |= {f"{attn}.{role}_proj.weight": square for role in ("igfo" if first else "qfio")}
        if config.get("elementwise_affine", True):
            found[f"{attn}.g_norm.weight"] = vector
        if config.get("use_short_conv"):
            found |= {f"{attn}.{role}_conv1d.weight": (WIDTH, 1, config["conv_size"]) for role in "qfi"}
        found |= {f"{mlp}.{role}_proj.weight": (HIDDEN, WIDTH) for role in ("gate", "up")}
        found[f"{mlp}.down_proj.weight"] = (WIDTH, HIDDEN)
    return found


def _shapes_hgru2(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    matrix = (VOCABULARY, WIDTH)
    found = {"model.embed_tokens.weight": matrix, "lm_head.weight": matrix, "model.lower_bounds": (LAYERS, WIDTH)}
    norms = ["model.final_norm"]
    for n in range(LAYERS):
        layer = f"model.layers.{n}."
        linear = {
            "token_mixer.in_proj": (3 * WIDTH, WIDTH), "token_mixer.out_proj": (WIDTH, WIDTH),
            "channel_mixer.l1": (HIDDEN, WIDTH), "channel_mixer.l2": (HIDDEN, WIDTH),
            "channel_mixer.l3": (WIDTH, HIDDEN),
        }  # fmt: skip
        found |= {f"{layer}{name}.weight": shape for name, shape in linear.items()}
        if config["bias"]:
            found |= {f"{layer}{name}.bias": shape[:1] for name, shape in linear.items()}
        norms += [layer + name for name in ("token_mixer.norm", "token_norm", "channel_norm")]
    if config["norm_type"] == "layernorm":
        found |= {f"{norm}.{part}": (WIDTH,) for norm in norms for part in ("weight", "bias")}
    return found


def randomised(names: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """No value is neutral; what enters the output norm is so small that the eps of its norm shows."""
    generator = torch.Generator().manual_seed(11)
    made = {}
    for name, shape in sorted(names.items()):
        noise = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            noise = 1 + 0.3 * noise
        elif len(shape) == 2 and not name.endswith("lower_bounds"):
            noise *= shape[1] ** -0.5
        if ".i_proj" in name:
            noise *= 0.01
        if name.endswith("token_mixer.in_proj.weight"):
            noise[:WIDTH] *= 0.01
        made[name] = noise.to(dtype)
    return made


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], shards: int = 1) -> Path:
    """A folder as a hub has it."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    places = {}
    for n in range(shards):
        name = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[n::shards]}
        save_file(part, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(part, name)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    return folder


def made(folder: Path, variant: str = "fla", shards: int = 1, dtype: torch.dtype = torch.float32) -> Path:
    """One of the variants on disk."""
    return write(folder, VARIANTS[variant], randomised(shapes(VARIANTS[variant]), dtype), shards)


def rms(x: Tensor, weight: Tensor | float, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def lower_bounds_of(raw: Tensor | None) -> list[Tensor]:
    """Cumulative sum of the softmax over layers minus its first row."""
    if raw is None:
        return [torch.zeros(WIDTH, dtype=torch.float64)] * LAYERS
    share = raw.softmax(0)
    return list(share.cumsum(0) - share[0])


def recurrence_output(q: Tensor, forget: Tensor, value: Tensor, size: int) -> Tensor:
    """S = Diag(f) S + (1-f) v, y = q S with the state after the token; heads side by side in the channels [B,T,D]."""
    heads = (*q.shape[:2], WIDTH // size, size)
    q, forget, value = (x.reshape(heads) for x in (q, forget, value))
    state, found = torch.zeros(q.shape[0], heads[2], size, size, dtype=torch.float64), []
    for t in range(q.shape[1]):
        f = forget[:, t, :, :, None]
        state = f * state + (1 - f) * value[:, t, :, None, :]
        found.append((q[:, t, :, :, None] * state).sum(-2).flatten(1))
    return torch.stack(found, 1)


def shifted(x: Tensor, weight: Tensor) -> Tensor:
    """A causal convolution [C,1,W] whose last tap meets the current token."""
    taps = weight.shape[-1]
    padded = torch.cat((torch.zeros_like(x[:, : taps - 1]), x), 1)
    return sum(weight[:, 0, k] * padded[:, k : k + x.shape[1]] for k in range(taps))  # type: ignore[return-value]


def fla_logits(config: dict[str, Any], tensors: dict[str, Tensor], eps: float = 1e-5) -> Tensor:
    """What flash-linear-attention computes; `eps` is that of HGRN2's output norm."""
    w = {name: value.double() for name, value in tensors.items()}
    first, size = config["model_type"] == "hgrn", config.get("expand_ratio") or WIDTH // (config.get("num_heads") or 1)
    bounds, silu = lower_bounds_of(w.get("model.lower_bounds")), torch.nn.functional.silu
    x = w["model.embeddings.weight"][TOKENS]
    for n in range(LAYERS):
        attn, mlp = f"model.layers.{n}.attn", f"model.layers.{n}.mlp"
        h = rms(x, w[f"{attn}_norm.weight"], config["norm_eps"])
        p = {role: h @ w[f"{attn}.{role}_proj.weight"].T for role in ("igf" if first else "qfi")}
        if config.get("use_short_conv"):
            p = {role: shifted(value, w[f"{attn}.{role}_conv1d.weight"]) for role, value in p.items()}
        forget, weight = bounds[n] + (1 - bounds[n]) * p["f"].sigmoid(), w.get(f"{attn}.g_norm.weight", 1.0)
        if first:
            state, states = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                state = forget[:, t] * state + (1 - forget[:, t]) * silu(p["i"][:, t])
                states.append(state)
            y = rms(torch.stack(states, 1), weight, config["norm_eps"]) * silu(p["g"])
        else:
            y = rms(size**-0.5 * recurrence_output(silu(p["q"]), forget, p["i"], size), weight, eps)
        x = x + y @ w[f"{attn}.o_proj.weight"].T
        h = rms(x, w[f"{mlp}_norm.weight"], config["norm_eps"])
        h = silu(h @ w[f"{mlp}.gate_proj.weight"].T) * (h @ w[f"{mlp}.up_proj.weight"].T)
        x = x + h @ w[f"{mlp}.down_proj.weight"].T
    return rms(x, w["model.norm.weight"], config["norm_eps"]) @ w.get("lm_head.weight", w["model.embeddings.weight"]).T


def hgru2_logits(config: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    """What hgru2-pytorch's language model computes."""
    w = {name: value.double() for name, value in tensors.items()}
    acts = {"none": lambda x: x, "silu": torch.nn.functional.silu, "sigmoid": torch.sigmoid}
    bounds = lower_bounds_of(w["model.lower_bounds"])

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[name + ".weight"].T + w.get(name + ".bias", torch.zeros(()))

    def norm(x: Tensor, name: str) -> Tensor:
        if config["norm_type"] == "simplermsnorm":
            return rms(x, 1.0, 1e-6)
        centred = x - x.mean(-1, keepdim=True)
        return rms(centred, w[name + ".weight"], 1e-5) + w[name + ".bias"]

    x = w["model.embed_tokens.weight"][TOKENS] * (1 if config.get("no_scale_embedding", True) else WIDTH**0.5)
    for n in range(LAYERS):
        layer = f"model.layers.{n}."
        i, o, f = linear(norm(x, layer + "token_norm"), layer + "token_mixer.in_proj").split(WIDTH, -1)
        forget = bounds[n] + (1 - bounds[n]) * f.sigmoid()
        o, i = acts[config.get("out_act", "silu")](o), acts[config.get("in_act", "none")](i)
        y = norm(recurrence_output(o, forget, i, config["expand_ratio"]), layer + "token_mixer.norm")
        x = x + linear(y, layer + "token_mixer.out_proj")
        h, mixer = norm(x, layer + "channel_norm"), layer + "channel_mixer."
        x = x + linear(acts[config["glu_act"]](linear(h, mixer + "l1")) * linear(h, mixer + "l2"), mixer + "l3")
    return norm(x, "model.final_norm") @ w["lm_head.weight"].T


def logits(config: dict[str, Any], tensors: dict[str, Tensor]) -> Tensor:
    """[2,21,V] in float64."""
    return (hgru2_logits if "decoder_layers" in config else fla_logits)(config, tensors)
