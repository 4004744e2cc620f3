# All a fresh machine needs is Python 3.11 or later. Each target installs what it needs in .venv.

PYTHON ?= python3
VENV ?= .venv
LOWEST ?= .venv-lowest
BIN = $(VENV)/bin

.PHONY: demo test lint types unit browser docs lowest models package soak benchmark clean

demo: $(VENV)/demo.installed
	$(BIN)/streamstats demo streamstats-demo

test: lint types unit

lint: $(VENV)/test.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test.installed
	$(BIN)/mypy

unit: $(VENV)/test.installed browser
	$(BIN)/pytest -n auto --dist worksteal

# The tests of the service's page need a real browser: an installed one, or else Debian's, or else playwright's own.
# Outside CI, nothing is installed unless you agree; without a browser, these tests are skipped.
browser: $(VENV)/test.installed
	@for each in $${CHROMIUM:-} chromium chromium-browser google-chrome; do command -v "$$each" && exit 0; done; \
	if [ -z "$${CI:-}" ]; then \
		[ -t 0 ] && read -p "Install chromium, as root, for the tests of the service's page? [y/N] " agreed; \
		[ "$${agreed:-}" = y ] || { echo "no browser: the tests of the service's page will be skipped"; exit 0; }; \
	fi; \
	as_root=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	($$as_root apt-get update -qq && $$as_root apt-get install -y -qq chromium) >/dev/null || \
	$(BIN)/python -m playwright install chromium

# Writes docs/reference anew, and the documentation as pages, which the service shows at /manual/: fails for a link that
# leads nowhere.
docs: $(VENV)/test.installed browser
	$(BIN)/python tests/docs/generated.py
	$(BIN)/zensical build --clean --strict
	$(BIN)/pytest -m 'soak or not soak' tests/docs/test_site.py

# The tests with the lowest versions that pyproject.toml allows; `make test` takes the newest.
lowest: $(LOWEST)/test.installed browser
	$(LOWEST)/bin/pytest -n auto --dist worksteal

$(LOWEST)/test.installed: pyproject.toml tests/lowest.py
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python tests/lowest.py pyproject.toml > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --editable '.[test]' --constraint $(LOWEST)/lowest.txt
	touch $@

# The tests that need torch, NNCF, llm-compressor, Prefect and other tools, and those of models that take long.
models: $(VENV)/test.installed
	$(BIN)/python -m pip install --quiet torch==2.13.0 torchao onnxscript brevitas nncf compressed-tensors llmcompressor prefect
	$(BIN)/pytest -m 'soak or not soak' tests/models tests/exports tests/test_examples.py tests/ranges/test_against_*.py tests/statistics/test_products.py
	# aimet-onnx comes with a torchvision that fits no CPU build of torch, so it is there for its own test alone
	$(BIN)/python -m pip install --quiet aimet-onnx
	$(BIN)/pytest -m 'soak or not soak' tests/exports/test_aimet_encodings.py
	$(BIN)/python -m pip uninstall --quiet --yes aimet-onnx onnx2torch torchvision

# The wheel and the sdist: their contents, the demo from each of them in a fresh environment (some 3 minutes), and the
# wheel under every Python from 3.11 to 3.14 that is installed.
package: $(VENV)/test.installed docs
	$(BIN)/pytest -m soak tests/test_package.py

# Every long test, those of `make package` among them.
soak: $(VENV)/test.installed browser
	$(BIN)/pytest -m soak
	$(BIN)/pytest -n auto --hypothesis-profile=thorough tests/statistics tests/outputs

benchmark: $(VENV)/test.installed
	$(BIN)/python benchmarks/throughput.py

clean:
	rm -rf $(VENV) $(LOWEST) streamstats-demo streamstats/service/manual build dist .cache *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/%.installed: pyproject.toml | $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

$(VENV):
	$(PYTHON) -m venv $(VENV)
