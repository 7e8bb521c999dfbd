"""What `hgrn2 data info` and `hgrn2 data verify` say of a folder of labelled examples."""

from pathlib import Path
from typing import Any

from hgrn2 import console


def holds_examples(folder: Path) -> bool:
    """Whether the folder's manifest is one of labelled examples."""
    from hgrn2.data.classes import FORMAT
    from hgrn2.files import read_json, restored

    path = restored(folder) / "manifest.json"
    return path.exists() and read_json(path, dict).get("format") == FORMAT


def show_examples(folder: Path, as_json: bool) -> None:
    """Print what the folder holds."""
    from hgrn2.data.class_info import class_info
    from hgrn2.data.classes import open_examples

    info = class_info(open_examples(folder))
    if as_json:
        return console.print_json(info)
    _print(folder, info)


def verify_examples(folder: Path, as_json: bool) -> None:
    """Recompute the checksums, check shapes and labels, and say that all is good."""
    from hgrn2.data.class_info import class_info
    from hgrn2.data.classes import open_examples

    data = open_examples(folder)
    checked, info = data.verify(), class_info(data)
    total = sum(split["bytes"] for split in info["splits"].values())
    examples = sum(split["count"] for split in info["splits"].values())
    if as_json:
        return console.print_json({"files": checked, "bytes": total, "examples": examples})
    print(f"{folder}: {checked} files, {total:,} bytes, {examples:,} examples: good")


def _print(folder: Path, info: dict[str, Any]) -> None:
    what = f"{len(info['classes'])} classes, {_inputs(info)}, seed {info['seed']}"
    print(f"{folder}: {info['task']}, {info['origin']}\n{what}")
    if info["settings"]:
        print(", ".join(f"{name} {value}" for name, value in info["settings"].items()))
    rows = []
    for name, split in info["splits"].items():
        lengths = (f"{length:,}" for length in split["lengths"].values())
        rows.append((name, f"{split['count']:,}", *lengths, f"{split['bytes'] / 1e6:,.1f}"))
    console.show(console.Columns(("split", "examples", "tokens: least", "median", "most", "MB"), rows))
    print(label_lines(info["classes"], {name: split["labels"] for name, split in info["splits"].items()}))


def _inputs(info: dict[str, Any]) -> str:
    """What a model is given of an example."""
    shapes = [split["shape"] for split in info["splits"].values() if split["shape"] is not None]
    if shapes:
        height, width, channels = shapes[0]
        return f"images of {width} x {height} in {'grey' if channels == 1 else 'colour'}"
    return f"token ids below {info['vocab_size']}" if info["vocab_size"] else "sequences of numbers"


def label_lines(classes: list[str], counts: dict[str, list[int]]) -> str:
    """The share of each class, a line for each split; of many classes the range of their shares."""
    lines = []
    for name, labels in counts.items():
        shares = [count / max(1, sum(labels)) for count in labels]
        each = "  ".join(f"{label} {share:.1%}" for label, share in zip(classes, shares, strict=True))
        line = each if len(classes) <= 12 else f"classes of {min(shares):.2%} to {max(shares):.2%}"
        lines.append(f"  {name:<6}{line}")
    return "\n".join(lines)
