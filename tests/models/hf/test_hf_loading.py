"""Folders in and out: what loads, what starts anew, and what is refused with one line and nothing half-loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hgrn2.errors import UserError
from hgrn2.files import read_json, write_json
from hgrn2.models.hf import HGRN1ForCausalLM, HGRN2Config, HGRN2ForCausalLM, HGRN2Model, from_language_model
from hgrn2.models.language import LanguageModel
from hgrn2.models.saved import save_model

SMALL = {"vocab_size": 23, "hidden_size": 16, "num_hidden_layers": 3, "num_heads": 2, "intermediate_size": 24}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """A folder that save_pretrained wrote; shards where a size is given."""

    def write(size: str = "1GB", **changes: Any) -> Path:
        torch.manual_seed(1)
        HGRN2ForCausalLM(HGRN2Config(**SMALL | changes)).save_pretrained(tmp_path / "m", max_shard_size=size)
        return tmp_path / "m"

    return write


def load(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


def refused(folder: Path, message: str, kind: Any = None, **options: Any) -> None:
    with pytest.raises(UserError, match=message) as caught:
        (kind.from_pretrained if kind else load)(folder, **options)
    assert "\n" not in str(caught.value)


def test_dtype_and_settings_can_be_chosen(saved: Callable, tmp_path: Path) -> None:
    folder = saved()
    assert load(folder).lm_head.weight.dtype == torch.float32
    model = load(folder, dtype=torch.bfloat16, fused_loss=True, output_loading_info=True)
    assert model[0].config.fused_loss
    assert {parameter.dtype for parameter in model[0].parameters()} == {torch.bfloat16}
    assert not model[1]["missing_keys"]
    hub = published.made(tmp_path / "hub", "fla", shards=3)
    found, report = load(hub, dtype=torch.bfloat16, fused_loss=True, output_loading_info=True)
    assert found.config.fused_loss
    assert found.lm_head.weight.dtype == torch.bfloat16
    assert found.config.name_or_path == str(hub)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_generation_settings_beside_weights_of_fla_are_read(tmp_path: Path) -> None:
    hub = published.made(tmp_path / "hub")
    write_json(hub / "generation_config.json", {"eos_token_id": 7, "do_sample": True, "top_k": 3})
    assert HGRN2ForCausalLM.from_pretrained(hub).generation_config.top_k == 3


def test_base_and_head_load_each_others_folders(saved: Callable, tmp_path: Path) -> None:
    folder = saved()
    whole, base = load(folder), HGRN2Model.from_pretrained(folder)
    assert torch.equal(base(published.TOKENS)[0], whole.model(published.TOKENS)[0])
    base.save_pretrained(tmp_path / "base")
    refused(tmp_path / "base", "lacks lm_head.weight; for a new head, load the base with AutoModel and put it into")
    headed = HGRN2ForCausalLM(base.config).eval()
    headed.model = transformers.AutoModel.from_pretrained(tmp_path / "base")
    assert torch.equal(headed.model(published.TOKENS)[0], base(published.TOKENS)[0])
    assert 0.01 < float(headed.lm_head.weight.detach().std()) < 0.03
    hub = published.made(tmp_path / "hub")
    both = transformers.AutoModel.from_pretrained(hub), HGRN2ForCausalLM.from_pretrained(hub).model
    assert torch.equal(both[0](published.TOKENS)[0], both[1](published.TOKENS)[0])


@pytest.mark.parametrize("hub", [False, True])
def test_tied_weights_stay_one_tensor(hub: bool, saved: Callable, tmp_path: Path) -> None:
    folder = published.made(tmp_path / "hub", "fla, tied") if hub else saved(tie_word_embeddings=True)
    model = load(folder)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.to_language_model().head is None
    model.save_pretrained(tmp_path / "again")
    assert "lm_head.weight" not in load_file(tmp_path / "again" / "model.safetensors")
    assert load(tmp_path / "again").lm_head.weight.data_ptr() != 0
    assert torch.equal(load(tmp_path / "again")(published.TOKENS).logits, model(published.TOKENS).logits)
    model.resize_token_embeddings(30, mean_resizing=False)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model(published.TOKENS).logits.shape[-1] == 30
    assert model.to_language_model().config.vocab_size == 30


def test_from_the_meta_device_by_loading_or_by_starting(make: Callable) -> None:
    own = make("hgru1")
    with torch.device("meta"):
        empty = HGRN1ForCausalLM(from_language_model(own).config)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    empty.to_empty(device="cpu")
    for parameter in empty.parameters():
        parameter.data.fill_(torch.nan)
    torch.manual_seed(3)
    empty.init_weights()
    language = empty.to_language_model()
    assert all(bool(value.isfinite().all()) for value in language.state_dict().values())
    assert torch.equal(language.backbone.lower_bounds, torch.ones(3, 16))
    phases = 10000.0 ** (-2 * torch.arange(16, dtype=torch.float64) / 16)
    assert torch.equal(language.backbone.blocks[1].mixer.theta, phases.float())
    assert 0.01 < float(language.head.weight.detach().std()) < 0.03
    with torch.device("meta"):
        loaded = HGRN1ForCausalLM(empty.config)
    loaded.load_state_dict(empty.state_dict(), assign=True)
    assert torch.equal(loaded.eval()(published.TOKENS).logits, empty.eval()(published.TOKENS).logits)


@pytest.mark.parametrize("kind", ["normal", "scaled_normal"])
def test_starting_weights_are_those_of_our_own_model(kind: str) -> None:
    config = HGRN2Config(**SMALL | {"hidden_size": 64, "init_kind": kind, "use_short_conv": True})
    language = HGRN2ForCausalLM(config).to_language_model()
    expected = LanguageModel(config.to_model_config()).state_dict()
    for name, value in language.state_dict().items():
        ratio = float(value.float().std() / expected[name].float().std()) if expected[name].std() > 0 else 1.0
        assert 0.8 < ratio < 1.25, name


def test_lower_bounds_that_a_file_with_mismatches_lacks_start_at_one(saved: Callable) -> None:
    folder = saved()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.language.backbone.lower_bounds"] = torch.zeros(2, 2)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(folder, r"lower_bounds is \[2, 2\], but its config.json makes it \[3, 16\]")
    model = load(folder, ignore_mismatched_sizes=True)
    assert torch.equal(model.model.language.backbone.lower_bounds, torch.ones(3, 16))
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])


def test_a_missing_shard(saved: Callable, tmp_path: Path) -> None:
    folder = saved("6KB")
    sorted(folder.glob("*.safetensors"))[1].unlink()
    refused(folder, "is incomplete: model-00002-of")
    hub = published.made(tmp_path / "hub", shards=3)
    (hub / "model-00003-of-00003.safetensors").unlink()
    refused(hub, "is incomplete: model-00003-of-00003.safetensors")


@pytest.mark.parametrize("hub", [False, True])
@pytest.mark.parametrize("size", [0, 5, 3000])
def test_half_downloaded(hub: bool, size: int, saved: Callable, tmp_path: Path) -> None:
    folder = published.made(tmp_path / "hub") if hub else saved()
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:size])
    refused(folder, "model.safetensors is damaged or not a safetensors file")


@pytest.mark.parametrize("asked", [False, True], ids=["", "ignore_mismatched_sizes"])
def test_no_weight_is_drawn_for_one_that_is_missing(asked: bool, saved: Callable, tmp_path: Path) -> None:
    """Absent, renamed, or half a layer; also where other shapes were asked to start anew."""
    folder, options = saved(), {"ignore_mismatched_sizes": True} if asked else {}
    whole = load_file(folder / "model.safetensors")
    layer = {name for name in whole if ".blocks.1." in name}
    norm = "model.language.backbone.norm.weight"
    for without, renamed in (({norm}, {}), (layer, {}), ({"lm_head.weight"}, {}), ({norm}, {"norm": whole[norm]})):
        kept = {name: value for name, value in whole.items() if name not in without}
        save_file(kept | renamed, folder / "model.safetensors", {"format": "pt"})
        refused(
            folder,
            f"the weights do not fit config.json: lacks {min(without)}".replace("lacks model.", "lacks "),
            **options,
        )
    save_file(whole | {f"{norm}s": whole[norm].clone()}, folder / "model.safetensors", {"format": "pt"})
    refused(folder, f"has unknown tensors {norm}s", **options)
    hub = published.made(tmp_path / "hub")
    tensors = load_file(hub / "model.safetensors")
    for without in ("model.norm.weight", "lm_head.weight"):
        kept = {name: value for name, value in tensors.items() if name != without}
        save_file(kept, hub / "model.safetensors", {"format": "pt"})
        refused(hub, f"the weights do not fit config.json: lacks {without}", **options)


def test_a_state_dict_in_place_of_files(saved: Callable, tmp_path: Path) -> None:
    """In either layout, whole; what it lacks is never drawn."""
    for folder in (saved(), published.made(tmp_path / "hub")):
        expected = load(folder)
        tensors = load_file(folder / "model.safetensors")
        model = HGRN2ForCausalLM.from_pretrained(None, config=expected.config, state_dict=tensors).eval()
        assert torch.equal(model(published.TOKENS).logits, expected(published.TOKENS).logits)
        for name in ("lm_head.weight", next(name for name in tensors if "norm" in name)):
            kept = {key: value for key, value in tensors.items() if key != name}
            refused(None, "lacks .*(lm_head|norm)", HGRN2ForCausalLM, config=expected.config, state_dict=kept)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("hub", [False, True])
def test_a_variant_is_read_and_no_other_file(hub: bool, shards: int, saved: Callable, tmp_path: Path) -> None:
    size = "1GB" if shards == 1 else "6KB"
    folder = published.made(tmp_path / "hub", shards=shards) if hub else saved(size)
    expected = load(folder)(published.TOKENS).logits
    refused(folder, "holds no weights of variant fp16: neither model.fp16.safetensors", variant="fp16")
    refused(folder, "is no part of a file's name", variant="../fp16")
    for path in sorted(folder.glob("model*")):
        if path.name.endswith("index.json"):
            index = read_json(path)
            places = {name: shard.replace("model-", "model.fp16-") for name, shard in index["weight_map"].items()}
            write_json(folder / "model.safetensors.index.fp16.json", index | {"weight_map": places})
            path.unlink()
        else:
            path.rename(folder / path.name.replace("model", "model.fp16", 1))
    found, report = load(folder, variant="fp16", output_loading_info=True)
    assert torch.equal(found(published.TOKENS).logits, expected)
    assert not report["missing_keys"]
    refused(folder, "is incomplete|holds no weights")


def test_settings_that_do_not_fit(saved: Callable, tmp_path: Path) -> None:
    folder, hub = saved(), published.made(tmp_path / "hub")
    for place in (folder, hub):
        settings = read_json(place / "config.json")
        for changes, message in (
            ({"intermediate_size": 32}, "but its config.json makes it"),
            ({"num_hidden_layers": 10**9}, "cannot be 1000000000 layers"),
            ({"attn": {"layers": [0]}}, "hybrid with softmax attention"),
            ({"window": 3}, "unknown fields: window"),
        ):
            write_json(place / "config.json", settings | changes)
            refused(place, message)


def test_folders_of_others(tmp_path: Path, make: Callable, saved: Callable) -> None:
    save_model(tmp_path / "own", make("hgru2"))
    refused(tmp_path / "own", "is a model folder of ours", HGRN2ForCausalLM)
    refused(saved(), "is of model_type 'hgrn2'; HGRN1ForCausalLM reads 'hgrn'", HGRN1ForCausalLM)
    hub = published.made(tmp_path / "hgru2", "hgru2")
    refused(hub, "is of hgru2-pytorch: use `hgrn2 convert hgru2`")
    pickled = tmp_path / "pickled"
    published.made(pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused(pickled, "only pickled weights", HGRN2ForCausalLM)
    (tmp_path / "file").write_text("no folder")
    refused(tmp_path / "file", "is not a folder", HGRN2ForCausalLM)


def test_a_name_that_no_hub_has(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*args: Any, **kwargs: Any) -> str:
        raise OSError("no such repository\nand a long explanation")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    refused(
        Path("nobody/nothing"), "is no folder, and cannot be had from the hub: no such repository", HGRN2ForCausalLM
    )


def test_a_name_of_a_hub_is_downloaded_as_it_was_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    hub, asked = published.made(tmp_path / "hub"), []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: (asked.append((name, options)), str(hub))[1]
    )
    model = HGRN2ForCausalLM.from_pretrained("fla-hub/hgrn2", revision="abc")
    assert asked[0][0] == "fla-hub/hgrn2"
    assert asked[0][1]["revision"] == "abc"
    assert model.config.name_or_path == "fla-hub/hgrn2"


@pytest.mark.parametrize("hub", [False, True])
def test_a_device_map_and_a_configuration_from_elsewhere(hub: bool, saved: Callable, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    folder = published.made(tmp_path / "hub", shards=2) if hub else saved("6KB")
    expected = load(folder)(published.TOKENS).logits
    for options in ({"device_map": "cpu"}, {"device_map": {"": "cpu"}}, {"config": load(folder).config}):
        assert torch.equal(load(folder, **options)(published.TOKENS).logits, expected)
    named = HGRN2ForCausalLM.from_pretrained(folder, config=folder, dropout=0.5)
    assert named.config.dropout == 0.5
    assert torch.equal(named.eval()(published.TOKENS).logits, expected)
    refused(folder, "the configuration is .*HGRN2Config; HGRN1ForCausalLM needs HGRN1Config of hgrn2", HGRN1ForCausalLM,
            config=named.config)  # fmt: skip
