"""Named runs of classification, every one a complete `ClassifyRun` but for its folder of data; no torch here.

`full` are the published settings of Long Range Arena (HGRN2's run_lra.py) and our own for small images, where the
authors publish none but ImageNet's; `fast` are ours for ten minutes of one H100; `small` are minutes on a CPU core, on
smaller data. docs/reproduce.md says what each of them reached.
"""

from dataclasses import replace
from typing import Any, Literal, NamedTuple

from hgrn2.data.augment_settings import AugmentConfig
from hgrn2.errors import unknown
from hgrn2.layers.config import Direction, NormKind, OutputGate
from hgrn2.models.config import DeiTConfig, PositionKind, SequenceConfig
from hgrn2.models.presets import sequence_preset, vision_preset
from hgrn2.tasks.classify.config import ClassifyData, ClassifyRun, Curriculum
from hgrn2.train.config import OptimConfig, TrainConfig

Size = Literal["full", "fast", "small"]
LRA = ("listops", "text", "retrieval", "image", "pathfinder", "pathx")
IMAGES = ("cifar10", "fashion-mnist", "imagenet")
MODELS = ("hgrn2", "hgrn1", "transformer")
"""Of Long Range Arena; of images hgrn2, hgrn1 and deit."""

# Of each task: longest sequence, batch, peak learning rate, warm-up steps, steps, clip; HGRN2's script.
_LRA: dict[str, tuple[int, int, float, int, int, float]] = {
    "listops": (2048, 128, 5e-4, 5_000, 37_500, 0),
    "text": (4096, 64, 5e-3, 10_000, 15_600, 0),
    "retrieval": (4096, 128, 5e-3, 312, 22_960, 1),
    "image": (1024, 64, 3e-3, 30_000, 52_700, 0),
    "pathfinder": (1024, 128, 2e-3, 50_000, 125_000, 0),
    "pathx": (16_384, 256, 7.5e-4, 150_000, 125_000, 1),
}


def recipe(task: str, model: str = "hgrn2", size: Size = "full") -> ClassifyRun:
    """The run of this name; the data's own numbers (classes, vocabulary, sides) are put in by `run.fit_to_data`.

    Raises:
        UserError: an unknown task or model, with the nearest name.
    """
    if task in LRA:
        make = {"full": _lra, "fast": _fast_lra, "small": _small_lra}[size]
        return make(_known(model, MODELS, "model"), task)
    task = _known(task, IMAGES, "task")
    return _image(_known(model, ("hgrn2", "hgrn1", "deit"), "model"), task, size)


def _lra(model: str, task: str) -> ClassifyRun:
    """Published width, depth, n, norm, batch and learning rate; as many steps as the published epochs are."""
    longest, batch, lr, warmup, steps, clip = _LRA[task]
    return ClassifyRun(
        task=task,
        model=sequence_preset(f"{model}_lra_{task}"),
        data=ClassifyData(augment=AugmentConfig(crop_padding=4, flip=True) if task == "image" else AugmentConfig()),
        train=TrainConfig(
            steps=steps, sequence_length=longest, batch_size=batch, precision="bfloat16", eval_every=steps // 20,
            eval_tokens=1_000_000, save_every=steps // 10, log_every=100, keep=1, spike=0,
        ),
        optim=OptimConfig(
            lr=lr, warmup_steps=min(warmup, steps // 5), weight_decay=0.0, final_lr_ratio=0.0, clip=clip, beta2=0.999,
        ),
    )  # fmt: skip


class Fast(NamedTuple):
    """What a recipe for ten minutes of one H100 changes of the published one."""

    width: int
    layers: int
    head_size: int
    batch: int
    lr: float
    steps: int
    dropout: float = 0.0
    weight_decay: float = 0.05
    separate: bool = True
    warmup: int = 500
    norm: NormKind = "layer"
    positions: PositionKind = "sine"
    local: int = 0
    """Width of the local convolution of HGRN2 and HGRN1."""
    gate: OutputGate = "none"
    """HGRN2's output gate; HGRN1 has one anyway."""
    direction: Direction | None = None
    """None: the published one."""
    drop_tokens: float = 0.0
    multiple: int = 64
    compiled: bool = True
    """Worth its first minute where shapes of batches are few."""
    graphs: bool = False
    easy: Curriculum = Curriculum()


_FAST: dict[str, Fast] = {
    "listops": Fast(64, 5, 64, 128, 2e-3, 15_000, easy=Curriculum(steps=1_500, batch_size=512)),
    "text": Fast(
        128, 3, 8, 32, 2e-3, 9_000, dropout=0.3, warmup=200, positions="none", local=5, gate="silu", drop_tokens=0.1,
        multiple=256, compiled=False, graphs=True,
    ),
    "retrieval": Fast(
        128, 3, 8, 32, 1e-3, 9_000, dropout=0.1, local=5, gate="silu", multiple=256, compiled=False, graphs=True
    ),
    "image": Fast(
        256, 6, 8, 64, 2e-3, 20_000, dropout=0.1, separate=False, norm="batch", local=5, gate="silu", graphs=True
    ),
    "pathfinder": Fast(
        128, 6, 4, 128, 1.5e-3, 30_000, separate=False, norm="batch", positions="none", local=3, graphs=True,
        easy=Curriculum(steps=8_000, rising=True),
    ),
    "pathx": Fast(
        64, 6, 4, 32, 1.5e-3, 8_000, separate=False, direction="parallel_2d", norm="batch", positions="none", local=3,
        graphs=True, easy=Curriculum(steps=3_000, rising=True),
    ),
}  # fmt: skip


def _fast_lra(model: str, task: str) -> ClassifyRun:
    """SiLU on the output gate, as language models have it, and where it helps a gate on the output and a local
    convolution; scans with weights of their own where order decides; easier examples first where there can be some;
    averaged weights; a shorter schedule. Heads are small, but in ListOps."""
    run, fast = _lra(model, task), _FAST[task]
    config = run.model
    assert isinstance(config, SequenceConfig)
    norm, positions = fast.norm, fast.positions
    if model == "hgrn2":
        mixer = replace(
            config.mixer, head_size=fast.head_size, separate_scans=fast.separate, output_activation="silu",
            output_gate=fast.gate, local_width=fast.local,
        )  # fmt: skip
    elif model == "hgrn1":
        mixer = replace(config.mixer, separate_scans=fast.separate, local_width=fast.local)
    else:
        mixer, norm, positions = replace(config.mixer, head_size=32), "layer", "sine"
    if fast.direction and model != "transformer":
        mixer = replace(mixer, direction=fast.direction)
    config = replace(
        config, width=fast.width, glu_width=fast.width, layers=fast.layers, mixer=mixer, norm=norm, positions=positions,
        dropout=fast.dropout, init=replace(config.init, std=round((3 * fast.width) ** -0.5, 4)),
    )  # fmt: skip
    train = replace(
        run.train, steps=fast.steps, batch_size=fast.batch, average=0.999, compile_blocks=fast.compiled,
        graphs=fast.graphs, save_every=0, eval_every=max(1, fast.steps // 20),
    )  # fmt: skip
    optim = replace(
        run.optim, lr=fast.lr, warmup_steps=fast.warmup, weight_decay=fast.weight_decay, clip=1.0, beta2=0.98
    )
    augment = AugmentConfig()
    if task == "image":
        augment = AugmentConfig(crop_padding=4, flip=True, cutmix=1.0, mix_probability=0.5, label_smoothing=0.1)
    data = replace(
        run.data, augment=augment, curriculum=fast.easy, drop_tokens=fast.drop_tokens, multiple=fast.multiple
    )
    return replace(run, model=config, train=train, optim=optim, data=data)


def _small_lra(model: str, task: str) -> ClassifyRun:
    """A fifth of the width or less and short runs, for data made with small numbers (docs/lra.md); heads of 16, the
    quickest on a CPU, but for curves, which 32 channels learn much sooner without expansion (docs/log.md); the local
    convolutions and first examples of the fast recipes, and a gate but for ListOps."""
    run, fast = _lra(_known(model, MODELS, "model"), task), _FAST[task]
    config, width = run.model, 32
    assert isinstance(config, SequenceConfig)
    mixer = replace(config.mixer, head_size=16)
    if model != "transformer":
        mixer = replace(mixer, local_width=fast.local, separate_scans=fast.separate)
    curves = task in ("pathfinder", "pathx")
    if model == "hgrn2" and curves:
        mixer = replace(mixer, output_gate="silu", head_size=1)
    elif model == "hgrn2":
        mixer = replace(mixer, output_gate="none" if task == "listops" else "silu", output_activation="silu")
    plain = model == "transformer"
    config = replace(
        config, width=width, glu_width=2 * width, layers=4 if task == "pathfinder" else 2, mixer=mixer,
        norm="layer" if plain else fast.norm, positions="sine" if plain else fast.positions,
        init=replace(config.init, std=round((3 * width) ** -0.5, 4)),
    )  # fmt: skip
    steps = 900 if task == "pathfinder" else 400
    train = replace(
        run.train, steps=steps, batch_size=32, precision="float32", eval_every=100, eval_tokens=50_000, save_every=200,
        log_every=20, average=0.98,
    )  # fmt: skip
    optim = replace(run.optim, lr=3e-3 if curves else 5e-3, warmup_steps=40, clip=1.0)
    first = Curriculum(steps=300, rising=True) if task == "pathfinder" else Curriculum()
    return replace(run, model=config, train=train, optim=optim, data=replace(run.data, curriculum=first))


def _image(model: str, task: str, size: Size) -> ClassifyRun:
    """Small images: DeiT-tiny's shape over patches of 4 (full), patches of 2 (fast), or a few
    layers of 64 with scans in four directions (small). Fashion-MNIST has 28 x 28 grey pixels."""
    name = "deit_tiny" if model == "deit" else f"{model}_vit_tiny"
    if task == "imagenet":
        return _imagenet(name)
    fashion, deit = task == "fashion-mnist", model == "deit"
    side, patch = 28 if fashion else 32, 2 if size == "fast" else 4
    shape: dict[str, Any] = {"classes": 10, "image_size": side, "patch": patch, "channels": 1 if fashion else 3}
    if not deit:
        shape |= {"positions": "learned"}
    if size == "small":
        shape |= {"width": 64, "layers": 3} | ({} if deit else {"glu_width": 128})
    if size == "fast":
        shape |= {"width": 256, "layers": 6, "drop_path": 0.1} | ({} if deit else {"glu_width": 512})
    config = vision_preset(name, **shape)
    if not isinstance(config, DeiTConfig) and size != "full":
        heads: dict[str, Any] = {"head_size": 16 if size == "small" else 8} if model == "hgrn2" else {}
        if size == "fast":
            heads |= {"local_width": 5} | ({"output_gate": "silu"} if model == "hgrn2" else {})
        norm = "batch" if size == "fast" else config.norm
        config = replace(config, norm=norm, mixer=replace(config.mixer, direction="parallel_2d", **heads))
    steps, batch = {"full": (20_000, 256), "fast": (16_000, 128), "small": (300, 64)}[size]
    strong, colour = size != "small", not fashion
    # Ten minutes are some 80 epochs, for which the strongest augmentation is too much.
    augment = AugmentConfig(
        crop_padding=4 if colour else 2, flip=True, rand_augment=2 if size == "full" and colour else 0, magnitude=7.0,
        erasing=0.25 if size == "full" else 0.0, cutmix=1.0 if strong and colour else 0.0, mix_probability=0.5,
        label_smoothing=0.1,
    )  # fmt: skip
    return ClassifyRun(
        task=task,
        model=config,
        data=ClassifyData(augment=augment),
        train=TrainConfig(
            steps=steps, sequence_length=(side // patch) ** 2, batch_size=batch, eval_every=steps // 10,
            precision="bfloat16" if strong else "float32", average=0.999 if strong else 0.0, eval_tokens=2_000_000,
            save_every=steps // 4, log_every=50 if strong else 20, keep=1, spike=0,
            compile_blocks=size == "fast" and not deit, graphs=size == "fast" and not deit,
        ),
        optim=OptimConfig(
            lr=2e-3 if size == "fast" and not deit else 1e-3, warmup_steps=steps // 20, weight_decay=0.05,
            final_lr_ratio=0.0, clip=1.0, beta2=0.999,
        ),
    )  # fmt: skip


def _imagenet(name: str) -> ClassifyRun:
    """HGRN2's run_im.py: 300 epochs in batches of 1,024, 7.5e-4, decay 0.05, 20 epochs of warm-up, clip 5; DeiT's
    augmentation."""
    epoch = 1_281_167 // 1024
    return ClassifyRun(
        task="imagenet",
        model=vision_preset(name),
        data=ClassifyData(
            augment=AugmentConfig(
                crop_area=0.08, flip=True, rand_augment=2, erasing=0.25, mixup=0.8, cutmix=1.0, label_smoothing=0.1
            )
        ),
        train=TrainConfig(
            steps=300 * epoch, sequence_length=256, batch_size=1024, precision="bfloat16", average=0.99996,
            eval_every=5 * epoch, eval_tokens=50_000 * 256, save_every=epoch, log_every=100, keep=1, spike=0,
        ),
        optim=OptimConfig(
            lr=7.5e-4, warmup_steps=20 * epoch, weight_decay=0.05, final_lr_ratio=0.0, clip=5.0, beta2=0.999
        ),
    )  # fmt: skip


def _known(name: str, known: tuple[str, ...], noun: str) -> str:
    if name not in known:
        raise unknown(noun, name, known)
    return name
