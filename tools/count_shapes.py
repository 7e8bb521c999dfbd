"""Count what a reader of the code stumbles over: functions with more than eight parameters, `# fmt: skip`, lines.

    python tools/count_shapes.py            # the counts that docs/log.md gives
    python tools/count_shapes.py --list     # each function and how many parameters it has, files by their skips

Kernels are left out: what a Triton kernel is given are its pointers, strides and sizes. `self` and `cls` count as
nothing.
"""

import ast
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1] / "src" / "hgrn2"
MOST = 8


def main(arguments: list[str]) -> None:
    """Print the counts."""
    files = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}
    functions = {
        f"{path.relative_to(ROOT.parent)}:{node.lineno} {node.name}": count
        for path, text in files.items()
        for node, count in _long(ast.parse(text))
    }
    skips = Counter({str(path.relative_to(ROOT.parent)): text.count("# fmt: skip") for path, text in files.items()})
    print(f"functions with more than {MOST} parameters, kernels left out: {len(functions)}")
    print(f"# fmt: skip: {skips.total()}")
    print(f"lines of Python in src: {sum(text.count(chr(10)) for text in files.values()):,}")
    if "--list" in arguments:
        for name, count in sorted(functions.items(), key=lambda one: -one[1]):
            print(f"  {count:3} {name}")
        for name, count in skips.most_common():
            if count:
                print(f"  {count:3} {name}")


def _long(tree: ast.Module) -> list[tuple[ast.FunctionDef, int]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not any(_is_kernel(one) for one in node.decorator_list):
            given = node.args
            names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            if count > MOST:
                found.append((node, count))
    return found


def _is_kernel(decorator: ast.expr) -> bool:
    """`@triton.jit`, or a wrapper that is called so."""
    return any(word in ast.unparse(decorator) for word in ("jit", "heuristics", "autotune"))


if __name__ == "__main__":
    main(sys.argv[1:])
