"""`hgrn2 generate`: continue a text with a trained model, from a prompt or from where a saved state stands."""

import contextlib
import gc
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from hgrn2 import console
from hgrn2.cli.progress import progress_shown
from hgrn2.errors import UserError
from hgrn2.files import read_bytes
from hgrn2.generate.config import GraphUse, StateDtype
from hgrn2.models.quantize.config import Quantization, QuantizeConfig
from hgrn2.progress import Progress, silent
from hgrn2.settings import refuse

if TYPE_CHECKING:
    from hgrn2.generate.config import GenerationConfig
    from hgrn2.generate.generator import Generator, Piece
    from hgrn2.generate.snapshots import Snapshot

Flag = tyro.conf.FlagCreatePairsOff[bool]
LONG_PROMPT = 16_384  # tokens from which on a bar shows how far the reading is


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Continue a text with a trained model; the text streams to standard output as it is made.

    A saved state is a small file whatever the length of the text: it continues that text exactly, without reading it
    again.

    Example: hgrn2 generate runs/demo --prompt "ROMEO:" --max-tokens 300 --temperature 0.8
    """

    model: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN_OR_MODEL")]]
    """A run folder (its newest checkpoint), a checkpoint folder, or a model folder."""
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="(optional)")] = None
    """The text to continue; - reads standard input."""
    prompt_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """A text file to continue; - reads standard input. Line ends become LF, as in `hgrn2 data prepare`."""
    newlines: Literal["unix", "keep"] = "unix"
    """keep leaves the carriage returns of the prompt's file, for a text prepared with --newlines keep."""
    max_tokens: int = 200
    """Tokens of each sample at most; 0 only reads the prompt (see --save-state)."""
    greedy: Flag = False
    """Take the most probable token every time."""
    temperature: float = 1.0
    """Below 1 sharper, above 1 more varied."""
    top_k: int = 0
    """Choose among the k most probable tokens; 0: off."""
    top_p: float = 1.0
    """Choose among the fewest tokens that together have this probability; 1: off."""
    min_p: float = 0.0
    """Choose among tokens at least this fraction as probable as the best; 0: off."""
    repetition_penalty: float = 1.0
    """Above 1: tokens that occurred become less likely; 1: off."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: random)")] = None
    """The same seed gives the same text; sample n has seed + n. A random one is shown."""
    stop: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT [TEXT ...]", help_behavior_hint="(optional)")] = ()
    """End before the first of these texts."""
    samples: int = 1
    """How many continuations; several are printed whole, each as it ends."""
    state: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """Continue the text of this saved state; a prompt is then optional and comes after that text."""
    save_state: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(optional)")] = None
    """Write the state after the last token, prompt and generated text included."""
    overwrite: Flag = False
    """Let --save-state replace a file."""
    json: Flag = False
    """Print the result as JSON once it is complete."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes a GPU where there is one."""
    graph: GraphUse = "auto"
    """On a GPU, replay the one-token step as a CUDA graph: where it pays, always (an error elsewhere), or never."""
    state_dtype: StateDtype = "float32"
    """Of the states while tokens are made; bfloat16 is quicker for many samples and rounds after every token."""

    quantize: Annotated[
        Quantization | None, tyro.conf.arg(metavar="{int8,int4}", help_behavior_hint="(default: as saved)")
    ] = None
    """Hold the matrices in eight or four bits: less memory, quicker tokens, slightly other text (docs/quantize.md)."""

    def run(self) -> None:
        config = self._config()
        prompt = self._prompt()
        self._check_saving()
        with _no_garbage():
            from hgrn2.generate.generator import Generator
            from hgrn2.generate.loading import load
            from hgrn2.generate.snapshots import load_snapshot, save_snapshot

        quantization = None if self.quantize is None else QuantizeConfig(kind=self.quantize)
        loaded = load(self.model, self.device, quantization=quantization, warn=_warn)
        generator = Generator(loaded.model, loaded.need_tokenizer())
        start = None if self.state is None else load_snapshot(self.state, generator.model, generator.tokenizer)
        report = _Report(self, loaded.name, config)
        report.decoding = generator.decoding(config)
        last = self._show(generator, prompt, config, start, report)
        if self.save_state is not None and last is not None:
            save_snapshot(self.save_state, last, generator.model, generator.tokenizer, overwrite=self.overwrite)
        report.finish()

    def _config(self) -> "GenerationConfig":
        import secrets

        from hgrn2.generate.config import GenerationConfig, SamplingConfig

        sampling = SamplingConfig(
            greedy=self.greedy,
            repetition_penalty=self.repetition_penalty,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=secrets.randbelow(2**31) if self.seed is None else self.seed,
        )
        return GenerationConfig(
            max_tokens=self.max_tokens, stop=self.stop, samples=self.samples, sampling=sampling, graph=self.graph,
            state_dtype=self.state_dtype,
        )  # fmt: skip

    def _prompt(self) -> str:
        both = self.prompt is not None and self.prompt_file is not None
        refuse(both, "give --prompt or --prompt-file, not both")
        if self.prompt_file is not None:
            return read_text(self.prompt_file, self.newlines)
        if self.prompt == "-":
            return read_text(Path("-"), self.newlines)
        refuse(self.prompt is None and self.state is None, "give --prompt, --prompt-file or --state")
        return self.prompt or ""

    def _check_saving(self) -> None:
        """Before the model is loaded, and again when the file is written."""
        if self.save_state is None:
            return
        refuse(self.samples > 1, "--save-state keeps one text; it does not go with --samples above 1")
        blocked = self.save_state.exists() and not self.overwrite
        refuse(blocked, f"{self.save_state} already exists; add --overwrite to replace it")

    def _show(
        self,
        generator: "Generator",
        prompt: str,
        config: "GenerationConfig",
        start: "Snapshot | None",
        report: "_Report",
    ) -> "Snapshot | None":
        """Generate and print; returns where the last sample to end stands."""
        report.prompt_tokens = len(generator.prompt_ids(prompt, start)) - (start is not None)
        snapshot = None
        with _reading_bar(report.prompt_tokens) as progress:
            pieces = generator.stream(prompt, config, start, progress=progress)  # refuses what does not fit
            report.samples = [{"text": "", "tokens": 0, "finished": None} for _ in range(config.samples)]
            for piece in pieces:
                report.take(piece)
                snapshot = piece.snapshot or snapshot
        return snapshot


class _Report:
    """What is printed: the text while it comes, then one line of figures on standard error, or JSON."""

    def __init__(self, options: Generate, model: str, config: "GenerationConfig") -> None:
        self.options, self.model = options, model
        self.seed = None if options.greedy else config.sampling.seed
        self.prompt_tokens = 0
        self.samples: list[dict[str, Any]] = []
        self.began = time.perf_counter()
        self.first: float | None = None
        self.decoding = ""  # how tokens are made, as a sentence

    def take(self, piece: "Piece") -> None:
        self.first = self.first or time.perf_counter()
        sample = self.samples[piece.sample]
        sample["text"] += piece.text
        sample["tokens"] += piece.token is not None
        sample["finished"] = piece.finished
        if self.options.json:
            return
        if len(self.samples) == 1:
            print(piece.text, end="", flush=True)
        elif piece.finished:
            print(f"--- sample {piece.sample} ---\n{sample['text']}", flush=True)

    def finish(self) -> None:
        first = self.first or self.began
        reading, making = first - self.began, time.perf_counter() - first
        tokens = sum(sample["tokens"] for sample in self.samples)
        steps = tokens - len(self.samples)  # the first token of each sample came with the prompt
        speed = steps / making if steps > 0 and making > 0 else None
        if self.options.json:
            result = {
                "model": self.model,
                "seed": self.seed,
                "prompt_tokens": self.prompt_tokens,
                "prompt_seconds": reading,
                "tokens_per_second": speed,
                "decoding": self.decoding,
                "quantize": self.options.quantize,
                "samples": self.samples,
            }
            return console.print_json(result)
        if len(self.samples) == 1 and tokens and sys.stdout.isatty():
            print()
        parts = [f"{self.prompt_tokens:,} prompt tokens in {reading:.2f} s", f"{tokens:,} new tokens"]
        parts += [f"{speed:,.0f} tokens/s"] if speed else []
        parts += [f"seed {self.seed}"] if self.seed is not None and tokens else []
        parts += [f"state saved to {self.options.save_state}"] if self.options.save_state else []
        sys.stdout.flush()
        print(", ".join(parts), file=sys.stderr)


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Around imports, which make many objects that stay: looking for garbage among them takes 0.2 s of torch's 1.5."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_text(path: Path, newlines: str) -> str:
    """A text file, or standard input for -, in UTF-8."""
    from hgrn2.data.reading import decode_text

    name = "standard input" if str(path) == "-" else str(path)
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else read_bytes(path)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}") from None
    text = decode_text(data, name)
    return text if newlines == "keep" else text.replace("\r\n", "\n").replace("\r", "\n")


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


@contextlib.contextmanager
def _reading_bar(tokens: int) -> Iterator[Progress]:
    """A bar on standard error while a long prompt is read; it is gone before the text begins."""
    if tokens < LONG_PROMPT:
        yield silent
        return
    with contextlib.ExitStack() as bar:
        shown = bar.enter_context(progress_shown())

        def advance(stage: str, done: int, total: int) -> None:
            shown(stage, done, total)
            if done >= total:
                bar.close()

        yield advance
