# Every target does its own set-up; see scripts/setup.
.PHONY: help demo demo-live test docs torture bench clean

SEED ?= 1
MINUTES ?= 60
REPORT ?= torture-report.md
POWER_REPORT ?= power-report.jsonl

help:
	@echo "make demo    run the main job on real images, in ./demo-scratch"
	@echo "make demo-live    the same on a guest that runs and writes (TCG, no daemon)"
	@echo "make test    ruff, mypy, the docs and all tests"
	@echo "make docs    build the docs as a site, in ./site; links and anchors are checked"
	@echo "make torture   break offline runs, then cut the power, for MINUTES each from SEED, then"
	@echo "               kill live runs at every step and let a chain live long; findings and figures go to REPORT and POWER_REPORT"
	@echo "make bench   measure against the plain tools; writes bench-results.md"
	@echo "make clean   remove .venv and scratch folders"

demo:
	@scripts/setup
	@scripts/demo

demo-live:
	@scripts/setup dev
	@.venv/bin/python scripts/demo-live

test:
	@scripts/setup dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/mkdocs build --strict
	.venv/bin/python -m pytest -n 3 --dist worksteal

docs:
	@scripts/setup dev
	.venv/bin/mkdocs build --strict

torture:
	@scripts/setup dev
	failed=0; \
	.venv/bin/python -m tests.faults --seed $(SEED) --minutes $(MINUTES) --report $(REPORT) || failed=1; \
	.venv/bin/python -m tests.faults.power --seed $(SEED) --minutes $(MINUTES) --report $(POWER_REPORT) || failed=1; \
	VIRT_CHAIN_EVERY_KILL=1 .venv/bin/python -m pytest tests/guests/test_interruptions.py || failed=1; \
	VIRT_CHAIN_DAYS=100 VIRT_CHAIN_WATCH_EDITS=1000 VIRT_CHAIN_WATCH_PASSES=1000 \
	    .venv/bin/python -m pytest tests/guests/test_apply.py tests/watch/test_stress.py || failed=1; \
	exit $$failed

bench:
	@scripts/setup dev
	.venv/bin/python -m bench && .venv/bin/python -m bench.scale

clean:
	rm -rf .venv demo-scratch site bench-results.md
