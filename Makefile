# Two commands: `make demo` shows the main job, `make test` checks everything. Both set up what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The pair that is tested. torch==2.13.0 before anything else: an open range would pull the CUDA packages.
TORCH := torch==2.13.0
TORCHVISION := torchvision==0.28.0

# Debian packages of programs that some tests drive; without them these tests skip themselves and say so.
PROGRAMS := prometheus chromium

.PHONY: demo test slow lint clean programs
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/python -m benchmarks.demo $(if $(KEEP),--keep)

test: $(VENV)/.test programs
	$(BIN)/python -m pytest

slow: $(VENV)/.test programs
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

# In a container only: on a machine that systemd runs, installing Prometheus would also start it.
programs:
	@for program in $(PROGRAMS); do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	[ -z "$$missing" ] || [ "$$(id -u)" != 0 ] || [ -d /run/systemd/system ] || ! command -v apt-get >/dev/null || \
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; } \
	  >/dev/null 2>&1 || echo "not installed:$$missing; the tests that need them are skipped"

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
