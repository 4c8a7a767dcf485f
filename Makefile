# Every target first installs in .venv what it needs; once that is done and nothing changed, it installs nothing.
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 3000
REPORT ?= runs/model-card
OOD ?= MNIST KMNIST
IN ?= docs/images/fashion-*.png
OUT ?= runs/bulk
STUDIES ?= runs/studies
MUTANTS ?= 200
MUTANT_SEED ?= 0
MNIST ?=
# Files or folders instead of those that the target runs, and more options of pytest.
TESTS ?=
PYTEST_OPTIONS ?=

VENV := .venv
BIN := $(VENV)/bin
# One file for each set of packages that is installed: the base for serving, two of the extras, and everything.
FOR_SERVING := $(VENV)/installed-serve
FOR_TRAINING := $(VENV)/installed-train
FOR_BULK := $(VENV)/installed-bulk
INSTALLED := $(VENV)/installed
PIP_INSTALL := -m pip install --disable-pip-version-check --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest $(PYTEST_OPTIONS)
# Files in the order of tests/conftest.py.
TWO_PROCESSES := -n 2 --dist loadfile --no-loadscope-reorder
# Measures CPU time and delays, so nothing else runs beside it.
MEASURED := tests/e2e/test_worst.py
BENCH := .venv-bench
CHAPTER := runs/chapter/artifact
SEEDS := 1 2 3 4
# Its wheel has the Open Inference Protocol's OpenAPI description, which the tests read; it is not installed.
PROTOCOL := mlserver==1.7.1
MEMBERS := model/pretrained $(addprefix training/ensemble/seed-,$(SEEDS))

# BentoML reports usage unless told not to.
export BENTOML_DO_NOT_TRACK ?= True

.PHONY: install serve unit test test-all fuzz observe soak mutants check format train adopt ensemble join bulk evaluate studies bench \
	pictures bento bento-check lock clean

# Everything that development needs.
install: $(INSTALLED)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, got " + sys.version.split()[0] + ": make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# A larger set contains the smaller ones: after `make install` no target installs anything.
$(FOR_SERVING): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(PIP_INSTALL) --editable .
	touch $@

$(FOR_TRAINING): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(PIP_INSTALL) --editable '.[train]'
	touch $(FOR_SERVING) $@

$(FOR_BULK): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(PIP_INSTALL) --editable '.[bulk]'
	touch $(FOR_SERVING) $@

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python $(PIP_INSTALL) --editable '.[train,bulk,tracing,dev]'
	$(BIN)/python -m pip download --disable-pip-version-check --no-deps --dest $(VENV)/share '$(PROTOCOL)'
	touch $(FOR_SERVING) $(FOR_TRAINING) $(FOR_BULK) $@

serve: $(FOR_SERVING)
	exec $(BIN)/mcd serve --host $(HOST) --port $(PORT)

# Functions, and HTTP in process: within a minute.
unit: $(INSTALLED)
	$(PYTEST) $(TWO_PROCESSES) $(or $(TESTS),tests/unit)

# Also one real server, a browser, and the rules of Prometheus.
test: $(INSTALLED)
	$(PYTEST) $(TWO_PROCESSES) $(or $(TESTS),tests/unit tests/integration)

# Also killed processes, overload, Ray, a Bento and long training runs.
test-all: $(INSTALLED)
	MCD_FUZZ_EXAMPLES=40 MCD_FUZZ_LEAST=500 $(PYTEST) $(TWO_PROCESSES) tests/unit tests/integration
	$(PYTEST) $(TWO_PROCESSES) tests/e2e --ignore $(MEASURED)
	$(PYTEST) $(MEASURED)

# Five thousand requests and more made from the service's own description, ten minutes.
fuzz: $(INSTALLED)
	MCD_FUZZ_EXAMPLES=1000 MCD_FUZZ_LEAST=5000 $(BIN)/python -m pytest tests/integration/test_openapi_requests.py

# A real Prometheus over three minutes of mixed traffic.
observe: $(INSTALLED)
	MCD_OBSERVE_SECONDS=180 $(BIN)/python -m pytest tests/e2e/test_prometheus.py

# Memory under half an hour of mixed load.
soak: $(INSTALLED)
	$(BIN)/python -m pytest tests/e2e/test_soak.py -m soak

# Changes the core in MUTANTS places, ten minutes of two cores: nine of ten must fail a unit test.
mutants: $(INSTALLED)
	$(BIN)/python $(PIP_INSTALL) --quiet --editable '.[mutants]'
	$(BIN)/python tests/mutants.py --sample $(MUTANTS) --seed $(MUTANT_SEED)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# An interrupted run goes on where it stopped; a finished one is only reported.
train: $(FOR_TRAINING)
	$(BIN)/python -m training.train --recipe default --out runs/default --resume

# A network of yours: make adopt ADOPT='package.module:factory --images FOLDER --size 224 --out DIR' (docs/your-network.md).
adopt: $(FOR_TRAINING)
	$(BIN)/mcd adopt $(or $(ADOPT),--help)

# Other seeds of the same recipe, twelve minutes of one core each: for an ensemble, and for intervals over seeds.
ensemble: $(FOR_TRAINING)
	for seed in $(SEEDS); do \
		$(BIN)/python -m training.train --recipe default --seed $$seed --no-novelty --out runs/seed-$$seed --resume \
			&& mkdir -p training/ensemble/seed-$$seed \
			&& cp -r runs/seed-$$seed/artifact/* training/ensemble/seed-$$seed/ || exit 1; \
	done

# The included model and the seeds as one model.
join: $(FOR_TRAINING)
	$(BIN)/python -m training.join $(MEMBERS) --out runs/ensemble

# Scores what IN names: a folder, a pattern, Parquet, npy or IDX (docs/bulk.md).
bulk: $(FOR_BULK)
	$(BIN)/python -m service.bulk '$(IN)' '$(OUT)' --resume --report '$(OUT).html'

evaluate: $(FOR_TRAINING) $(CHAPTER)/card.json
	$(BIN)/python -m training.evaluate $(MODEL) --report $(REPORT) $(addprefix --ood ,$(OOD)) \
		--beside chapter=$(CHAPTER) $(addprefix --beside ensemble=,$(MEMBERS))

$(CHAPTER)/card.json: | $(FOR_TRAINING)
	$(BIN)/python -m training.train --recipe chapter --out runs/chapter --resume

# The chapter's exercises, half an hour of two cores; what is in $(STUDIES) already isn't done again.
studies: $(FOR_TRAINING)
	$(BIN)/python -m training.studies all --out $(STUDIES) $(if $(MNIST),--mnist $(MNIST))

# The libraries that we compare with live in an environment of their own; one that can't be installed is left out.
bench: $(BENCH)/installed
	$(BENCH)/bin/python -m benchmarks.epoch
	$(BENCH)/bin/python -W ignore -m benchmarks.inference
	$(BENCH)/bin/python -W ignore -m benchmarks.networks
	$(BENCH)/bin/python -m benchmarks.error
	$(BENCH)/bin/python -m benchmarks.latency
	$(BENCH)/bin/python -m benchmarks.throughput
	$(BENCH)/bin/python -m benchmarks.overload
	$(BENCH)/bin/python -m benchmarks.scaling
	$(BENCH)/bin/python -m benchmarks.worst
	$(BENCH)/bin/python -W ignore -m benchmarks.ensemble
	$(BENCH)/bin/python -m benchmarks.bulk

$(BENCH)/installed: pyproject.toml constraints.txt benchmarks/requirements.txt
	test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python $(PIP_INSTALL) --editable '.[train,bulk]' psutil
	grep -v '^#' benchmarks/requirements.txt | while read -r peer; do \
		$(BENCH)/bin/python $(PIP_INSTALL) $$peer \
			|| echo "could not install $$peer: the tables go without it"; \
	done
	touch $@

# The page's pictures in docs/images, taken by Chromium; also how heavy and how fast it is.
pictures: $(INSTALLED)
	$(BIN)/python -m benchmarks.page

bento: $(FOR_SERVING)
	$(BIN)/bentoml build .

# Installs the Bento's requirements in an environment of their own, a minute or more, and compares its answers.
bento-check: $(INSTALLED)
	$(BIN)/python -m benchmarks.bento

# After a change of pyproject.toml: pin the whole tree anew, for every platform and Python from 3.11 on; and what a Bento
# installs, without the CUDA packages, which a CUDA torch names and pins itself.
lock: $(INSTALLED)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --all-extras \
		pyproject.toml --output-file constraints.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
		--constraint constraints.txt pyproject.toml | grep -vE '^(cuda-|nvidia-|triton)' > service/requirements.txt

clean:
	rm -rf $(VENV) $(BENCH) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
