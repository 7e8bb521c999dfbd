"""`hgrn2 eval`: how well a model predicts a text, as perplexity and bits per byte, each number under its own name; and
what cli/eval_standard.py shows: zero-shot tasks, WikiText, loss by position."""

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import tyro

from hgrn2 import console
from hgrn2.cli.eval_options import EvalOptions
from hgrn2.cli.progress import progress_shown
from hgrn2.models.quantize.config import QuantizeConfig

if TYPE_CHECKING:
    from hgrn2.generate.loading import Loaded
    from hgrn2.perplexity import Perplexity

Flag = tyro.conf.FlagCreatePairsOff[bool]
EMBEDDED = "shakespeare"


@dataclass(frozen=True, kw_only=True)
class Eval(EvalOptions):
    """Measure how well a model predicts a text it was not trained on, or what it knows without being shown examples.

    Perplexity, in three ways that give three different numbers: carried keeps the state through the whole text, strided
    gives every token a long context within windows, windows cuts the text into pieces that know nothing of each other.
    --tasks, --wikitext and --positions measure something else instead, one of them at a time.

    Example: hgrn2 eval runs/demo --method all
    Zero-shot: hgrn2 eval runs/mine --tasks piqa,arc_easy,lambada --task-data my-tasks/
    """

    def run(self) -> None:
        from hgrn2.cli import eval_standard
        from hgrn2.eval.classifier import is_classifier

        if is_classifier(self.model):
            from hgrn2.cli.eval_classes import show_classes

            return show_classes(self)

        from hgrn2.generate.loading import load
        from hgrn2.perplexity import Beginning

        standard = eval_standard.choose(self)  # before the model is read: what does not fit together is said at once
        quantization = None if self.quantize is None else QuantizeConfig(kind=self.quantize)
        loaded = load(
            self.model,
            self.device,
            quantization=quantization,
            warn=lambda message: print(f"warning: {message}", file=sys.stderr),
        )
        if standard is not None:
            return standard(self, loaded)
        corpus = self.corpus(loaded)
        text = corpus
        if self.limit_tokens is not None:
            text = Beginning(corpus, self.limit_tokens, corpus.tokenizer())
        results = [self._measure(name, loaded, text) for name in self._methods()]
        if self.json:
            values = {"model": loaded.name, "data": corpus.name, "tokens": text.n_tokens}
            values |= {"results": [{**asdict(result), **self._settings(result.name)} for result in results]}
            return console.print_json(values)
        self._print(results, f"{loaded.name} on {corpus.name}: {text.n_tokens:,} tokens")

    def _methods(self) -> tuple[str, ...]:
        return ("carried", "strided", "windows") if self.method == "all" else (self.method,)

    def _settings(self, name: str) -> dict[str, Any]:
        """What a number depends on beside model and text."""
        if name == "carried":
            return {"reset_documents": self.reset_documents}
        stride = max(1, self.window // 2) if self.stride is None else self.stride
        return {"window": self.window} | ({"stride": stride} if name == "strided" else {})

    def _measure(self, name: str, loaded: "Loaded", corpus: Any) -> "Perplexity":
        from hgrn2 import perplexity

        options = self._settings(name)
        options |= (
            {"segment": self.segment}
            if name == "carried"
            else {"batch_size": 8 if self.batch_size is None else self.batch_size}
        )
        with progress_shown() as progress:
            return getattr(perplexity, name)(loaded.model, corpus, progress=progress, **options)

    def _print(self, results: "list[Perplexity]", title: str) -> None:
        from hgrn2.perplexity import MEANING

        rows = []
        for result in results:
            bits = "-" if result.bits_per_byte is None else f"{result.bits_per_byte:.4f}"
            numbers = (f"{result.nats_per_token:.4f}", f"{result.perplexity:.3f}", bits, f"{result.tokens:,}")
            rows.append((result.name, *numbers))
        print(title)
        console.show(console.Columns(("name", "nats/token", "perplexity", "bits/byte", "predicted tokens"), rows))
        for result in results:
            meaning = MEANING[result.name].format(**self._settings(result.name))
            dropped = ", dropped at each document" if result.name == "carried" and self.reset_documents else ""
            print(f"{result.name}: {meaning}{dropped}")
        print("Every token but the first is predicted once. Compare a number only with others of the same name.")
