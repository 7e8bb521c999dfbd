"""Speeds of baselines that somebody measured before, to be shown beside ours as what they are: citations, not rows of
ours.

fla tunes its kernels for minutes per model, so it is not run every time; `--against fla` runs it.
"""

from typing import Any

from hgrn2.bench.settings import PRESETS, TrainBench

SOURCE = "one NVIDIA H100 80GB HBM3, torch 2.11.0+cu130, triton 3.6.0, fla 0.6.0, transformers' Llama with SDPA, eager"
_GB = 10**9
TRAINING: dict[tuple[str, int], dict[str, float]] = {
    ("374m", 32_768): {
        "recorded_fla_tokens_per_s": 116_307, "recorded_fla_peak_bytes": 37.9 * _GB,
        "recorded_llama_tokens_per_s": 101_419, "recorded_llama_peak_bytes": 48.7 * _GB,
    },
    ("1.36b", 16_384): {
        "recorded_fla_tokens_per_s": 45_324, "recorded_fla_peak_bytes": 42.5 * _GB,
        "recorded_llama_tokens_per_s": 40_877, "recorded_llama_peak_bytes": 48.3 * _GB,
    },
}  # fmt: skip
"""Whole steps in pure bfloat16 with AdamW, by preset and tokens of a step of sequences of 2048."""


def beside(bench: TrainBench, length: int) -> dict[str, Any]:
    """Details for our row: what was recorded of the same step, and on what."""
    names = [name for name, size in PRESETS.items() if size == bench.measured_size]
    found = TRAINING.get((names[0], bench.tokens)) if names else None
    same = length == 2048 and bench.device == "cuda" and bench.measured_dtype == "bfloat16"
    return {**found, "recorded_on": SOURCE} if found and same else {}
