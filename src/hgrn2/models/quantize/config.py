"""What a model is quantised to, as a frozen value; no torch here, so that the command line starts quickly."""

from typing import Literal

from hgrn2.settings import settings

Quantization = Literal["int8", "int4"]
Group = Literal[32, 64, 128]


@settings
class QuantizeConfig:
    """Weight-only quantisation, each weight rounded to the nearest level; nothing is calibrated."""

    kind: Quantization = "int8"
    """int8: a scale for each row of a matrix. int4: a scale and a zero for each group of inputs of a row; embedding and
    head stay int8, as their errors reach every token directly."""
    group: Group = 32
    """Inputs that share a scale and a zero (int4)."""
