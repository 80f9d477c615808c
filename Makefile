# One line each. `make demo` and `make test` are all that a fresh machine needs.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export HF_HUB_DISABLE_TELEMETRY = 1
# The tests are many small models: one thread each and two processes beat two threads.
WORKERS ?= 2

.PHONY: demo test lint format docs bench results test-min fuzz clean
demo: .venv/.ready  ## the main job on real weights, without the Hub
	$(BIN)/surgeon demo
test: lint  ## every check and every test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope
lint: .venv/.ready  ## style, types, the one-way rule and spelling
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports && $(BIN)/codespell
format: .venv/.ready  ## put the code into shape
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .
docs: .venv/.docs-ready  ## build the documentation into site/
	$(BIN)/mkdocs build --strict
bench: .venv/.ready .venv-peers/.ready  ## repeatable measurements; see docs/benchmarks.md
	$(BIN)/python -m benchmarks.extract
	$(BIN)/python -m benchmarks.assemble
	$(BIN)/python -m benchmarks.gguf
	$(BIN)/python -m benchmarks.network
	$(BIN)/python -m benchmarks.graft
results: .venv/.ready  ## the results pages, their figures and the README's result, from the evidence in research/
	$(BIN)/python -m research.results
test-min: .venv-min/.ready  ## the tests on the lowest supported versions
	.venv-min/bin/python -m pytest -n $(WORKERS) --dist loadscope
fuzz: .venv/.ready  ## the long runs: spoiled files by the hundred thousand, kills by the hundred
	SURGEON_FUZZ=100000 SURGEON_KILLS=50 $(BIN)/python -m pytest -n $(WORKERS) tests/fuzz tests/extract/test_kills.py tests/finetune/test_kills.py
clean:  ## remove the environments and everything built
	rm -rf .venv .venv-min .venv-peers site build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[demo,dev]'
	touch $@
.venv/.docs-ready: .venv/.ready
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@
.venv-min/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-min
	.venv-min/bin/python -m pip install --quiet --editable '.[demo,test]' torch==2.11.0 transformers==5.17.0 huggingface_hub==1.31.0
	touch $@
.venv-peers/.ready: benchmarks/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --requirement benchmarks/peers.txt
	touch $@
