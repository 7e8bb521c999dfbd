"""A saved model with its tokenizer, from any folder that the command line is given."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hgrn2.data.tokenizer import Tokenizer, load_tokenizer
from hgrn2.errors import UserError
from hgrn2.files import read_json
from hgrn2.models.language import LanguageModel
from hgrn2.models.quantize.config import QuantizeConfig
from hgrn2.models.quantize.model import fallback_lines, quantize
from hgrn2.models.saved import CONFIG, Found, Warn, find_model, read_model
from hgrn2.settings import refuse


@dataclass(frozen=True)
class Loaded:
    """A model ready to use and where it came from."""

    model: LanguageModel
    found: Found
    tokenizer: Tokenizer | None
    """None where the folder has no tokenizer/."""

    @property
    def name(self) -> str:
        """For messages: the folder, and the step of a run."""
        found = self.found
        return str(found.folder) if found.run is None else f"{found.run} (step {found.step})"

    def need_tokenizer(self) -> Tokenizer:
        """The tokenizer; a `UserError` where there is none."""
        if self.tokenizer is None:
            raise UserError(f"{self.found.run or self.found.folder} has no tokenizer/ folder, so text cannot be read")
        return self.tokenizer

    def run_config(self) -> dict[str, Any] | None:
        """The settings of the run that trained the model, as JSON values; None where it is not part of a run."""
        path = None if self.found.run is None else self.found.run / CONFIG
        if path is None or not path.is_file():
            return None
        return read_json(path, dict)

    def example(self) -> str:
        """The beginning of a text for a page to offer: that of the embedded sample, where the model learned from it."""
        data = (self.run_config() or {}).get("data")
        demo = isinstance(data, dict) and data.get("source") == "shakespeare" and not data.get("mixture")
        return "ROMEO:" if demo else ""


def load(
    path: str | Path,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    *,
    quantization: QuantizeConfig | None = None,
    warn: Warn | None = None,
) -> Loaded:
    """The model and tokenizer of a model folder, checkpoint folder or run folder; see `load_model`.

    With `quantization` its matrices are quantised; `warn` is then also told which ones are not as asked, and why.
    """
    found = find_model(path, warn)
    model = read_model(found.folder, device, dtype)
    tokenizer = None if found.tokenizer is None else load_tokenizer(found.tokenizer)
    if tokenizer is not None:
        size, known = tokenizer.vocab_size, model.config.vocab_size
        refuse(size > known, f"{found.tokenizer} has {size} ids, the model knows {known}: they do not belong together")
    if quantization is not None:
        model = quantize(model, quantization)
        if warn is not None:
            for line in fallback_lines(model):
                warn(f"{quantization.kind}: {line}")
    return Loaded(model, found, tokenizer)
