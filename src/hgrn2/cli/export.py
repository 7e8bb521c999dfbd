"""`hgrn2 export onnx`: a model as a folder that runs without PyTorch."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from hgrn2.export.config import OnnxConfig
from hgrn2.settings import refuse

if TYPE_CHECKING:
    from hgrn2.export.onnx_folder import Export

Run = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUN")]]
Out = tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
_flat = tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)


@_flat
@dataclass(frozen=True, kw_only=True)
class ExportOnnx(OnnxConfig):
    """A model as an ONNX graph on the operator LinearAttention: prompts and one-token steps, with the state in and out.

    The graph is held to the float64 model before OUT appears; one that misses it is not kept. It needs onnxruntime 1.32
    and no PyTorch; examples/onnx_stream.py shows how.

    Example: hgrn2 export onnx runs/demo exported/demo --weights int8
    """

    source: Run
    """A run folder (its newest checkpoint), a checkpoint folder, or a model folder."""
    out: Out
    """The folder to write; it must not exist yet."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: no measurement)")] = None
    """A text or JSONL file or a prepared corpus: measure perplexity before and after the export on it."""
    split: str = "valid"
    """Which split of a prepared corpus."""
    limit_tokens: int = 20_000
    """Measure on the first N tokens."""
    json: bool = False
    """Print the result as JSON."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self.limit_tokens < 2, f"--limit-tokens is {self.limit_tokens}; it must be at least 2")

    def run(self) -> None:
        from hgrn2.files import making

        with making(self.out):
            self._write()

    def _write(self) -> None:
        from hgrn2.cli.progress import progress_shown
        from hgrn2.export import onnx_folder
        from hgrn2.generate.loading import load

        loaded = load(self.source, "cpu", warn=lambda message: print(f"warning: {message}", file=sys.stderr))
        text = None if self.data is None else onnx_folder.Text(self.data, self.split, self.limit_tokens)
        config = OnnxConfig(
            weights=self.weights, head=self.head, block_size=self.block_size, activations=self.activations,
            operator=self.operator,
        )  # fmt: skip
        with progress_shown() as progress:
            export = onnx_folder.write(self.out, loaded, config, text, progress)
        if self.json:
            return print((self.out / onnx_folder.MANIFEST).read_text(encoding="utf-8"), end="")
        if loaded.tokenizer is None:
            print("warning: the model has no tokenizer; the export reads and writes ids only", file=sys.stderr)
        self._print(export)

    def _print(self, export: "Export") -> None:
        size = sum(export.bytes.values())
        print(f"{self.out}: {self.weights} weights, {size / 2**20:,.1f} MiB")
        logits, states = export.checks[0], export.checks[1:]
        worst = max(states, key=lambda check: check.error)
        print(
            f"against float64: logits {logits.error:.1e} off (largest difference {logits.largest:.1e}), states up to "
            f"{worst.error:.1e}; PyTorch's float32 {logits.torch_error:.1e} and {worst.torch_error:.1e}"
        )
        if export.rounding:
            print(f"8-bit activations move the logits by {export.rounding[0].error:.1e} more")
        if export.cost is not None:
            cost = export.cost
            print(
                f"{cost.tokens:,} tokens of {cost.text}: perplexity {cost.torch_perplexity:.4f} in PyTorch, "
                f"{cost.onnx_perplexity:.4f} exported ({100 * cost.more:+.2f}%)"
            )
