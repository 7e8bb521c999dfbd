"""The two applications: data whose answers are known, and measurements held to plain ones on the same tokens."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from hgrn2 import perplexity
from hgrn2.cli.main import entry
from hgrn2.data import machines
from hgrn2.errors import UserError
from hgrn2.models.count import parameters
from hgrn2.models.language import LanguageModel
from hgrn2.rows import Row
from hgrn2.study import applications, applications_page, reading
from hgrn2.study.arms import arms, model_of, run_of
from hgrn2.study.protocol import GENERATED, Case, Study

Make = Callable[..., Row]
MONITOR = Study(study="monitor", source=GENERATED)


@pytest.mark.parametrize("study", [Study(study="stream"), MONITOR])
def test_sides_have_equal_parameters_and_states_of_constant_size_are_carried(study: Study) -> None:
    sides = arms(study)
    counts = [parameters(model_of(study, arm)).total for arm in sides]
    assert max(counts) <= 1.01 * min(counts)
    for arm in sides:
        case = Case(arm=arm, lr=1e-3, seed=0, tokens=study.sweep)
        run = run_of(study, case, vocab_size=256, precision="bfloat16", on_gpu=True)
        endless = any(mixer.grows and not mixer.window for mixer in run.model.kinds.values())
        assert run.data.carry == (not endless and arm.subject != "hgrn2-windows")
        assert run.data.reset_at_documents == (study.study == "monitor")


def test_a_log_is_what_its_description_says() -> None:
    log, again = (machines.log_of([[7]] * 400, 3, fault_rate=0.5) for _ in range(2))
    assert np.array_equal(log.entries, again.entries)
    assert 150 < log.faults.sum() < 250
    jobs = log.entries.astype(int).reshape(400, 1 + 7 + machines.RUN + 2)
    recipes = jobs[:, 0] - machines.LOAD
    assert ((recipes >= 0) & (recipes < machines.RECIPES)).all()
    assert (jobs[:, 8] == machines.START).all()
    assert (jobs[:, -1] == machines.STOP).all()
    levels = machines.LOWEST + machines.APART * recipes
    runs = jobs[:, 9 : 9 + machines.RUN]
    near = np.abs(runs.mean(1) - levels) < machines.APART / 2
    assert np.array_equal(near, ~log.faults)
    assert np.array_equal(log.entries[log.firsts], runs[:, 0])
    normal = (runs - levels[:, None])[~log.faults]
    counts = np.unique(normal, return_counts=True)[1] / normal.size
    assert machines.noise_entropy() == pytest.approx(-(counts * np.log(counts)).sum(), abs=0.1)
    idle = jobs[:, 1:8]
    assert np.isin(idle, [*range(16, 20), *range(220, 228)]).all()


def test_training_logs_have_as_many_entries_as_asked_for() -> None:
    logs = machines.training_logs(30_000, 128, seed=0)
    assert 30_000 <= sum(map(len, logs)) < 30_000 + 10_000
    assert not np.array_equal(logs[0][:100], logs[1][:100])
    starts = np.flatnonzero(logs[0] == machines.START)
    assert 2 < np.median(np.diff(starts)) < 16  # most runs are near each other
    assert 64 < np.diff(starts).max() <= 128 + machines.RUN + 3


def test_auroc_counts_pairs() -> None:
    assert reading.auroc(np.array([2.0, 3.0]), np.array([0.0, 2.0])) == 0.875
    assert reading.auroc(np.zeros(4), np.zeros(3)) == 0.5


def tiny(study: Study, name: str) -> LanguageModel:
    torch.manual_seed(0)
    arm = next(arm for arm in arms(study) if arm.subject == name)
    return LanguageModel(model_of(study, arm)).eval()


@pytest.mark.parametrize("name", ["hgrn2", "window"])
def test_a_stream_is_read_once_with_a_state_of_constant_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SEGMENT", 50)
    study = Study(study="stream")
    corpus = applications.corpus_of(machines.training_logs(4_000, 64, seed=0, machine_tokens=900), "logs")
    model = tiny(study, name)
    found = reading.stream(model, corpus)
    assert found["tokens"] == corpus.n_tokens - 1
    assert found["nats"] == pytest.approx(perplexity.carried(model, corpus).nats_per_token, rel=1e-5)
    parts = found["parts"]
    assert np.average([part[1] for part in parts], weights=np.diff([0, *(part[0] for part in parts)])) == pytest.approx(
        found["nats"], rel=1e-4
    )
    assert len({part[2] for part in parts}) == 1
    assert found["by_position"][-1][1] == corpus.n_tokens
    with pytest.raises(UserError, match="a stream takes at least 17"):
        reading.stream(model, applications.corpus_of([np.arange(9, dtype=np.uint8)], "short"))


@pytest.mark.parametrize("name", ["hgrn2", "llama"])
def test_the_surprise_at_runs_is_that_of_one_whole_reading(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SEGMENT", 37)
    monkeypatch.setattr(applications, "MONITOR_GAPS", (1 / 4, 1))
    logs = applications.measured_logs(16, 4, 12)
    monkeypatch.setattr(reading, "measured_logs", lambda gap: applications.measured_logs(gap, 4, 12))
    model = tiny(MONITOR, name)
    tokens = torch.from_numpy(np.stack([log.entries for log in logs]).astype(np.int64))
    with torch.no_grad():
        nats = cross_entropy(model(tokens[:, :-1])[0].transpose(1, 2), tokens[:, 1:], reduction="none").numpy()
    surprise = nats[:, logs[0].firsts - 1].reshape(-1)
    faults = np.concatenate([log.faults for log in logs])
    found = reading.monitor(model, MONITOR)
    assert [gap[0] for gap in found["gaps"]] == [16, 64]
    _, area, normal, jobs, held = found["gaps"][0]
    assert area == pytest.approx(reading.auroc(surprise[faults], surprise[~faults]), abs=1e-4)
    assert normal == pytest.approx(surprise[~faults].mean(), abs=1e-3)
    assert jobs == 12
    grows = found["gaps"][1][4] > held
    assert grows == (name == "llama")


def test_from_the_command_to_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applications, "MONITOR_GAPS", (1 / 4,))
    monkeypatch.setattr(reading, "STREAM_TOKENS", 2_000)
    monkeypatch.setattr("hgrn2.study.plot.draw", lambda *_: None)  # has tests of its own
    common = ["--device", "cpu", "--results", str(tmp_path), "--sweep-tokens", "1024", "--final-tokens", "1024"]
    for study, models in {"stream": ("hgrn2",), "monitor": ("hgrn2", "window")}.items():
        command = ["study", study, "--out", str(tmp_path / study), "--models", *models, "--lrs", "4e-3"]
        assert entry([*command, *common]) == 0
    rows = [json.loads(line) for line in (tmp_path / "study.jsonl").read_text().splitlines()]
    assert [sorted(row["details"]).count(row["case"]["study"]) for row in rows] == [1] * 3
    study_page, page = tmp_path / "study.md", tmp_path / "applications.md"
    study_page.write_text("<!-- made by `hgrn2 study table` from results/study.jsonl; do not edit -->\n"
                          "<!-- end of what `hgrn2 study table` makes -->\n")  # fmt: skip
    page.write_text(study_page.read_text())
    table = ["study", "table", "--results", str(tmp_path), "--page", str(study_page), "--applications", str(page)]
    assert entry(table) == 0
    text = page.read_text()
    assert "| HGRN2 |" in text
    assert "| attention, window |" in text
    assert "stream of 2,000, nats/token" in text
    assert f"guessing is an AUROC of 0.5 and {math.log(8):.2f} nats" in text
    assert (tmp_path / "applications-monitor.png").exists()


def test_the_page_names_what_is_missing_and_who_finds_faults(row: Make) -> None:
    assert "Not run: `hgrn2 study stream`" in applications_page.block([])
    gaps = [[16, 0.99, 2.2, 64, 1000], [4096, 0.6, 4.1, 64, 1000]]
    made = [
        row(MONITOR, arm, 2.0, lr=1e-3, monitor={"lower_bound": 2.12, "gaps": gaps}, parameters=100_000)
        for arm in arms(MONITOR, ("hgrn2", "hgrn1"))
    ]
    text = applications_page.block(made)
    assert "HGRN2 finds faults up to 16 idle entries (AUROC of at least 0.75); 0.600 at 4,096" in text
    assert "there is one seed of each model" in text
    assert "one rate for all models, none swept" in text
    assert "anything about attention, window, Mamba-2, LLaMA, every key: not run here" in text


def test_only_the_monitor_has_generated_data() -> None:
    with pytest.raises(UserError, match="the data of monitor, and of no other study, is generated"):
        Study(study="stream", source=GENERATED)
    with pytest.raises(UserError, match="--data is corpora/mine"):
        Study(study="monitor", source="corpora/mine")
