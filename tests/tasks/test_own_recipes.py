"""Recipes of one's own, MODULE:NAME: what docs/training.md tells works, runs go on, mistakes are one line."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hgrn2.cli.main import entry
from hgrn2.files import read_json
from hgrn2.tasks.named import own_recipe, recipe_of
from hgrn2.train.config import RunConfig

PAGE = (
    (Path(__file__).parents[2] / "docs" / "training.md")
    .read_text(encoding="utf-8")
    .partition("\n## A learning rate")[0]
)
SHORT = [
    "train.steps=2", "train.batch_size=2", "train.eval_every=0", "train.save_every=0", "train.eval_tokens=64",
    "train.budget_s=0", "model.width=16", "model.layers=1", "model.glu_width=16", "model.mixer.head_size=8",
]  # fmt: skip
LANGUAGE = ["train.sequence_length=16"]
RECALL = ["data.train=16x2x8", "data.test=16x2x4"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, in which modules are written; they are forgotten afterwards. No reports are drawn."""
    monkeypatch.chdir(tmp_path)
    for task in ("lm", "mqar", "classify"):
        monkeypatch.setattr(f"hgrn2.tasks.{task}.task.write_report", lambda *_, **__: None)
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path
    assert sys.path == path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def table(path: Path) -> None:
    rows = "".join(f"{'good fine' if n % 2 else 'bad poor'} {n},{n % 2}\n" for n in range(24))
    path.write_text(f"review,label\n{rows}")


def test_the_page(here: Path, tiny_corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, program = blocks("python")
    (here / "mine.py").write_text(module)
    (here / "corpora").mkdir()
    (here / "corpora" / "mine").symlink_to(tiny_corpus)
    table(here / "reviews.csv")
    (own,) = re.findall(r"\n## A recipe of your own\n.*?```sh\n(.*?)```", PAGE, re.DOTALL)  # tests/train has the others
    commands = [shlex.split(line)[1:] for line in own.splitlines()]
    assert [command[1] for command in commands] == ["lm", "lm", "mqar", "classify"]
    for command in commands:
        kind = {"lm": LANGUAGE, "mqar": RECALL, "classify": ["data.multiple=8"]}[command[1]]
        plain = command[: command.index("--set")] if "--set" in command else command
        plain = [*plain, "--data", str(tiny_corpus)] if command[1] == "lm" and "--data" not in plain else plain
        plain = [*plain, "--tokenizer", "bytes"] if command[1] == "classify" else plain
        assert entry([*plain, "--set", *SHORT, *kind]) == 0, capsys.readouterr().err
    config = read_json(here / "runs" / "deep" / "config.json")
    assert (config["optim"]["lr"], config["train"]["keep_best"], config["model"]["vocab_size"]) == (3e-3, True, 257)
    assert read_json(here / "runs" / "recall" / "config.json")["optim"]["warmup_steps"] == 80
    config = read_json(here / "runs" / "reviews" / "config.json")
    assert (config["optim"]["lr"], config["task"], config["data"]["own"]["kind"]) == (2e-3, "reviews.csv", "text")
    assert config["model"]["classes"] == 2
    small = program.replace('recipe("demo")', 'replace(recipe("demo"), data=DataConfig(source="corpora/mine"))')
    assert small != program
    exec(f"from dataclasses import replace\nfrom hgrn2.train.config import DataConfig\n{small}", {})
    assert (here / "runs" / "short" / "summary.json").exists()


def test_a_run_goes_on_while_the_recipe_is_the_same(
    here: Path, tiny_corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "from hgrn2.tasks.lm.recipes import demo\nfrom dataclasses import replace\nfirst = demo()\n"
    (here / "goes_on.py").write_text(text)
    command = ["train", "lm", "goes_on:first", "--data", str(tiny_corpus), "--out", "run", "--set", *SHORT, *LANGUAGE]
    assert entry(command) == 0
    capsys.readouterr()
    assert entry([*command, "train.steps=3"]) == 0
    assert "resumed from step 2" in capsys.readouterr().out
    del sys.modules["goes_on"]
    (here / "goes_on.py").write_text(f"{text}first = replace(first, optim=replace(first.optim, lr=0.25))\n# changed")
    assert entry(command) == 2
    assert "optim.lr is 0.008 there and 0.25 here" in capsys.readouterr().err


def test_classifiers_of_folders(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images under a recipe of one's own; options that choose among ours are refused beside it."""
    import numpy as np

    from hgrn2.data.classes import Described, Examples, write_examples

    splits = {name: Examples(a=np.zeros((8, 8, 8, 1), np.uint8), labels=np.arange(8) % 2) for name in
              ("train", "valid", "test")}  # fmt: skip
    write_examples(here / "spots", Described(task="spots", classes=("a", "b"), vocab_size=256, origin="-"), splits)
    (here / "seen.py").write_text(
        "from hgrn2.tasks.classify.recipes import recipe\ndef spots(): return recipe('fashion-mnist', size='small')\n"
    )
    for verb, option in (("image", "--size"), ("lra", "--size"), ("image", "--model")):
        command = ["train", verb, "seen:spots", "--data", "spots", "--out", f"run-{verb}"]
        value = "small" if option == "--size" else "hgrn1"
        assert entry([*command, option, value]) == 2
        assert f"{option} chooses among our recipes; seen:spots is one of your own" in capsys.readouterr().err
    command = ["train", "image", "seen:spots", "--data", "spots", "--out", "run", "--device", "cpu"]
    assert entry([*command, "--set", *SHORT[:6], "model.width=16", "model.layers=1", "model.glu_width=16"]) == 0
    config = read_json(here / "run" / "config.json")
    assert (config["model"]["classes"], config["model"]["channels"]) == (2, 1)
    assert entry(["train", "image", "seen:spots"]) == 2
    assert "seen:spots needs its examples: --data FOLDER" in capsys.readouterr().err


BAD = {
    "nowhere:run": "there is no module 'nowhere', neither in ",
    "bad_one:": "recipe 'bad_one:': write it as MODULE:NAME",
    ":run": "write it as MODULE:NAME",
    "bad_one:quik": "recipe bad_one:quik: the module has no 'quik'; did you mean quick?",
    "bad_one:quick": "recipe bad_one:quick gives a value of class MQARRun; this command needs RunConfig",
    "bad_one:number": "recipe bad_one:number gives a value of class int; this command needs RunConfig",
    "bad_one:needs": "recipe bad_one:needs takes arguments; give a function without any",
    "bad_one:breaks": "recipe bad_one:breaks: ZeroDivisionError: division by zero (",
    "bad_one:typo": "recipe bad_one:typo: TypeError: OptimConfig.__init__() got an unexpected keyword argument 'lrr' (",
    "bad_one:deep": "recipe bad_one:deep: JSONDecodeError: Expecting value: line 1 column 1 (char 0) (",
    "bad_one:nonsense": "recipe bad_one:nonsense: lr is -1.0; it must be positive",
    "bad_two:run": "recipe bad_two:run: ModuleNotFoundError: No module named 'not_installed_at_all' (",
    "bad_three:run": "recipe bad_three:run: SyntaxError: ",
    "bad_four:run": "recipe bad_four:run: SystemExit: 3 (",
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_line(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "bad_one.py").write_text(
        "from hgrn2.tasks.mqar.recipes import small as quick\n"
        "from hgrn2.train.config import OptimConfig\n"
        "number = 3\n"
        "def needs(steps): ...\n"
        "def breaks(): return 1 / 0\n"
        "def typo(): return OptimConfig(lrr=1)\n"
        "def deep():\n    import json\n    return json.loads('nothing')\n"
        "def nonsense(): return OptimConfig(lr=-1)\n"
    )
    (here / "bad_two.py").write_text("import not_installed_at_all\n")
    (here / "bad_three.py").write_text("def run(:\n")
    (here / "bad_four.py").write_text("raise SystemExit(3)\n")
    assert entry(["train", "lm", name, "--out", "run"]) == 2
    error = capsys.readouterr().err
    assert BAD[name] in error
    assert len(error.strip().splitlines()) == 1
    assert not (here / "run").exists()
    if BAD[name].endswith("("):
        assert re.search(r"bad_\w+\.py, line \d+\)", error)


def test_values_and_functions_alike(here: Path) -> None:
    (here / "alike.py").write_text("from hgrn2.tasks.lm.recipes import demo\nvalue = demo()\nfunction = demo\n")
    assert own_recipe("alike:value", RunConfig) == own_recipe("alike:function", RunConfig)
    assert recipe_of("alike:value", {}, RunConfig) == own_recipe("alike:value", RunConfig)
