"""`hgrn2 inspect`: what docs/inspect.md shows works, figures are not empty, mistakes are one line."""

import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import CONFIGS, config_of

from hgrn2.cli.main import entry
from hgrn2.data.tokenizer import ByteTokenizer, CharTokenizer
from hgrn2.inspect.measure import visible
from hgrn2.layers.config import MixerConfig
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import save_model

PAGE = (Path(__file__).parents[2] / "docs" / "inspect.md").read_text(encoding="utf-8")
LETTERS = "".join(chr(code) for code in range(32, 127)) + "\né日"
FIGURES = {"time_scales", "memory", "gates", "state", "reach", "contributions", "difference"}


def saved(folder: Path, name: str = "hgru2", **changes: Any) -> Path:
    torch.manual_seed(1)
    tokenizer = CharTokenizer(LETTERS)
    save_model(folder, LanguageModel(config_of(name, vocab_size=tokenizer.vocab_size, **changes)), tokenizer)
    return folder


class Requests(HTMLParser):
    """Collects every address that a page names."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [value or "" for name, value in attrs if name.rpartition(":")[2] in ("href", "src", "srcset")]


def figure(path: Path) -> torch.Tensor:
    """[H,W] of a PNG file, grey."""
    image = pytest.importorskip("matplotlib.image", reason="figures need matplotlib")
    return torch.from_numpy(image.imread(path))[..., :3].mean(-1)


def test_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    saved(Path("runs/demo"))
    Path("my.txt").write_text("Now is the winter of our discontent.\n" * 5 + "é$\\日_{x}", encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line)
        if "--text" not in words and "--file" not in words:
            words += ["--text", "The text of a run that is none."]
        capsys.readouterr()
        assert entry(words[1:]) == 0, capsys.readouterr().err
        said = capsys.readouterr().out
    numbers = json.loads(said)
    assert numbers["token"] == 100
    assert [layer["heads"] for layer in numbers["layers"]] == [2, 2, 2]
    assert [one["layer"] for one in numbers["difference"]] == [0, 1, 2]
    assert sum(share["share"] for share in numbers["layers"][0]["largest_shares"]) < 1.5
    folder = tmp_path / "looked" / "two"
    kept = json.loads((folder / "inspect.json").read_text(encoding="utf-8"))
    assert kept["layers"] == numbers["layers"]
    figures = {path.stem: figure(path) for path in (folder / "figures").glob("*.png")}
    assert set(figures) == FIGURES
    for name, pixels in figures.items():
        assert float(pixels.std()) > 0.02, f"{name} is empty"
        assert min(pixels.shape) > 250
    reader = Requests()
    reader.feed((folder / "inspect.html").read_text(encoding="utf-8"))
    assert "script" not in reader.tags
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in reader.found), reader.found
    assert {"svg", "table", "pre"} <= reader.tags


def test_python_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "inspect.md", "exec"), {})
    assert "torch.Size([2, 16])" in capsys.readouterr().out


@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_kind(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name not in ("hgru1", "hybrid"):  # their figures have nothing that the others' lack, and take a second each
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = saved(tmp_path / "model", name)
    command = ["inspect", str(folder), "--text", "To be, or not", "--other", "to see", "--json"]
    kind = config_of(name).mixer.kind
    assert entry(command) == (2 if kind == "attention" else 0)
    numbers = json.loads(capsys.readouterr().out)
    if "error" in numbers:
        assert kind in numbers["error"]
        return
    kinds = {layer["layer"]: layer["kind"] for layer in numbers["layers"]}
    kinds |= {layer["layer"]: layer["kind"] for layer in numbers["left_out"]}
    assert [kinds[n] for n in range(3)] == [mixer.kind for mixer in config_of(name).mixers]
    text = (folder / "inspect" / "inspect.html").read_text(encoding="utf-8")
    assert ("layers 1 (attention)" in text) == (name == "hybrid")
    assert all(layer["effective_rank"] is None for layer in numbers["layers"] if layer["kind"].startswith("hgru1"))


def test_the_held_out_text_of_a_run(
    tmp_path: Path, tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    short = [
        "train.budget_s=0", "train.steps=2", "train.batch_size=2", "train.sequence_length=16", "train.eval_tokens=64",
        "model.width=16", "model.layers=2", "model.glu_width=16", "model.mixer.head_size=16",
    ]  # fmt: skip
    run = tmp_path / "run"
    assert entry(["train", "lm", "small", "--data", str(tiny_corpus), "--out", str(run), "--set", *short]) == 0
    capsys.readouterr()
    assert entry(["inspect", str(run), "--limit-tokens", "50"]) == 0
    said = capsys.readouterr().out
    assert "(step 2): 50 tokens" in said
    assert (run / "inspect" / "inspect.html").exists()


def test_one_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    model = saved(tmp_path / "model", mixer=MixerConfig(head_size=16))
    assert entry(["inspect", str(model), "--text", "T"]) == 0
    assert "1 tokens" in capsys.readouterr().out
    drawn = [path.stem for path in (model / "inspect" / "figures").iterdir()]
    assert drawn == ["time_scales"]  # nothing along a text, and of one head nothing to compare


def refused(arguments: list[object], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    assert entry([str(word) for word in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hgrn2: error: ")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved(tmp_path / "model")
    attention = saved(
        tmp_path / "attention", mixer=MixerConfig(kind="attention", head_size=8), lower_bound="none"
    )  # fmt: skip
    command = ["inspect", model, "--out", tmp_path / "out"]
    refused([*command, "--text", ""], capsys, "no text")
    refused([*command, "--text", "ß"], capsys, "character 'ß'")
    refused([*command, "--text", "a", "--file", "b"], capsys, "not both")
    refused([*command, "--file", tmp_path / "absent"], capsys, "absent")
    refused([*command], capsys, "give --text or --file")
    refused([*command, "--text", "abc", "--token", 3], capsys, "no token 3 in a text of 3")
    refused([*command, "--text", "abc", "--limit-tokens", 0], capsys, "--limit-tokens is 0")
    refused(["inspect", attention, "--text", "abc"], capsys, "no layer of this model", "attention")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    refused([*command, "--text", "abc"], capsys, "already exists", "--overwrite")
    assert entry([*map(str, command), "--text", "abc", "--overwrite"]) == 0
    assert (tmp_path / "out" / "inspect.html").exists()


def test_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert entry(["inspect", str(saved(tmp_path / "model")), "--text", "abc"]) == 0
    assert "hgrn2[plot]" in capsys.readouterr().out
    assert "hgrn2[plot]" in (tmp_path / "model" / "inspect" / "inspect.html").read_text(encoding="utf-8")


def test_names_of_tokens() -> None:
    assert [visible(text) for text in (" ", "\n", "a b", "", "\x00", "é")] == ["␣", "⏎", "a␣b", "·", "·", "é"]
    assert visible(ByteTokenizer().decode([0xC3])) == "�"


def test_help_loads_no_torch() -> None:
    code = "import sys; from hgrn2.cli.main import entry; assert entry(['inspect', '--help']) == 0"
    code += "; print({'torch', 'matplotlib', 'numpy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "set()"
