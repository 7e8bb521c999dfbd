"""onnxruntime-web, the engine of an exported page: two files of a pinned npm package, known by their checksums."""

import contextlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from hgrn2.errors import UserError
from hgrn2.files import atomic_folder, restored, sha256
from hgrn2.ops.native.build import trusted_folder
from hgrn2.settings import refuse

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
FILES = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
"""Names in dist/ of the package, and SHA-256."""
WAIT_S = 300
LARGEST = 64 << 20
"""Bytes that a file of the package may have."""


def fetch_runtime(out: Path, given: Path | None) -> None:
    """Put the files into the folder `out`, from a folder that is given or from npm; what npm fetched once is kept.

    Args:
        out: an existing folder.
        given: the unpacked package, its dist/ or any folder that has the files; None asks npm.

    Raises:
        UserError: no npm, no network, files that are missing or not those of this version.
    """
    if given is not None:
        _copy(given, out)
        return
    cache = trusted_folder()
    kept = None if cache is None else cache / f"{PACKAGE}-{VERSION}"
    if kept is not None and all((kept / name).is_file() and sha256(kept / name) == FILES[name] for name in FILES):
        _copy(kept, out)
        return
    _fetch(out)
    if kept is not None:
        with contextlib.suppress(OSError, UserError), atomic_folder(kept, replace=True) as folder:
            _copy(out, folder)


def _fetch(out: Path) -> None:
    refuse(shutil.which("npm") is None, f"npm is missing, which fetches {PACKAGE}; install Node.js, or {_by_hand()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = ["npm", "pack", f"{PACKAGE}@{VERSION}", "--loglevel", "error", "--pack-destination", name]
        environment = {
            **os.environ, "npm_config_update_notifier": "false", "npm_config_fetch_retries": "1",
            "npm_config_fetch_retry_mintimeout": "1000",
        }  # fmt: skip
        try:
            done = subprocess.run(
                command, cwd=name, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"npm could not fetch {PACKAGE} {VERSION} ({type(error).__name__}): {_by_hand()}") from None
        packed = sorted(folder.glob("*.tgz"))
        if done.returncode or not packed:
            said = done.stderr.strip().splitlines()
            reason = f" ({said[0]})" if said else ""
            raise UserError(f"npm could not fetch {PACKAGE} {VERSION}{reason}: {_by_hand()}")
        _unpack(packed[0], folder)
        _copy(folder, out)


def _by_hand() -> str:
    return (
        f"get the package on a machine with network (npm pack {PACKAGE}@{VERSION}), unpack it, and give its folder as "
        "--runtime"
    )


def _unpack(archive: Path, folder: Path) -> None:
    """Only the files that are wanted, under their plain names."""
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.rpartition("/")[2]
            if member.name != f"package/dist/{name}" or name not in FILES or not member.isfile():
                continue
            refuse(member.size > LARGEST, f"{archive.name} has a file of {member.size:,} bytes")
            stream = tar.extractfile(member)
            assert stream is not None
            (folder / name).write_bytes(stream.read())


def _copy(source: Path, out: Path) -> None:
    refuse(not restored(source).is_dir(), f"--runtime {source} is no folder")
    places = (source, source / "dist", source / "package" / "dist")
    for name, digest in FILES.items():
        path = next((place / name for place in places if (place / name).is_file()), None)
        if path is None:
            raise UserError(f"{source} lacks {name} of {PACKAGE} {VERSION}; {_by_hand()}")
        wrong = path.stat().st_size > LARGEST or sha256(path) != digest
        refuse(wrong, f"{path} is not the file of {PACKAGE} {VERSION}; {_by_hand()}")
        shutil.copyfile(path, out / name)
