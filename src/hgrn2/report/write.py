"""What a run came to, on one page: `report.html` in the run folder, readable without a network and without scripts.

Everything that came from outside (texts a model wrote, names, settings) is escaped; figures are SVG text in the page
and PNG files beside it. Without matplotlib the page has the same numbers in tables, and says how to get the figures.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hgrn2.files import write_text
from hgrn2.report import page
from hgrn2.report.answers import Answer, answers
from hgrn2.report.classified import CAPTIONS, Classified, by_class, plans
from hgrn2.report.figures import LayerGates, draw, layer_gates
from hgrn2.report.plotting import SavedFigure
from hgrn2.units import duration, number, short

__all__ = ["LayerGates", "Sample", "layer_gates", "write_report"]

# Settings shown first, where the configuration has them: the end of their name, and what they are called here.
_SETTINGS = {
    "mixer.kind": "mixer", "pattern": "mixers by layer",
    "layers": "layers", "width": "width", "head_size": "head size", "glu_width": "GLU width",
    "vocab_size": "vocabulary", "lower_bound": "lower bound", "source": "data", "sequence_length": "sequence length",
    "batch_size": "batch size", "steps": "steps", "budget_s": "time budget (s)", "optimizer": "optimizer",
    "lr": "peak learning rate", "schedule": "schedule", "warmup_steps": "warm-up steps", "weight_decay": "weight decay",
    "dropout": "dropout", "precision": "precision", "seed": "seed",
}  # fmt: skip
_HIDDEN_ZEROS = ("budget_s", "dropout", "pattern")  # 0 or nothing turns these off: not worth a place
_EVENTS = 200  # newest ones shown

_CAPTIONS = {
    "loss": "Loss over the whole run, on a logarithmic axis. Training loss is that of each logged step, before its "
    "update; held-out loss is measured on text the model does not train on.",
    "late_loss": "The last three quarters by themselves.",
    "learning_rate": "Learning rate of each step.",
    "gradient_norm": "Norm of the gradient over all parameters, before clipping.",
    "speed": "Training speed.",
    "mfu": "Model operations per second as a share of the matrix product rate measured on this GPU.",
    "gates": "How long each channel remembers. Blue, right: τ = −1 / mean(log f) of the forget gate f, measured on "
    "text; after τ tokens a channel has faded to 1/e (37 %) of what it held. Orange, left: the time scale −1 / log γ "
    "that the learned lower bound γ alone guarantees: no input can make the channel forget faster. A layer without "
    "orange has γ = 0, that is no guarantee. Shapes show how the channels spread, bars the middle half of them, dots "
    "the median.",
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt and the text that the model wrote after it."""

    prompt: str
    text: str


def write_report(
    run_folder: Path,
    *,
    config: dict[str, Any],
    environment: dict[str, Any],
    metrics: list[dict[str, Any]],
    summary: dict[str, Any],
    samples: list[Sample],
    gates: list[LayerGates] | None,
    seen: list[Answer] | None = None,
    classified: Classified | None = None,
) -> Path:
    """Write `run_folder`/report.html and, with matplotlib, figures/*.png; returns the page's path.

    Args:
        config: resolved settings of the run, plain JSON values.
        environment: what `hgrn2.environment.environment` returned.
        metrics: records as from `read_metrics`, in order; may be empty.
        summary: plain JSON values. Measurements are values that hold a number `nats_per_token` (or `loss`, the same)
            and perhaps `bits_per_byte`, `perplexity` and `accuracy`, at the top or one level down; they are shown under
            their own names, as in {"parameters": 9, "held_out": {"carried state": {"nats_per_token": 1.5}}}. Other
            plain values are shown as facts.
        samples: texts to show.
        gates: forget gates by layer, from the embedding up; None where there are none.
        seen: images with what a classifier said of them.
        classified: what a classifier came to; its report speaks of accuracy.

    Each file is written whole or not at all.
    """
    run_folder = Path(run_folder)
    try:
        more = plans(metrics, classified) if classified else {}
        figures, note = draw(run_folder / "figures", metrics, gates, more), ""
    except ImportError:
        figures = {}
        note = page.paragraph(
            "Figures need matplotlib: <code>pip install 'hgrn2[plot]'</code>, then write the report again.", "note"
        )
    parts = [
        f"<h1>{page.text(run_folder.resolve().name)}</h1>",
        page.paragraph(page.text(_subtitle(environment)), "sub"),
        page.section("On held-out examples" if classified else "On held-out text", _headline(summary, metrics)),
        page.facts(_plain_facts(summary)),
        note,
        page.section("Accuracy", _figure(figures, "accuracy", CAPTIONS)),
        page.section("Classes", _figure(figures, "confusion", CAPTIONS) + by_class(classified)) if classified else "",
        page.section(
            "Loss",
            _figure(figures, "loss", CAPTIONS if classified else _CAPTIONS) + _evaluations(metrics, not figures),
        ),
        page.section("During training", _curves(figures, metrics)),
        page.section("Time scales of the forget gates", _gates(figures, gates) if gates else ""),
        page.section("Samples", _samples(samples)),
        page.section("Predictions on held-out images", answers(seen or [])),
        page.section(
            "Settings", page.facts(_chosen_settings(config)) + page.details("all settings", page.as_json(config))
        ),
        page.section("Environment", page.table([], [[key, page.plain(value)] for key, value in environment.items()])),
    ]
    path = run_folder / "report.html"
    write_text(path, page.page(run_folder.resolve().name, "\n".join(part for part in parts if part)))
    return path


def measurements(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every value of the summary that is a measurement (see `write_report`), by name."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in summary.items():
        if _nats(value) is not None:
            found[name] = value
        elif isinstance(value, dict):
            found.update({inner: one for inner, one in value.items() if _nats(one) is not None})
    return found


def _nats(value: Any) -> float | None:
    """The loss of a measurement in nats per token; None where the value is something else."""
    found = value.get("nats_per_token", value.get("loss")) if isinstance(value, dict) else None
    return float(found) if isinstance(found, int | float) else None


def _headline(summary: dict[str, Any], metrics: list[dict[str, Any]]) -> str:
    """A card for each final measurement; the last one of the run where the summary has none."""
    found = measurements(summary)
    if not found:
        evals = (record for record in reversed(metrics) if record["kind"] == "eval")
        last = next((record for record in evals if _nats(record) is not None), None)
        found = {f"held-out at step {last['step']:,}": last} if last else {}
    if not found:
        return page.paragraph("Nothing was measured on held-out text.", "sub")
    return f'<div class="cards">{"".join(_card(name, value) for name, value in found.items())}</div>'


def _card(name: str, value: dict[str, Any]) -> str:
    loss = _nats(value)
    assert loss is not None
    perplexity = value.get("perplexity")
    if perplexity is None:
        perplexity = math.exp(loss) if loss < 700 else math.inf
    bits = value.get("bits_per_byte")
    more = [f"{number(bits, 4)} bits per byte"] if bits is not None else []
    more.append(f"perplexity {number(perplexity, 3)}")
    big, unit = f"{number(loss, 4)}", "nats per token"
    if value.get("accuracy") is not None:  # tasks with right and wrong answers: their share comes first
        more = [f"{number(value['examples'], 0)} examples"] if "examples" in value else []
        more.append(f"cross-entropy {big} nats")
        big, unit = f"{value['accuracy']:.1%}", "accuracy"
    return (
        f'<div class="card"><h3>{page.text(name)}</h3>'
        f'<div class="big">{big} <span class="unit">{unit}</span></div>'
        f"<div>{' · '.join(more)}</div></div>"
    )


def _plain_facts(summary: dict[str, Any]) -> list[tuple[str, str]]:
    facts = []
    for name, value in summary.items():
        if isinstance(value, dict | list):
            continue
        seconds = name.endswith(("_s", "seconds")) and not name.endswith("_per_s")
        shown = duration(value) if seconds and isinstance(value, int | float) else page.plain(value)
        label = name.removesuffix("onds").removesuffix("_s").removesuffix("_sec") + " time" if seconds else name
        facts.append((label.replace("_", " "), shown))
    return facts


def _chosen_settings(config: dict[str, Any]) -> list[tuple[str, str]]:
    """The settings one asks for first (where a name occurs twice, the outer one); all if none of them is known."""
    leaves = [(".".join(path), value) for path, value in sorted(_leaves(config), key=lambda leaf: len(leaf[0]))]
    chosen = []
    for name, label in _SETTINGS.items():
        values = [value for path, value in leaves if f".{path}".endswith(f".{name}") and value is not None]
        if values and not (name in _HIDDEN_ZEROS and not values[0]):
            chosen.append((label, page.plain(values[0])))
    return chosen or [(path, page.plain(value)) for path, value in leaves]


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Any:
    if not isinstance(value, dict):
        yield path, value
        return
    # Plain values before groups: `lr` of the optimiser is found before that of a part of it.
    for name, inner in sorted(value.items(), key=lambda item: isinstance(item[1], dict)):
        yield from _leaves(inner, (*path, str(name)))


def _evaluations(metrics: list[dict[str, Any]], open_: bool) -> str:
    right = any(r.get("accuracy") is not None for r in metrics)  # of tasks with right answers; bits otherwise
    names = list(dict.fromkeys(name for r in metrics if r["kind"] == "eval" for name in r.get("corpora", {})))
    rows = [
        [
            f"{r['step']:,}",
            short(r["tokens"]),
            duration(r["elapsed_s"]),
            number(r["loss"], 4),
            f"{r['accuracy']:.2%}" if right else number(r["bits_per_byte"], 4),
            *(number(r.get("corpora", {}).get(name), 4) for name in names),
        ]
        for r in metrics
        if r["kind"] == "eval"
    ]
    if not rows:
        return ""
    head = [
        "step",
        "tokens",
        "time",
        *(("loss (nats)", "right") if right else ("loss (nats per token)", "bits per byte")),
        *names,
    ]
    return page.details(f"held-out measurements ({len(rows)})", page.table(head, rows, numeric=True), open_)


def _curves(figures: dict[str, SavedFigure], metrics: list[dict[str, Any]]) -> str:
    small = "".join(_figure(figures, name) for name in ("late_loss", "learning_rate", "gradient_norm", "speed", "mfu"))
    events = [r for r in metrics if r["kind"] == "event"][-_EVENTS:]
    rows = [[f"{r['step']:,}", duration(r["elapsed_s"]), r["text"]] for r in events]
    listed = page.details(f"events ({len(rows)})", page.table(["step", "time", "event"], rows)) if rows else ""
    return (f'<div class="pair">{small}</div>' if small else "") + listed


def _gates(figures: dict[str, SavedFigure], gates: list[LayerGates]) -> str:
    head = ["layer", "τ of 5 %", "median τ", "τ of 95 %", "guaranteed, median"]
    rows = []
    for gate in gates:
        low, middle, high = np.quantile(gate.time_scales(), (0.05, 0.5, 0.95))
        promised = float(np.median(gate.guaranteed()))
        rows.append(
            [
                str(gate.layer),
                *(number(float(x), 1) for x in (low, middle, high)),
                number(promised, 1) if promised else "–",
            ]
        )
    figure = _figure(figures, "gates") or page.paragraph(page.text(_CAPTIONS["gates"].partition(" Shapes")[0]), "sub")
    return figure + page.details("time scales in tokens, by layer", page.table(head, rows, numeric=True), not figures)


def _samples(samples: list[Sample]) -> str:
    if not samples:
        return ""
    legend = page.paragraph('<span class="prompt">Prompt</span>, then what the model wrote.', "sub")
    return legend + "".join(
        f'<pre dir="auto"><span class="prompt">{page.text(one.prompt)}</span><span>{page.text(one.text)}</span></pre>'
        for one in samples
    )


def _subtitle(environment: dict[str, Any]) -> str:
    device = environment.get("gpu") or environment.get("cpu")
    known = ("HGRN2 training run", device, environment.get("date_utc"))
    return " · ".join(str(part) for part in known if part)


def _figure(figures: dict[str, SavedFigure], name: str, captions: dict[str, str] = _CAPTIONS) -> str:
    if name not in figures:
        return ""
    caption = page.text(captions[name])
    svg = figures[name].svg.replace("<svg", f'<svg role="img" aria-label="{caption}"', 1)
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"
