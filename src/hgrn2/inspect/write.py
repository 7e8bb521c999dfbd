"""An inspection as a folder: inspect.html (self-contained), inspect.json, figures/*.png."""

import warnings
from pathlib import Path

import numpy as np

from hgrn2.console import finite
from hgrn2.files import atomic_folder, write_json, write_text
from hgrn2.inspect.figures import plans
from hgrn2.inspect.measure import Inspection, LayerNumbers
from hgrn2.models.saved import reported
from hgrn2.report import page, plotting
from hgrn2.report.plotting import SavedFigure
from hgrn2.units import number

PAGE, NUMBERS, FIGURES = "inspect.html", "inspect.json", "figures"
BEGINNING = 2000
"""Characters of the text on the page."""
_TITLES = {
    "time_scales": "Time scales of the forget gates",
    "memory": "Memory length by layer and head",
    "gates": "Gates along the text",
    "state": "The state along the text",
    "reach": "How far back outputs reach",
    "contributions": "One output, taken apart",
    "difference": "The states of two texts",
}
_CAPTIONS = {
    "time_scales": "τ = -1 / mean log f of each channel on this text, on the right; on the left -1 / log γ, below "
    "which no text can bring it. Shapes are densities over the channels, bars hold the middle half, dots are medians.",
    "memory": "The median over a head's channels of τ: after so many tokens per channel holds 1/e of what was written.",
    "gates": "-1 / log f at every token, mean over the channels of a head. Dark: at this token the head forgets fast.",
    "state": "Frobenius norm of the state, and its effective rank: the exponential of the entropy of the singular "
    "values' shares, 1 for a single outer product, at most the head's size. Means over heads.",
    "reach": "Every output is a sum over the present and all earlier tokens. Which share of the sizes of those terms "
    "comes from the last so many tokens, mean over tokens of the later half of the text.",
    "contributions": "The output of a layer at one token, before its norm, is exactly the sum of what each token "
    "wrote, faded by the gates since. Shares are the parts along that output: they sum to 100 %, negative ones pull "
    "away.",
    "difference": "‖A - B‖ / sqrt(‖A‖² + ‖B‖²) of the states after the two texts: 0 where they are equal, 1 where they "
    "are orthogonal.",
}


def write(
    out: Path, found: Inspection, *, model: str, text: str, other: str | None = None, overwrite: bool = False
) -> list[str]:
    """Write the folder, whole or not at all; returns the names of the figures (none without matplotlib).

    Args:
        out: a folder that does not exist, unless `overwrite`.
        model: what the page calls it.
        text, other: what was read, for the page.
    """
    with reported(out), atomic_folder(out, replace=overwrite) as folder:
        figures = _draw(folder / FIGURES, found)
        write_json(folder / NUMBERS, finite({"model": model, **found.as_json()}))
        body = _body(found, figures, model, text, other)
        write_text(folder / PAGE, page.page(model, body, "gates and states"))
    return list(figures)


def _draw(folder: Path, found: Inspection) -> dict[str, SavedFigure]:
    try:
        import matplotlib
    except ImportError:
        return {}
    folder.mkdir()
    # Letters of a text are drawn as they are: no formulas, and no word about those that the font lacks.
    with matplotlib.rc_context({**plotting.style(), "text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        return {name: plotting.save(plan(), folder, name) for name, plan in plans(found).items()}


def _body(found: Inspection, figures: dict[str, SavedFigure], model: str, text: str, other: str | None) -> str:
    facts = [("tokens", f"{found.tokens:,}")]
    facts += [("nats/token", number(found.nats, 3))] if found.nats is not None else []
    facts += [("layers looked at", str(len(found.layers)))]
    note = "" if figures else page.paragraph("Figures need matplotlib: <code>pip install 'hgrn2[plot]'</code>.", "note")
    left = ", ".join(f"{layer} ({kind})" for layer, kind in found.left_out.items())
    missing = (
        page.paragraph(page.text(f"Left out, as their mixers have no forget gates: layers {left}."), "note")
        if left
        else ""
    )
    sections = "".join(page.section(_TITLES[name], _figure(figures[name], name)) for name in _TITLES if name in figures)
    return "\n".join([
        f"<h1>{page.text(model)}</h1>",
        page.paragraph("What its gates and states do on one text.", "sub"),
        page.facts(facts), note, missing,
        page.section("By layer", page.table(HEAD, rows(found), numeric=True)),
        sections,
        page.section("Largest shares in that output", _shares(found)),
        page.section("The text", _text(text) + (f"<h3>The other text</h3>{_text(other)}" if other is not None else "")),
    ])  # fmt: skip


HEAD = ["layer", "kind", "heads", "τ of 5 %", "median τ", "τ of 95 %", "guaranteed", "rank", "half of output"]


def rows(found: Inspection) -> list[list[str]]:
    """One row per layer, for tables."""
    return [_row(layer) for layer in found.layers]


def _row(layer: LayerNumbers) -> list[str]:
    with np.errstate(divide="ignore"):
        low, middle, high = np.quantile(-1 / layer.mean_log_forget, (0.05, 0.5, 0.95))
    rank = "–" if layer.rank is None else f"{layer.rank[-1].mean():.1f} of {layer.sizes[1]}"
    heads = f"{layer.sizes[0]} × {layer.sizes[1]}"
    promised = number(layer.guaranteed, 1) if layer.guaranteed else "–"
    lengths = [number(float(x), 1) for x in (low, middle, high)]
    return [str(layer.layer), layer.kind, heads, *lengths, promised, rank, f"{layer.half_reach:,}"]


MEANING = (
    "τ: tokens after which a channel holds 1/e; guaranteed: median of what the lower bound alone gives. rank: "
    "effective rank of the state. half of output: so many last tokens make half of what outputs consist of."
)


def _shares(found: Inspection) -> str:
    lines = []
    for layer in found.layers:
        top = np.argsort(-np.abs(layer.shares))[:5]
        named = [f"{found.names[n]} ({found.token - n} back) {100 * layer.shares[n]:+.1f}%" for n in top]
        lines.append([str(layer.layer), *named, *[""] * (5 - len(named))])
    head = ["layer", "largest", *["next"] * 4]
    legend = page.paragraph(page.text(f"In the outputs at token {found.token} ({found.names[found.token]})."), "sub")
    return legend + page.table(head, lines) + page.paragraph(page.text(MEANING), "sub")


def _figure(figure: SavedFigure, name: str) -> str:
    caption = page.text(_CAPTIONS[name])
    svg = figure.svg.replace("<svg", f'<svg role="img" aria-label="{caption}"', 1)
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _text(text: str) -> str:
    shown = text if len(text) <= BEGINNING else f"{text[:BEGINNING]} …"
    return f'<pre dir="auto">{page.text(shown)}</pre>'
