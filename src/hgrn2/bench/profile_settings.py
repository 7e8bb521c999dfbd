"""What `hgrn2 bench profile` measures, as a frozen value; no torch here, so that the command line starts quickly."""

from dataclasses import field
from typing import Literal, cast, get_args

from hgrn2.bench.settings import (
    PRESETS,
    Compile,
    DecodeBench,
    Decoded,
    Device,
    Limits,
    ModelDtype,
    Preset,
    Size,
    TrainBench,
    Trained,
)
from hgrn2.generate.config import StateDtype
from hgrn2.settings import refuse, settings

Task = Literal["train", "decode"]


@settings
class ProfileBench:
    """Where the time of training steps and of decoding goes."""

    tasks: tuple[Task, ...] = ("train", "decode")
    """What is profiled."""
    device: Device = "cpu"
    """Where."""
    dtype: ModelDtype | None = None
    """Of weights and activations; none given: float32 on a CPU, bfloat16 on a GPU."""
    models: tuple[Decoded, ...] = ("hgrn2", "hgrn2-graph")
    """Which models. hgrn2-graph and llama-hf-static decode, and do not train."""
    length: int = 512
    """Tokens of a training sequence."""
    tokens: int = 4096
    """Tokens of a training step."""
    compile: Compile = "none"
    """torch.compile for training: of each block by itself, or of the model as a whole."""
    compile_steps: bool = False
    """Let torch.compile fuse the step of hgrn2-graph."""
    context: int = 128
    """Tokens of the prompt that is decoded after."""
    batch: int = 1
    """Sequences decoded side by side."""
    new_tokens: int = 32
    """Tokens decoded in a profile."""
    state_dtype: StateDtype = "float32"
    """Of hgrn2's states in decoding."""
    names: int = 3
    """So many operators or kernels of a group are named, the longest first."""
    seed: int = 0
    """Of weights and tokens."""
    preset: Preset | None = None
    """A published shape in place of the sizes below."""
    size: Size = field(default_factory=Size)
    limits: Limits = field(default_factory=lambda: Limits(repeats=3))

    def __post_init__(self) -> None:
        refuse(not self.tasks or len(set(self.tasks)) < len(self.tasks), "--tasks: name each once")
        refuse(self.names < 0, f"--names is {self.names}; it must not be negative")
        for task in self.tasks:  # what they refuse is refused here
            self.training() if task == "train" else self.decoding()
        refuse(not any(self.measured(task) for task in self.tasks), "--models: none of them trains")

    def measured(self, task: Task) -> tuple[Decoded, ...]:
        """The models of a task."""
        return self.models if task == "decode" else tuple(name for name in self.models if name in get_args(Trained))

    def training(self) -> TrainBench:
        """The same as `hgrn2 bench train` has it."""
        trained = cast("tuple[Trained, ...]", self.measured("train"))
        return TrainBench(
            device=self.device, dtype=self.dtype, models=trained or ("hgrn2",), lengths=(self.length,),
            tokens=self.tokens, compile=self.compile, seed=self.seed, preset=self.preset, size=self.size,
            limits=self.limits,
        )  # fmt: skip

    def decoding(self) -> DecodeBench:
        """The same as `hgrn2 bench decode` has it."""
        return DecodeBench(
            device=self.device, dtype=self.dtype, state_dtype=self.state_dtype, models=self.models,
            contexts=(self.context,), batches=(self.batch,), tokens=self.new_tokens, compile=self.compile_steps,
            seed=self.seed, preset=self.preset, size=self.size, limits=self.limits,
        )  # fmt: skip

    @property
    def measured_size(self) -> Size:
        """The shape, with the preset resolved."""
        return PRESETS[self.preset] if self.preset else self.size

    @property
    def measured_dtype(self) -> ModelDtype:
        """The dtype named, or that of the device."""
        return self.dtype or ("float32" if self.device == "cpu" else "bfloat16")
