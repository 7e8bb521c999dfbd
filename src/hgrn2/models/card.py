"""The model card (README.md) of a saved model: what it is, what it was trained on, how well it does, how it is loaded.

The beginning is YAML between two lines of dashes, as hubs read it. Strings in it are written as JSON, which YAML
contains. The licence is left to the author: a line says where it goes.
"""

import json
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hgrn2.errors import UserError
from hgrn2.files import read_json, write_text
from hgrn2.models.config import ModelConfig, StackConfig
from hgrn2.models.count import parameters, state_bytes
from hgrn2.units import number, short

FILE = "README.md"
Library = Literal["transformers", "hgrn2", "fla"]
_TASKS = {"language": "text-generation", "image": "image-classification"}


class Trained(NamedTuple):
    """What a run folder says of how a model came about."""

    data: str = ""
    """The corpus or set of examples, as a name."""
    facts: tuple[tuple[str, str], ...] = ()
    held_out: tuple[tuple[str, dict[str, float]], ...] = ()
    """Measurements by name: nats_per_token, bits_per_byte, perplexity, accuracy."""


def trained_in(run: Path | None) -> Trained:
    """What `config.json` and `summary.json` of a run folder tell; nothing where there are none, or other ones."""
    if run is None or not (run / "config.json").is_file():
        return Trained()
    try:
        config = read_json(run / "config.json", dict)
        summary = read_json(run / "summary.json", dict) if (run / "summary.json").is_file() else {}
    except UserError:
        return Trained()
    data, train, optim = (_group(config, name) for name in ("data", "train", "optim"))
    source = data.get("source") or data.get("folder") or config.get("task") or ""
    facts = [
        ("tokens", short(summary["tokens"]) if isinstance(summary.get("tokens"), int | float) else ""),
        ("steps", summary.get("steps")), ("passes over the data", summary.get("epochs")),
        ("sequence length", train.get("sequence_length")), ("sequences in a batch", train.get("batch_size")),
        ("precision", train.get("precision")), ("optimizer", optim.get("optimizer")),
        ("peak learning rate", optim.get("lr")), ("schedule", optim.get("schedule")), ("seed", train.get("seed")),
    ]  # fmt: skip
    known = tuple((name, str(value)) for name, value in facts if value not in (None, ""))
    return Trained(re.split(r"[\\/]", str(source).rstrip("/\\"))[-1], known, _measurements(summary.get("held_out")))


def _group(values: dict[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _measurements(held_out: Any) -> tuple[tuple[str, dict[str, float]], ...]:
    found = []
    for name, value in held_out.items() if isinstance(held_out, dict) else ():
        if isinstance(value, dict):
            kept = {key: value[key] for key in _METRICS if isinstance(value.get(key), int | float)}
            found += [(str(name), kept)] if kept else []
    return tuple(found)


_METRICS = {
    "nats_per_token": "nats/token", "perplexity": "perplexity", "bits_per_byte": "bits/byte", "accuracy": "accuracy",
    "loss": "loss (nats)",
}  # fmt: skip


def write_card(
    folder: Path, config: StackConfig, library: Library, *, trained: Trained | None = None, title: str = "",
    origin: str = "",
) -> None:  # fmt: skip
    """Write `folder`/README.md, unless there is one already: it is its author's. Arguments as of `card`."""
    if not (folder / FILE).exists():
        write_text(folder / FILE, card(config, library, trained=trained, title=title or folder.name, origin=origin))


def card(
    config: StackConfig, library: Library, *, trained: Trained | None = None, title: str, origin: str = "",
    tags: tuple[str, ...] = (),
) -> str:  # fmt: skip
    """The text of a model card.

    Args:
        config: of a language model or an image classifier.
        library: by which the folder is loaded.
        trained: how it came about, where that is known.
        title: name of the model.
        origin: where its weights were converted from.
        tags: more of them, for the beginning.
    """
    found = trained or Trained()
    language = isinstance(config, ModelConfig)
    parts = [
        _front(config, library, found, title, tags),
        f"# {_plain(title)}",
        _what(config, language),
        f"Its weights were converted from {_plain(origin)}, whose card and licence hold for them." if origin else "",
        _sizes(config),
        _training(found),
        _evaluation(found),
        f"## How to load it\n\n{_loading(library, title, language)}",
        "What the training data contains, and what the model is fit for, is for its author to add here.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front(config: StackConfig, library: Library, found: Trained, title: str, more: tuple[str, ...]) -> str:
    task = _TASKS["language" if isinstance(config, ModelConfig) else "image"]
    tags = dict.fromkeys(["hgrn2", *config.kinds, "linear-rnn", "recurrent", *more])
    lines = [
        "---",
        "# license: to be chosen by the author, such as apache-2.0",
        f"library_name: {library}",
        f"pipeline_tag: {task}",
        f"tags: {json.dumps(list(tags))}",
    ]
    data = re.sub(r"[^\w.-]+", "-", found.data).strip("-.")
    lines += [f"datasets: {json.dumps([data])}"] if data else []
    if found.held_out:
        lines += ["model-index:", f"- name: {json.dumps(title)}", "  results:"]
        kind = {"type": data or "held-out", "name": found.data or "held-out data"}
        for name, values in found.held_out:
            metrics = [
                {"type": key, "value": value, "name": f"{_METRICS[key]}, {name}"} for key, value in values.items()
            ]
            one = {"task": {"type": task}, "dataset": kind, "metrics": metrics}
            lines.append(f"  - {json.dumps(one)}")
    return "\n".join([*lines, "---"])


def _what(config: StackConfig, language: bool) -> str:
    kind = "language model" if language else "image classifier"
    family = "[HGRN2](https://arxiv.org/abs/2404.07904), a gated linear RNN with state expansion"
    family = family if "hgru2" in config.kinds else "the package hgrn2"
    return f"A {kind} of {family}: {config.layers} layers of {config.width} channels, mixers {config.named_kinds}."


def _sizes(config: StackConfig) -> str:
    counted = parameters(config)
    rows = [
        ("parameters", f"{counted.total:,}"),
        ("without embedding and head", f"{counted.non_embedding:,}"),
        ("layers", f"{config.layers}"),
        ("width", f"{config.width:,}"),
        ("width of the GLU", f"{config.glu_width:,}"),
    ]
    if isinstance(config, ModelConfig):
        rows.append(("vocabulary", f"{config.vocab_size:,}"))
        if "attention" not in config.kinds:
            rows.append(("state of a sequence, of any length", f"{state_bytes(config):,} bytes"))
    return _table(("size", ""), rows)


def _training(found: Trained) -> str:
    if not found.data and not found.facts:
        return ""
    return f"## Training\n\n{_table(('', ''), [('data', found.data or 'not named'), *found.facts])}"


def _evaluation(found: Trained) -> str:
    if not found.held_out:
        return ""
    names = [key for key in _METRICS if any(key in values for _, values in found.held_out)]
    rows = [
        (name, *(number(values[key], 4) if key in values else "" for key in names)) for name, values in found.held_out
    ]
    return f"## On held-out data\n\n{_table(('measured', *(_METRICS[key] for key in names)), rows)}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """A name from outside, in one line that ends no table and opens no tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _loading(library: Library, title: str, language: bool) -> str:
    name = title if re.fullmatch(r"[\w./-]+", title) else "FOLDER"
    if library == "hgrn2":
        verb = f'hgrn2 generate {name} --prompt "…"' if language else f"hgrn2 classify {name} IMAGE..."
        return f"```sh\npip install hgrn2\n{verb}\n```"
    if library == "fla":
        first = "import fla  # flash-linear-attention"
    else:
        first = "import hgrn2.models.hf  # pip install 'hgrn2[hf]'; registers the classes"
    auto = "AutoModelForCausalLM" if language else "AutoModelForImageClassification"
    text = f'import transformers\n{first}\n\nmodel = transformers.{auto}.from_pretrained("{name}")'
    text += f'\ntokenizer = transformers.AutoTokenizer.from_pretrained("{name}")' if language else ""
    also = "\n\nPrograms that pass `trust_remote_code=True` need no import." if library == "transformers" else ""
    return f"```python\n{text}\n```{also}"
