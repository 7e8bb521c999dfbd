"""`hgrn2 classify`: what a trained classifier takes images, a text, or the rows of a table for."""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from hgrn2 import console
from hgrn2.data.tables import is_table
from hgrn2.settings import refuse

if TYPE_CHECKING:
    import numpy as np

    from hgrn2.eval.classifier import Answer, LoadedClassifier

Flag = tyro.conf.FlagCreatePairsOff[bool]
SHOWN_ROWS = 20
TEXT_LIMIT = 1 << 28  # bytes of a file with one text


@dataclass(frozen=True, kw_only=True)
class Classify:
    """Name the likeliest classes of images, of a text, or of the rows of a table.

    Tables (CSV, TSV, JSONL) need the columns that `hgrn2 train classify` was trained on, without the labels. Images
    are resized to the size that the model was trained on: the shorter side, then the middle square.

    Example: hgrn2 classify runs/cifar10 cat.png dog.jpg

    Example: hgrn2 classify runs/reviews --text 'A film to remember.'

    Example: hgrn2 classify runs/reviews new.csv --out named.csv
    """

    model: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN_OR_MODEL")]]
    """A run folder (its newest checkpoint), a checkpoint folder, or a model folder."""
    files: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE")]] = ()
    """Image files (needs hgrn2[vision]), or tables."""
    text: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="(default: none)")] = None
    """A text instead of images."""
    text_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """A file with the text."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="CSV", help_behavior_hint="(default: none)")] = None
    """Of tables: also write input, class and probability of every row to this file."""
    overwrite: Flag = False
    """Let --out replace a file."""
    top: int = 5
    """How many classes are named."""
    size: Annotated[int | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint="(default: the model's)")] = None
    """Side of the square that images are brought to; 0: each as it is."""
    convert: Flag = False
    """Turn grey images into colour, or colour into grey, where the model reads the other."""
    corrupt: Literal["stop", "skip"] = "stop"
    """What an image that cannot be read does: end it all, or be left out and counted."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: that of the run)")] = (
        None
    )
    """Folder of examples from which the names of the classes are taken."""
    device: str = "auto"
    """auto, cpu or cuda."""
    json: Flag = False
    """Print the answers as JSON."""

    def run(self) -> None:
        from hgrn2.data.image_decoding import LARGEST

        texts = (self.text is not None) + (self.text_file is not None)
        refuse(bool(texts) + bool(self.files) != 1 or texts > 1, "give images, or --text, or --text-file, or tables")
        tables = [is_table(path) for path in self.files]
        refuse(any(tables) and not all(tables), "give images or tables, not both at once")
        refuse(self.out is not None and not any(tables), "--out is for the rows of tables")
        taken = self.out is not None and self.out.exists() and not self.overwrite
        refuse(taken, f"{self.out} already exists; add --overwrite to replace it")
        refuse(self.top < 1, f"--top is {self.top}; it must be at least 1")
        refuse(not 0 <= (self.size or 0) <= LARGEST, f"--size is {self.size}; it must be from 0 to {LARGEST:,}")
        text = self._text() if texts else None

        from hgrn2.eval.classifier import ask_images, ask_text, is_classifier, load_run

        none = self.model.is_dir() and not is_classifier(self.model)
        refuse(none, f"{self.model} holds no classifier; hgrn2 train classify or image makes one")
        loaded = load_run(self.model, self.device, lambda message: print(f"warning: {message}", file=sys.stderr))
        names = loaded.classes(self.data)
        if text is not None:
            return self._show([("the text", ask_text(loaded, text, self.top))], names, 0)
        if any(tables):
            return self._tables(loaded, names)
        read, skipped = self._images(loaded)
        answers = ask_images(loaded, [pixels for _, pixels in read], self.top)
        self._show([(str(path), answer) for (path, _), answer in zip(read, answers, strict=True)], names, skipped)

    def _text(self) -> str:
        if self.text_file is None:
            return self.text or ""
        from hgrn2.data.reading import read_text

        return read_text(self.text_file, TEXT_LIMIT)

    def _tables(self, loaded: "LoadedClassifier", names: tuple[str, ...]) -> None:
        """The classes of all rows: the first few on the screen, all of them in --out or as JSON."""
        from hgrn2.cli.progress import progress_shown
        from hgrn2.eval.classifier import ask_examples, read_examples

        found = read_examples(loaded, self.files, labels=False)
        with progress_shown() as progress:
            answers = ask_examples(loaded, found.inputs, self.top, progress)
        named = list(zip(found.where, answers, strict=True))
        if self.out is not None:
            _write(self.out, found.inputs, found.where, answers, names)
        shown = named if self.json else named[:SHOWN_ROWS]
        self._show(shown, names, 0)
        if self.json:
            return
        if len(named) > len(shown):
            where = f"{self.out} has all" if self.out else "--out FILE.csv or --json gives all"
            print(f"the first {len(shown)} of {len(named):,} rows; {where}")
        counts = Counter(names[answer.classes[0]] for answer in answers)
        print(", ".join(f"{name}: {count:,}" for name, count in counts.most_common(20)))

    def _images(self, loaded: "LoadedClassifier") -> "tuple[list[tuple[Path, np.ndarray]], int]":
        """What could be read, and how many could not."""
        from hgrn2.data.read_image import BadImage, pillow, quiet, read_image
        from hgrn2.eval.classifier import image_side

        side = image_side(loaded) if self.size is None else self.size
        pillow()
        channels = 3 if loaded.run.data.grey else loaded.run.model.channels
        refuse(channels not in (1, 3), f"{loaded.name} reads {channels} channels; image files have 1 or 3")
        read, reasons = [], []
        for path in self.files:
            refuse(not path.exists(), f"{path} does not exist")
            refuse(path.is_dir(), f"{path} is a folder; name the images in it")
            try:
                with quiet():
                    found = read_image(path, side, channels)
            except BadImage as error:
                refuse(self.corrupt == "stop", f"{path} cannot be read: {error}")
                reasons.append(f"{path}: {error}")
                continue
            same = found.channels == channels or loaded.run.data.grey or self.convert
            hint = "--convert turns it into what the model reads"
            refuse(not same, f"{path} has {_channels(found.channels)}, the model reads {_channels(channels)}; {hint}")
            self._check_sides(loaded, path, found.pixels)
            read.append((path, found.pixels))
        for reason in reasons:
            print(f"left out: {reason}", file=sys.stderr)
        refuse(not read, f"none of {len(self.files)} images could be read")
        return read, len(reasons)

    def _check_sides(self, loaded: "LoadedClassifier", path: Path, pixels: "np.ndarray") -> None:
        patch = getattr(loaded.run.model, "patch", 1)
        height, width = pixels.shape[:2]
        bad = height % patch or width % patch
        refuse(
            bool(bad), f"{path}: {width} x {height} pixels do not divide into patches of {patch}; give another --size"
        )

    def _show(self, answers: "list[tuple[str, Answer]]", names: tuple[str, ...], skipped: int) -> None:
        if self.json:
            return console.print_json(_values(answers, names, skipped))
        rows = []
        for source, answer in answers:
            for place, (number, chance) in enumerate(zip(answer.classes, answer.chances, strict=True), 1):
                rows.append((source if place == 1 else "", str(place), names[number], f"{chance:.1%}"))
        console.show(console.Columns(("input", "", "class", "probability"), rows, text=(0, 2), frame=False))
        if skipped:
            print(f"{skipped} of {skipped + len(answers)} images were left out")


def _write(path: Path, inputs: list[Any], where: list[str], answers: "list[Answer]", names: tuple[str, ...]) -> None:
    """A table of the rows and their likeliest classes; of sequences of numbers only where they stood."""
    import csv
    import io

    from hgrn2.files import write_text

    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["row", "input", "class", "probability"])
    for place, value, answer in zip(where, inputs, answers, strict=True):
        shown = value if isinstance(value, str) else ""
        table.writerow([place, shown, names[answer.classes[0]], f"{answer.chances[0]:.6f}"])
    write_text(path, text.getvalue())


def _values(answers: "list[tuple[str, Answer]]", names: tuple[str, ...], skipped: int) -> dict[str, Any]:
    return {
        "skipped": skipped,
        "answers": [
            {
                "input": source,
                "classes": [
                    {"name": names[number], "number": number, "chance": chance}
                    for number, chance in zip(answer.classes, answer.chances, strict=True)
                ],
            }
            for source, answer in answers
        ],
    }


def _channels(count: int) -> str:
    return "one channel (grey)" if count == 1 else f"{count} channels"
