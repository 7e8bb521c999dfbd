"""Classifiers of sequences and images: padding, pairs, resolutions, sizes, starts, refusals, and that they learn."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_classifiers import IMAGES, SEQUENCES, sequence_config, vision_config
from torch import Tensor

from hgrn2.errors import UserError
from hgrn2.layers.config import MixerConfig
from hgrn2.layers.reading import DropPath
from hgrn2.models.backbone import Backbone
from hgrn2.models.config import InitConfig, ModelConfig, SequenceConfig, StackConfig, VisionConfig
from hgrn2.models.count import parameters
from hgrn2.models.init import initialise
from hgrn2.models.presets import sequence_names, sequence_preset, vision_names, vision_preset
from hgrn2.models.sequence import SequenceClassifier
from hgrn2.models.vision import VisionClassifier
from hgrn2.settings import from_dict, to_dict


def shaken(model: Any) -> Any:
    """In float64, with no parameter at a neutral value."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.double().parameters():
        scale = parameter.shape[1] ** -0.5 if parameter.dim() == 2 else 0.3
        parameter.data += scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def made(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    if name in SEQUENCES:
        return shaken(SequenceClassifier(sequence_config(name, **changes)))
    return shaken(VisionClassifier(vision_config(name, **changes)))


def inputs(config: SequenceConfig, batch: int = 4, length: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    steps = (batch, 2, length) if config.pair else (batch, length)
    if config.vocab_size:
        return torch.randint(config.vocab_size, steps, generator=generator)
    return torch.randn(*steps, config.channels, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", [name for name in SEQUENCES if name not in ("2-D", "pair")])
@pytest.mark.parametrize("training", [False, True])
def test_padding_changes_nothing(name: str, training: bool, same: Callable) -> None:
    """Logits and gradients of a padded batch are those of its sequences alone (with batch statistics: packed)."""
    model = made(name).train(training)
    x = inputs(model.config)
    lengths = torch.tensor([12, 7, 1, 4])
    padding_mask = torch.arange(12) < lengths[:, None]
    x[~padding_mask] = 22 if model.config.vocab_size else 1e3
    logits = model(x, padding_mask)
    grads = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
    if training and model.config.norm == "batch":  # statistics of one sequence are not those of four
        longer = torch.cat((x, x[:, :5]), 1)
        padded = model(longer, torch.cat((padding_mask, torch.zeros_like(padding_mask[:, :5])), 1))
        same(padded, logits)
        return
    alone = torch.cat([model(x[row : row + 1, :length]) for row, length in enumerate(lengths.tolist())])
    same(alone, logits, 10_000)
    expected = torch.autograd.grad(alone.square().sum(), list(model.parameters()))
    for mine, theirs in zip(grads, expected, strict=True):
        same(mine, theirs, 100_000)


def test_pairs_are_two_sequences_of_one_encoder(same: Callable) -> None:
    model = made("pair").eval()
    x = inputs(model.config)
    padding_mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(4)) < 0.7
    logits = model(x, padding_mask)
    parts = [
        model.backbone(model.embedding(x[:, side]), padding_mask=padding_mask[:, side], output_state=False)[0]
        for side in (0, 1)
    ]
    same(logits, model.head(torch.stack(parts, 1), padding_mask))
    swapped = model(x.flip(1), padding_mask.flip(1))
    assert not torch.allclose(swapped, logits)


def test_an_image_as_a_sequence_needs_its_shape(same: Callable) -> None:
    model = made("2-D").eval()
    x = inputs(model.config)
    with pytest.raises(UserError, match=r"needs shape=\(height, width\) of its 12 tokens"):
        model(x)
    tall, wide = model(x, shape=(4, 3)), model(x, shape=(2, 6))
    assert not torch.allclose(tall, wide)
    # The same pixels for the image classifier: the two share everything but the way in.
    vision = shaken(VisionClassifier(vision_config("pixels", positions="none", mixer=model.config.mixer)))
    vision.backbone.load_state_dict(model.backbone.state_dict())
    vision.head.load_state_dict(model.head.state_dict())
    vision.patches.proj.load_state_dict(model.input.state_dict())
    same(vision.eval()(x.view(4, 1, 4, 3)), tall)


@pytest.mark.parametrize("name", IMAGES)
def test_any_resolution(name: str) -> None:
    model = made(name).eval()
    for height, width in ((16, 16), (8, 16), (24, 12)):
        generator = torch.Generator().manual_seed(2)
        images = torch.randn(2, model.config.channels, height, width, generator=generator, dtype=torch.float64)
        logits = model(images)
        assert logits.shape == (2, 5)
        assert logits.isfinite().all()
    likely, classes = model.top(images, 50)
    assert torch.equal(classes, model(images).argsort(descending=True))
    assert torch.allclose(likely.sum(-1), torch.ones(2))


def test_loss_is_cross_entropy() -> None:
    model = made("patches").eval()
    images, labels = torch.randn(3, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 4, 2])
    logs = model(images).log_softmax(-1)
    plain = -logs[range(3), labels].mean()
    assert torch.allclose(model.loss(images, labels), plain)
    assert torch.allclose(model.loss(images, labels, label_smoothing=0.2), 0.8 * plain - 0.2 * logs.mean())
    mixed = 0.3 * torch.nn.functional.one_hot(labels, 5) + 0.7 * torch.nn.functional.one_hot(labels.flip(0), 5)
    assert torch.allclose(model.loss(images, mixed), -(mixed * logs).sum(-1).mean())


def every_config() -> dict[str, StackConfig]:
    presets = {name: vision_preset(name) for name in vision_names() if not name.startswith("deit")}  # test_deit.py
    presets |= {name: sequence_preset(name) for name in sequence_names()}
    return presets | {n: sequence_config(n) for n in SEQUENCES} | {n: vision_config(n) for n in IMAGES}


@pytest.mark.parametrize("name", every_config())
def test_counts_equal_the_built_model_and_settings_survive_json(name: str) -> None:
    config: Any = every_config()[name]
    with torch.device("meta"):
        model = VisionClassifier(config) if isinstance(config, VisionConfig) else SequenceClassifier(config)
    count = parameters(config)
    assert count.total == sum(p.numel() for p in model.parameters())
    assert count.non_embedding == sum(p.numel() for p in model.backbone.parameters())
    parts = [part for block in model.backbone.blocks for part in (block.mixer, block.mixer_norm)]
    assert count.mixers == sum(p.numel() for part in parts for p in part.parameters())
    assert from_dict(type(config), to_dict(config)) == config


@pytest.mark.parametrize(
    ("name", "millions"),
    [("hgrn2_vit_tiny", 6.1), ("hgrn2_vit_small", 23.8), ("hgrn1_vit_tiny", 6.1), ("hgrn1_vit_small", 23.7)],
)
def test_published_sizes(name: str, millions: float) -> None:
    assert round(parameters(vision_preset(name)).total / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("image", ("parallel_2d", 6, 512, 2, 512, "batch", 0.0)),
        ("text", ("bidirectional", 4, 128, 8, 128, "layer", 0.1)),
        ("listops", ("bidirectional", 5, 64, 4, 64, "batch", 0.0)),
        ("pathfinder", ("parallel_2d", 6, 128, 2, 128, "batch", 0.0)),
        ("pathx", ("series_2d", 6, 32, 1, 32, "batch", 0.0)),
        ("retrieval", ("bidirectional", 2, 256, 2, 512, "batch", 0.0)),
    ],
)
def test_published_long_range_rows(task: str, row: tuple[Any, ...]) -> None:
    made = sequence_preset(f"hgrn2_lra_{task}")
    found = (made.mixer.direction, made.layers, made.width, made.mixer.head_size)
    assert (*found, made.glu_width, made.norm, made.dropout) == row
    # Without bounds the published average falls from 86.9 to 51.5: they must be live.
    assert made.lower_bound == "exclusive"
    with torch.device("meta"):
        assert SequenceClassifier(made).backbone.lower_bounds is not None
    other = sequence_preset(f"hgrn1_lra_{task}")
    assert (other.mixer.kind, other.mixer.direction, other.width) == ("hgru1", made.mixer.direction, made.width)


def test_a_wrong_preset_is_answered_with_the_right_table() -> None:
    with pytest.raises(UserError, match=r"no vision preset 'vit_tiny'; did you mean hgrn2_vit_tiny or hgrn1_vit_tiny"):
        vision_preset("vit_tiny")
    with pytest.raises(UserError, match=r"no sequence preset 'hgrn2_70m'.*\(choose from hgrn2_lra_image, "):
        sequence_preset("hgrn2_70m")
    with pytest.raises(UserError, match="a model has no setting depth; it has: width"):
        vision_preset("hgrn2_vit_tiny", depth=3)


@pytest.mark.parametrize("kind", ["normal", "scaled_normal"])
@pytest.mark.parametrize("name", [*SEQUENCES, *IMAGES])
def test_born_on_meta_equals_born_on_the_device(name: str, kind: Any) -> None:
    """Memory is filled with NaN first: a parameter or a running statistic that is forgotten would keep it."""
    init = InitConfig(kind=kind)
    sequence = name in SEQUENCES
    config: Any = sequence_config(name, init=init) if sequence else vision_config(name, init=init)
    build: Any = SequenceClassifier if sequence else VisionClassifier
    torch.manual_seed(3)
    direct = build(config)
    with torch.device("meta"):
        late = build(config)
    late.to_empty(device="cpu")
    for tensor in late.state_dict().values():
        tensor.fill_(math.nan)
    torch.manual_seed(3)
    initialise(late, init)
    found = late.state_dict()
    for key, tensor in direct.state_dict().items():
        assert tensor.isfinite().all(), key
    initialise(direct, init)
    torch.manual_seed(3)
    initialise(direct, init)
    for key, tensor in direct.state_dict().items():
        assert torch.equal(found[key], tensor), key


def test_separate_scans_start_like_the_first() -> None:
    mixer = MixerConfig(head_size=64, direction="bidirectional", separate_scans=True)
    config = sequence_config("ids", width=128, mixer=mixer, init=InitConfig(std=0.05))
    block: Any = SequenceClassifier(config).backbone.blocks[0]
    first, second = block.mixer.unit.in_proj.weight, block.mixer.more[0].weight
    for weight in (first, second):
        assert float(weight.detach().std()) == pytest.approx(0.05, rel=0.02)
    assert not torch.equal(first, second)


def test_drop_path_keeps_the_mean_and_drops_whole_rows() -> None:
    drop = DropPath(0.3)
    torch.manual_seed(0)
    y = drop(torch.ones(4000, 2, 3))
    rows = y.flatten(1)
    assert (rows == rows[:, :1]).all()
    dropped = float((rows[:, 0] == 0).float().mean())
    assert abs(dropped - 0.3) < 5 * math.sqrt(0.21 / 4000)
    assert torch.allclose(rows[rows[:, 0] != 0], torch.tensor(1 / 0.7))
    x = torch.randn(2, 3)
    assert drop.eval()(x) is x


def test_drop_path_rises_with_depth_and_survives_recomputation() -> None:
    model = made("ids", drop_path=0.5, layers=3)
    assert [block.drop_path.rate for block in model.backbone.blocks] == [0.0, 0.25, 0.5]
    x, found = inputs(model.config), []
    for what in ("none", "glu", "block"):
        model.backbone.set_recompute(what)
        torch.manual_seed(1)
        loss = model(x).square().sum()
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("name", [n for n, one in (SEQUENCES | IMAGES).items() if one.get("norm") != "batch"])
@pytest.mark.parametrize("what", ["glu", "block"])
def test_recomputing_changes_no_bit_of_a_gradient(name: str, what: Any) -> None:
    model = made(name, dropout=0.2).train()
    if name in SEQUENCES:
        x = inputs(model.config)
    else:
        side = model.config.image_size
        x = torch.randn(4, model.config.channels, side, side, dtype=torch.float64)
    options = {"shape": (3, 4)} if name == "2-D" else {}
    labels = torch.tensor([0, 1, 2, 3])

    def step() -> tuple[list[Tensor], int]:
        """Gradients, and the bytes kept for them."""
        kept: dict[int, int] = {}
        own = {p.data_ptr() for p in model.parameters()}

        def pack(x: Tensor) -> Tensor:
            if x.data_ptr() not in own:
                kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        torch.manual_seed(3)
        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = model.loss(x, labels, **options)
        loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None], sum(kept.values())

    expected, everything = step()
    model.set_recompute(what)
    found, less = step()
    assert len(found) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert less < everything


def test_batch_norm_is_not_recomputed() -> None:
    with pytest.raises(UserError, match="recompute block would count every batch twice"):
        made("ids batch norm").backbone.set_recompute("block")


def test_nothing_to_carry_and_nothing_to_generate() -> None:
    backbone = Backbone(sequence_config("ids"))
    message = "direction bidirectional reads whole sequences: it has no state to carry, and cannot generate; use direct"
    with pytest.raises(UserError, match=message):
        backbone.zeros(1)
    with pytest.raises(UserError, match=message):
        backbone(torch.zeros(1, 3, 16))
    shared: dict[str, Any] = {"vocab_size": 9, "width": 16, "layers": 1, "glu_width": 16}
    with pytest.raises(UserError, match="must not see later tokens: direction parallel_2d is for classifiers"):
        ModelConfig(**shared, mixer=MixerConfig(head_size=4, direction="parallel_2d"))
    with pytest.raises(UserError, match="norm batch mixes sequences and later tokens"):
        ModelConfig(**shared, mixer=MixerConfig(head_size=4), norm="batch")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 1}, "classes is 1; it must be at least 2"),
        (
            {"channels": 2},
            "give vocab_size for token ids or channels for real-valued inputs, one of them, not 23 and 2",
        ),
        ({"vocab_size": 0}, "one of them, not 0 and 0"),
        ({"vocab_size": -1, "channels": 1}, "one of them, not -1 and 1"),
        ({"positions": "learned"}, "learned positions need max_length"),
        ({"positions": "sine", "width": 5, "mixer": MixerConfig(head_size=5)}, "sine positions need an even width"),
        ({"drop_path": 1.0}, r"drop_path is 1.0; it must be in \[0, 1\)"),
        ({"head_norm": "batch"}, "head_norm is 'batch'; choose one of: tokens"),
    ],
)
def test_sequence_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sequence_config("ids", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 18}, "image_size 18 is no multiple of patch 4"),
        ({"patch": 0}, "patch is 0; it must be at least 1"),
        ({"positions": "sine", "width": 10, "mixer": MixerConfig(head_size=5)}, "needs? a width that divides by 4"),
    ],
)
def test_vision_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        vision_config("patches", **changes)


@pytest.mark.parametrize(
    ("name", "x", "message"),
    [
        ("ids", torch.zeros(2, 3), r"inputs must be \[B,T\] integer; got \[2, 3\] float32"),
        ("ids", torch.zeros(2, 0, dtype=torch.long), r"got \[2, 0\] int64"),
        ("real causal", torch.zeros(2, 5, 2), r"inputs must be \[B,T,3\] floating-point; got \[2, 5, 2\] float32"),
        ("pair", torch.zeros(2, 3, 5, dtype=torch.long), r"inputs must be \[B,2,T\] integer; got \[2, 3, 5\]"),
        ("real causal", torch.zeros(2, 15, 3), "a sequence of 15 steps is longer than the 14 positions"),
    ],
)
def test_inputs_that_do_not_fit(name: str, x: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(name)(x)


def test_masks_and_ids_that_do_not_fit() -> None:
    model = made("ids")
    with pytest.raises(
        UserError, match=r"padding_mask must be \[2, 3\] bool, one value per step; got \[2, 3\] float32"
    ):
        model(torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3))
    with pytest.raises(UserError, match="token id 23 is outside the vocabulary of 23"):
        model.check_tokens(torch.tensor([[0, 23]]))


@pytest.mark.parametrize("unit", ["hgru2", "hgru1"])
def test_shared_scans_cannot_tell_a_sequence_from_its_reverse(unit: Any, same: Callable) -> None:
    """They mirror with their input, and the mean does not see it; scans of their own, or positions, do."""
    for separate, positions in ((False, "none"), (True, "none"), (False, "sine")):
        mixer = MixerConfig(kind=unit, head_size=4, direction="bidirectional", separate_scans=separate)
        model = made("ids", mixer=mixer, positions=positions).eval()
        x = inputs(model.config)
        forward, backward = model(x), model(x.flip(1))
        if separate or positions != "none":
            assert not torch.allclose(forward, backward, rtol=1e-3)
        else:
            same(backward, forward)


def test_shared_scans_of_an_image_cannot_tell_it_from_its_mirror_images(same: Callable) -> None:
    mixer = MixerConfig(head_size=4, direction="parallel_2d")
    model = made("pixels", mixer=mixer, positions="none").eval()
    images = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for other in (images.flip(2), images.flip(3), images.mT):
        same(model(other), model(images))


def bracketed(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences of 6 to 18 tokens of noise (ids 4 to 9) with two marks (0 to 3); the class is the later mark."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 10, (count, 18), generator=generator)
    lengths = torch.randint(6, 19, (count,), generator=generator)
    padding_mask = torch.arange(18) < lengths[:, None]
    places = torch.rand(count, 18, generator=generator).masked_fill(~padding_mask, -1).topk(2).indices.sort().values
    marks = torch.randint(4, (count, 2), generator=generator)
    tokens.scatter_(1, places, marks)
    return tokens, padding_mask, marks[:, 1]


def test_learns_which_of_two_marks_comes_last() -> None:
    """Chance is 25 %, and 62.5 % is the most for a model to which order means nothing; 85 % is asked (97 to 100 % with
    other seeds)."""
    torch.manual_seed(0)
    mixer = MixerConfig(
        head_size=8, direction="bidirectional", separate_scans=True, input_activation="silu", norm="layer"
    )
    model = SequenceClassifier(
        SequenceConfig(
            vocab_size=10,
            classes=4,
            width=32,
            layers=2,
            glu_width=32,
            norm="layer",
            mixer=mixer,
            init=InitConfig(std=0.05),
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    for step in range(100):
        tokens, padding_mask, labels = bracketed(48, 1000 + step)
        loss = model.loss(tokens, labels, padding_mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokens, padding_mask, labels = bracketed(400, 1)
    with torch.no_grad():
        right = (model.eval()(tokens, padding_mask).argmax(-1) == labels).float().mean()
    assert float(right) >= 0.85
