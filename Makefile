# make view    the default sentence through the packaged model, as a page
# make test    every test
# make lint    formatting, lint and types
# make bundle  the page's script and style from viewer/
# make bench   the benchmarks, printed as tables

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
ASKED := pyproject.toml constraints.txt

.PHONY: view test test-python test-viewer lint bundle bench clean

view: .venv/demo.stamp
	$(BIN)/multihead view

test: test-python test-viewer

# The second run is without the shape checks of the first, which a compiler cannot see through. The third has timm.
test-python: .venv/dev.stamp .venv/timm.stamp
	$(BIN)/python -m pytest -n auto
	$(BIN)/python -m pytest -n auto tests/as_users_run \
		--override-ini addopts="--strict-markers --strict-config --import-mode=importlib -raR"
	PYTHONPATH=$(CURDIR)/.venv/timm $(BIN)/python -m pytest tests/lens/test_timm.py

# Node.js is needed to change the page, not to use it: without it, the page's own unit tests cannot run.
test-viewer:
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory viewer/node_modules/.stamp && npm --prefix viewer test; \
	elif [ -n "$$CI" ]; then echo "npm is missing: the viewer's tests cannot run" >&2; exit 1; \
	else echo "npm is missing: the viewer's unit tests were left out"; fi

lint: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check

bundle: viewer/node_modules/.stamp
	npm --prefix viewer run build

bench: .venv/dev.stamp
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build dist viewer/node_modules

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo.stamp: .venv/bin/python $(ASKED)
	$(INSTALL) --editable ".[demo]"
	touch $@

.venv/dev.stamp: .venv/bin/python $(ASKED)
	$(INSTALL) --editable ".[dev]"
	touch $@ .venv/demo.stamp

# timm needs torchvision, whose wheel links CUDA's libraries: beside a torch without CUDA it cannot be imported, and
# transformers, once torchvision is installed, imports it for every model. So these are in a folder of their own.
.venv/timm.stamp: .venv/dev.stamp
	rm -rf .venv/timm
	$(INSTALL) --no-deps --target .venv/timm pillow timm torchvision
	touch $@

viewer/node_modules/.stamp: viewer/package-lock.json
	npm --prefix viewer ci --no-audit --no-fund
	touch $@
