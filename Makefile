# The same commands that .ci/run calls. PYTHON=/path/to/python make test
PYTHON ?= python

.PHONY: install check lint types test doctest long bench

install:
	$(PYTHON) -m pip install -e ".[dev]"

check: lint types doctest test

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest

doctest: # but for the one module that cannot be imported without sbi, which is no dependency
	$(PYTHON) -m pytest --doctest-modules --ignore flowkit/interop/_sbi.py flowkit flowkit_cinn

long:
	$(PYTHON) -m pytest --hypothesis-profile=long

bench:
	flowkit bench invertibility
	flowkit bench jacobian
