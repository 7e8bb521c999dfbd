"""Compile CUDA C++ at run time with NVRTC, the compiler library that PyTorch's CUDA wheels bring along."""

import ctypes
import glob
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hgrn2.errors import UserError


class CompileError(UserError):
    """NVRTC is missing or refused the source; the message is one line, `log` is all it said."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


def library() -> ctypes.CDLL:
    """NVRTC as PyTorch would find it: by name, else in the folders of NVIDIA's wheels, else in the toolkit."""
    names = [f"libnvrtc.so.{version}" for version in (13, 12, 11)] + ["libnvrtc.so"]
    patterns = [f"{root}/nvidia/*/lib/libnvrtc.so.*" for root in sys.path if root] + [
        "/usr/local/cuda/lib64/libnvrtc.so"
    ]
    for name in names + sorted(path for pattern in patterns for path in glob.glob(pattern)):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CompileError("libnvrtc was not found; PyTorch's CUDA wheels bring it as nvidia-cuda-nvrtc")


def compile_cubin(
    source: str, name: str, headers: Mapping[str, str], architecture: str, options: Sequence[str] = ()
) -> tuple[bytes, str]:
    """Machine code of `source` for an architecture such as "sm_90", and the compiler's log."""
    nvrtc, program = library(), ctypes.c_void_p()
    texts = [text.encode() for text in headers.values()]
    titles = [title.encode() for title in headers]
    array = ctypes.c_char_p * len(texts)
    _check(
        nvrtc,
        nvrtc.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), name.encode(), len(texts), array(*texts), array(*titles)
        ),
    )
    try:
        flags = [f"--gpu-architecture={architecture}", "--std=c++17", "--extra-device-vectorization", *options]
        encoded = [flag.encode() for flag in flags]
        status = nvrtc.nvrtcCompileProgram(program, len(encoded), (ctypes.c_char_p * len(encoded))(*encoded))
        log = _text(nvrtc, program, "ProgramLog")
        if status:
            first = next((line for line in log.splitlines() if "error" in line), f"status {status}")
            raise CompileError(f"NVRTC could not compile {name} for {architecture}: {first.strip()[:200]}", log)
        return _bytes(nvrtc, program, "CUBIN"), log
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def version() -> tuple[int, int]:
    """NVRTC's own version."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc = library()
    _check(nvrtc, nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


def sources(folder: Path, head: int, name: str) -> tuple[str, dict[str, str]]:
    """A kernel file with its head size, and the headers it may include."""
    headers = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.h"))}
    return f"#define HEAD {head}\n" + (folder / name).read_text(encoding="utf-8"), headers


def _bytes(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, buffer))
    return buffer.raw


def _text(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> str:
    return _bytes(nvrtc, program, what).rstrip(b"\0").decode(errors="replace")


def _check(nvrtc: ctypes.CDLL, status: int) -> None:
    if status:
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise CompileError(f"NVRTC: {nvrtc.nvrtcGetErrorString(status).decode()}")
