"""What docs/transformers.md tells people to type works, in the order in which it stands; the hub is a folder here."""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import run
from typing import Any

import published
import pytest
from small_classifiers import vision_config

import hgrn2
from hgrn2.cli.main import VERBS, entry
from hgrn2.data.tokenizer import ByteTokenizer
from hgrn2.models.saved import save_model
from hgrn2.models.vision import VisionClassifier

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "transformers.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_the_page(
    make: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model("runs/demo", make("hgru2", vocab_size=257), ByteTokenizer())
    published.made(tmp_path / "hub", "fla", shards=2)
    save_model("runs/cifar10", VisionClassifier(vision_config("patches", image_size=32)))
    names: dict[str, Any] = {}
    blocks = re.findall(r"```(sh|python)\n(.*?)```", PAGE, re.DOTALL)
    assert [language for language, _ in blocks] == ["python", "sh", *["python"] * 4, "sh", "python"]
    for language, block in blocks:
        if language == "sh":
            for line in block.splitlines():
                assert entry(shlex.split(line)[1:]) == 0, capsys.readouterr().err
        else:
            block = block.replace("fla-hub/hgrn2-1.3B-100B", "hub")
            exec(compile(block, "transformers.md", "exec"), names)
    assert (tmp_path / "mine" / "config.json").is_file()
    assert (tmp_path / "trained" / "checkpoint-4" / "model.safetensors").is_file()
    assert (tmp_path / "tuned" / "checkpoint-2" / "model.safetensors").is_file()
    assert names["model"].config.id2label == {0: "dark", 1: "bright"}
    assert names["cache"].get_seq_length() == len("JULIET:\nO Romeo")


def test_what_others_call_otherwise_has_the_name_here_that_the_table_says() -> None:
    rows = [line.split("|") for line in (DOCS / "coming-from.md").read_text(encoding="utf-8").splitlines()]
    cells = [row[5] for row in rows if len(row) == 7]
    words = [word for cell in cells for word in re.findall(r"`(hgrn2[^`]*)`", cell)]
    assert len(words) >= 10
    for word in words:
        if " " in word:
            verb, *task = [part for part in word.split()[1:] if not part.startswith("-")]
            assert set(task) <= set(VERBS[verb][1]), word
        else:
            found: Any = hgrn2
            for part in word.split(".")[1:]:
                found = getattr(found, part)


def test_without_transformers_one_line_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import hgrn2\n"
        "try:\n    hgrn2.HGRN2Config\nexcept hgrn2.UserError as error:\n    print(error)"
    )
    found = run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "transformers is not installed: pip install 'hgrn2[hf]'\n"
