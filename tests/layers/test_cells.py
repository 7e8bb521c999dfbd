"""Cells of other papers: their equations token by token, transformers' own RG-LRU, and what expansion makes of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d, logsigmoid, pad, silu, softplus

from hgrn2.errors import UserError
from hgrn2.layers.block import token_mixer
from hgrn2.layers.cells import LEAST, MOST
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.expansion import Parts, scan_expanded
from hgrn2.layers.operators import WHOLE
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.models.quantize.config import QuantizeConfig
from hgrn2.models.quantize.model import quantize

WIDTH, TOKENS, N = 16, 23, 4
KINDS = ("mingru", "rglru", "lru")


def inputs() -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(2, TOKENS, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()


def made(kind: Any, randomised: Callable, **options: Any) -> Any:
    more: dict[str, Any] = {"groups": 4, "conv_width": 3} if kind == "rglru" else {}
    return randomised(token_mixer(WIDTH, MixerConfig(kind=kind, norm="none", **more | options)))


def cell(mixer: Any, x: Tensor, expanded: bool) -> tuple[Tensor, ...]:
    """a, k, v and the output vector [B,T,D] by the equations of the paper; a is complex for LRU."""
    mixed = x @ mixer.in_proj.weight.T
    if mixer.config.kind == "mingru":
        candidate, output, gate = mixed.split(WIDTH, -1)
        z = 1 / (1 + torch.exp(-gate))
        return 1 - z, z, candidate, silu(output)
    if mixer.config.kind == "rglru":
        branch, output = mixed.split(WIDTH, -1)
        branch = conv1d(pad(branch.mT, (2, 0)), mixer.conv.flip(1).unsqueeze(1), mixer.conv_bias, groups=WIDTH).mT
        blocks = [torch.block_diag(*gate.weight.split(4)) for gate in (mixer.forget_gate, mixer.input_gate)]
        r = torch.sigmoid(branch @ blocks[0].T + mixer.forget_gate.bias)
        i = torch.sigmoid(branch @ blocks[1].T + mixer.input_gate.bias)
        a = torch.sigmoid(-mixer.decay) ** (8 * r)
        return a, torch.sqrt(1 - a**2) * i, branch, silu(output)
    decay = torch.exp(torch.complex(-mixer.log_rate.exp(), mixer.log_phase.exp())).expand(2, TOKENS, -1)
    key = mixer.log_input.exp().expand(2, TOKENS, -1)
    if expanded:
        v, real, imag = mixed.split(WIDTH, -1)
        return decay, key, v, torch.complex(real, imag)
    rows = mixer.in_proj.weight
    matrix = torch.complex(rows[0::2], rows[1::2])  # B
    return decay, key, x.to(matrix.dtype) @ matrix.T, torch.ones_like(key)


def vector(mixer: Any, x: Tensor) -> Tensor:
    a, k, v, output = cell(mixer, x, False)
    h, states = torch.zeros_like(a[:, 0]), []
    for t in range(TOKENS):
        h = a[:, t] * h + k[:, t] * v[:, t]
        states.append(h)
    h = torch.stack(states, 1)
    if mixer.config.kind == "lru":
        real, imag = mixer.out_proj.weight.chunk(2, -1)
        return (h @ torch.complex(real, -imag).T).real + mixer.skip * x  # Re(C h) + D x
    return (h * output) @ mixer.out_proj.weight.T


def expanded(mixer: Any, x: Tensor) -> Tensor:
    heads = [part.unflatten(-1, (-1, N)) for part in cell(mixer, x, True)]
    state, outputs = torch.zeros(2, WIDTH // N, N, N, dtype=heads[0].dtype), []
    for a, k, v, q in zip(*(part.unbind(1) for part in heads), strict=True):
        state = a[..., None] * state + torch.einsum("bhk,bhv->bhkv", k, v)
        y = torch.einsum("bhk,bhkv->bhv", q, state)
        outputs.append(y.real if y.is_complex() else y)
    y = torch.stack(outputs, 1).flatten(2) @ mixer.out_proj.weight.T
    return y + mixer.skip * x if mixer.config.kind == "lru" else y


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loop", [vector, expanded])
def test_equals_the_equations_token_by_token(kind: str, loop: Callable, randomised: Callable, same: Callable) -> None:
    """Outputs and the gradient of every weight."""
    mixer, x = made(kind, randomised, expansion=N if loop is expanded else 0), inputs()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    leaves, results = [x, *mixer.parameters()], []
    for y in (mixer(x)[0], loop(mixer, x)):
        results.append((y, *torch.autograd.grad((y * weights).sum(), leaves)))
    for mine, theirs in zip(*results, strict=True):
        same(mine, theirs, 3000)


def test_rglru_is_that_of_recurrentgemma(randomised: Callable, same: Callable) -> None:
    """transformers' whole recurrent block with its weights in ours, in float64: outputs, and gradients of all of them.
    Its first position is one, not zero: there it scales the input as if there had been a state before."""
    transformers = pytest.importorskip("transformers")
    library = pytest.importorskip("transformers.models.recurrent_gemma.modeling_recurrent_gemma")
    config = transformers.RecurrentGemmaConfig(
        hidden_size=WIDTH, lru_width=WIDTH, num_attention_heads=4, conv1d_width=3, hidden_activation="silu"
    )
    theirs: Any = randomised(library.RecurrentGemmaRecurrentBlock(config, 0))
    theirs.rg_lru._rnn_scan = partial(theirs.rg_lru._rnn_scan, acc_dtype=torch.float64)
    mixer, x = made("rglru", randomised, bias=True), inputs()

    def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {f"in_proj.{part}": torch.cat([tensors[f"linear_{branch}.{part}"] for branch in "xy"])
                 for part in ("weight", "bias")}  # fmt: skip
        for ours, name in (("forget_gate", "recurrent_gate"), ("input_gate", "input_gate")):
            found[f"{ours}.weight"] = tensors[f"rg_lru.{name}_weight"].mT.flatten(0, 1)
            found[f"{ours}.bias"] = tensors[f"rg_lru.{name}_bias"].flatten()
        found |= {"conv": tensors["conv_1d.weight"].squeeze(1).flip(1), "conv_bias": tensors["conv_1d.bias"]}
        found |= {f"out_proj.{part}": tensors[f"linear_out.{part}"] for part in ("weight", "bias")}
        return found | {"decay": tensors["rg_lru.recurrent_param"]}

    mixer.load_state_dict(renamed(dict(theirs.state_dict())))
    positions = torch.arange(1, TOKENS + 1).expand(2, -1)
    expected, y = theirs(x, positions, None, use_cache=False)[0], mixer(x)[0]
    same(y, expected, 3000)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    (expected * weights).sum().backward()
    (y * weights).sum().backward()
    gradients = renamed({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in mixer.named_parameters():
        same(parameter.grad, gradients[name], 3000)


@pytest.mark.parametrize("bound", [False, True])
def test_hgrn1_expanded_is_hgrn2(bound: bool, randomised: Callable, same: Callable) -> None:
    """The same weights; so the expanded form of hgru1_real has no code of its own."""
    options: dict[str, Any] = {"input_activation": "silu"}
    first = randomised(token_mixer(WIDTH, MixerConfig(kind="hgru1_real", **options)))
    second = randomised(token_mixer(WIDTH, MixerConfig(head_size=N, **options)))
    lower_bound = torch.rand(WIDTH, dtype=torch.float64) if bound else None
    (c, f), output = first.split(first.in_proj(inputs()))
    _, forget = first.masked((c, f), None, lower_bound)
    parts = Parts(forget.log(), 1 - forget, silu(c), silu(output))
    more: dict[str, Any] = {"cu_seqlens": None, "padding_mask": None, "output_state": True}
    y, state = scan_expanded(WHOLE, parts, WIDTH // N, None, **more)
    second.load_state_dict(first.state_dict())
    expected, final = second(inputs(), lower_bound)
    same(first.out_proj(first.norm(y)), expected)
    same(state, final.recurrent)


def test_mingru_is_hgrn_without_lower_bounds(randomised: Callable, same: Callable) -> None:
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"kind": "hgru1_real"}), ({"expansion": N}, {"head_size": N}),
    ]  # fmt: skip
    for options, kind in pairs:
        mixer = randomised(token_mixer(WIDTH, MixerConfig(kind="mingru", **options)))
        other: Any = token_mixer(WIDTH, MixerConfig(**kind)).double()
        other.load_state_dict(mixer.state_dict())
        with torch.no_grad():
            other.in_proj.weight[-WIDTH:] *= -1
        same(mixer(inputs())[0], other(inputs())[0])


def test_phases_of_a_long_text_are_exact_in_float32(randomised: Callable) -> None:
    """A state of one channel that turns without fading, after 100,000 tokens in one scan and by the formula."""
    mixer = randomised(token_mixer(1, MixerConfig(kind="lru", expansion=1, norm="none")))
    with torch.no_grad():
        mixer.log_rate.fill_(-40)
    x = torch.zeros(1, 100_000, 1)
    x[0, 0] = 1
    state = mixer.float()(x)[1].recurrent.flatten()
    value = (mixer.in_proj.weight[0] * mixer.log_input.exp()).double()
    angle = (mixer.log_phase.exp().double() * 99_999).fmod(2 * torch.pi)
    expected = torch.cat((value * angle.cos(), value * angle.sin()))
    torch.testing.assert_close(torch.view_as_real(state)[0].double(), expected, rtol=0, atol=2e-6)


@torch.no_grad()
def test_gates_in_blocks_are_left_out_of_quantisation() -> None:
    mixer = MixerConfig(kind="rglru", groups=4)
    model = LanguageModel(ModelConfig(vocab_size=5, width=32, layers=1, glu_width=32, mixer=mixer, lower_bound="none"))
    ids = torch.randint(5, (2, 9), generator=torch.Generator().manual_seed(1))
    before = model(ids)[0]
    after = quantize(model, QuantizeConfig())(ids)[0]
    assert 0 < (after - before).abs().max() < 0.05 * before.abs().max()


def test_starting_values() -> None:
    """Decays are those of the papers; a state of LRU has the variance of its inputs."""
    torch.manual_seed(0)
    for kind in ("rglru", "lru"):
        mixer = MixerConfig(kind=kind, groups=2 if kind == "rglru" else 1)
        model = LanguageModel(ModelConfig(vocab_size=5, width=256, layers=1, glu_width=8, mixer=mixer,
                                          lower_bound="none"))  # fmt: skip
        unit: Any = model.backbone.blocks[0].mixer  # pyright: ignore[reportAttributeAccessIssue]
        decay = torch.exp(-8 * softplus(unit.decay)) if kind == "rglru" else torch.exp(-unit.log_rate.exp())
        assert LEAST <= decay.min() < LEAST + 0.005
        assert MOST - 0.005 < decay.max() <= MOST + 1e-6
        if kind == "lru":
            torch.testing.assert_close(unit.log_input.exp().square(), 1 - decay.square(), rtol=1e-3, atol=1e-6)
            assert 6 < unit.log_phase.exp().max() < 2 * torch.pi
        assert logsigmoid(torch.tensor(0.0)) > unit.log_forget(torch.zeros(1, 1, 256), None).max() - 1


@pytest.mark.parametrize(
    ("mixer", "said"),
    [
        ({"kind": "mingru", "expansion": 5}, "width 16 of mingru does not divide into heads of expansion 5"),
        ({"kind": "rglru", "groups": 3}, "width 16 of rglru does not divide into 3 groups"),
        ({"kind": "wide_hgru1", "groups": 3}, "width 16 of wide_hgru1 does not divide into 3 groups"),
        ({"kind": "hgru2", "expansion": 4}, "expansion 4 is offered for wide_hgru1, mingru, rglru, lru, not for hgru2"),
        ({"kind": "lru", "expansion": -1}, "expansion is -1; use 0 or at least 1"),
        ({"kind": "gla", "norm": "none"}, "norm none is offered for mingru, rglru, lru, not for gla"),
        ({"kind": "wide_hgru1", "expansion_map": "krone"}, "expansion_map is 'krone'; choose one of: dense, low_rank"),
    ],
)
def test_sizes_that_do_not_divide_are_one_line(mixer: dict[str, Any], said: str) -> None:
    options: dict[str, Any] = {"head_size": 8} | mixer
    with pytest.raises(UserError, match=said):
        ModelConfig(vocab_size=5, width=16, layers=1, glu_width=8, lower_bound="none",
                    mixer=MixerConfig(**options))  # fmt: skip
