# Every target does its own set-up; see scripts/setup.
.PHONY: help demo test check bench clean

help:
	@echo "make demo    run the main job on real images, in ./demo-scratch"
	@echo "make test    ruff, mypy and all tests"
	@echo "make bench   measure against the plain tools; writes bench-results.md"
	@echo "make clean   remove .venv and scratch folders"

demo:
	@scripts/setup
	@scripts/demo

test:
	@scripts/setup dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m pytest -n 2

bench:
	@scripts/setup dev
	.venv/bin/python -m bench

clean:
	rm -rf .venv demo-scratch bench-results.md
