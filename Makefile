# `make demo` and `make test` need only Python 3.11 or later: each creates its own environment.
# To use another Python: make test PYTHON=python3.13 VENV=.venv-3.13
# To use another jax: make unit JAX='jax==0.8.1' VENV=.venv-jax0.8
PYTHON ?= python3
JAX ?= jax
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := -n auto --maxprocesses 8 --dist worksteal -q -ra --durations=15

# Makes targets in parallel, then prints how long each took.
define timed
times=$$(mktemp); $(MAKE) --no-print-directory -j TIMES=$$times $(addprefix timed-,$(1)); status=$$?; \
sort -n $$times; rm $$times; exit $$status
endef

.PHONY: accelerators setup demo zoo test test-all quick check unit unit-all references conformance mutants docs bench clean

setup: $(VENV)/dev.done ## create an environment for development; style and types are checked before every commit
	$(BIN)/pre-commit install

demo: $(VENV)/examples.done ## train the quick preset, print the table and the paths of the plots
	$(BIN)/python -m examples.cifar10 train

zoo: $(VENV)/examples.done ## train the same CNN with every norm, print the table and the path of the plot
	$(BIN)/python -m examples.zoo

test: $(VENV)/dev.done ## check style, types, tests and documentation, in thirteen minutes on two cores
	@$(call timed,check unit docs)

test-all: $(VENV)/dev.done $(VENV)/converters.done $(VENV)/browser.done ## the same with all tests, compiled as in user code; run before a release
	@$(call timed,check unit-all docs)

timed-%:
	@began=$$(date +%s); $(MAKE) --no-print-directory $*; status=$$?; \
	printf '%5d s  %s\n' $$(($$(date +%s) - began)) '$*' >> $(TIMES); exit $$status

quick: $(VENV)/dev.done ## run some tests, up to the first failure: make quick FILES=tests/core
	$(BIN)/python -m pytest -q -x $(or $(FILES),tests/core)

check: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

unit: $(VENV)/dev.done
	$(BIN)/python -m pytest $(PYTEST)

unit-all: $(VENV)/dev.done
	JAXNORM_TESTS=all $(BIN)/python -m pytest $(PYTEST)

mutants: $(VENV)/dev.done ## insert one-line bugs into the package and list those that no test detects
	$(BIN)/python -m tests.mutants --most 100

references: ## compare with PyTorch, timm, transformers, diffusers, brax and sbx, in an environment of several GB
	$(MAKE) .venv-references/references.done VENV=.venv-references
	JAXNORM_TESTS=all .venv-references/bin/python -m pytest $(PYTEST) tests/norms tests/tools -k 'torch or timm or library'

conformance: $(VENV)/dev.done ## run Flax's own tests of its norms with jaxnorm's instead, in all modes
	$(BIN)/python -m tests.conformance

docs: $(VENV)/dev.done
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(VENV)/bench.done ## benchmark every norm against other libraries, then whole training steps; write the tables in docs/performance.md, benchmarks/ and README.md
	$(BIN)/python -m benchmarks.norms --write
	$(BIN)/python -m benchmarks.norms --write --allocator default --sizes large
	$(BIN)/python -m benchmarks.steps --write
	$(BIN)/python -m benchmarks.saving --write
	$(BIN)/python -m benchmarks.folding --write
	$(BIN)/python -m benchmarks.tracing --write
	$(BIN)/python -m benchmarks.cifar_step --write
	$(BIN)/python -m benchmarks.norms --readme
	$(BIN)/python -m benchmarks.steps --readme
	$(BIN)/python -m benchmarks.saving --readme
	$(BIN)/python -m benchmarks.folding --readme
	$(BIN)/python -m benchmarks.tracing --readme
	$(BIN)/python -m benchmarks.cifar_step --readme
	$(BIN)/python -m benchmarks.summary
	$(BIN)/python -m benchmarks.exactness

accelerators: ## compile every norm and Flax's for TPUs and GPUs, without these devices
	$(MAKE) .venv-tpu/tpu.done VENV=.venv-tpu
	$(MAKE) .venv-gpu/gpu.done VENV=.venv-gpu
	.venv-tpu/bin/python -m benchmarks.accelerators tpu --write
	.venv-gpu/bin/python -m benchmarks.accelerators gpu --write
	.venv-tpu/bin/python -m benchmarks.tracing --target v5e --write
	.venv-gpu/bin/python -m benchmarks.tracing --target h100 --write
	.venv-gpu/bin/python -m benchmarks.tracing --readme
	.venv-gpu/bin/python -m benchmarks.summary

clean:
	rm -rf $(VENV) .venv-tpu .venv-gpu .venv-references build dist site

$(VENV)/%.done: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$*]' '$(JAX)'
	@touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
