"""State tuning: what it computes, that nothing but the state moves, resume, the file for generation, mistakes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hgrn2
from hgrn2 import perplexity
from hgrn2.cli.main import entry
from hgrn2.data.corpus import Corpus
from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.generate.generator import Generator
from hgrn2.generate.loading import load
from hgrn2.generate.snapshots import load_snapshot
from hgrn2.layers.config import MixerKind
from hgrn2.models.saved import model_hash
from hgrn2.models.tuned import StateTuned

BASE = (
    "train.budget_s=0", "train.steps=60", "train.sequence_length=32", "train.batch_size=4", "train.eval_every=0",
    "train.eval_tokens=200", "model.width=32", "model.layers=2", "model.glu_width=48", "model.mixer.head_size=16",
    "optim.warmup_steps=5",
)  # fmt: skip
SMALL = (
    "train.steps=12", "train.sequence_length=32", "train.batch_size=4", "train.eval_every=0", "train.save_every=4",
    "train.keep=9", "train.log_every=1", "optim.lr=0.1", "optim.warmup_steps=1",
)  # fmt: skip


def model(kind: MixerKind = "hgru2", conv: int = 0, seed: int = 0) -> hgrn2.LanguageModel:
    torch.manual_seed(seed)
    mixer = hgrn2.MixerConfig(kind=kind, head_size=8, conv_width=conv)
    config = hgrn2.ModelConfig(vocab_size=23, width=16, layers=2, glu_width=24, mixer=mixer)
    return hgrn2.LanguageModel(config).double()


def tuned_model(kind: MixerKind = "hgru2", conv: int = 0) -> StateTuned:
    tuned = StateTuned(model(kind, conv), opening=3)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.normal_()
    return tuned


CASES: list[tuple[MixerKind, int]] = [("hgru2", 0), ("hgru2", 4), ("hgru1", 0), ("hgru1_real", 0)]


@pytest.mark.parametrize(("kind", "conv"), CASES)
def test_every_sequence_begins_with_the_learned_state_and_the_opening(kind: MixerKind, conv: int) -> None:
    tuned, plain = tuned_model(kind, conv), model(kind, conv)
    tokens = torch.randint(0, 23, (3, 11))
    start = tuned.learned.map(lambda x: x.expand(3, *x.shape[1:]).contiguous())
    wanted, _ = plain(torch.cat([torch.full((3, 1), 3), tokens], 1), start)
    torch.testing.assert_close(tuned(tokens)[0], wanted[:, 1:])
    offsets = torch.tensor([0, 4, 5, 11])
    packed, _ = tuned(tokens[:1], cu_seqlens=offsets)
    apart = [tuned(tokens[:1, begin:end])[0] for begin, end in ((0, 4), (4, 5), (5, 11))]
    torch.testing.assert_close(packed, torch.cat(apart, 1))


@pytest.mark.parametrize(("kind", "conv"), CASES)
def test_gradient_is_the_slope_of_the_loss(kind: MixerKind, conv: int) -> None:
    tuned = tuned_model(kind, conv)
    tokens, offsets = torch.randint(0, 23, (1, 21)), torch.tensor([0, 9, 20])

    def loss() -> torch.Tensor:
        return tuned.loss(tokens[:, :-1], tokens[:, 1:], cu_seqlens=offsets)

    loss().backward()
    for parameter in tuned.parameters():
        assert parameter.grad is not None
        direction, step = torch.randn_like(parameter), 1e-6
        slope = float((parameter.grad * direction).sum())
        with torch.no_grad():
            parameter += step * direction
            above = float(loss())
            parameter -= 2 * step * direction
            below = float(loss())
            parameter += step * direction
        assert abs(slope) > 1e-7
        assert (above - below) / (2 * step) == pytest.approx(slope, rel=1e-4, abs=1e-9)
    assert all(parameter.grad is None for parameter in tuned.embedding.parameters())


def test_only_the_states_are_parameters_and_saved() -> None:
    tuned = tuned_model(conv=4)
    assert set(tuned.state_dict()) == {"recurrent.0", "recurrent.1", "conv.0", "conv.1"}
    assert sum(p.numel() for p in tuned.parameters()) == 2 * (16 * 8 + 3 * 48)
    assert not tuned.train().embedding.training  # the frozen model keeps its dropout off


def test_an_opening_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(hgrn2.UserError, match="outside the vocabulary"):
        StateTuned(model(), opening=23)


@pytest.fixture(scope="module")
def base(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on documents of digits and letters."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    assert entry(["train", "lm", "demo", "--data", str(tiny_corpus), "--out", str(folder), "--set", *BASE]) == 0
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of another kind in the same tokens."""
    folder = tmp_path_factory.mktemp("other")
    rows = [json.dumps({"text": f"WORD WORD {'AB' * (n % 5 + 2)} WORD. " * 4}) for n in range(60)]
    (folder / "text.jsonl").write_text("\n".join(rows))
    command = ["data", "prepare", str(folder / "text.jsonl"), "--out", str(folder / "corpus"), "--tokenizer", "bytes"]
    assert entry([*command, "--valid-fraction", "0.2"]) == 0
    return folder / "corpus"


def command(base: Path, other: Path, out: Path, *more: str) -> list[str]:
    return ["tune", "state", str(base), "--data", str(other), "--out", str(out), "--set", *SMALL, *more]


@pytest.fixture(scope="module")
def run(base: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    assert entry(command(base, other, folder)) == 0
    return folder


def test_the_state_predicts_the_other_text_better_and_the_model_stays(run: Path, base: Path, other: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    found = {name: row["nats_per_token"] for name, row in summary["held_out"].items()}
    assert found["carried state, after"] < found["carried state, before"] - 0.05
    assert found["windows of 32, after"] < found["windows of 32, before"] - 0.02
    loaded = load(base, "cpu")
    assert json.loads((run / "config.json").read_text())["base_hash"] == model_hash(loaded.model)
    tuned = restored(run, base)
    again = perplexity.carried(tuned, Corpus.open(other, "valid"), reset_documents=True).nats_per_token
    assert again == pytest.approx(found["carried state, after"], rel=1e-6)
    assert (run / "report.html").is_file()


def restored(run: Path, base: Path) -> StateTuned:
    """The tuned model from its file."""
    loaded = load(base, "cpu")
    snapshot = load_snapshot(run / "state.safetensors", loaded.model, loaded.need_tokenizer())
    tuned = StateTuned(loaded.model, snapshot.last)
    tuned.set_learned(snapshot.state)
    return tuned


def test_generation_from_the_file_is_generation_by_the_tuned_model(
    run: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = restored(run, base)
    sampling = SamplingConfig(temperature=0.7, seed=1)
    generator = Generator(tuned, load(base, "cpu").need_tokenizer())
    wanted = generator.generate("WORD", GenerationConfig(max_tokens=30, sampling=sampling))[0].text
    capsys.readouterr()
    call = ["generate", str(base), "--state", str(run / "state.safetensors"), "--prompt", "WORD", "--max-tokens", "30"]
    assert entry([*call, "--temperature", "0.7", "--seed", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"][0]["text"] == wanted


def test_a_resumed_run_ends_with_the_same_bits(
    run: Path, base: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "resumed"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "checkpoints" / "step-00000012")
    shutil.rmtree(folder / "checkpoints" / "step-00000008")
    (folder / "state.safetensors").unlink()
    assert entry(command(base, other, folder)) == 0
    assert "resumed from step 4" in capsys.readouterr().out
    again, whole = (load_file(place / "state.safetensors") for place in (folder, run))
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_recomputed_activations_give_the_same_state(run: Path, base: Path, other: Path, tmp_path: Path) -> None:
    assert entry(command(base, other, tmp_path / "run", "train.recompute=block")) == 0
    again, whole = (load_file(place / "state.safetensors") for place in (tmp_path / "run", run))
    for name, tensor in whole.items():
        torch.testing.assert_close(again[name], tensor, atol=1e-5, rtol=1e-4)


def test_start_tokens_begin_from_a_read_text(base: Path, other: Path, tmp_path: Path) -> None:
    more = ("start_tokens=100", "train.steps=1", "optim.lr=1e-9")
    assert entry(command(base, other, tmp_path / "run", *more)) == 0
    states = load_file(tmp_path / "run" / "state.safetensors")
    loaded = load(base, "cpu")
    tokens = torch.from_numpy(Corpus.open(other).read(0, 100))[None]
    opening = torch.full((1, 1), 256)  # the tuned model, its states still zero, read it too
    with torch.no_grad():
        _, wanted = loaded.model(torch.cat([opening, tokens], 1))
    for name, tensor in wanted.tensors().items():
        torch.testing.assert_close(states[name], tensor, atol=1e-6, rtol=1e-5)


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], *words: str) -> None:
    capsys.readouterr()
    assert entry(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hgrn2: error: ")]
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


def test_what_does_not_fit_is_refused(
    run: Path, base: Path, other: Path, tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, command(base, other, run, "train.seed=5"), "train.seed is 0 there and 5 here")
    refused(capsys, command(base, other, run, "start_tokens=7"), "start_tokens is ", " there and 7 here")
    refused(capsys, command(base, other, base), "another kind of run")
    refused(capsys, command(base, other, tmp_path / "x", "train.compile=true"), "train.compile")
    refused(capsys, command(base, other, tmp_path / "x", "start_tokens=9999999"), "start_tokens")
    refused(capsys, command(base, other, tmp_path / "x", "model.width=5"), "model")
    refused(capsys, command(tmp_path / "none", other, tmp_path / "x"), "does not exist")
    refused(capsys, command(base, tmp_path / "none", tmp_path / "x"), "prepared corpus")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    refused(capsys, command(base, other, tmp_path / "mine"), "other files")
    assert not (tmp_path / "x").exists()
    assert (run / "state.safetensors").exists()


def test_another_tokenizer_or_model_is_refused(
    run: Path, other: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("WORD ABAB. " * 100)
    prepare = ["data", "prepare", str(text), "--out", str(tmp_path / "chars"), "--tokenizer", "chars"]
    assert entry(prepare) == 0
    refused(capsys, command(base, tmp_path / "chars", tmp_path / "x"), "another tokenizer", "--tokenizer")
    longer = tmp_path / "another"
    train = ["train", "lm", "demo", "--data", str(other), "--out", str(longer), "--set", *BASE, "train.steps=1"]
    assert entry(train) == 0
    refused(capsys, command(longer, other, run), "another model")
    state = str(run / "state.safetensors")
    refused(capsys, ["generate", str(longer), "--state", state, "--prompt", "A"], "state of another model")


def test_a_run_of_states_is_not_a_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["generate", str(run), "--prompt", "x"], "is of a model of kind 'state'")
