"""An exported graph in onnxruntime, on the CPU, with its states carried from call to call."""

from pathlib import Path
from typing import Any

import numpy as np

from hgrn2.errors import UserError
from hgrn2.settings import refuse


def runtime_library() -> Any:
    """The onnxruntime package; a `UserError` where it is missing."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError("running the export needs onnxruntime: pip install 'hgrn2[onnx]'") from None
    return onnxruntime


class Session:
    """A graph file; values in and out are numpy arrays."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        """`threads` None is onnxruntime's choice; a graph that it cannot run is a `UserError`."""
        library = runtime_library()
        options = library.SessionOptions()
        options.log_severity_level = 3  # errors; they come as exceptions, too
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session = library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common class
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"onnxruntime {library.__version__} cannot run the graph: {reason}") from None
        inputs = {value.name: value for value in self.session.get_inputs()}
        refuse("tokens" not in inputs, f"{path} is not a graph of hgrn2 export onnx")
        self.shapes = {name: value.shape[1:] for name, value in inputs.items() if name.startswith("past.")}
        named = [value.name for value in self.session.get_outputs()]
        self.outputs = ["logits", *(name for name in named if name.startswith("present."))]

    def zeros(self, batch: int) -> dict[str, np.ndarray]:
        """The states before the first token, by the names of the inputs."""
        return {name: np.zeros((batch, *shape), np.float32) for name, shape in self.shapes.items()}

    def __call__(
        self, tokens: np.ndarray, state: dict[str, np.ndarray], keep: int = 1
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Tokens [B,T] and a state -> (logits of the last `keep` positions, of all for 0; the state after them)."""
        feed = {"tokens": tokens, "logits_to_keep": np.array([keep]), **state}
        logits, *states = self.session.run(self.outputs, feed)
        names = (name.replace("present.", "past.", 1) for name in self.outputs[1:])
        return logits, dict(zip(names, states, strict=True))
