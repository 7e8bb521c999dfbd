"""Recall runs end to end: something is learned, resumed runs are the same run, and mistakes are told in one line."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro

from hgrn2.cli.main import entry
from hgrn2.cli.study import StudyMQAR
from hgrn2.cli.train_mqar import TrainMQAR
from hgrn2.errors import UserError
from hgrn2.models.count import parameters, state_bytes
from hgrn2.models.language import LanguageModel
from hgrn2.reproduce.recall import best, finished
from hgrn2.rows import Row, measurement, read_rows
from hgrn2.tasks.mqar.config import MQARRun
from hgrn2.tasks.mqar.recipes import RECIPES, VARIANTS, changed, recipe, with_variant
from hgrn2.tasks.mqar.run import state_numbers, train_mqar
from hgrn2.tasks.mqar.task import MQARTask, query_logits

PAGE = Path(__file__).parents[3] / "docs" / "mqar.md"
TINY = ("train.steps=4", "train.batch_size=4", "train.save_every=2", "train.log_every=1", "train.eval_every=0",
        "data.train=16x2x16,32x4x16", "data.test=16x2x6,32x4x6")  # fmt: skip


def tiny(*more: str) -> MQARRun:
    return changed(recipe("small"), model="hgrn2-conv", head_size=8, width=16, assignments=(*TINY, *more))


def test_it_learns_to_recall(tmp_path: Path) -> None:
    """4 pairs of a vocabulary of 64, n = 16. Any of the four values in sight would be right in a quarter of all cases,
    any value at all in one of 32; gates that start at a half are not so far after these steps (memory=0: 0.59)."""
    settings = ("train.steps=200", "data.train=16x1x6400,16x2x6400,16x4x6400", "data.test=16x4x500",
                "train.eval_every=0", "train.save_every=0")  # fmt: skip
    torch.set_num_threads(1)
    run = changed(recipe("small"), head_size=16, assignments=settings)
    found = train_mqar(run, tmp_path / "run", quiet=True).summary["held_out"]["16 tokens, 4 pairs"]
    assert found["accuracy"] > 0.85
    assert found["queries"] == 2000


@pytest.mark.parametrize("name", ["hgrn2", "hgrn2-conv", "hgrn1"])
def test_gates_start_where_they_are_told(name: str) -> None:
    """1/(1-f) of a text that says nothing: from 4 to 40 tokens in every head, for HGRN1 over the layer."""
    run = with_variant(tiny("model.init.memory=40"), name, head_size=8, width=16)
    model = LanguageModel(run.model)
    mixer: Any = model.backbone.blocks[0].mixer
    silent = torch.zeros(1, 9, 16)
    forget = mixer.forget_logits(silent).double().sigmoid()
    tokens = 1 / (1 - forget[0, -1].detach())
    ends = (0, 15) if name == "hgrn1" else (0, 7, 8, 15)
    assert tokens[list(ends)] == pytest.approx([4, 40] * (len(ends) // 2), rel=1e-3)
    ratios = tokens[1:8] / tokens[:7]
    assert ratios == pytest.approx(ratios[:1].repeat(7), rel=1e-3)


def test_memory_of_another_size_is_another_run(tmp_path: Path) -> None:
    run = tiny("model.init.memory=40")
    train_mqar(run, tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match=r"other settings: model\.init\.memory is .* there and 20.0 here"):
        train_mqar(tiny("model.init.memory=20"), tmp_path / "run", quiet=True)


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    run = tiny("train.keep=2")
    whole = train_mqar(run, tmp_path / "whole", quiet=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    first, last = sorted(path.name for path in (tmp_path / "parts" / "checkpoints").iterdir())
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / last)  # as if it had been killed after step 2
    assert first.endswith("2")
    (tmp_path / "parts" / "summary.json").unlink()
    parts = train_mqar(run, tmp_path / "parts", quiet=True)
    assert parts.step == whole.step == 4
    weights = [tmp_path / name / "checkpoints" / last / "model.safetensors" for name in ("whole", "parts")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert parts.summary["held_out"] == whole.summary["held_out"]
    for name in ("summary.json", "report.html", "metrics.jsonl", "environment.json"):
        assert (tmp_path / "whole" / name).exists()
    page = (tmp_path / "whole" / "report.html").read_text(encoding="utf-8")
    assert '<span class="unit">accuracy</span>' in page
    assert "32 tokens, 4 pairs" in page


def test_parts_of_a_batch_are_the_batch() -> None:
    run = tiny("train.accumulate=2")
    task = MQARTask(run, torch.device("cpu"))
    whole, halves = task.batch(1, 0, 1), [task.batch(1, part, 2) for part in (0, 1)]
    for n, tensor in enumerate(whole):
        assert torch.equal(tensor, torch.cat([half[n] for half in halves]))


def test_the_loss_asks_at_queries_only() -> None:
    """It equals cross-entropy with every other target ignored, and says nothing about what stands elsewhere."""
    run = tiny()
    model, task = LanguageModel(run.model), MQARTask(run, torch.device("cpu"))
    tokens, positions, answers = task.batch(0, 0, 1)
    targets = torch.full_like(tokens, -100).scatter(1, positions, answers)
    logits = model(tokens)[0]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert float((task.loss(model, (tokens, positions, answers)) - expected).abs().detach()) < 1e-5
    assert torch.equal(query_logits(model, tokens, positions).argmax(-1),
                       logits.argmax(-1).gather(1, positions))  # fmt: skip


def test_accuracy_counts_right_answers() -> None:
    """A head that always names the right value, and one that never does."""
    run = tiny()
    task, model = MQARTask(run, torch.device("cpu")), LanguageModel(run.model)

    class Oracle(LanguageModel):
        shift = 0

        def hidden(self, tokens, *rest, **options):  # type: ignore[no-untyped-def]
            pairs = {tuple(row[at : at + 2].tolist()) for row in tokens for at in range(0, 8, 2)}
            assert pairs
            features = torch.zeros(*tokens.shape, run.model.vocab_size)
            for n, row in enumerate(tokens.tolist()):
                bound = dict(zip(row[0:8:2], row[1:8:2], strict=True))
                for at, token in enumerate(row):
                    features[n, at, (bound.get(token, 0) + self.shift) % run.model.vocab_size] = 1
            return features, None

        def logits(self, features):  # type: ignore[no-untyped-def]
            return features

    oracle = Oracle(run.model)
    assert task.recall(oracle)[1].accuracy == 1
    oracle.shift = 1
    assert task.recall(oracle)[1].accuracy == 0
    shortened = task.recall(model, tokens=64)
    assert [one.examples for one in shortened] == [4, 2]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_model_trains_and_counts_right(name: str) -> None:
    run = with_variant(tiny(), name, head_size=8, width=16)
    model, task = LanguageModel(run.model), MQARTask(run, torch.device("cpu"))
    task.loss(model, task.batch(0, 0, 1)).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert set(idle) <= {"backbone.lower_bounds"}  # of one layer, whose bound is zero
    assert parameters(run.model).total == sum(p.numel() for p in model.parameters())
    _, state = model(torch.zeros(1, run.train.sequence_length, dtype=torch.long))
    assert state.nbytes == state_bytes(run.model, tokens=run.train.sequence_length) == 4 * state_numbers(run)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_fit_together(name: str) -> None:
    run = recipe(name)
    assert run == changed(run)
    assert run.model.mixer.conv_width == (0 if name == "h100" else 4)
    for model in VARIANTS:
        with_variant(run, model, head_size=16, width=64)


def test_the_published_amount_of_training() -> None:
    run = recipe("zoology")
    assert run.train.steps == 22_464
    assert sum(one.examples for one in run.data.train_segments) == 180_000
    assert run.train.steps == 32 * (390 + 4 * 78)
    assert [str(one) for one in run.data.test_segments][-1] == "1024x256x1000"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["smal"], "there is no recipe 'smal'; did you mean small? (choose from small, zoology, h100)"),
        (["--model", "gru"], "there is no model 'gru' (choose from hgrn2, hgrn2-conv, hgrn1, gla,"),
        (["--head-size", "7"], "width 64 does not divide into heads of head_size 7"),
        (["--head-size", "0"], "head_size is 0; it must be at least 1"),
        (["--width", "0"], "width is 0; it must be at least 1"),
        (["--set", "data.train=32x4"], "segment '32x4': write it as LENGTHxPAIRSxEXAMPLES, such as 64x4x100000"),
        (["--set", "data.train=32x4x9"], "segment 32x4x9: fewer examples than the batch size of 64"),
        (["--set", "data.test=256x40x9"], "vocab_size 64 has 31 keys; 40 pairs need as many"),
        (["--set", "train.sequence_length=16"], "sequence_length is 16; the longest training segment has 32 tokens"),
        (["--set", "model.mixer.bias=false"], "init.memory is the bias of the forget gates: mixer.bias must be true"),
        (["--set", "model.init.memory=2"], "init memory is 2.0; use 0, or 4 to 1e6"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry(["train", "mqar", "--out", str(tmp_path / "run"), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_folders_of_others_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "mqar", "--out", str(tmp_path / "run"), "--json", "--set", *TINY, "model.width=16",
               "model.mixer.head_size=8"]  # fmt: skip
    assert entry(command) == 0
    assert json.loads(capsys.readouterr().out)["state_numbers"] == 16 * 8 + 3 * 16 * 3
    assert entry([*command, "data.seed=1"]) == 2
    assert "holds a run with other settings: data." in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert entry(["train", "mqar", "--out", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err


def study(tmp_path: Path, *more: str) -> list[str]:
    common = ["study", "mqar", "--out", str(tmp_path / "study"), "--results", str(tmp_path / "results")]
    return [*common, "--widths", "16", *more, "--set", *TINY]


def test_a_study_skips_what_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = ("--models", "hgrn2-conv", "attention", "--head-sizes", "8", "3")
    assert entry(study(tmp_path, *some)) == 0
    rows = read_rows(tmp_path / "results" / "mqar.jsonl")
    assert [(row.subject, row.details["head_size"]) for row in rows] == [("hgrn2-conv", 8), ("attention", None)]
    assert all(row.value == row.details["accuracy"]["32x4"] for row in rows)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "study" / "cells").rglob("summary.json")}
    assert entry(study(tmp_path, *some, "--seeds", "0", "1", "--json")) == 0
    after = {path: path.stat().st_mtime_ns for path in before}
    assert before == after
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["complete"]
    assert len(found["points"]) == 2
    assert all(len(values) == 2 for point in found["points"] for values in point["accuracy"].values())
    assert len(read_rows(tmp_path / "results" / "mqar.jsonl")) == len(finished(tmp_path / "study")) == 4
    assert len((tmp_path / "study" / "table.md").read_text(encoding="utf-8").splitlines()) == 2 + 2
    assert (tmp_path / "study" / "recall.png").stat().st_size > 10_000
    assert entry([*study(tmp_path, *some), "model.layers=2"]) == 2
    assert "holds a study with other settings: base." in capsys.readouterr().err


def test_runs_from_elsewhere_become_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two runs as another machine left them: its description goes into the rows, and no row comes twice."""
    runs = [tmp_path / "runs" / name for name in ("one", "two")]
    for folder, model in zip(runs, ("hgrn2", "attention"), strict=True):
        train_mqar(changed(tiny(), model=model, head_size=8), folder, quiet=True)
        shutil.rmtree(folder / "checkpoints")
        elsewhere = json.loads((folder / "environment.json").read_text(encoding="utf-8")) | {"gpu": "abacus"}
        (folder / "environment.json").write_text(json.dumps(elsewhere), encoding="utf-8")
    out, results = tmp_path / "study", tmp_path / "results"
    command = ["study", "mqar", "--out", str(out), "--results", str(results), "--collect"]
    for folders in (runs[:1], runs, runs):
        assert entry([*command, *map(str, folders)]) == 0
    rows = read_rows(results / "mqar.jsonl")
    assert [(row.subject, row.machine["gpu"]) for row in rows] == [("hgrn2", "abacus"), ("attention", "abacus")]
    summary = json.loads((runs[0] / "summary.json").read_text(encoding="utf-8"))
    assert rows[0].value == summary["held_out"]["32 tokens, 4 pairs"]["accuracy"]
    assert rows[0].case["n"] == 8
    assert (out / "recall.png").stat().st_size > 10_000
    assert len(finished(out)) == 2
    capsys.readouterr()
    other = tmp_path / "runs" / "other"
    train_mqar(changed(tiny("data.seed=1")), other, quiet=True)
    (tmp_path / "empty").mkdir()
    for folders, said in (
        ([tmp_path / "empty"], "holds no finished run: config.json is missing"),
        ([runs[0], other], f"{other} has another data than {runs[0]}; collect them apart"),
        ([runs[0], runs[0]], "are the same run, hgrn2-d16-n8-lr0.02-s0; give one of them"),
        ([other], "holds runs with other settings; use another --out"),
    ):
        assert entry([*command, *map(str, folders)]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert len(error.strip().splitlines()) == 1
    assert len(read_rows(results / "mqar.jsonl")) == 2


def test_the_learning_rate_with_the_best_mean_over_seeds_counts() -> None:
    def row(lr: float, seed: int, value: float) -> Row:
        details = {"width": 16, "head_size": 8, "lr": lr, "seed": seed, "state_numbers": 128, "parameters": 9,
                   "accuracy": {"32x4": value}}  # fmt: skip
        return measurement("mqar", {}, "hgrn2", "torch", [value], "accuracy", details)

    (point,) = best([row(1e-2, 0, 0.9), row(1e-2, 1, 0.1), row(1e-3, 0, 0.6), row(1e-3, 1, 0.7)])
    assert point.lr == 1e-3
    assert point.accuracy == {"32x4": (0.6, 0.7)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--models", "lstm"], "there is no model 'lstm'"),
        (["--head-sizes", "5"], "none of the head sizes 5 divides the width 64"),
        (["--head-sizes", "0"], "--head-sizes has 0; give positive numbers"),
        (["--lrs", "-1"], "--lrs has -1.0; give positive numbers"),
        (["--seeds", "-1"], "--seeds has -1; a seed is not negative"),
        (["--recipe", "paper"], "there is no recipe 'paper'"),
        (["--set", "train.stepz=4"], "there is no setting train.stepz"),
    ],
)
def test_bad_studies_are_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert entry(["study", "mqar", "--out", "study", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "study").exists()


def test_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in short form, in the order in which they stand; of those for a GPU every run is built, and none trained."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if "hgrn2 " in line]
    commands = [shlex.split(line)[1:] for line in lines]
    assert {tuple(command[:2]) for command in commands} == {("train", "mqar"), ("study", "mqar")}
    kinds = {"train": TrainMQAR, "study": StudyMQAR}
    ran = 0
    for command in commands:
        if steps := next((RECIPES[name]().train.steps for name in ("zoology", "h100") if name in command), 0):
            asked = tyro.cli(kinds[command[0]], args=command[2:])
            if isinstance(asked, StudyMQAR):
                assert all(asked.run_of(spec).train.steps == steps for spec in asked.specs())
            else:
                changed(recipe(asked.recipe), model=asked.model, head_size=asked.head_size, assignments=asked.set)
            continue
        plain = command[: command.index("--set")] if "--set" in command else command
        if "--seeds" in plain:  # every run is built, those of the first seed are trained
            asked = tyro.cli(StudyMQAR, args=plain[2:])
            assert {asked.run_of(spec).train.seed for spec in asked.specs()} == set(asked.seeds)
            assert plain[-len(asked.seeds) - 1] == "--seeds"
            plain = plain[: plain.index("--seeds") + 2]
        assert entry([*plain, "--set", *TINY]) == 0
        ran += 1
    assert ran >= 2
