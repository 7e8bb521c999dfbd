"""The report of a run: the right numbers, safe whatever a model wrote, and there even without matplotlib."""

import base64
import builtins
import math
import re
import socket
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hgrn2 import environment as environment_module
from hgrn2.environment import environment
from hgrn2.errors import UserError
from hgrn2.report.answers import Answer
from hgrn2.report.plotting import log_ticks, smooth, thin, tick
from hgrn2.report.write import LayerGates, Sample, write_report

IMAGES = ("loss", "late_loss", "learning_rate", "gradient_norm", "speed", "gates")
SUMMARY = {
    "parameters": 4_200_000,
    "train_seconds": 754.2,
    "held_out": {
        "carried state": {"nats_per_token": 1.38212, "bits_per_byte": 1.99398, "perplexity": 3.98335},
        "windows of <256>": {"nats_per_token": 1.5, "bits_per_byte": None},
    },
}
VOID = {"meta", "path", "use", "br", "link", "rect"}


class Page(HTMLParser):
    """Tags, text and references of a page; fails on tags that do not match."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset")]
        self.ids += [v or "" for k, v in attrs if k == "id"]
        assert not any(k.startswith("on") for k, _ in attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


def run_metrics(steps: int = 400, every: int = 50) -> list[dict[str, Any]]:
    noise = np.random.default_rng(0).normal(size=steps + 1)
    records: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        same = {"step": step, "tokens": 1000 * step, "elapsed_s": 0.5 * step}
        loss = 1.3 + 4 * math.exp(-step / 40) + 0.03 * noise[step]
        rest = {"lr": 2e-3 * (1 - step / steps), "grad_norm": 0.5, "tokens_per_s": 2000.0 + noise[step]}
        records.append({"kind": "step", **same, "loss": loss, **rest})
        if step % every == 0:
            records.append({"kind": "eval", **same, "loss": loss + 0.1, "bits_per_byte": loss * 1.5})
    records.append({"kind": "event", "step": steps, "elapsed_s": 0.5 * steps, "text": "checkpoint <saved>"})
    return records


def layer_gates(layers: int = 4, channels: int = 32) -> list[LayerGates]:
    generator = np.random.default_rng(1)
    gates = []
    for layer in range(layers):
        lower_bound = np.full(channels, layer / layers, np.float32)
        forget = lower_bound + (1 - lower_bound) * generator.uniform(0.05, 0.95, channels)
        gates.append(LayerGates(lower_bound=lower_bound, mean_log_forget=np.log(forget), layer=len(gates)))
    return gates


def report(folder: Path, **changes: Any) -> Page:
    arguments: dict[str, Any] = {
        "config": {"model": {"layers": 4, "width": 64, "mixer": {"kind": "hgru2"}}, "optim": {"lr": 0.002}},
        "environment": {"cpu": "A processor", "gpu": None, "dirty": False},
        "metrics": run_metrics(),
        "summary": SUMMARY,
        "samples": [Sample(prompt="ROMEO:\n", text="  But soft\n\twhat light")],
        "gates": layer_gates(),
        **changes,
    }
    path = write_report(folder, **arguments)
    assert path == folder / "report.html"
    assert not list(folder.rglob("*.tmp")), "written whole, nothing left beside"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError("No module named 'matplotlib'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)


def test_a_full_report(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = report(tmp_path / "my run")
    for part in ("my run", "carried state", "1.3821", "1.9940 bits per byte", "perplexity 3.983", "4,200,000", "12:34"):
        assert part in page.text
    assert "windows of <256>" in page.text
    assert "1.5000" in page.text
    assert f"perplexity {math.exp(1.5):.3f}" in page.text
    for part in ("A processor", "hgru2", "peak learning rate", '"width": 64', "checkpoint <saved>", "held-out"):
        assert part in page.text
    assert "\n\twhat light" in page.text, "white space of samples is kept"
    for label in ("loss (nats per token)", "training time (minutes)", "tokens seen", "time scale τ (tokens)", "0.0005"):
        assert label in page.text, "images hold text"
    assert page.tags.count("svg") == len(IMAGES)
    assert len(page.ids) == len(set(page.ids)), "images must not share ids"
    for name in IMAGES:
        data = (tmp_path / "my run" / "figures" / f"{name}.png").read_bytes()
        assert data.startswith(b"\x89PNG")
        assert struct.unpack(">I", data[16:20])[0] > 600, "pixels wide"


def test_nothing_is_loaded_or_run(tmp_path: Path) -> None:
    page = report(tmp_path)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert all(reference.startswith("#") for reference in page.references)
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "@import" not in source
    assert source.count("url(") == source.count("url(#")
    assert str(tmp_path.parent) not in source


def test_what_a_model_wrote_is_shown_and_not_run(tmp_path: Path) -> None:
    bad = "<script>alert('x')</script> & </pre>\x00\x1b[0m \ud800 \r\nend"
    page = report(tmp_path, samples=[Sample(prompt=bad, text=bad)], config={"note": bad}, environment={"cpu": bad})
    assert "script" not in page.tags
    assert page.text.count("<script>alert('x')</script> & </pre>␀␛[0m ? \nend") >= 2
    source = (tmp_path / "report.html").read_bytes()
    assert b"<script" not in source
    assert b"\x00" not in source
    assert b"\x1b" not in source


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        run_metrics(steps=1, every=1),
        [record for record in run_metrics(steps=50, every=50) if record["kind"] == "eval"],
        run_metrics(steps=60, every=1000),
        [{**record, "loss": None, "grad_norm": None} for record in run_metrics(steps=60) if record["kind"] == "step"],
        [{**record, "elapsed_s": 0.0, "loss": 0.0} for record in run_metrics(steps=60) if record["kind"] == "step"],
    ],
    ids=["empty", "one step", "one measurement", "never measured", "never finite", "no time, no loss"],
)
def test_little_data(tmp_path: Path, metrics: list[dict[str, Any]]) -> None:
    page = report(tmp_path, metrics=metrics, gates=None, samples=[], summary={}, config={}, environment={})
    measured = [record for record in metrics if record["kind"] == "eval"]
    assert "Time scales" not in page.text
    assert "Samples" not in page.text
    if measured:
        assert f"held-out at step {measured[-1]['step']}" in page.text
        assert f"{measured[-1]['loss']:.4f}" in page.text
    else:
        assert "Nothing was measured" in page.text


def test_further_texts_and_mfu(tmp_path: Path) -> None:
    metrics = [
        {**r, "mfu": 0.25} if r["kind"] == "step" else {**r, "corpora": {"<wiki>": 2.5, "code": None}}
        if r["kind"] == "eval" else r
        for r in run_metrics(steps=60, every=20)
    ]  # fmt: skip
    page = report(tmp_path, metrics=metrics)
    assert "<wiki>" in page.text
    assert page.text.count("2.5000") == 3
    assert (tmp_path / "figures" / "mfu.png").is_file()


def test_without_matplotlib_there_are_tables(tmp_path: Path, no_matplotlib: None) -> None:
    page = report(tmp_path)
    assert "svg" not in page.tags
    assert "pip install 'hgrn2[plot]'" in page.text
    assert "1.3821" in page.text
    assert "median τ" in page.text
    assert f"{[r for r in run_metrics() if r['kind'] == 'eval'][-1]['loss']:.4f}" in page.text
    assert not (tmp_path / "figures").exists()


def test_the_same_data_give_the_same_page(tmp_path: Path) -> None:
    report(tmp_path / "run")
    before = (tmp_path / "run" / "report.html").read_bytes()
    report(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").read_bytes() == before


def test_time_scales() -> None:
    gates = LayerGates(lower_bound=np.array([0.0, 0.5, 0.9]), mean_log_forget=np.array([-1.0, -0.1, 0.0]), layer=0)
    assert gates.time_scales() == pytest.approx([1.0, 10.0, 1e7])
    assert gates.guaranteed() == pytest.approx([0.0, -1 / math.log(0.5), -1 / math.log(0.9)])
    for wrong in (np.zeros(2), np.zeros((3, 1)), np.zeros(0)):
        with pytest.raises(UserError, match="two vectors of one length"):
            LayerGates(lower_bound=np.zeros(3), mean_log_forget=wrong, layer=0)


@pytest.mark.parametrize(("layers", "channels"), [(1, 1), (48, 16)])
def test_gate_figures_of_any_size(tmp_path: Path, layers: int, channels: int) -> None:
    pytest.importorskip("matplotlib")
    gates = layer_gates(layers, channels)
    gates[-1] = LayerGates(
        lower_bound=np.zeros(channels), mean_log_forget=np.zeros(channels), layer=layers - 1
    )  # never forgets
    report(tmp_path, metrics=[], gates=gates)
    assert (tmp_path / "figures" / "gates.png").stat().st_size > 5000


def test_smoothing_keeps_lines_and_skips_holes() -> None:
    line = np.linspace(5, 1, 400)
    assert smooth(line, 0.1)[:380] == pytest.approx(line[:380])
    assert smooth(np.array([1.0, np.nan, 1.0, np.nan]), 1.0) == pytest.approx([1.0, np.nan, 1.0, 1.0], nan_ok=True)
    noisy = np.random.default_rng(0).normal(size=2000)
    assert np.std(smooth(noisy, 0.1)[300:]) < 0.2


def test_thinning_keeps_spikes() -> None:
    x, y = np.arange(100_000.0), np.zeros(100_000)
    y[77_777] = 9.0
    y[5] = np.nan
    thin_x, thin_y = thin(x, y)
    assert len(thin_x) <= 1502
    assert thin_y.max() == 9.0
    assert thin_x[np.argmax(thin_y)] == 77_777
    assert (np.diff(thin_x) > 0).all()
    assert (thin_x[0], thin_x[-1]) == (0, 99_999)


@pytest.mark.parametrize(("low", "high"), [(1.3, 8.0), (1.41, 1.47), (0.1, 1e6), (2e-5, 3e-5), (3.0, 3.0001)])
def test_log_ticks(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 2 <= len(set(ticks)) <= 16
    assert ticks == sorted(ticks)
    assert all(low * 0.999 <= one <= high * 1.001 for one in ticks)


def test_tick_labels() -> None:
    assert [tick(value) for value in (0, 0.0025, 950, 1000, 12_500, 1e7, 1.05e6)] == [
        *("0", "0.0025", "950", "1k", "12.5k", "10M", "1.05M"),
    ]


def test_environment_names_versions_and_no_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = environment()
    assert {
        "hgrn2",
        "commit",
        "dirty",
        "python",
        "torch",
        "numpy",
        "triton",
        "platform",
        "cpu",
        "cores",
        "threads",
    } <= set(found)
    assert found["numpy"] == np.__version__
    assert found["cores"] >= 1
    assert found["date_utc"].endswith("Z")
    text = " ".join(str(value) for value in found.values())
    assert not {socket.gethostname(), Path.home().name} & set(text.split())
    assert str(Path(environment_module.__file__).parents[3]) not in text
    monkeypatch.setattr(environment_module, "_git", lambda *arguments: None)
    assert environment()["commit"] is None


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fma avx avx2", "AVX2"), ("avx avx2 avx512f avx512bw", "AVX-512"), ("avx", "AVX"), ("sse2", None)],
)
def test_environment_names_the_vectors(
    flags: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name such as "AMD EPYC" does not say them, and no number means anything without them."""
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu {flags} rdseed\n")
    monkeypatch.setattr(environment_module, "_CPU_INFO", info)
    assert (environment()["cpu"], environment()["vectors"]) == ("AMD EPYC", expected)
    info.unlink()
    assert environment()["vectors"] is None


def test_answers_to_images_stand_in_the_page(tmp_path: Path) -> None:
    """Colour and grey ones, right and wrong, with names that are escaped; each image is a PNG that says its size."""
    grey, colour = np.full((4, 5, 1), 200, np.uint8), np.zeros((3, 3, 3), np.uint8)
    seen = [
        Answer(image=grey, label="<cat>", guess="<cat>", chance=0.97),
        Answer(image=colour, label="dog", guess="<cat>", chance=0.5),
    ]
    page = write_report(tmp_path, config={}, environment={}, metrics=[], summary={}, samples=[], gates=None, seen=seen)
    text = page.read_text(encoding="utf-8")
    assert "1 of these 2 held-out images are named right" in text
    assert "&lt;cat&gt; 97%" in text
    assert "<b>is dog</b>" in text
    assert "<cat>" not in text
    assert text.count('figure class="wrong"') == 1
    found = [base64.b64decode(code) for code in re.findall(r"data:image/png;base64,([^\"]+)", text)]
    sizes = [(*struct.unpack(">II", one[16:24]), one[25]) for one in found]
    assert sizes == [(5, 4, 0), (3, 3, 2)]
    pixels = zlib.decompress(found[0][found[0].index(b"IDAT") + 4 : found[0].index(b"IEND") - 8])
    assert pixels == 4 * (b"\0" + 5 * b"\xc8")


def test_settings_of_a_part_do_not_hide_those_of_the_run(tmp_path: Path) -> None:
    config = {"data": {"curriculum": {"steps": 0, "batch_size": 3}}, "train": {"steps": 12_345, "batch_size": 64}}
    page = write_report(tmp_path, config=config, environment={}, metrics=[], summary={}, samples=[], gates=None)
    shown = page.read_text(encoding="utf-8")
    assert "<dt>steps</dt><dd>12,345</dd>" in shown
    assert "<dt>batch size</dt><dd>64</dd>" in shown
