"""DeiT as a baseline: sizes as published, what it computes, stochastic depth, folders, refusals."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hgrn2.errors import UserError
from hgrn2.layers.reading import DropPath
from hgrn2.models.config import DeiTConfig, VisionConfig
from hgrn2.models.deit import DeiT
from hgrn2.models.presets import vision_names, vision_preset
from hgrn2.models.saved import build_classifier, kind_of, load_classifier, model_hash, save_model
from hgrn2.settings import from_dict, to_dict

pytest.importorskip("transformers")
SMALL: dict[str, Any] = {"classes": 5, "image_size": 16, "patch": 4, "width": 16, "layers": 3, "head_size": 8}


def made(**changes: Any) -> DeiT:
    """Of small size in float64, with no parameter at a neutral value."""
    torch.manual_seed(0)
    model = DeiT(DeiTConfig(**SMALL | changes)).double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def images(height: int = 16, width: int = 16, count: int = 4) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("name", "millions"), [("deit_tiny", 5.717416), ("deit_small", 22.050664)])
def test_sizes_are_the_published_ones(name: str, millions: float) -> None:
    config = vision_preset(name)
    assert isinstance(config, DeiTConfig)
    with torch.device("meta"):
        model = build_classifier(config)
    assert sum(p.numel() for p in model.parameters()) == round(millions * 1e6)
    assert from_dict(DeiTConfig, to_dict(config)) == config


def test_names_give_settings_of_their_kind() -> None:
    kinds = {name: type(vision_preset(name)) for name in vision_names()}
    assert set(kinds.values()) == {DeiTConfig, VisionConfig}
    assert all((kind is DeiTConfig) == name.startswith("deit") for name, kind in kinds.items())
    with pytest.raises(UserError, match=r"a model has no setting mixer; it has: classes, image_size"):
        vision_preset("deit_tiny", mixer=None)


def test_starts_as_published() -> None:
    torch.manual_seed(0)
    model = DeiT(DeiTConfig(classes=10, width=64, layers=2))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert bool((parameter == 1).all()), name
        else:
            spread = float(parameter.detach().std())
            assert abs(spread - 0.02) < 0.02 * 5 / parameter.numel() ** 0.5, (name, spread)


def test_is_its_definition() -> None:
    """Patches, class token, pre-norm attention and network, written out."""
    model, x = made(), images()
    w = {name.removeprefix("inner.").removeprefix("vit."): value for name, value in model.named_parameters()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    patches = x.unflatten(3, (4, 4)).unflatten(2, (4, 4)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    kernel = w["embeddings.patch_embeddings.projection.weight"].flatten(1)
    tokens = patches @ kernel.T + w["embeddings.patch_embeddings.projection.bias"]
    h = torch.cat((w["embeddings.cls_token"].expand(4, -1, -1), tokens), 1) + w["embeddings.position_embeddings"]
    for n in range(3):
        at = f"layers.{n}"
        z = norm(f"{at}.layernorm_before", h)
        q, k, v = (linear(f"{at}.attention.{part}_proj", z).unflatten(-1, (2, 8)).transpose(1, 2) for part in "qkv")
        read = ((q @ k.mT) / 8**0.5).softmax(-1) @ v
        h = h + linear(f"{at}.attention.o_proj", read.transpose(1, 2).flatten(2))
        z = nn.functional.gelu(linear(f"{at}.mlp.fc1", norm(f"{at}.layernorm_after", h)))
        h = h + linear(f"{at}.mlp.fc2", z)
    expected = linear("classifier", norm("layernorm", h)[:, 0])
    assert torch.allclose(model(x), expected, rtol=1e-10, atol=1e-10)


def test_surface_of_our_own_classifier() -> None:
    model, x, labels = made(), images(), torch.tensor([0, 4, 2, 2])
    logs = model(x).log_softmax(-1)
    plain = -logs[range(4), labels].mean()
    assert torch.allclose(model.loss(x, labels), plain)
    assert torch.allclose(model.loss(x, labels, label_smoothing=0.2), 0.8 * plain - 0.2 * logs.mean())
    likely, classes = model.top(x, 50)
    assert torch.equal(classes, model(x).argsort(descending=True))
    assert torch.allclose(likely.sum(-1), torch.ones(4))


def test_any_resolution() -> None:
    model = made()
    for height, width in ((8, 16), (24, 12), (32, 32)):
        assert model(images(height, width)).isfinite().all()


def test_stochastic_depth_rises_and_leaves_whole_branches_out() -> None:
    model = made(drop_path=0.5)
    drops = [module for module in model.modules() if isinstance(module, DropPath)]
    assert [drop.rate for drop in drops] == [0, 0.25, 0.5]
    plain = made()
    x = images(count=64)
    assert torch.equal(model(x), plain(x))  # nothing happens while it is measured
    torch.manual_seed(0)
    h = torch.ones(64, 17, 16, dtype=torch.float64)
    dropped = drops[2].train()(h)
    assert set(dropped.flatten().tolist()) == {0.0, 2.0}
    assert bool((dropped == dropped[:, :1, :1]).all())
    assert not torch.equal(model.train()(x), plain(x))


def test_dropout_acts_in_training() -> None:
    model, x = made(dropout=0.3), images()
    assert torch.equal(model(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


def test_comes_back_from_a_folder(tmp_path: Path) -> None:
    model = made(drop_path=0.1)
    save_model(tmp_path / "m", model)
    loaded = load_classifier(tmp_path / "m")
    assert isinstance(loaded, DeiT)
    assert (kind_of(loaded), loaded.config, model_hash(loaded)) == ("deit", model.config, model_hash(model))
    assert torch.equal(loaded(images()), model(images()))


def test_learns_where_a_patch_lies() -> None:
    """Which quarter is bright; chance is 25 %, 90 % is asked (99 to 100 % with other seeds)."""
    torch.manual_seed(0)
    model = DeiT(DeiTConfig(classes=4, channels=1, image_size=8, patch=4, width=32, layers=2, head_size=16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def drawn(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(4, (count,))
        x = 0.5 * torch.randn(count, 1, 8, 8)
        for n, label in enumerate(labels.tolist()):
            x[n, 0, 4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 1
        return x, labels

    for _ in range(150):
        optimizer.zero_grad()
        model.loss(*drawn(32)).backward()
        optimizer.step()
    x, labels = drawn(200)
    with torch.no_grad():
        assert float((model.eval()(x).argmax(-1) == labels).float().mean()) > 0.9


@pytest.mark.parametrize(("changes", "message"), [
    ({"width": 20}, "width 20 does not divide into heads of head_size 8"), ({"classes": 1}, "classes is 1; it must be"),
    ({"image_size": 18}, "image_size 18 is no multiple of patch 4"), ({"layers": 0}, "layers is 0; it must be"),
    ({"drop_path": 1.0}, r"drop_path is 1.0; it must be in \[0, 1\)"),
])  # fmt: skip
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DeiTConfig(**SMALL | changes)


@pytest.mark.parametrize(("x", "message"), [
    (torch.zeros(2, 1, 16, 16), r"images must be \[B,3,height,width\] floating-point; got \[2, 1, 16, 16\] float32"),
    (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "got .* uint8"),
    (torch.zeros(2, 3, 16, 15), "images of 16 x 15 pixels do not divide into patches of 4"),
])  # fmt: skip
def test_images_that_do_not_fit(x: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made()(x)


def test_settings_need_nothing_and_the_model_says_what_it_needs() -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from hgrn2.models.presets import vision_preset\n"
        "config = vision_preset('deit_tiny'); assert 'torch' not in sys.modules\n"
        "from hgrn2.models.saved import build_classifier\n"
        "from hgrn2.errors import UserError\n"
        "try:\n    build_classifier(config)\nexcept UserError as error:\n    print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "DeiT needs transformers, which is not installed: pip install 'hgrn2[hf]'\n"


def test_recomputing_changes_no_bit_of_a_gradient() -> None:
    torch.manual_seed(0)
    model = DeiT(DeiTConfig(classes=3, image_size=8, patch=4, width=16, layers=2, head_size=8, drop_path=0.3))
    model.train()
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])

    def step() -> tuple[list[torch.Tensor], int]:
        kept: dict[int, int] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        torch.manual_seed(3)
        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = model.loss(images, labels)
        loss.backward()
        return [p.grad.clone() for p in model.parameters()], sum(kept.values())

    expected, everything = step()
    model.set_recompute("block")
    found, less = step()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert less < everything
    model.set_recompute("none")
    assert step()[1] == everything
    with pytest.raises(UserError, match="recompute glu is for blocks of ours"):
        model.set_recompute("glu")
