"""Code, messages and pages use the words of docs/terms.md; these are ruled out, so that they do not come back."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENDINGS = (".py", ".cu", ".cpp", ".h", ".css", ".md")
EXCEPT = {  # a record, the page that names the words, generated pages, and this test
    "docs/log.md",
    "docs/terms.md",
    "docs/benchmarks.md",
    "docs/reproduce.md",
    "tests/package/test_field_words.py",
}
RULED_OUT = {
    r"read-outs?\b|\bread_out\b": "output",
    r"\b(share|shares) right\b|\bshare_right\b": "accuracy",
    r"\bcontenders?\b": "implementation",
    r"\bpeers?\b": "baseline",
    r"\bceilings\b": "measured peak",
    r"\bpictures?\b|[a-z]Picture\b": "image or figure",
    r"\b[Nn]ats a (token|byte|example|query)\b": "nats/token",
    r"\b[Tt]okens a second\b": "tokens/s",
    r"\bbits a byte\b": "bits/byte",
    r"\b(lane a channel|row a measurement|folder an? (task|operator)|numbers a layer|process a core)\b": "per",
    r"(?<!ground )(?<!ground-)\bthe truth\b(?! value)": "float64 reference",
    r"\bfloat64 truth\b": "float64 reference",
    r"\bdistrust(?!ed\.json)": "known-bad kernel",
    r"\bstudy-cells?\b": "run",
    r"\bgammas?\b": "lower_bound",
    r"(?<![Ll]ower )\bbounds? γ|(?<!lower )\bthe bound of (the|a) (layer|gate|forget gate)": "lower bound",
    r"\bsame dress\b|\b(data|all) rooms?\b|\bother rooms\b": "package or module",
    r"\bwalks? (over|along|back|the chunks|the tokens)\b|\b[wW]alk\[": "scan",
}
ALLOWED = {
    "src/hgrn2/rows.py": {"accuracy", "tokens/s", "nats/token", "measured peak"},  # what earlier versions wrote
    "tests/test_rows.py": {"accuracy", "nats/token", "measured peak"},
    "src/hgrn2/ops/known_bad.py": {"known-bad kernel"},  # the file's name since earlier versions
    "tests/cli/test_streams.py": {"lower_bound"},  # alpha, beta, gamma
    "tests/files/kills.py": {"lower_bound"},
}


def files() -> list[Path]:
    found = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile")]
    for folder in ("src/hgrn2", "docs", "tests", "examples", "tools"):
        found += [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in ENDINGS]
    return [path for path in found if path.relative_to(ROOT).as_posix() not in EXCEPT]


@pytest.mark.parametrize("pattern", RULED_OUT)
def test_words_of_the_field(pattern: str) -> None:
    """Each is a line of docs/terms.md; say it in the word at the right."""
    rule, wrong = re.compile(pattern), []
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        if RULED_OUT[pattern] in ALLOWED.get(name, ()):
            continue
        text = path.read_text(encoding="utf-8")
        wrong += [f"{name}:{text[: m.start()].count(chr(10)) + 1}: {m[0]!r}" for m in rule.finditer(text)]
    assert not wrong, f"say {RULED_OUT[pattern]}: " + ", ".join(wrong)


def test_the_rules_find_what_they_rule_out() -> None:
    samples = [
        "read-out", "share right", "contender", "peers", "ceilings", "a picture", "nats a token", "tokens a second",
        "bits a byte", "lane a channel", "against the truth", "float64 truth", "distrust", "study-cell", "gamma",
        "bounds γ", "the same dress, same dress", "walks over",
    ]  # fmt: skip
    for pattern, sample in zip(RULED_OUT, samples, strict=True):
        assert re.search(pattern, sample), (pattern, sample)
