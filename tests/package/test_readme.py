"""What the README tells people to type works: its commands run, in short form, in the order in which they stand."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hgrn2.cli.main import entry

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = [
    "train.budget_s=0", "train.steps=3", "train.batch_size=2", "train.sequence_length=32", "train.eval_tokens=200",
    "model.width=32", "model.layers=1", "model.glu_width=32", "model.mixer.head_size=16",
]  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines() if "hgrn2 " in line]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_hgrn2_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-texts").mkdir()
    for n in range(4):
        (tmp_path / "my-texts" / f"{n}.txt").write_text(f"Once upon a time there was a text, number {n}. " * 20)
    found = commands()
    assert {arguments[0] for arguments in found} >= {"data", "train", "eval", "generate"}
    for arguments in found:
        if arguments[0] == "bench" or "runs/demo" in arguments:  # speed and the demo have tests of their own
            continue
        short = {"train": ["--set", *SHORT], "reproduce": ["--dry-run"]}.get(arguments[0], [])
        short = [] if "--plan" in arguments else short  # nothing is trained
        assert entry([*arguments, *short]) == 0, (arguments, capsys.readouterr().err)
    assert (tmp_path / "runs" / "mine" / "report.html").exists()
    assert (tmp_path / "once.safetensors").exists()


def test_python_blocks_print_what_their_comments_say() -> None:
    compared = 0
    for block in blocks("python"):
        shown: dict[int, str] = {}

        def record(*values: object, shown: dict[int, str] = shown) -> None:
            shown[sys._getframe(1).f_lineno] = " ".join(map(str, values))

        exec(compile(block, "README.md", "exec"), {"print": record})
        for number, line in enumerate(block.splitlines(), 1):
            value = re.fullmatch(r"print\(.*\)  # ([-\d.e,_ ()\[\]]+)", line)  # a number or several, not prose
            if value:
                assert shown[number] == value[1], line
                compared += 1
    assert compared


def test_make_targets() -> None:
    targets = {line.split()[1] for block in blocks("sh") for line in block.splitlines() if line.startswith("make ")}
    assert {"demo", "test"} <= targets
    for target in sorted(targets):
        found = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr


def test_links_and_figures_of_the_documents_exist() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_ci_runs_the_readme_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make check" in script
    assert "make test" in script
