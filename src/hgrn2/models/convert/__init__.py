"""Published checkpoints as models of ours, and ours in the format of flash-linear-attention.

    read_published(folder)    flash-linear-attention's HGRN2 and HGRN, hgru2-pytorch's language model
    write_fla(folder, model)  config.json and model.safetensors for flash-linear-attention

Both projects write model_type "hgrn2"; the names of the other fields tell them apart. Tensors are rearranged, never
computed with on the way in: every bit and dtype stays. Equations and options: docs/convert.md.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from hgrn2.files import atomic_folder, write_json
from hgrn2.layers.config import LowerBoundKind
from hgrn2.models.card import Trained, write_card
from hgrn2.models.convert import exact, fla, hgru2_pytorch
from hgrn2.models.convert.rules import check, gather, scatter
from hgrn2.models.convert.weights import CONFIG, read_settings
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import check_unchanged, reported
from hgrn2.models.tensor_files import SINGLE, Weights, open_weights
from hgrn2.settings import refuse

Family = Literal["fla", "hgru2"]
NAMES: Mapping[Family, str] = {"fla": "flash-linear-attention", "hgru2": "hgru2-pytorch"}
_SIGNS: Mapping[Family, tuple[str, ...]] = {
    "fla": ("hidden_size", "num_hidden_layers"),
    "hgru2": ("decoder_embed_dim", "decoder_layers"),
}
_EMBEDDINGS = ("model.embeddings.weight", "model.embed_tokens.weight")


def family_of(values: Mapping[str, Any], path: Path) -> Family:
    """Who wrote a config.json, by the names of its fields; neither or both is a `UserError`."""
    found = [family for family, signs in _SIGNS.items() if any(sign in values for sign in signs)]
    both = " and ".join("/".join(signs) for signs in _SIGNS.values())
    refuse(len(found) > 1, f"{path} has fields of two projects ({both}); it cannot be told which one wrote it")
    signs = " nor ".join("/".join(signs) for signs in _SIGNS.values())
    refuse(not found, f"{path} is of no known model: it has neither {signs}")
    return "fla" if found == ["fla"] else "hgru2"


def read_published(
    folder: str | Path,
    *,
    family: Family | None = None,
    bounds: LowerBoundKind = "inclusive",
    ignore: Collection[str] = (),
) -> LanguageModel:
    """The model of a published folder (config.json, safetensors in one file or sharded), in evaluation mode.

    Args:
        folder: as downloaded from a hub.
        family: refuse a folder of the other project; None takes either.
        bounds: hgru2-pytorch only: the formula of the lower bounds, which its files do not name.
        ignore: fields of config.json that are known to leave the logits alone.

    Raises:
        UserError: a missing or damaged file, pickled weights, tensors that do not fit, unknown fields, and variants
            without a counterpart here (softmax layers, attention over residuals, other activations).
    """
    folder = Path(folder)
    values = read_settings(folder)
    path = folder / CONFIG
    found = family_of(values, path)
    if family is not None and found != family:
        refuse(True, f"{folder} is a model of {NAMES[found]}, not of {NAMES[family]}: use `hgrn2 convert {found}`")
    with open_weights(folder) as weights:
        if found == "fla":
            config = fla.read_config(values, path, ignore)
            table = fla
        else:
            config = hgru2_pytorch.read_config(values, path, weights, bounds, ignore)
            table = hgru2_pytorch
        # Before anything is built: settings that ask for a billion layers must not cost the time to name them.
        count = len(weights.files)
        refuse(config.layers > count, f"{folder}: {count} tensors cannot be {config.layers} layers")
        if config.tie_embeddings:
            _drop_tied_head(weights)
        rules = table.rules(config)
        check(rules, weights)
        tensors = gather(rules, weights)
    with torch.device("meta"):
        model = LanguageModel(config)
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _drop_tied_head(weights: Weights) -> None:
    """Some writers keep a tied head in the file; another one than the embedding contradicts the settings."""
    head = "lm_head.weight"
    embedding = next((name for name in _EMBEDDINGS if name in weights.files), None)
    if head in weights.files and embedding is not None:
        alike = weights.dtype(head) == weights.dtype(embedding) and weights.shape(head) == weights.shape(embedding)
        same = alike and torch.equal(weights.get(head), weights.get(embedding))
        refuse(not same, f"{weights.folder}: config.json ties the head to the embedding, but {head} differs from it")
        del weights.files[head]


def write_fla(folder: str | Path, model: LanguageModel, trained: Trained | None = None) -> list[str]:
    """Write a model folder that flash-linear-attention loads and computes alike; the folder must not exist yet.

    `trained` says how the model came about, for its card.

    Returns:
        A line for every change of values that its fixed choices made necessary, which is none for its own models.

    Raises:
        UserError: settings without a counterpart there, a folder that exists or cannot be written.
    """
    config = model.config
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    settings = fla.write_config(config, dtype)
    check_unchanged(model, f"{folder} cannot be written")
    ours = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    ours, notes = exact.for_fla(config, ours)
    tensors = scatter(fla.rules(fla.with_weights(config)), ours)
    with reported(Path(folder)), atomic_folder(Path(folder)) as temporary:
        save_file(tensors, temporary / SINGLE, metadata={"format": "pt"})  # transformers refuses a file that lacks it
        write_json(temporary / CONFIG, settings)
        write_card(temporary, config, "fla", trained=trained, title=Path(folder).name)
    return notes
