"""Files and folders that are whole or absent, and reading what anyone may have put there.

    reading   regular files only, JSON within bounds, every failure one line that names the file
    writing   under a temporary name beside the target, then renamed; a folder may take the place of another
    locks     one process at a time in a folder; a dead process leaves no lock behind

What is written has the name `.NAME.XXXXXXXX.hgrn2.tmp` until it is complete (`names`). Its process holds a lock on it,
so that the next one can tell what was abandoned and remove it.
"""

from hgrn2.files.folders import clean, owned, remove, reported, restored
from hgrn2.files.names import holds_nothing
from hgrn2.files.reading import (
    check_utf8,
    listed_name,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    refuse_special,
    sha256,
)
from hgrn2.files.writing import (
    atomic_folder,
    atomic_path,
    making,
    write_bytes,
    write_json,
    write_text,
)

__all__ = [
    "atomic_folder",
    "atomic_path",
    "check_utf8",
    "clean",
    "holds_nothing",
    "listed_name",
    "making",
    "open_regular",
    "owned",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_text",
    "refuse_special",
    "remove",
    "reported",
    "restored",
    "sha256",
    "write_bytes",
    "write_json",
    "write_text",
]
