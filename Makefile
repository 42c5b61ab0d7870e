# Two commands: `make demo` shows the main job, `make test` checks everything. Both set up what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The pair that is tested. torch==2.13.0 before anything else: an open range would pull the CUDA packages.
TORCH := torch==2.13.0
TORCHVISION := torchvision==0.28.0

.PHONY: demo test slow lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/python -m benchmarks.demo $(if $(KEEP),--keep)

test: $(VENV)/.test
	$(BIN)/python -m pytest

slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q $(TORCHVISION)
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install -q -e '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install -q -e '.[test]'
	@touch $@
