"""Model cards: written with every saved model, read by hubs, and pushed with it to one (a local stand-in over HTTP)."""

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import ModelCard

import hgrn2
from hgrn2.cli.main import entry
from hgrn2.files import write_json
from hgrn2.models.card import Trained, card, trained_in
from hgrn2.models.presets import preset
from hgrn2.models.saved import save_model

HELD_OUT = {"carried state": {"nats_per_token": 1.25, "bits_per_byte": 1.5, "perplexity": 3.49, "name": "carried"}}


def small() -> Any:
    return hgrn2.HGRN2ForCausalLM(
        hgrn2.HGRN2Config(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_heads=2)
    ).eval()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a model, as the card reads it."""
    folder = tmp_path / "tiny-run"
    known = preset("hgrn2_1.3b")
    mixer = replace(known.mixer, head_size=16)
    config = replace(known, vocab_size=64, width=32, layers=2, glu_width=48, mixer=mixer)
    model = hgrn2.LanguageModel(config)
    save_model(folder / "checkpoints" / "step-00000007", model)
    write_json(folder / "config.json", {
        "kind": "lm", "data": {"source": "corpora/my wiki|<b>"}, "train": {"precision": "bfloat16", "seed": 0},
        "optim": {"optimizer": "muon", "lr": 0.008},
    })  # fmt: skip
    write_json(folder / "summary.json", {"tokens": 1_234_000, "steps": 7, "held_out": HELD_OUT})
    return folder


def test_a_card_tells_what_the_run_knows(run: Path) -> None:
    text = card(preset("hgrn2_1.3b"), "transformers", trained=trained_in(run), title="mine|x")
    read = ModelCard(text)
    assert (read.data.license, read.data.library_name) == (None, "transformers")
    assert read.data.datasets == ["my-wiki-b"]
    assert {"hgrn2", "linear-rnn"} <= set(read.data.tags or ())
    results = read.data.eval_results or []
    assert {(one.metric_type, one.metric_value) for one in results} == {
        ("nats_per_token", 1.25), ("perplexity", 3.49), ("bits_per_byte", 1.5),
    }  # fmt: skip
    assert text.startswith("---\n# license: to be chosen by the author")
    for part in ("| data | my wiki\\|&lt;b> |", "| tokens | 1.23M |", "| carried state | 1.2500 |", "# mine\\|x",
                 "| optimizer | muon |"):  # fmt: skip
        assert part in text
    assert "<b>" not in text.partition("\n---\n")[2]


@pytest.mark.parametrize("content", ["{}", "[1]", "{", '{"data": 3, "train": [], "optim": null}'])
def test_a_card_of_any_run_folder(content: str, tmp_path: Path) -> None:
    for name in ("config.json", "summary.json"):
        (tmp_path / name).write_text(content)
    assert trained_in(tmp_path) == Trained()
    assert trained_in(None) == trained_in(tmp_path / "none") == Trained()


def test_every_saved_model_has_one_and_ones_own_stays(run: Path, tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path / "saved")
    text = (tmp_path / "saved" / "README.md").read_text()
    count = sum(p.numel() for p in model.parameters())
    assert f"| parameters | {count:,} |" in text
    assert 'from_pretrained("saved")' in text
    (tmp_path / "saved" / "README.md").write_text("mine")
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "README.md").read_text() == "mine"
    assert entry(["convert", "to-hf", str(run), str(tmp_path / "hf")]) == 0
    assert entry(["convert", "to-fla", str(run), str(tmp_path / "fla")]) == 0
    assert entry(["convert", "fla", str(tmp_path / "fla"), str(tmp_path / "ours")]) == 0
    texts = {name: (tmp_path / name / "README.md").read_text() for name in ("hf", "fla", "ours")}
    for name in ("hf", "fla"):
        assert "| carried state | 1.2500 |" in texts[name]
        assert f'from_pretrained("{name}")' in texts[name]
    assert "import fla" in texts["fla"]
    assert "Its weights were converted from fla, whose card and licence hold" in texts["ours"]
    assert "hgrn2 generate ours" in texts["ours"]
    code = texts["hf"].partition("```python\n")[2].partition("```")[0].partition("\ntokenizer")[0]
    loaded: dict[str, Any] = {}
    exec(code.replace('"hf"', repr(str(tmp_path / "hf"))), loaded)
    assert isinstance(loaded["model"], hgrn2.HGRN2ForCausalLM)


class Hub(ThreadingHTTPServer):
    """What a push asks of a hub: a repository, a card or none, and one commit with all files in it."""

    def __init__(self, card: str | None) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.card, self.files, self.summary = card, dict[str, bytes](), ""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.server.card is None or not self.path.endswith("/README.md"):
            self.answer(b"", 404, X_Error_Code="EntryNotFound")
        else:
            self.answer(self.server.card.encode(), ETag='"0"', X_Repo_Commit="0" * 40)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/repos/create"):
            asked = json.loads(body)
            found: Any = {"url": f"{self.server.address}/{asked.get('organization', 'me')}/{asked['name']}"}
        elif "/preupload/" in self.path:
            found = {"files": [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]}  # fmt: skip
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "header":
                    self.server.summary = line["value"]["summary"]
                elif line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            found = {"commitUrl": f"{self.server.address}/me/tiny/commit/{'1' * 40}", "commitOid": "1" * 40}
        else:
            found = {"type": "user", "name": "me"}
        self.answer(json.dumps(found).encode(), Content_Type="application/json")


@pytest.fixture
def hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """In the place of huggingface.co, with the card that the test is given."""
    server = Hub(getattr(request, "param", None))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = server.address
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", huggingface_hub.HfApi(endpoint=address, token="none"))
    yield server
    server.shutdown()
    server.server_close()


def test_a_pushed_model_has_our_card_and_loads(hub: Hub, tmp_path: Path) -> None:
    model = small()
    model.push_to_hub("me/tiny", commit_message="first", tags=["mine"], token="none")
    assert {"config.json", "model.safetensors", "modeling_hgrn2.py", "README.md"} <= set(hub.files)
    assert hub.summary == "first"
    text = hub.files["README.md"].decode()
    assert 'from_pretrained("me/tiny")' in text
    assert {"hgrn2", "mine"} <= set(ModelCard(text).data.tags or ())
    assert "automatically generated" not in text
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.arange(8)[None]
    assert torch.equal(again(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("hub", ["---\nlicense: mit\n---\n\n# By hand\n"], indirect=True)
def test_a_card_that_the_hub_has_stays(hub: Hub) -> None:
    small().push_to_hub("me/tiny", token="none")
    assert "# By hand" in hub.files["README.md"].decode()
    assert ModelCard(hub.files["README.md"].decode()).data.license == "mit"
