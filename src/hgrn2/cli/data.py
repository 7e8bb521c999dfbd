"""`hgrn2 data prepare | info | verify`: text to token shards, and what is in them or in a folder of examples."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from hgrn2 import console
from hgrn2.cli.progress import progress_shown

Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Turn text and JSONL (each also .xz, .gz or .zst), Parquet, folders of them and Hugging Face data sets into
    memory-mapped token shards with a manifest.

    A text file is one document (see --split), a line of JSONL or a row of a table is one. Nothing appears at --out
    before everything is written.

    Example: hgrn2 data prepare articles.jsonl.xz --out data/articles --tokenizer bytes

    Example: hgrn2 data prepare novels/ --out data/novels --tokenizer bpe:8000

    Example: hgrn2 data prepare three-novels.txt --split "heading:^BOOK " --out data/three --tokenizer chars

    Example: hgrn2 data prepare hf:owner/name:train --column body --out data/name --tokenizer bpe:32000
    """

    inputs: tyro.conf.Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar="INPUT [INPUT ...]", help_behavior_hint="(required)")]
    ]
    """What to train on: files, folders (every visible file in them, recursively), folders that the datasets library
    saved, or hf:NAME, hf:NAME:SPLIT, hf:NAME:CONFIG:SPLIT from the Hugging Face hub."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """The folder to make."""
    tokenizer: Annotated[str, tyro.conf.arg(metavar="SPEC")]
    """bytes, chars (those of the inputs), bpe:N (N tokens learned from the inputs, such as bpe:8000), a tokenizer.json,
    a folder or file of GPT-2-style vocabulary files, a SentencePiece .model, a .tiktoken file, tiktoken:NAME, or the
    folder of a prepared corpus to use its tokenizer again."""
    valid_fraction: float = 0.01
    """Part of the documents held out as the split `valid`, at random; of a single document its end. 0: none."""
    valid: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="INPUT [INPUT ...]", help_behavior_hint="(optional)")] = ()
    """Files or folders that make the split `valid`; --valid-fraction then has no effect."""
    field: Annotated[str, tyro.conf.arg(aliases=["--column"])] = "text"
    """The field of a JSONL line, or the column of a table, that holds the text."""
    split: Annotated[str, tyro.conf.arg(metavar="HOW")] = "none"
    """What makes several documents of a text file: none; lines (each is one); blank-lines, or blank-lines:3 for three
    in a row; marker:TEXT, such as "marker:<|endoftext|>", which is dropped; heading:REGEX, a line in which it is found
    begins a document."""
    newlines: Literal["unix", "keep"] = "unix"
    """unix turns the line ends of Windows (CR LF) and lone carriage returns into LF; keep leaves them."""
    processes: int = 0
    """How many processes tokenise side by side; 0: one a processor, or one alone for inputs below 16 MiB. The result
    is the same to the byte."""
    overwrite: Flag = False
    """Replace a prepared corpus at --out, once the new one is complete."""
    json: Flag = False
    """Print the result as JSON."""

    def run(self) -> None:
        from hgrn2.data.prepare import prepare

        with progress_shown() as progress:
            result = prepare(
                self.inputs,
                self.out,
                self.tokenizer,
                valid_fraction=self.valid_fraction,
                valid=self.valid,
                json_field=self.field,
                newlines=self.newlines,
                split=self.split,
                processes=self.processes,
                overwrite=self.overwrite,
                progress=progress,
            )
        if self.json:
            return _print_json(result)
        _print_splits(result["splits"], f"{result['folder']}: {_named(result['tokenizer'])}")
        _print_reading(result["text"])
        speed = f"{result['tokens_per_second']:,.0f} tokens/s"
        processes = "1 process" if result["processes"] == 1 else f"{result['processes']} processes"
        print(
            f"{result['tokens']:,} tokens in {result['seconds']:.1f} s "
            f"({speed}, both readings and writing included, {processes})"
        )


@dataclass(frozen=True, kw_only=True)
class Info:
    """Show what a prepared corpus or a folder of labelled examples holds (checksums: see verify).

    Example: hgrn2 data info data/articles

    Example: hgrn2 data info data/listops
    """

    corpus: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DIR")]]
    """The folder of a prepared corpus, or of examples that `hgrn2 data lra` or `hgrn2 data image` made."""
    json: Flag = False
    """Print it as JSON."""

    def run(self) -> None:
        from dataclasses import asdict

        from hgrn2.cli.data_classes import holds_examples, show_examples
        from hgrn2.data.manifest import read_manifest

        if holds_examples(self.corpus):
            return show_examples(self.corpus, self.json)
        manifest = asdict(read_manifest(self.corpus))
        if self.json:
            return _print_json(manifest)
        splits = {name: {**split, "shards": len(split["shards"])} for name, split in manifest["splits"].items()}
        _print_splits(splits, f"{self.corpus}: {_named(manifest['tokenizer'])}")
        _print_reading(manifest["text"])
        print(f"ids as {manifest['dtype']}, made by {manifest['created_by']}")


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Recompute the checksums of a prepared corpus or a folder of examples, and look at every token id or label.

    Example: hgrn2 data verify data/articles
    """

    corpus: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="DIR")]]
    """The folder of a prepared corpus or of labelled examples."""
    json: Flag = False
    """Print the result as JSON."""

    def run(self) -> None:
        from hgrn2.cli.data_classes import holds_examples, verify_examples
        from hgrn2.data.manifest import verify

        if holds_examples(self.corpus):
            return verify_examples(self.corpus, self.json)
        with progress_shown() as progress:
            checked = verify(self.corpus, progress)
        if self.json:
            return _print_json(checked)
        print(
            f"{self.corpus}: {checked['files']} files, {checked['bytes']:,} bytes, {checked['tokens']:,} tokens: good"
        )


def _print_json(value: Any) -> None:
    console.print_json(value)


def _named(tokenizer: dict[str, Any]) -> str:
    return f"tokenizer {tokenizer['kind']}, {tokenizer['vocab_size']:,} ids, sha256 {tokenizer['sha256'][:12]}"


def _print_splits(splits: dict[str, dict[str, Any]], title: str) -> None:
    columns = ("documents", "tokens", "text_bytes", "shards")
    rows = [(name, *(f"{split[column]:,}" for column in columns)) for name, split in splits.items()]
    print(title)
    console.show(console.Columns(("split", *(name.replace("_", " ") for name in columns)), rows))


def _print_reading(text: dict[str, Any]) -> None:
    """What was not taken as it stood in the files, a line each; nothing of a corpus that does not say it."""
    returns, marks, wide = (text.get(key, 0) for key in ("carriage_returns", "byte_order_marks", "utf16_files"))
    if returns and text.get("newlines") == "unix":
        print(f"line ends: {returns:,} carriage returns (CR LF or CR) became LF; --newlines keep leaves them")
    elif returns:
        print(f"line ends: {returns:,} carriage returns kept")
    if marks:
        print(f"byte order marks: dropped from the beginning of {marks:,} files")
    if wide:
        print(f"encoding: {wide:,} files were UTF-16 or UTF-32")
    if text.get("split", "none") != "none":
        print(f"documents: text files split by {text['split']}")
