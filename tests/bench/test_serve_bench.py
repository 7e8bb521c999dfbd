"""`hgrn2 bench serve`: every scenario in short, against a server of its own."""

from pathlib import Path

import pytest
import torch

from hgrn2.cli.main import entry
from hgrn2.data.tokenizer import CharTokenizer
from hgrn2.layers.config import MixerConfig
from hgrn2.models.config import ModelConfig
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import save_model
from hgrn2.rows import read_rows

pytest.importorskip("fastapi", reason="pip install 'hgrn2[serve]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = CharTokenizer(map(chr, range(32, 127)))
    mixer = MixerConfig(head_size=8)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, width=16, layers=1, glu_width=16, mixer=mixer)
    path = tmp_path_factory.mktemp("bench") / "small"
    save_model(path, LanguageModel(config), tokenizer)
    return path


SHORT = ["--int8-context", "20", "--int8-tokens", "12"]


def test_every_scenario(folder: Path, tmp_path: Path) -> None:
    scenarios = ["closed", "open", "long-prompt", "context", "state", "memory", "transformers", "int8"]
    options = "--streams 1 3 --rates 20 --seconds 0.3 --prompt 8 --tokens 12 --long-prompt 300 --contexts 16 200"
    command = ["bench", "serve", str(folder), "--out", str(tmp_path), "--scenarios", *scenarios, *options.split()]
    assert (
        entry([*command, *["--state-tokens", "300", "--requests", "100", "--slots", "4", "--threads", "1", *SHORT]])
        == 0
    )
    rows = read_rows(tmp_path / "serve.jsonl")
    found = [(row.case["scenario"], row.subject) for row in rows]
    closed = [("closed", "generate loop"), *[("closed", "hgrn2")] * 2]
    wanted = [*closed, ("open", "hgrn2"), *[("long-prompt", "hgrn2")] * 2, *[("context", "hgrn2")] * 2]
    wanted += [("state", "hgrn2"), ("memory", "hgrn2"), *[("closed", "transformers")] * 2, *[("int8", "hgrn2")] * 2]
    assert found == wanted
    exact, eight = rows[-2:]
    assert eight.details["state_bytes"] == exact.details["state_bytes"] * 9 // 32
    assert exact.details["same_greedy_tokens"] == 12
    assert eight.value == pytest.approx(exact.value, rel=0.02)
    for row in rows:
        assert row.value > 0
        assert row.details.get("failed", 0) == 0
    (memory,) = (row for row in rows if row.case["scenario"] == "memory")
    assert memory.details["bytes_after_all"] > 1 << 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--streams", "0"], "--streams must be in [1, 4096]"),
        (["--rates", "-1"], "--rates must be in (0, 10,000]"),
        (["--requests", "5"], "--requests is 5; it must be at least 100"),
        (["--scenarios", "closed", "closed"], "--scenarios: a value is repeated"),
    ],
)
def test_bad_input(folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry(["bench", "serve", str(folder), *options]) == 2
    assert message in capsys.readouterr().err
