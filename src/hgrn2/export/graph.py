"""A graph under construction: nodes, small constants inside, weights in a file beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from hgrn2.errors import UserError

OPSET = 27
MICROSOFT = "com.microsoft"
END = 2**63 - 1  # of a slice: up to the end
ALIGNMENT = 4096  # bytes; a page, so that a runtime can map a weight from the file
INLINE = 1024  # bytes up to which a constant stays in the graph


def onnx_library() -> Any:
    """The onnx package; a `UserError` where it is missing."""
    try:
        import onnx
    except ImportError:
        raise UserError("the export needs onnx and onnxruntime: pip install 'hgrn2[onnx]'") from None
    if onnx.defs.onnx_opset_version() < OPSET:
        raise UserError(
            f"onnx {onnx.__version__} is too old, LinearAttention came with opset {OPSET}: pip install 'hgrn2[onnx]'"
        )
    return onnx


class WeightFile:
    """The file beside the graph. What is stored under a name a second time lies there once."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self.stream, self.name = stream, name
        self.places: dict[str, tuple[int, int]] = {}

    def store(self, key: str, array: np.ndarray) -> tuple[int, int]:
        """(offset, bytes) of an array, appended unless the key is known."""
        if key not in self.places:
            self.stream.write(bytes(-self.stream.tell() % ALIGNMENT))
            offset = self.stream.tell()
            np.ascontiguousarray(array).tofile(self.stream)
            self.places[key] = (offset, array.nbytes)
        return self.places[key]


class Graph:
    """Values are names; every method that adds a node returns the name of its (first) output."""

    def __init__(self, weights: WeightFile) -> None:
        self.onnx = onnx_library()
        self.weights = weights
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._used: dict[str, int] = {}

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        name: str,
        *,
        outputs: Sequence[str] = (),
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """A node; `name` says where in the model it stands."""
        label = self._unique(name)
        names = list(outputs) or [label]
        self.nodes.append(self.onnx.helper.make_node(op, inputs, names, name=label, domain=domain, **attributes))
        return names[0]

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """A number or a short list; equal ones are one constant."""
        array = np.asarray(value, dtype=dtype)
        name = f"{array.dtype}{array.tolist()}"
        if name not in self.constants:
            self.constants[name] = self.onnx.numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str, array: np.ndarray, *, key: str = "") -> str:
        """A parameter; `key` names its bytes in the file where another parameter has the same ones."""
        if name in self.constants:
            return name
        if array.nbytes <= INLINE:
            self.constants[name] = self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
            return name
        offset, size = self.weights.store(key or name, array)
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = self.onnx.TensorProto(name=name, data_type=kind, dims=array.shape)
        tensor.data_location = self.onnx.TensorProto.EXTERNAL
        for field, value in (("location", self.weights.name), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=field, value=str(value))
        self.constants[name] = tensor
        return name

    def declare(self, side: list[Any], name: str, dtype: Any, shape: Sequence[int | str]) -> str:
        """An input or output of the graph: `side` is `inputs` or `outputs`."""
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        side.append(self.onnx.helper.make_tensor_value_info(name, kind, shape))
        return name

    def save(self, path: Path, producer: str, version: str, opset: int = OPSET) -> None:
        """Check the graph and write it; its weights are in their file already.

        `opset` is the one that the file states. Below OPSET it is a stamp for a runtime that refuses newer ones though
        it knows every operator in the graph, and onnx's own check is left to that runtime.
        """
        helper = self.onnx.helper
        opsets = [helper.make_opsetid("", opset)]
        if any(node.domain == MICROSOFT for node in self.nodes):
            opsets.append(helper.make_opsetid(MICROSOFT, 1))
        graph = helper.make_graph(self.nodes, producer, self.inputs, self.outputs, list(self.constants.values()))
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets, True),
            producer_name=producer, producer_version=version,
        )  # fmt: skip
        path.write_bytes(model.SerializeToString())
        if opset == OPSET:
            self.onnx.checker.check_model(str(path))

    def _unique(self, name: str) -> str:
        count = self._used[name] = self._used.get(name, 0) + 1
        return name if count == 1 else f"{name}.{count}"
