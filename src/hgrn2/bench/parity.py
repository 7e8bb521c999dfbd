"""Does a model of flash-linear-attention compute here what it computes there? `hgrn2 bench parity`.

Builds its HGRN2 with random weights (1.3 B parameters unless told otherwise), lets it write its own folder, reads that
as any published one is read, and compares logits and greedy tokens. Needs a GPU: its forward does not run without one.
Of both, in bfloat16 and in float32, a row has the largest difference of logits from ours in float32, over the largest
logit. Prompts of up to 64 tokens take its recurrent kernel; --tokens above that take its chunked ones, of which, not to
wait for minutes, only the first configuration is built.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hgrn2.bench.parity_settings import ParityBench
from hgrn2.models.convert import read_published
from hgrn2.models.language import LanguageModel
from hgrn2.models.modes import reading
from hgrn2.progress import Progress, silent
from hgrn2.rows import Row, measurement
from hgrn2.settings import refuse

SHAPE = {"hidden_size": 2048, "num_hidden_layers": 24, "expand_ratio": 128, "intermediate_size": 5632}
VOCABULARY = 32_000


def fast_tuning() -> None:
    """Let kernels that fla tunes take the first of their configurations; before fla is imported."""
    import triton

    whole = triton.autotune

    def first(configs: Any, *rest: Any, **named: Any) -> Any:
        return whole(configs[:1], *rest, **named)

    triton.autotune = first


def their_model(layers: int, seed: int) -> Any:
    """HGRN2ForCausalLM of fla with random weights and lower bounds."""
    from hgrn2.bench.fla_model import required

    found = required()
    torch.manual_seed(seed)
    config = found.HGRN2Config(**{**SHAPE, "num_hidden_layers": layers}, vocab_size=VOCABULARY)
    with torch.device("cuda"):
        model = found.HGRN2ForCausalLM(config).eval()
        with torch.no_grad():
            model.model.lower_bounds.normal_()  # equal lower bounds would hide a wrong order of layers
    return model


def their_tokens(model: Any, prompt: Tensor, count: int) -> list[int]:
    """Greedy continuation of [1,T], with its own cache."""
    found: list[int] = []
    cache, part = None, prompt
    for _ in range(count):
        out = model(input_ids=part, past_key_values=cache, use_cache=True)
        cache, part = out.past_key_values, out.logits[:, -1:].argmax(-1)
        found.append(int(part))
    return found


def our_tokens(model: LanguageModel, prompt: Tensor, count: int) -> list[int]:
    """The same here."""
    found: list[int] = []
    state, part = None, prompt
    for _ in range(count):
        logits, state = model(part, state)
        part = logits[:, -1:].argmax(-1)
        found.append(int(part))
    return found


def compare(layers: int, tokens: int, count: int, seed: int = 0) -> dict[str, Any]:
    """Differences in both precisions, and how many greedy tokens agree from the beginning in each."""
    prompt = torch.randint(0, VOCABULARY, (2, tokens), generator=torch.Generator().manual_seed(seed)).cuda()
    theirs, found = their_model(layers, seed), {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        theirs.save_pretrained(folder)
        ours = read_published(folder).cuda()
    found["parameters"] = sum(p.numel() for p in ours.parameters())
    with reading(ours):
        float64_reference = ours(prompt)[0].float()
        size = float64_reference.abs().max()
        for name in ("float32", "bfloat16"):
            dtype = getattr(torch, name)
            ours, theirs = ours.to(dtype), theirs.to(dtype)
            mine, other = ours(prompt)[0].float(), theirs(input_ids=prompt, use_cache=False).logits.float()
            pair = our_tokens(ours, prompt[:1], count), their_tokens(theirs, prompt[:1], count)
            agree = next((n for n, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), count)
            found[name] = {
                "ours": float((mine - float64_reference).abs().max() / size),
                "theirs": float((other - float64_reference).abs().max() / size),
                "apart": float((mine - other).abs().max() / size),
                "same_choice": float((mine.argmax(-1) == other.argmax(-1)).float().mean()),
                "greedy_agree": agree,
                "greedy_tokens": count,
            }
    return found


def measure(bench: ParityBench, record: Callable[[Row], None], progress: Progress = silent) -> None:
    """A row for each length of the prompt and each precision.

    Raises:
        UserError: no GPU here, or no flash-linear-attention.
    """
    refuse(not torch.cuda.is_available(), "fla's forward needs a GPU, and there is none here")
    if max(bench.tokens) > 64:
        fast_tuning()
    for number, tokens in enumerate(bench.tokens):
        progress(f"prompts of {tokens} tokens", number, len(bench.tokens))
        found = compare(bench.layers, tokens, bench.count)
        case = {"layers": bench.layers, "tokens": tokens, **SHAPE, "parameters": found.pop("parameters")}
        for precision, values in found.items():
            where = {**case, "precision": precision}
            record(measurement("parity", where, "fla", "fla", [values["apart"]], "of the largest logit", values))
