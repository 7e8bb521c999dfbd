"""Operators: tensors in, tensors out. Every one has a readable reference and fast twins held to it."""

from hgrn2.ops.causal_conv import causal_conv, causal_conv_step
from hgrn2.ops.explain import explain
from hgrn2.ops.gated_outer_scan import gated_outer_scan, gated_outer_step
from hgrn2.ops.gated_scan import gated_scan, gated_step
from hgrn2.ops.gated_unit import gated_unit
from hgrn2.ops.hgru2 import hgru2, hgru2_step
from hgrn2.ops.linear_cross_entropy import linear_cross_entropy
from hgrn2.ops.rms_norm import rms_norm
from hgrn2.ops.selective_scan import selective_scan, selective_step

__all__ = [
    "causal_conv",
    "causal_conv_step",
    "explain",
    "gated_outer_scan",
    "gated_outer_step",
    "gated_scan",
    "gated_step",
    "gated_unit",
    "hgru2",
    "hgru2_step",
    "linear_cross_entropy",
    "rms_norm",
    "selective_scan",
    "selective_step",
]
