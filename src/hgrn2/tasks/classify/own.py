"""One's own tables as a task: read, divided, brought to tokens or to standardised numbers, and a run that fits them."""

import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hgrn2.data.classes import Described, Examples, examples_of, open_examples, write_examples
from hgrn2.data.labelled import (
    Columns,
    InputKind,
    Labelled,
    choose_columns,
    classes_of,
    hold_out,
    numbers_of,
    read_labelled,
)
from hgrn2.data.learning import learn_bpe, learned_size
from hgrn2.data.tables import read_table
from hgrn2.data.tokenizer import CharTokenizer, Tokenizer, load_tokenizer
from hgrn2.files import sha256
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import InitConfig, SequenceConfig
from hgrn2.progress import Progress, silent
from hgrn2.settings import refuse
from hgrn2.tasks.classify.config import ClassifyData, ClassifyRun, OwnColumns
from hgrn2.train.config import OptimConfig, TrainConfig

EXAMPLES = "examples"
"""Folder of a run that holds them, as `hgrn2.data.classes` writes it."""
RARE = 10
"""A class with fewer training examples is told of."""
UNEVEN = 5.0
"""As are classes of which one has so many times the examples of another."""

LONGEST = {"words": 512, "fine": 2048}
"""Of tokens that are words or parts of them; of bytes, characters and steps of numbers."""
LEARNED = "bpe:4000"


@dataclass(frozen=True, kw_only=True)
class OwnFiles:
    """What the examples are read from, and how."""

    train: tuple[Path, ...]
    valid: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()
    inputs: tuple[str, ...] = ()
    """Columns; empty: guessed."""
    label: str | None = None
    kind: InputKind | None = None
    tokenizer: str = "auto"
    """A spec; auto: learned from the texts where the tokenizers library is installed, bytes elsewhere."""
    max_length: int | None = None
    """Tokens or steps of an example at most; what comes after is cut off. None: `LONGEST`."""
    valid_fraction: float = 0.1
    seed: int = 0
    header: bool = True
    bad: Literal["stop", "skip"] = "stop"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Examples ready to be learned from."""

    described: Described
    splits: dict[str, Examples]
    columns: OwnColumns
    tokenizer: Tokenizer | None
    notes: list[str] = field(default_factory=list)
    """What a person should know of them, a line each."""


def prepare(files: OwnFiles, progress: Progress = silent) -> Prepared:
    """Read the files and make examples of them.

    Raises:
        UserError: files or columns that are not there, rows that cannot be used (file and row named), labels that make
            no classes, a file that is trained on and held out.
    """
    least = files.max_length
    refuse(least is not None and least < 1, f"the longest example has {least} tokens; it must have at least 1")
    _apart(files)
    tables = {files.train[0]: read_table(files.train[0], header=files.header)}
    columns = choose_columns(tables[files.train[0]], files.inputs, files.label, files.kind)
    parts: dict[str, Labelled] = {}
    for name in ("train", "valid", "test"):
        if paths := getattr(files, name):
            parts[name] = read_labelled(paths, columns, header=files.header, bad=files.bad, tables=tables)
    notes = [_columns_line(columns), *_left_out(parts)]
    classes = classes_of(parts["train"].labels, columns.label)
    if "valid" not in parts:
        held = hold_out(numbers_of(parts["train"], classes), files.valid_fraction, files.seed)
        parts |= {"train": _some(parts["train"], ~held), "valid": _some(parts["train"], held)}
    labels = {name: numbers_of(part, classes) for name, part in parts.items()}
    notes += _balance(labels["train"], classes) + _repeated(parts)
    make = _texts if columns.kind == "text" else _numbers
    splits, vocabulary, tokenizer, own, more = make(files, columns, parts, labels, progress)
    described = Described(
        task=files.train[0].name,
        classes=classes,
        vocab_size=vocabulary,
        origin=f"{', '.join(path.name for path in files.train)}: {columns.kind}, labels {columns.label!r}",
        seed=files.seed,
        settings=_identity(files, tokenizer),
    )
    return Prepared(described=described, splits=splits, columns=own, tokenizer=tokenizer, notes=notes + more)


def check(folder: Path, prepared: Prepared) -> None:
    """Refuse a run folder that holds other examples."""
    place = folder / EXAMPLES
    if place.exists():
        same = open_examples(place).described == prepared.described
        refuse(not same, f"{place} was made from other files or options; use another --out or --restart")


def keep(folder: Path, prepared: Prepared) -> None:
    """Write examples and tokenizer into a run folder, unless it has them."""
    place = folder / EXAMPLES
    if place.exists():
        return
    if prepared.tokenizer is not None:
        prepared.tokenizer.save(folder / "tokenizer")
    write_examples(place, prepared.described, prepared.splits)


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], limit: int) -> tuple[list[np.ndarray], int]:
    """Ids of texts, at most `limit` each, and how many were longer."""
    ids = tokenizer.encode_documents(list(texts))
    return [one[:limit] for one in ids], sum(len(one) > limit for one in ids)


def standardised(sequences: Sequence[np.ndarray], own: OwnColumns, limit: int) -> list[np.ndarray]:
    """Numbers [T,C] less the mean, by the deviation, at most `limit` steps of each."""
    mean, deviation = np.asarray(own.mean, np.float32), np.asarray(own.deviation, np.float32)
    return [((one[:limit] - mean) / deviation).astype(np.float32) for one in sequences]


def _apart(files: OwnFiles) -> None:
    named = [path.resolve() for paths in (files.train, files.valid, files.test) for path in paths]
    double = next((path for n, path in enumerate(named) if path in named[:n]), None)
    refuse(double is not None, f"{double} is named twice; training and held-out examples must be different ones")


def _some(part: Labelled, chosen: np.ndarray) -> Labelled:
    places = np.flatnonzero(chosen).tolist()
    inputs, labels, where = ([values[n] for n in places] for values in (part.inputs, part.labels, part.where))
    return Labelled(inputs=inputs, labels=labels, where=where)


def _texts(
    files: OwnFiles, columns: Columns, parts: dict[str, Labelled], labels: dict[str, np.ndarray], progress: Progress
) -> tuple[dict[str, Examples], int, Tokenizer, OwnColumns, list[str]]:
    tokenizer = _tokenizer(files.tokenizer, parts, progress)
    limit = files.max_length or LONGEST["fine" if tokenizer.kind in ("bytes", "chars") else "words"]
    item = "uint16" if tokenizer.vocab_size <= 1 << 16 else "int32"
    splits, cut, lengths = {}, 0, []
    for name, part in parts.items():
        ids, longer = encode_texts(tokenizer, part.inputs, limit)
        empty = next((n for n, one in enumerate(ids) if not len(one)), None)
        if empty is not None:
            refuse(True, f"{part.where[empty]}: the tokenizer makes no token of the text")
        cut += longer
        lengths += [len(one) for one in ids]
        splits[name] = examples_of(ids, labels[name], item)
    own = OwnColumns(kind="text", inputs=columns.inputs, label=columns.label, header=files.header)
    lines = [f"tokens: {tokenizer.kind}, {tokenizer.vocab_size:,} ids; a text has {int(np.median(lengths)):,} (median)"]
    return (
        splits,
        tokenizer.vocab_size,
        tokenizer,
        own,
        lines + _cut_line(cut, len(lengths), limit, "tokens"),
    )


def _numbers(
    files: OwnFiles, columns: Columns, parts: dict[str, Labelled], labels: dict[str, np.ndarray], progress: Progress
) -> tuple[dict[str, Examples], int, None, OwnColumns, list[str]]:
    channels = {part.inputs[0].shape[1] for part in parts.values()}
    refuse(len(channels) > 1, f"the files have different numbers per step: {sorted(channels)}")
    limit = files.max_length or LONGEST["fine"]
    values = np.concatenate([one[:limit] for one in parts["train"].inputs]).astype(np.float64)
    deviation = values.std(0)
    own = OwnColumns(
        kind="numbers", inputs=columns.inputs, label=columns.label, header=files.header,
        mean=tuple(values.mean(0).tolist()), deviation=tuple(np.where(deviation > 0, deviation, 1.0).tolist()),
    )  # fmt: skip
    splits, cut, lengths = {}, 0, []
    for name, part in parts.items():
        cut += sum(len(one) > limit for one in part.inputs)
        made = standardised(part.inputs, own, limit)
        lengths += [len(one) for one in made]
        splits[name] = examples_of(made, labels[name], "float32")
    lines = [
        f"numbers: {channels.pop()} a step, standardised; a sequence has {int(np.median(lengths)):,} steps (median)"
    ]
    return splits, 0, None, own, lines + _cut_line(cut, len(lengths), limit, "steps")


def _tokenizer(spec: str, parts: dict[str, Labelled], progress: Progress) -> Tokenizer:
    if spec == CharTokenizer.kind:
        return CharTokenizer.from_text(text for part in parts.values() for text in part.inputs)
    if spec == "auto":
        spec = LEARNED if importlib.util.find_spec("tokenizers") else "bytes"
    size = learned_size(spec)
    if size is None:
        return load_tokenizer(spec)
    texts = parts["train"].inputs
    return learn_bpe(texts, size, sum(map(len, texts)), progress)


def _identity(files: OwnFiles, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """What decides the examples, so that a run knows them again."""
    named = {name: {path.name: sha256(path) for path in getattr(files, name)} for name in ("train", "valid", "test")}
    return {
        "files": named, "max_length": files.max_length or 0, "bad": files.bad,
        "valid_fraction": 0.0 if files.valid else files.valid_fraction,
        "tokenizer": None if tokenizer is None else tokenizer.identity(),
    }  # fmt: skip


def _columns_line(columns: Columns) -> str:
    several = len(columns.inputs) > 1
    inputs = f"{len(columns.inputs)} columns" if several else f"column {columns.inputs[0]!r}"
    return f"columns: {columns.kind} from {inputs}, labels from {columns.label!r}"


def _left_out(parts: dict[str, Labelled]) -> list[str]:
    count = sum(part.left_out for part in parts.values())
    return [f"left out: {count:,} rows without a usable input or label"] if count else []


def _balance(labels: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    counts = np.bincount(labels, minlength=len(classes))
    most, least = int(counts.argmax()), int(counts.argmin())
    lines = []
    if counts[most] >= UNEVEN * max(1, counts[least]):
        lines.append(
            f"classes are uneven: {counts[most]:,} training examples of {classes[most]!r}, {counts[least]:,} of "
            f"{classes[least]!r}; look at each class's share, not only at accuracy"
        )
    rare = [classes[n] for n in np.flatnonzero(counts < RARE)]
    if rare:
        named = ", ".join(map(repr, rare[:5])) + (", ..." if len(rare) > 5 else "")
        lines.append(f"fewer than {RARE} training examples: {named}; such a class is hardly learned")
    return lines


def _repeated(parts: dict[str, Labelled]) -> list[str]:
    """Held-out examples that are trained on are no measure of anything new."""
    known = Counter(_key(one) for one in parts["train"].inputs)
    lines = []
    for name in ("valid", "test"):
        count = sum(_key(one) in known for one in parts[name].inputs) if name in parts else 0
        if count:
            lines.append(f"{count:,} of {len(parts[name]):,} {name} examples also stand in the training data")
    return lines


def _key(value: Any) -> Any:
    return value if isinstance(value, str) else value.tobytes()


def _cut_line(cut: int, count: int, limit: int, unit: str) -> list[str]:
    if not cut:
        return []
    return [f"cut to their first {limit:,} {unit}: {cut:,} of {count:,} examples (--max-length)"]


def own_recipe(prepared: Prepared, *, on_gpu: bool) -> ClassifyRun:
    """A run for these examples: two small layers that read in both directions, three minutes on a CPU by the clock; on
    a GPU wider, to the end of its epochs. The weights that were best on held-out examples are kept."""
    train = prepared.splits["train"]
    longest = max(int(part.lengths(np.arange(len(part))).max()) for part in prepared.splits.values())
    count, channels = len(train), train.a.shape[1] if train.a.ndim == 2 else 0
    width, layers = (128, 3) if on_gpu else (64, 1)
    batch = max(1, min(16, count // 4))
    epochs = 30 if count < 5_000 else 10
    steps = max(60, epochs * count // batch)
    mixer = MixerConfig(
        head_size=16, direction="bidirectional", input_activation="silu", output_activation="silu", output_gate="silu",
        norm="layer", bias=True, local_width=5, separate_scans=True,
    )  # fmt: skip
    model = SequenceConfig(
        classes=len(prepared.described.classes), vocab_size=prepared.described.vocab_size, channels=channels,
        width=width, layers=layers, glu_width=2 * width, glu_bias=True, mixer=mixer, norm="layer", norm_eps=1e-5,
        dropout=0.1, lower_bound="exclusive",
        # Small embeddings move fast: with 1 a model of words learned nothing in its first minute.
        init=InitConfig(std=round((3 * width) ** -0.5, 4), input_std=1.0 if channels else 0.02),
    )  # fmt: skip
    test = "test" if "test" in prepared.splits else "valid"
    return ClassifyRun(
        task=prepared.described.task,
        model=model,
        data=ClassifyData(test_split=test, own=prepared.columns, drop_tokens=0.1 if channels == 0 else 0.0),
        train=TrainConfig(
            steps=steps, budget_s=0.0 if on_gpu else 180.0, sequence_length=longest, batch_size=batch,
            precision="bfloat16" if on_gpu else "float32", eval_every=max(10, min(200, steps // 10)),
            eval_tokens=200_000, save_every=max(50, steps // 5), log_every=max(1, min(20, steps // 50)),
            keep=2, spike=0, average=0.98, keep_best=True,
        ),
        optim=OptimConfig(
            lr=3e-3, warmup_steps=min(50, steps // 10), weight_decay=0.05, final_lr_ratio=0.02, clip=1.0, beta2=0.98
        ),
    )  # fmt: skip
