# One-word verbs. Everything installs itself on first use into .venv from requirements.lock (1 to 3 minutes, 6 GB, once).
PYTHON  ?= python3
PROFILE ?= demo
JOBS    ?= *
PY      := .venv/bin/python
PIP     := $(PY) -m pip install --quiet --disable-pip-version-check --no-deps
SHELL   := /bin/bash
export OMP_NUM_THREADS ?= 1

.PHONY: help setup report report-all plan test test-notebooks test-clean test-faults test-slurm book site lab bench lock clean
.DEFAULT_GOAL := report

help:
	@echo 'make report      run the experiment of PROFILE (default demo) and render reports/build/PROFILE/report.html'
	@echo 'make report-all  the same with the extension of the profile'
	@echo 'make plan        say what a profile would run'
	@echo 'make test        the book, its exports, the tests'
	@echo 'make test-faults  kills, full disks, two at once (5 to 10 minutes)'
	@echo 'make test-slurm  the grid on a Slurm of one node (needs root, slurm-wlm, munge)'
	@echo 'make lab         open the book in JupyterLab'
	@echo 'make book        run every notebook anew, in place, and write the README'
	@echo 'make site        the book, the reference and the reports as pages: _site/index.html'
	@echo 'make bench       speed against the known libraries'
	@echo 'make lock        refresh requirements.lock'
	@echo 'make clean       remove what runs left; .venv stays'

setup: .venv/ready

.venv/ready: requirements.lock setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nrf_repro needs Python 3.11 or newer; this is %d.%d: set PYTHON=python3.12, say." % sys.version_info[:2])'
	@echo 'Installing the locked packages into .venv: 1 to 3 minutes, 6 GB, once. uv keeps what it fetched in its cache for the next clone.'
	$(PYTHON) -m venv .venv
	@# uv, which the lock pins too, installs in parallel. Where it reaches no index (it does not read pip.conf), pip does the same.
	@# Without compiled files each process compiles its imports anew where Python may not write them (PYTHONDONTWRITEBYTECODE, read-only disks).
	$(PIP) $$(grep '^uv==' requirements.lock) && .venv/bin/uv pip install --quiet --compile-bytecode --python $(PY) --no-deps -r requirements.lock || \
	    { echo 'uv could not install the packages; pip installs them: 3 to 6 minutes.'; $(PIP) -r requirements.lock; }
	$(PIP) --no-build-isolation --editable .
	@touch $@

# The experiment: trains, attacks and renders what is missing; keeps what is there. NRF_DATA= names a folder of data sets,
# JOBS= a pattern of job names for a part of the grid.
report: setup
	.venv/bin/nrf-repro report --profile $(PROFILE) --jobs '$(JOBS)'

report-all: setup
	.venv/bin/nrf-repro report --profile $(PROFILE) --all

plan: setup
	.venv/bin/nrf-repro plan --profile $(PROFILE) --all

# All that guards the project: the book runs, exports what is committed and is clean; then the tests.
test: test-notebooks test-clean
	rm -rf reports/build/counts
	NRF_COUNTS=$(COUNTS) $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/test_faults.py
	@$(PY) tests/counted.py $(COUNTS)

# Random kills and the like, then the grid on a cluster of one node; each prints what it did. COUNTS=docs/robustness keeps the numbers for the site.
COUNTS ?= reports/build/counts
test-faults: setup
	NRF_COUNTS=$(COUNTS) $(PY) -m pytest -n 2 --dist loadgroup --no-loadscope-reorder tests/test_faults.py
	@$(PY) tests/counted.py $(COUNTS)

test-slurm: setup
	NRF_COUNTS=$(COUNTS) $(PY) -m pytest -rs tests/slurm/cluster.py
	@$(PY) tests/counted.py $(COUNTS)

test-notebooks: setup
	.venv/bin/nbdev_test --n_workers 2 --do_print --timing

test-clean: setup
	$(PY) tests/check_clean.py

lab: setup
	.venv/bin/jupyter lab nbs

# Run every notebook anew, in place, so that what the reader sees is what ran; then clean, export, and write the README.
book: setup
	for nb in $$(find nbs -name '*.ipynb' -not -path '*/.*' | sort); do .venv/bin/jupyter execute --inplace $$nb || exit 1; done
	$(PY) tests/check_clean.py --write

# The site from the stored outputs: nothing is executed, nothing is fetched (about 40 s). It opens from a disk: _site/index.html
site: setup
	$(PY) docs/make_site.py

# Speed against the known libraries (foolbox is installed for this alone): rewrites docs/benchmarks.md, 3 to 6 minutes.
# BENCH=--full for every case (hours), BENCH='--device cuda' for a GPU.
bench: setup
	$(PIP) --target bench/.site foolbox==3.3.4 eagerpy==0.30.0
	for b in attacks ligs training report; do PYTHONPATH=bench/.site $(PY) bench/$$b.py $(BENCH) || exit 1; done

# Refresh the lock: newest versions that fit requirements.in, for Python 3.11 to 3.13 on Linux and macOS.
lock:
	$(PYTHON) -m venv .venv-lock && .venv-lock/bin/python -m pip install --quiet uv
	.venv-lock/bin/uv pip compile requirements.in --override requirements-override.in --universal --python-version 3.11 \
	    --no-emit-index-url --no-header --no-annotate --upgrade -o requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf reports/build .pytest_cache build *.egg-info _docs _proc _site
