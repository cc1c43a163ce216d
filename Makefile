# The commands that people and CI run. `make demo` and `make test` do all their own set-up.
#
#   make demo     see what it does, on the standard library of your Python
#   make test     run the tests                    (one of them: make test ARGS="-k name")
#   make check    what CI runs beside the tests: lint, format, types, layers, the Rust crate
#   make PYTHON=/path/to/python3 …                 use this Python for a new .venv

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

BIN := .venv/bin
ARGS ?=
JOBS ?= auto
MINUTES ?= 3
FUZZ_SECONDS ?= 60
DEEP ?= 1
NATIVE := $(shell find native -name target -prune -o -type f -print 2>/dev/null)

# A stamp counts only while what it stands for is there.
$(shell [ -x $(BIN)/python ] || rm -f .stamps/venv)
$(shell ls src/holdfast/_native*.so >/dev/null 2>&1 || rm -f .stamps/build)

.PHONY: help demo test check lint format types layers native-check bench fuzz deep models mutants soak build services wheel lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

demo: .stamps/build ## store, deduplicate, damage, find, lose and rebuild, on real files
	@$(BIN)/python benches/demo.py $(ARGS)

test: .stamps/build ## run the tests
	@$(BIN)/pytest -n $(JOBS) --dist worksteal $(ARGS)

check: lint types layers native-check ## lint, format, types, layers, the Rust crate

lint: .stamps/build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .stamps/build
	$(BIN)/mypy

layers: .stamps/build
	$(BIN)/lint-imports --no-cache

native-check: .stamps/build
	cargo fmt --manifest-path native/Cargo.toml --check
	cargo clippy --manifest-path native/Cargo.toml --locked --all-targets -- -D warnings
	cargo test --manifest-path native/Cargo.toml --locked

format: .stamps/venv ## put the sources into their form
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	cargo fmt --manifest-path native/Cargo.toml

bench: .stamps/build ## measure, beside the physical limits and real peers
	$(BIN)/python -m benches.run $(ARGS)

models: ## check the models of the protocols with Spin (all of them: ARGS=--all)
	@python3 tools/models.py $(ARGS)

mutants: .stamps/build ## take away each line that safety hangs on, and see a test fail (hours)
	@$(BIN)/python -m tools.mutate $(ARGS)

fuzz: .stamps/build ## break whatever is parsed, a minute for each parser (hours: FUZZ_SECONDS=7200)
	@mkdir -p native/target/fuzz/found
	@command -v c++ >/dev/null || { echo "missing: a C++ compiler, which libFuzzer is built with: apt-get install g++" >&2; exit 1; }
	cd tests/fuzz && cargo run --quiet --release --locked --target "$$(rustc -vV | sed -n 's/^host: //p')" -- \
	    ../../native/target/fuzz/found corpus -max_total_time=$(FUZZ_SECONDS) -max_len=64 -rss_limit_mb=1024 \
	    -verbosity=0 -print_final_stats=1
	$(BIN)/python -m tests.fuzz.run --seconds $(FUZZ_SECONDS) $(ARGS)

soak: .stamps/build ## mixed work with faults, MINUTES long, on a bounded disk
	@$(BIN)/python -m tools.soak --minutes $(MINUTES) $(ARGS)

deep: .stamps/build ## the long tests: hours, tens of GiB (a third of the figures: DEEP=0.33); docs/proofs.md has the list
	$(BIN)/pytest -m deep --timeout 0 -rP $(ARGS)
	HOLDFAST_DEEP=$(DEEP) HYPOTHESIS_PROFILE=deep $(BIN)/pytest -n $(JOBS) --dist worksteal --timeout 0 -rP tests/crash tests/property tests/objects $(ARGS)

build: .stamps/build ## .venv with the locked packages, and the native module in it

services: .stamps/build ## the servers that some tests run against (MinIO, versitygw), built with Go when absent
	@$(BIN)/python tools/services.py

wheel: .stamps/venv ## a wheel in dist/
	$(BIN)/maturin build --release --locked --out dist

lock: .stamps/venv ## resolve the Python packages anew
	$(BIN)/python tools/lock.py

clean: ## remove everything that was built
	rm -rf .venv .stamps .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist native/target
	find src tests benches tools -name __pycache__ -prune -exec rm -rf {} +
	rm -f src/holdfast/_native*.so

.stamps/venv: requirements-dev.lock
	@mkdir -p .stamps
	@python=$$(tools/prerequisites) || exit 1; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    echo "making .venv with $$python"; rm -rf .venv; "$$python" -m venv .venv || exit 1; \
	fi
	@echo "installing the locked packages"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --require-hashes \
	    -r requirements-dev.lock
	@touch $@

# The lock of the packages is the only source of tools: no isolated build environment, no second resolution.
.stamps/build: .stamps/venv pyproject.toml $(NATIVE)
	@tools/prerequisites >/dev/null
	@echo "building the native module (a minute or two the first time)"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --no-deps \
	    --no-build-isolation --editable .
	@touch $@
