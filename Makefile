# Shortcuts for a virtual environment in .venv; `make PYTHON=python3 test` uses another one.
PYTHON ?= .venv/bin/python

.PHONY: check test slow docs

check:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest -q -n 2

slow:
	$(PYTHON) -m pytest -q -m slow

docs:
	$(PYTHON) docs/generate.py
	$(PYTHON) -m mkdocs build --strict --quiet -f docs/mkdocs.yml
