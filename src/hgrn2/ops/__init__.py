"""Operators: tensors in, tensors out. Every one has a readable reference and fast twins held to it."""

from hgrn2.ops.gated_outer_scan import gated_outer_scan, gated_outer_step
from hgrn2.ops.hgru2 import hgru2, hgru2_step

__all__ = ["gated_outer_scan", "gated_outer_step", "hgru2", "hgru2_step"]
