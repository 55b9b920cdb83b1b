# Stream2LLM: everything a developer runs. `make` alone lists the targets.
#
#   make env                    CPU machines
#   make env EXTRA=gpu          CUDA machines (requirements/gpu.lock)
#   make env TORCH_INDEX_URL=…  (the address of PyTorch's own CPU index)
#                               CPU machines whose index serves CUDA builds of
#                               torch by default, which is so for plain PyPI

# Where bytecode is not cached, each of a cluster's processes compiles what it imports again.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
EXTRA ?= cpu
TORCH_INDEX_URL ?=
PYTEST_ARGS ?=
# Processes for tests that need neither engine nor cluster.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); if [ $$n -gt 4 ]; then echo 4; else echo $$n; fi)
# Of `make test-random`; `SEED=…` repeats a run.
ifndef SEED
SEED := $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
endif
DEMO_ARGS ?=
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
# Twice quiet: errors only, no warnings about the indexes of this machine.
INSTALL := $(PIP) install --quiet --quiet --progress-bar off
# Written last, so that an interrupted installation starts again.
DEPS := $(VENV)/.installed-$(EXTRA)
PROJECT := $(VENV)/.installed-project-$(EXTRA)
PROTOS := $(wildcard proto/stream2llm/v1/*.proto)
PROTOC := $(BIN)/python -m grpc_tools.protoc -Iproto
AUDIT := $(VENV)/audit
PINNED := requirements/torch.txt requirements/cpu.lock requirements/gpu.lock
DOCS := $(VENV)/.installed-docs
# Without it mkdocs-material prints an announcement at each build.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

ifeq ($(filter $(EXTRA),cpu gpu),)
$(error EXTRA must be cpu or gpu, not '$(EXTRA)')
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env model demo bench-baselines test test-slow test-all test-random test-v2 lint check proto proto-check docs docs-serve docs-reference dashboards gpu-lock audit clean

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

env: $(PROJECT) ## create .venv with everything (about 3 min; EXTRA=gpu for CUDA)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Stream2LLM needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | head -1)." >&2; \
	  echo "Name another one: make env PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "env: creating $(VENV) with $$($(PYTHON) --version 2>&1)"
	@$(PYTHON) -m venv --clear $(VENV)

# A half-made environment has a python but no pip.
$(DEPS): requirements/torch.txt requirements/$(EXTRA).lock | $(BIN)/python
	@$(PIP) --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
ifeq ($(EXTRA),gpu)
	@echo "env: installing $$(grep -c '^[a-z]' requirements/gpu.lock) pinned packages for CUDA (minutes)"
	@$(INSTALL) $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) --no-deps -r requirements/gpu.lock
else
	@echo "env: installing torch"
	@$(INSTALL) $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) -r requirements/torch.txt
	@echo "env: installing $$(grep -c '^[a-z]' requirements/cpu.lock) pinned packages (2-3 min)"
	@$(INSTALL) --no-deps -r requirements/cpu.lock
endif
	@touch $@

$(PROJECT): $(DEPS) pyproject.toml stream2llm/__init__.py
	@echo "env: installing stream2llm (editable)"
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

model: env ## fetch the default model into the cache (93 MB, once)
	@$(BIN)/stream2llm model fetch

# One command, so that make executes it without a shell and Ctrl-C reaches it alone.
demo: env model ## a local cluster, and documents streaming into an answer
	@$(BIN)/python -m examples.demo $(DEMO_ARGS)

bench-baselines: env model ## stock vLLM and ours side by side (some 130 min; BENCH_ARGS=--quick: 20 min)
	@$(BIN)/python -m experiments baselines $(BENCH_ARGS)

# Three lanes side by side, about as long: unit tests; other tests without clusters; and those
# with a cluster, which often wait for processes, and print while they run. What the others print
# comes at the end. 5: PYTEST_ARGS chose none of these.
ENGINE_TESTS := tests/integration/engine
pytest_on = { $(3) $(BIN)/python -m pytest -m "$(1)" $(PYTEST_ARGS) $(2) || [ $$? -eq 5 ]; }
run_tests = logs=$$(mktemp -d); trap 'rm -rf "$$logs"' EXIT; status=0; \
  $(call pytest_on,$(1),tests/unit,$(2)) >"$$logs/1" 2>&1 & unit=$$!; \
  $(call pytest_on,$(1),tests/property tests/sim $(ENGINE_TESTS),$(2)) >"$$logs/2" 2>&1 & other=$$!; \
  $(call pytest_on,$(1),tests/integration --ignore=$(ENGINE_TESTS)) || status=1; \
  wait $$unit || status=1; wait $$other || status=1; cat "$$logs"/*; exit $$status

test: env model ## all tests but the slow ones and those for a GPU
	@$(call run_tests,not slow and not gpu)

# Some of its clusters notice within ten seconds that a process hangs: those go first.
test-slow: env model ## the slow ones
	@$(call run_tests,slow and not gpu,nice -n 10)

test-all: env model ## both
	@$(call run_tests,not gpu)

# vLLM's model runner V2 is made of Triton kernels. On a CPU they run in Triton's interpreter, which
# is slow, and no engine needs it otherwise: so it is installed beside the environment.
TRITON := $(VENV)/triton
$(TRITON)/.installed: requirements/triton.txt | $(DEPS)
	@echo "env: installing triton"
	@$(INSTALL) --no-deps --upgrade --target $(TRITON) -r requirements/triton.txt
	@touch $@

V2 := VLLM_USE_V2_MODEL_RUNNER=1 TRITON_INTERPRET=1 PYTHONPATH=$(CURDIR)/tests/triton_on_cpu:$(CURDIR)/$(TRITON)
V2_TESTS ?= tests/integration
test-v2: env model $(TRITON)/.installed ## tests of engines and clusters on vLLM's model runner V2 (V2_TESTS=… for some)
	@$(V2) $(BIN)/python -m pytest -m "not gpu" $(PYTEST_ARGS) $(V2_TESTS)

# What Hypothesis decides: every other test is the same each time.
RANDOM_TESTS = $(sort $(shell grep -rlE '^@given|^from hypothesis.stateful' tests --include='test_*.py'))
test-random: env model ## Hypothesis with a fresh seed, which it prints (SEED=… repeats a run)
	@echo "repeat this run with: make test-random SEED=$(SEED)"
	@$(BIN)/python -m pytest --hypothesis-profile=random --hypothesis-seed=$(SEED) \
	  -m "not slow and not gpu" $(PYTEST_ARGS) $(RANDOM_TESTS) || { status=$$?; \
	  echo "repeat this run with: make test-random SEED=$(SEED)"; exit $$status; }

lint: env ## format, lint, types, protos
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/buf lint
	@$(MAKE) --no-print-directory proto-check

check: lint ## lint and the fast tests, before each commit
	@$(BIN)/python -m pytest -q -n $(JOBS) -m "not slow and not gpu" $(PYTEST_ARGS) tests/unit tests/property tests/sim

STUBS := stream2llm/api/v1
# The stubs of package stream2llm.v1 into folder $(1), importable as stream2llm.api.v1.
generate_stubs = $(PROTOC) --python_out="$(1)" --pyi_out="$(1)" --grpc_python_out="$(1)" $(PROTOS) && \
  sed -i.orig 's/^from stream2llm\.v1 import/from stream2llm.api.v1 import/' "$(1)"/stream2llm/v1/* && \
  rm "$(1)"/stream2llm/v1/*.orig

proto: env ## regenerate stream2llm/api/v1 from proto/
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(call generate_stubs,$$fresh) && \
	  rm -f $(STUBS)/*_pb2.py $(STUBS)/*_pb2.pyi $(STUBS)/*_pb2_grpc.py && \
	  cp "$$fresh"/stream2llm/v1/* $(STUBS)

proto-check: env ## fail when the committed stubs are not those of proto/
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(call generate_stubs,$$fresh) && \
	  diff -r -x __init__.py -x __pycache__ "$$fresh/stream2llm/v1" $(STUBS) || \
	  { echo "$(STUBS) is not what proto/ generates: run 'make proto' and commit" >&2; exit 1; }

# Its own environment: pip-audit's requirements are no business of ours.
audit: env ## known vulnerabilities of the pinned packages; reports, never fails
	@test -x $(AUDIT)/bin/pip-audit || { $(BIN)/python -m venv --clear $(AUDIT) && \
	  $(AUDIT)/bin/python -m pip --disable-pip-version-check --no-input install --quiet --quiet pip-audit==2.10.1; }
	-@for pinned in $(PINNED); do echo "audit: $$pinned, $$(grep -c '^[a-z]' $$pinned) packages"; \
	  $(AUDIT)/bin/pip-audit --requirement $$pinned --no-deps --disable-pip --progress-spinner off 2>&1 | \
	  awk '/^WARNING/ {next} /Skip Reason/ {getline; next} /could not be audited/ {n++; next} {print} \
	    END {if (n) print n " of them are not in the database that was asked: nothing is known of those"}'; done

docs-reference: env ## regenerate docs/reference from the code
	@$(BIN)/python -m tools.reference

dashboards: env ## regenerate deploy/grafana from tools/dashboards, and alerts for Kubernetes
	@$(BIN)/python -m tools.dashboards
	@$(BIN)/python -m tools.prometheus_rule

gpu-lock: env ## resolve requirements/gpu.lock anew, for what pyproject.toml asks (needs no GPU)
	@$(INSTALL) uv
	@$(BIN)/python -m tools.locks

$(DOCS): $(PROJECT) pyproject.toml
	@echo "docs: installing mkdocs-material and mkdocstrings"
	@$(INSTALL) --no-build-isolation -e '.[docs]'
	@touch $@

# The changelog as a page: its links begin at the top of the repository.
docs/changelog.md: CHANGELOG.md
	@sed 's|](docs/|](|g' CHANGELOG.md >$@

docs: $(DOCS) docs/changelog.md ## the documentation site in site/ (a broken link is an error)
	@$(MKDOCS) build --strict
	@echo "docs: open site/index.html; make docs-serve has the search, too"

docs-serve: $(DOCS) docs/changelog.md ## the site on http://127.0.0.1:8001, built anew at each change
	@$(MKDOCS) serve --livereload --dev-addr 127.0.0.1:8001

clean: ## remove .venv and caches of tools (not the model cache)
	@rm -rf $(VENV) build dist site docs/changelog.md *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
