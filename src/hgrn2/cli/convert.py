"""`hgrn2 convert`: published checkpoints into model folders of ours, and ours for other libraries."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from hgrn2.errors import UserError

if TYPE_CHECKING:
    from hgrn2.data.tokenizer import Tokenizer
    from hgrn2.models.convert import Family
    from hgrn2.models.language import LanguageModel
    from hgrn2.models.vision import VisionClassifier

In = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="IN")]]
Out = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class FromFla:
    """HGRN2 or HGRN of flash-linear-attention (fla-hub) into a model folder.

    Every bit of the weights stays. A tokenizer.json beside them comes along.

    Example: hgrn2 convert fla hgrn2-1.3B-100B models/hgrn2-1.3b
    """

    source: In
    """The downloaded folder: config.json and safetensors, in one file or sharded."""
    out: Out
    """The model folder to write; it must not exist yet."""
    ignore: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD ...")] = ()
    """Unknown fields of config.json that do not change what the model computes."""

    def run(self) -> None:
        _convert(self.source, self.out, "fla", self.ignore, "inclusive")


@dataclass(frozen=True, kw_only=True)
class FromHgru2:
    """The language model of hgru2-pytorch into a model folder.

    Every bit of the weights stays. A tokenizer.json beside them comes along.

    Example: hgrn2 convert hgru2 hgru2-checkpoint models/hgru2
    """

    source: In
    """The folder: config.json and safetensors, in one file or sharded."""
    out: Out
    """The model folder to write; it must not exist yet."""
    bounds: Literal["inclusive", "exclusive", "none"] = "inclusive"
    """Formula of the lower bounds, which config.json does not name; inclusive is that of the language model."""
    ignore: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FIELD ...")] = ()
    """Unknown fields of config.json that do not change what the model computes."""

    def run(self) -> None:
        _convert(self.source, self.out, "hgru2", self.ignore, self.bounds)


@dataclass(frozen=True, kw_only=True)
class ToFla:
    """A model or run of ours into flash-linear-attention's format.

    What was converted from there comes back to the bit. Where its fixed choices (score scale, eps, formula of the
    bounds) differ from the model's, weights are changed so that the function stays the same, and a line says so.

    Example: hgrn2 convert to-fla models/hgrn2-1.3b hgrn2-1.3b-fla
    """

    source: In
    """A run folder (its newest checkpoint), a checkpoint folder, or a model folder."""
    out: Out
    """The folder to write; it must not exist yet."""

    def run(self) -> None:
        from hgrn2.files import making

        with making(self.out):
            self._write()

    def _write(self) -> None:
        from hgrn2.models.card import trained_in
        from hgrn2.models.convert import write_fla
        from hgrn2.models.saved import find_model, read_model

        found = find_model(self.source, _warn)
        model = read_model(found.folder)
        for note in write_fla(self.out, model, trained_in(found.run)):
            print(f"note: {note}")
        _report(model, self.out)


@dataclass(frozen=True, kw_only=True)
class ToHf:
    """A model or run of ours into a folder that transformers loads: language models and image classifiers.

    `import hgrn2.models.hf`, then AutoModelForCausalLM.from_pretrained and, where the tokenizer can be written as a
    tokenizer.json, AutoTokenizer.from_pretrained of the folder; of an image classifier
    AutoModelForImageClassification and ViTImageProcessor. Every bit of the weights stays.

    Example: hgrn2 convert to-hf runs/demo demo-hf
    Example: hgrn2 convert to-hf runs/cifar10 cifar10-hf
    """

    source: In
    """A run folder (its newest checkpoint), a checkpoint folder, or a model folder."""
    out: Out
    """The folder to write; it must not exist yet."""
    shard_size: Annotated[str, tyro.conf.arg(metavar="SIZE")] = "5GB"
    """Largest size of one safetensors file, as in 500MB."""

    def run(self) -> None:
        from hgrn2.files import making

        with making(self.out):
            self._write()

    def _write(self) -> None:
        from hgrn2.data.tokenizer import load_tokenizer
        from hgrn2.models.card import trained_in
        from hgrn2.models.hf.writing import write_hf, write_hf_image
        from hgrn2.models.saved import find_model, load_classifier, read_config, read_model

        found = find_model(self.source, _warn)
        kind, _ = read_config(found.folder, ("language", "vision"))
        if kind == "vision":
            classifier: Any = load_classifier(found.folder)
            names = _class_names(found.run, classifier.config.classes)
            trained = trained_in(found.run)
            for note in write_hf_image(self.out, classifier, names, shard_size=self.shard_size, trained=trained):
                print(f"note: {note}")
            _report(classifier, self.out)
            return
        model = read_model(found.folder)
        tokenizer = None if found.tokenizer is None else load_tokenizer(found.tokenizer)
        trained = trained_in(found.run)
        for note in write_hf(self.out, model, tokenizer, shard_size=self.shard_size, trained=trained):
            print(f"note: {note}")
        _report(model, self.out)


def _convert(
    source: Path, out: Path, family: "Family", ignore: tuple[str, ...],
    bounds: Literal["inclusive", "exclusive", "none"],
) -> None:  # fmt: skip
    from hgrn2.files import atomic_folder
    from hgrn2.models.card import write_card
    from hgrn2.models.convert import read_published
    from hgrn2.models.saved import reported, write_model

    with reported(out), atomic_folder(out) as temporary:
        model = read_published(source, family=family, bounds=bounds, ignore=ignore)
        write_model(temporary, model, _tokenizer(source, model.config.vocab_size))
        write_card(temporary, model.config, "hgrn2", title=out.name, origin=source.resolve().name)
    _report(model, out)


def _tokenizer(source: Path, known: int) -> "Tokenizer | None":
    """The tokenizer beside the weights; one that cannot be used is no reason to leave the model."""
    from hgrn2.data.tokenizer import load_tokenizer

    path = source / TOKENIZER
    if not path.is_file():
        return None
    try:
        tokenizer = load_tokenizer(path)
    except UserError as error:
        _warn(f"the tokenizer stays behind: {error}")
        return None
    if tokenizer.vocab_size > known:
        _warn(f"the tokenizer stays behind: {path} has {tokenizer.vocab_size:,} ids, the model {known:,}")
        return None
    return tokenizer


def _class_names(run: Path | None, classes: int) -> tuple[str, ...] | None:
    """The names of a run's classes, from the folder of its examples, if that is still there and still the same."""
    from hgrn2.data.classes import open_examples
    from hgrn2.files import read_json

    if run is None or not (run / "config.json").is_file():
        return None
    data = read_json(run / "config.json", dict).get("data")
    folder = data.get("folder") if isinstance(data, dict) else None
    if not isinstance(folder, str) or not (Path(folder) / "manifest.json").is_file():
        return None
    names = open_examples(folder).described.classes
    return names if len(names) == classes else None


def _report(model: "LanguageModel | VisionClassifier", out: Path) -> None:
    config = model.config
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{out}: {config.named_kinds}, {config.layers} layers of {config.width}, {count:,} parameters")


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
