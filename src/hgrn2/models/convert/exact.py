"""Where flash-linear-attention leaves no choice, tensors are changed so that its choice gives our function.

Bounds. With the rows of Γ moved on by one, the last to the front, its sum of rows 1..l is ours of rows 0..l-1.
Output. Its norm sees c n^-1/2 y with eps 1e-5 where ours sees s y with eps ε, s the score scale, and i scaled by c. A
common factor of y shows beside eps only: with c = s sqrt(1e-5 n / ε) both are the same function of y.
"""

import math

import torch
from torch import Tensor

from hgrn2.models.config import ModelConfig
from hgrn2.models.convert.fla import OUTPUT_NORM_EPS


def for_fla(config: ModelConfig, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Our state dict -> the one to write, and a line for each change beyond names and layout."""
    tensors, notes = dict(tensors), []
    if config.lower_bound == "exclusive":
        tensors["backbone.lower_bounds"] = tensors["backbone.lower_bounds"].roll(1, 0)
        notes.append("rows of the lower bounds moved on by one: its formula counts from the second row (exact)")
    if config.norm == "simple_rms":
        names = [
            f"backbone.blocks.{n}.{norm}.weight" for n in range(config.layers) for norm in ("mixer_norm", "glu_norm")
        ]
        one = torch.ones(config.width, dtype=tensors["embedding.weight"].dtype)
        tensors |= {name: one.clone() for name in [*names, "backbone.norm.weight"]}
        notes.append("norms without weights written with weights of one (exact)")
    factor = output_factor(config)
    if factor != 1:
        for n in range(config.layers):
            name = f"backbone.blocks.{n}.mixer.in_proj.weight"
            tensors[name] = tensors[name].clone()
            tensors[name][: config.width] *= factor
        exact = math.frexp(factor)[0] == 0.5
        rounding = "exact" if exact else "rounded once in the dtype of the weights"
        notes.append(f"i_proj times {factor:.6g}, which makes up for its score scale and fixed eps ({rounding})")
    return tensors, notes


def output_factor(config: ModelConfig) -> float:
    """c of the module's docstring; 1 for HGRN1, whose input is not linear and whose eps is the file's."""
    mixer = config.mixer
    if mixer.kind != "hgru2":
        return 1.0
    factor = math.sqrt(OUTPUT_NORM_EPS / mixer.norm_eps * (1 if mixer.scale_scores else mixer.head_size))
    return 1.0 if math.isclose(factor, 1.0, rel_tol=1e-12) else factor
