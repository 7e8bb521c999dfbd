"""Language models of every kind of mixer: trained, reported, resumed, measured, continued and saved alike."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hgrn2 import perplexity
from hgrn2.data.corpus import Corpus
from hgrn2.errors import UserError
from hgrn2.eval.scoring import Request, score
from hgrn2.export.language import check_supported
from hgrn2.generate.config import GenerationConfig, SamplingConfig
from hgrn2.generate.generator import Generator
from hgrn2.generate.loading import load
from hgrn2.generate.snapshots import Snapshot, load_snapshot, save_snapshot
from hgrn2.models.convert.fla import representable
from hgrn2.models.count import state_bytes
from hgrn2.models.gates import gate_statistics
from hgrn2.models.tuned import StateTuned
from hgrn2.settings import with_overrides
from hgrn2.tasks.lm.recipes import recipe
from hgrn2.tasks.lm.run import fit_vocabulary, train_language
from hgrn2.tasks.tune.config import TuneSettings
from hgrn2.tasks.tune.run import tune_state
from hgrn2.train.config import RunConfig

TINY = (
    "model.width=16", "model.layers=2", "model.glu_width=16", "model.mixer.head_size=8", "train.budget_s=0",
    "train.steps=4", "train.sequence_length=24", "train.batch_size=2", "train.eval_tokens=100", "train.eval_every=2",
    "train.save_every=2", "train.keep=2", "optim.warmup_steps=1", "data.reset_at_documents=true",
)  # fmt: skip
PAGE = (Path(__file__).parents[2] / "docs" / "mixers.md").read_text(encoding="utf-8")
HYBRID = tuple(re.findall(r"^hgrn2 train lm small .*--set (.+)$", PAGE, re.MULTILINE)[0].split())
"""Of the command on the page."""
TRAINED = {
    "hgru1": ("model.mixer.kind=hgru1",),
    "gla": ("model.mixer.kind=gla",),
    "mamba": ("model.mixer.kind=mamba", "model.glu_width=0"),
    "mamba2": ("model.mixer.kind=mamba2",),
    "lru": ("model.mixer.kind=lru", "model.mixer.expansion=4"),
    "attention": ("model.mixer.kind=attention",),
    "hybrid": (*HYBRID, "model.layers=4", "model.other.window=8"),
}
"""Settings of each; runs of hgru2 are tested in detail elsewhere."""
every = pytest.mark.parametrize("kind", TRAINED)


def run_of(kind: str, corpus: Path, *more: str) -> RunConfig:
    """The recipe for texts of one's own with another mixer, and nothing else said about it."""
    run = recipe("small")
    run = replace(run, data=replace(run.data, source=str(corpus)))
    return fit_vocabulary(with_overrides(run, (*TINY, *TRAINED[kind], *more)))


@pytest.fixture(scope="module")
def trained(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder of each kind."""
    folders = {}
    for kind in TRAINED:
        folders[kind] = tmp_path_factory.mktemp("runs") / kind
        train_language(run_of(kind, tiny_corpus), folders[kind], device="cpu", quiet=True)
    return folders


@every
def test_a_run_ends_with_summary_and_report(kind: str, trained: dict[str, Path]) -> None:
    summary = json.loads((trained[kind] / "summary.json").read_text())
    assert summary["steps"] == 4
    assert {name: row["nats_per_token"] > 4 for name, row in summary["held_out"].items()} == {
        "carried state": True, "windows of 24": True,
    }  # fmt: skip
    page = (trained[kind] / "report.html").read_text(encoding="utf-8")
    assert ("Time scales of the forget gates" in page) == (kind != "attention")


def test_a_run_goes_on_with_the_same_bits(trained: dict[str, Path], tiny_corpus: Path, tmp_path: Path) -> None:
    kind = "attention"
    shutil.copytree(trained[kind], tmp_path / "run")
    shutil.rmtree(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1])
    result = train_language(run_of(kind, tiny_corpus), tmp_path / "run", device="cpu", quiet=True)
    assert result.summary["held_out"] == json.loads((trained[kind] / "summary.json").read_text())["held_out"]


@every
@torch.no_grad()
def test_measured_and_continued(kind: str, trained: dict[str, Path], tiny_corpus: Path, tmp_path: Path) -> None:
    """However the text is cut, one token at a time too, the numbers are those of one call of the whole model."""
    loaded = load(trained[kind], "cpu", torch.float64)
    model, tokenizer, valid = loaded.model, loaded.need_tokenizer(), Corpus.open(tiny_corpus, "valid")
    part = perplexity.Beginning(valid, 200)
    ids = torch.from_numpy(part.read(0, 200))[None]
    losses = torch.nn.functional.cross_entropy(model(ids[:, :-1])[0][0], ids[0, 1:], reduction="none")
    for segment in (1, 7, 199):
        found = perplexity.carried(model, part, segment=segment).nats_per_token
        assert found == pytest.approx(losses.mean().item(), rel=1e-12)
    reset = [perplexity.carried(model, part, segment=s, reset_documents=True).nats_per_token for s in (5, 64, 199)]
    assert reset == pytest.approx([reset[0]] * 3, rel=1e-12)
    windows = perplexity.windows(model, part, window=50).nats_per_token
    assert perplexity.strided(model, part, window=50, stride=50).nats_per_token == pytest.approx(windows, rel=1e-12)

    generator, greedy = Generator(model, tokenizer), SamplingConfig(greedy=True)
    made = generator.generate("Document ", GenerationConfig(max_tokens=12, segment=4, sampling=greedy))[0]
    text = torch.tensor([[*tokenizer.encode("Document "), *made.ids]])
    chosen = model(text[:, :-1])[0].argmax(-1)[0]
    assert chosen[-12:].tolist() == list(made.ids)
    save_snapshot(tmp_path / "state.safetensors", made.snapshot, model, tokenizer)
    again = load_snapshot(tmp_path / "state.safetensors", model, tokenizer)
    assert again.tokens == text.shape[1]
    more = GenerationConfig(max_tokens=6, samples=3, sampling=SamplingConfig(seed=5))
    assert [one.ids for one in generator.generate("", more, again)] == [
        one.ids for one in generator.generate("", more, made.snapshot)
    ]
    requests = [Request((1, 2, 3), (4,)), Request((1, 2, 3), (5, 6)), Request((1, 2), (3, 9, 9)), Request((7,), (8,))]
    for one, other in zip(score(model, requests), score(model, requests, share=False), strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, rel=1e-12)


@every
def test_a_snapshot_is_a_state_to_train_from(kind: str, trained: dict[str, Path]) -> None:
    """Made without gradients, in inference mode, and still no such tensor."""
    loaded = load(trained[kind], "cpu")
    generator = Generator(loaded.model, loaded.need_tokenizer())
    for tokens in (0, 3):
        state = generator.generate("Once ", GenerationConfig(max_tokens=tokens))[0].snapshot.state
        logits, _ = loaded.model.train()(torch.tensor([[1, 2, 3]]), state)
        logits.square().mean().backward()
        weight = loaded.model.backbone.blocks[0].mixer.in_proj.weight  # pyright: ignore
        assert weight.grad.abs().max() > 0


def test_a_snapshot_of_attention_is_as_long_as_its_text(trained: dict[str, Path], tmp_path: Path) -> None:
    loaded = load(trained["attention"], "cpu")
    model, tokenizer, path = loaded.model, loaded.need_tokenizer(), tmp_path / "state.safetensors"
    snapshot = Generator(model, tokenizer).generate("Once ", GenerationConfig(max_tokens=3))[0].snapshot
    assert snapshot.state.layers[0].lengths == (snapshot.tokens - 1,)
    save_snapshot(path, Snapshot(snapshot.state, snapshot.last, snapshot.tokens + 1), model, tokenizer)
    with pytest.raises(UserError, match="its tensors are not those of this model's state"):
        load_snapshot(path, model, tokenizer)


def test_the_hybrid_of_the_page_is_what_it_says(tiny_corpus: Path, trained: dict[str, Path]) -> None:
    """Every fourth layer attention with a window; bounds, snapshots and refusals of the two kinds together."""
    assert HYBRID == ("model.pattern=hgru2,hgru2,hgru2,attention", "model.other.window=256")
    made = with_overrides(recipe("small"), HYBRID).model
    assert [mixer.kind for mixer in made.mixers] == ["hgru2", "hgru2", "hgru2", "attention"]
    loaded = load(trained["hybrid"], "cpu")
    model = loaded.model
    assert [None if lower_bound is None else round(lower_bound.mean().item(),
        1) for lower_bound in model.backbone.layer_lower_bounds()] == [
        None, 0.3, 0.7, None,
    ]  # fmt: skip
    text = "Once upon a time "
    state = Generator(model, loaded.need_tokenizer()).generate(text, GenerationConfig(max_tokens=9))[0].snapshot.state
    assert state.nbytes == state_bytes(model.config, tokens=len(text) + 8)
    assert [one.layer for one in gate_statistics(model, torch.tensor([[1, 2, 3]]))] == [0, 1, 2]
    assert "hgru2, hgru2, hgru2, attention" in (trained["hybrid"] / "report.html").read_text(encoding="utf-8")
    for refused, said in (
        (lambda: StateTuned(model, 0), "a state of hgru2 with attention is the text itself"),
        (lambda: check_supported(model.config), "ONNX export is for hgru2, not for hgru2 with attention"),
        (lambda: representable(model.config), "flash-linear-attention has no pattern hgru2,hgru2,hgru2,attention"),
        (lambda: Generator(model, loaded.need_tokenizer()).generate(text, GenerationConfig(graph="on")), "graph=on"),
    ):
        with pytest.raises(UserError, match=said):
            refused()


def test_what_a_growing_state_cannot_do_is_refused_by_name(trained: dict[str, Path], tmp_path: Path) -> None:
    loaded = load(trained["attention"], "cpu")
    with pytest.raises(UserError, match="cannot be tuned"):
        tune_state(loaded, TuneSettings(), tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()
    with pytest.raises(UserError, match="a state of attention is the text itself and has no fixed size"):
        StateTuned(loaded.model, 0)
    generator = Generator(loaded.model, loaded.need_tokenizer())
    with pytest.raises(UserError, match="graph=on: its state grows with every token"):
        generator.generate("Once ", GenerationConfig(graph="on"))
    with pytest.raises(UserError, match="states of hgru1 are float32, not bfloat16"):
        load(trained["hgru1"], "cpu").model.zeros(1, torch.bfloat16)


def test_another_kind_brings_the_settings_that_it_needs(tiny_corpus: Path) -> None:
    model = run_of("hgru1", tiny_corpus, "model.mixer.scale_scores=false").model
    assert (model.mixer.conv_width, model.lower_bound) == (0, "inclusive")
    model = run_of("attention", tiny_corpus).model
    assert (model.mixer.conv_width, model.lower_bound) == (4, "none")
    assert run_of("attention", tiny_corpus, "model.mixer.conv_width=0").model.mixer.conv_width == 0
    for kind, wrong in (("hgru1", "model.mixer.conv_width=4"), ("gla", "model.lower_bound=inclusive")):
        with pytest.raises(UserError, match=f"{kind}"):
            run_of(kind, tiny_corpus, wrong)
    with pytest.raises(UserError, match="direction bidirectional is not offered for gla"):
        run_of("gla", tiny_corpus, "model.mixer.direction=bidirectional", "model.mixer.conv_width=0")
