"""An exported page of a small model, and a browser that has it open."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, chromium, served
from small_page import Exported, save

from hgrn2.cli.main import entry
from hgrn2.errors import UserError
from hgrn2.export.web_runtime import fetch_runtime
from hgrn2.generate.generator import Generator
from hgrn2.generate.loading import load

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))  # the server of the tests of serving


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of onnxruntime-web; skips where they cannot be had."""
    folder = tmp_path_factory.mktemp("runtime")
    try:
        fetch_runtime(folder, None)
    except UserError as error:
        pytest.skip(f"the page in a browser needs onnxruntime-web: {error}")
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, runtime: Path) -> Exported:
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name, reason=f"the export needs {name}: pip install 'hgrn2[onnx]'")
    folder = tmp_path_factory.mktemp("web")
    model, out = save(folder / "small"), folder / "page"
    assert entry(["export", "web", str(model), str(out), "--runtime", str(runtime)]) == 0
    loaded = load(model, "cpu")
    return Exported(model, out, Generator(loaded.model, loaded.need_tokenizer()))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture
def page(browser: Page, exported: Exported) -> Iterator[Page]:
    """The exported page, freshly opened."""
    with served(exported.folder) as address:
        browser.requests.clear()
        browser.problems.clear()
        browser.look()
        browser.open(address)
        browser.until("document.body.dataset.ready === 'true'")
        yield browser
        assert browser.problems == []
        assert [one for one in browser.requests if not one.startswith((address, "blob:", "data:"))] == []
