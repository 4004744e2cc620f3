# A fresh machine needs Python >= 3.11 and nothing else of ours. Each target makes what it needs below .venv.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint types unit browser torch soak benchmark clean

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

# The page of the service is tested in a real browser: the one that is there, or Debian's, or playwright's own.
browser: $(VENV)/test.installed
	@for each in $${CHROMIUM:-} chromium chromium-browser google-chrome; do command -v "$$each" && exit 0; done; \
	as_root=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	($$as_root apt-get update -qq && $$as_root apt-get install -y -qq chromium) >/dev/null || \
	$(BIN)/python -m playwright install chromium

torch: $(VENV)/test.installed
	$(BIN)/python -m pip install --quiet torch==2.13.0 torchao
	$(BIN)/pytest tests/models/test_torch.py

soak: $(VENV)/test.installed browser
	$(BIN)/pytest -m soak

benchmark: $(VENV)/test.installed
	$(BIN)/python benchmarks/throughput.py

clean:
	rm -rf $(VENV) streamstats-demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/%.installed: pyproject.toml | $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

$(VENV):
	$(PYTHON) -m venv $(VENV)
