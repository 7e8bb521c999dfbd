"""`hgrn2 export web`: a model as a folder that a browser runs without a server of ours."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from hgrn2 import console
from hgrn2.cli.export import Out, Run
from hgrn2.export.config import OnnxConfig, Weights


@tyro.conf.configure(tyro.conf.FlagCreatePairsOff)
@dataclass(frozen=True, kw_only=True)
class ExportWeb:
    """A model as a web page that runs it: any server of files shows it, no request leaves the browser, and once it was
    open it works without network.

    The page is that of `hgrn2 serve`. The folder holds it, the model as an ONNX graph and onnxruntime-web, which npm
    fetches. Tokens are bytes, characters, or byte-level BPE as GPT-2's (also bpe:N).

    Example: hgrn2 export web runs/demo exported/page
    """

    source: Run
    """A run folder (its newest checkpoint), a checkpoint folder, or a model folder."""
    out: Out
    """The folder to write; it must not exist yet."""
    weights: Weights = "float32"
    """Of all matrices. int8 and int4 are smaller, slower here, and move the text."""
    runtime: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: npm fetches it)")] = None
    """A folder with the unpacked npm package onnxruntime-web of the pinned version."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> None:
        from hgrn2.cli.progress import progress_shown
        from hgrn2.export import web
        from hgrn2.files import making
        from hgrn2.generate.loading import load

        config = OnnxConfig(weights=self.weights, operator="onnxruntime")
        with making(self.out):
            loaded = load(self.source, "cpu", warn=lambda message: print(f"warning: {message}", file=sys.stderr))
            with progress_shown() as progress:
                export = web.write(self.out, loaded, config, self.runtime, progress)
        size = sum(export.bytes.values())
        if self.json:
            return console.print_json({"folder": str(self.out), "bytes": size, "files": export.bytes})
        runtime = sum(count for name, count in export.bytes.items() if name.startswith(f"{web.RUNTIME}/"))
        print(
            f"{self.out}: {self.weights} weights, {size / 1e6:,.1f} MB, of which onnxruntime-web {runtime / 1e6:,.1f}"
        )
        logits = export.checks[0]
        print(f"against float64: logits {logits.error:.1e} off; PyTorch's float32 {logits.torch_error:.1e}")
        if export.rounding:
            print(f"8-bit activations move the logits by {export.rounding[0].error:.1e} more")
        print(f"to see it: python -m http.server --bind 127.0.0.1 --directory {self.out}")
