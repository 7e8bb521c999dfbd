"""What `hgrn2 eval` can be asked, and the text that it measures on."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from hgrn2.errors import UserError
from hgrn2.models.quantize.config import Quantization
from hgrn2.settings import refuse

if TYPE_CHECKING:
    from hgrn2.data.corpus import Corpus
    from hgrn2.generate.loading import Loaded

Flag = tyro.conf.FlagCreatePairsOff[bool]
EMBEDDED = "shakespeare"


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """The options, whichever measurement it is."""

    model: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN_OR_MODEL")]]
    """A run folder (its newest checkpoint), a checkpoint folder, or a model folder."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: that of the run)")] = None
    """The folder of a prepared corpus, or a text or JSONL file (also .xz, .gz, .zst); of a classifier a folder of
    examples, or a table with the columns that it was trained on."""
    split: Annotated[
        str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: the run's data.valid_split, or valid)")
    ] = None
    """Which split of a prepared corpus, or of the run's own data."""
    method: Literal["carried", "strided", "windows", "all"] = "all"
    """Which of the numbers."""
    window: int = 256
    """Tokens of a window (strided, windows)."""
    stride: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: half a window)")] = None
    """Tokens from one window of strided to the next."""
    segment: int = 1024
    """Tokens read at a time (carried); changes speed and memory, not the number."""
    batch_size: Annotated[
        int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 32 with --tasks and --wikitext, else 8)")
    ] = None
    """Sequences read side by side (all but carried); changes speed and memory, not the number."""
    reset_documents: Flag = False
    """Carried starts from a zero state at each document."""
    limit_tokens: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """Only the first N tokens of the text."""
    tasks: Annotated[str | None, tyro.conf.arg(metavar="NAMES", help_behavior_hint="(default: none)")] = None
    """Zero-shot tasks by lm-eval, with commas: piqa, hellaswag, winogrande, arc_easy, arc_challenge, openbookqa,
    lambada; or all. Scores a context that several answers share once. Needs hgrn2[eval]."""
    task_data: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: lm-eval's own, from the network)")
    ] = None
    """The folder of local task files (see docs/evaluation.md)."""
    compare_rescoring: Flag = False
    """After the tasks, also read every answer from the beginning of its context, check that the scores are the same,
    and report how much longer that takes."""
    wikitext: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """Word- and token-perplexity of a WikiText file, also .xz. Needs hgrn2[eval]."""
    positions: Flag = False
    """Mean loss by position in pieces of the text that each begin with a zero state."""
    length: int = 4096
    """Tokens of a piece (positions)."""
    plot: Annotated[Path | None, tyro.conf.arg(metavar="PNG", help_behavior_hint="(default: none)")] = None
    """Also draw the losses (positions)."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: all)")] = None
    """Only the first N items of each task, pages (wikitext) or pieces (positions)."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: none)")] = None
    """Also append the results to eval.jsonl in this folder, a row each (tasks, wikitext, positions)."""
    json: Flag = False
    """Print the result as JSON."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes a GPU where there is one."""
    quantize: Annotated[Quantization | None, tyro.conf.arg(help_behavior_hint="(default: none)")] = None
    """Keep the weights in eight or four bits, to see what that costs (docs/quantize.md)."""

    def corpus(self, loaded: "Loaded", give: str = "--data") -> "Corpus":
        """The text to measure on, in the tokens of the model; `give` names the options that say so."""
        from hgrn2.data.corpus import Corpus
        from hgrn2.files import restored

        data, split = (self.data, self.split or "valid") if self.data is not None else _source(loaded, self.split, give)
        if data == EMBEDDED:
            return _embedded(loaded, split)
        path = Path(data)
        hint = "" if self.data is not None else f", where the run had its data: give {give}"
        refuse(not restored(path).exists(), f"{path} does not exist{hint}")
        if path.is_file():
            return _from_file(path, loaded)
        corpus = Corpus.open(path, split)
        if loaded.tokenizer is not None:
            same = corpus.tokenizer().identity() == loaded.tokenizer.identity()
            refuse(not same, f"{path} was prepared with another tokenizer than {loaded.name} has")
        size, known = corpus.vocab_size, loaded.model.config.vocab_size
        refuse(size > known, f"{path} has ids up to {size - 1}, the model knows {known}: they do not belong together")
        return corpus


def _source(loaded: "Loaded", split: str | None, give: str) -> tuple[str, str]:
    """What the run was trained on and the split it was measured on, as its settings name them; `split` goes first."""
    config = loaded.run_config() or {}
    data = config.get("data")
    data = data if isinstance(data, dict) else {}
    if data.get("mixture"):
        raise UserError(f"{loaded.name} was trained on a mixture of corpora: give {give}")
    source, held_out = data.get("source"), data.get("valid_split", "valid")
    if not isinstance(source, str):
        raise UserError(f"{loaded.name} does not say what it was trained on: give {give}")
    return source, split or (held_out if isinstance(held_out, str) else "valid")


def _embedded(loaded: "Loaded", split: str) -> "Corpus":
    from hgrn2.data.samples import shakespeare_corpora

    sample = shakespeare_corpora(loaded.tokenizer)
    refuse(split not in ("train", "valid"), f"the embedded sample has no split {split!r}; it has train, valid")
    size, known = sample.tokenizer.vocab_size, loaded.model.config.vocab_size
    refuse(size > known, f"the embedded sample has {size} characters, the model knows {known} ids: give --data")
    return sample.train if split == "train" else sample.valid


def _from_file(path: Path, loaded: "Loaded") -> "Corpus":
    """A text or JSONL file in memory; its documents are those of `hgrn2 data prepare`."""
    from hgrn2.data.corpus import Corpus
    from hgrn2.data.sources import Sources

    return Corpus.from_documents(Sources([path]).documents(), loaded.need_tokenizer(), name=str(path))
