# Each target works alone on a fresh clone: it creates .venv and installs what it needs. TORCH=... chooses another torch.
VENV ?= .venv
TORCH ?= torch==2.13.0
PYTHON ?= python3
BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test test-slow lint bench conformance clean

demo: $(VENV)/.base
	$(BIN)/voxdiff generate --out outputs/demo --num-volumes 2 --steps 25

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/bench_wavelets.py
	$(BIN)/python benchmarks/bench_wdm.py

# make conformance DIFFUSERS=/path/to/a/checkout/of/diffusers
conformance: $(VENV)/.test $(VENV)/.conformance
	$(BIN)/python tests/conformance/run.py --checkout "$(DIFFUSERS)" --adapter tests/conformance/adapter.py \
		--groups default,pipeline-legacy,model-unet --relax-accelerator --quiet

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	touch $@

$(VENV)/.base: $(VENV)/.torch setup.py
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.test $(VENV)/.dev $(VENV)/.bench $(VENV)/.conformance: $(VENV)/.%: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) build dist outputs
