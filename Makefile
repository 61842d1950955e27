# Everything is one command away: `make help`.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
READY := $(VENV)/.ready
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --no-compile
UV_INSTALL := $(BIN)/uv pip install --quiet --python $(PY)
RUN := _build/run
# Processes at a time that run tests and chapters; each takes about a gigabyte. With four cores: make test JOBS=4
JOBS ?= 2
CHAPTER_FILES := $(wildcard book/*.ipynb)
MODULE := $(shell find lcfuse_core -type f -not -path "*/__pycache__/*") data_manifest.yaml
PAGES := _config.yml \
         $(wildcard scripts/*.py book/*.md book/*.yml book/*.yaml book/_assets/* book/_api/python/*)
# A worker that crashes ends the tests by name: one that is started again has been seen to wait for ever.
PYTEST := $(PY) -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart=0
LONGEST_FIRST = $(shell $(PY) scripts/chapters.py list --longest-first)
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout=600 --nbval-sanitize-with tests/nbval.cfg

# The methods of the chapter evaluation, and the bounds that are trained on fine labels.
SEEDS := "MODIS label" "Random forest, plain" "Random forest, weighted" "FCN, plain" "FCN, weighted" \
         "U-Net, plain" "U-Net, weighted" "DeepLabv3+, plain" "DeepLabv3+, weighted" "DeepLabv3+, supervised*"

# One thread a process, not spinning while it waits: faster on shared cores, and the same numbers everywhere.
export OMP_NUM_THREADS := 1
export OMP_WAIT_POLICY := passive
# Bytecode is kept, whatever the environment says: else each of some hundred processes compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE
# Where the sample world and downloads live, whatever folder a chapter runs in.
export LCFUSE_DATA ?= $(CURDIR)/_data

.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help setup book test quick render pdf execute checkpoints seeds links lab lock format address clean

help: ## list what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

setup: $(READY) ## make the environment .venv from requirements.lock

# All of it comes from the lock, checked by hash. torch and uv come through pip: torch from this machine's own
# wheels where it has them (pip's find-links; the CPU build, as a rule), else from the index. The rest comes
# through uv, in seconds. The last step adds the module, and the CUDA libraries if the torch build wants them.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) scripts/check_python.py
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	awk '/^[a-z]/ {keep = /^torch==/} keep' requirements.lock > $(VENV)/torch.txt
	awk '/^[a-z]/ {keep = /^uv==/} keep' requirements.lock > $(VENV)/uv.txt
	$(PIP_INSTALL) --no-index -r $(VENV)/torch.txt 2>/dev/null || $(PIP_INSTALL) -r $(VENV)/torch.txt
	$(PIP_INSTALL) -r $(VENV)/uv.txt
	$(UV_INSTALL) --require-hashes --no-deps -r requirements.lock
	$(UV_INSTALL) --no-build-isolation -e ".[dev]"
	@touch $@

book: _build/book/index.html ## set up, make the sample world, run every chapter, build the book of that run
	@echo; $(PY) -m lcfuse_core ledger list --file $(RUN)/ledger.jsonl
	@echo; echo "The book of this run: file://$(CURDIR)/_build/book/index.html"

# One run is one thing: when anything that it rests on has changed, all chapters run again.
$(RUN)/.done: $(READY) $(CHAPTER_FILES) $(MODULE) book/_toc.yml
	rm -rf $(RUN) && mkdir -p $(RUN)
	$(PY) -m lcfuse_core sample
	@$(PY) scripts/chapters.py list --longest-first | xargs -P $(JOBS) -I NAME $(PY) -m lcfuse_core run NAME --profile smoke --out $(RUN)
	@touch $@

_build/book/index.html: $(RUN)/.done $(PAGES)
	$(PY) scripts/build_book.py --chapters $(RUN) --out _build/book

render: _build/html/index.html ## build the published pages from the committed outputs, executing nothing
	@echo "The pages: file://$(CURDIR)/_build/html/index.html"

_build/html/index.html: $(READY) $(PAGES) $(CHAPTER_FILES) $(MODULE)
	$(PY) scripts/build_book.py --out _build/html

pdf: _build/html/index.html ## print the whole book into one PDF beside the pages (needs Chromium)
	$(PY) scripts/pdf.py _build/html

test: $(READY) ## all checks: style, types, tests, and every chapter run and compared with what it shows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	@# The sample is made beside the types, before tests in two processes want it at once.
	$(PY) -m lcfuse_core sample & made=$$!; $(BIN)/mypy && wait $$made
	$(PYTEST)
	@mkdir -p _build && rm -f _build/test-ledger.jsonl
	LCFUSE_LEDGER=$(CURDIR)/_build/test-ledger.jsonl $(PYTEST) $(NBVAL) $(LONGEST_FIRST:%=book/%.ipynb)
	$(PY) scripts/drift.py _build/test-ledger.jsonl
	@$(PY) scripts/chapters.py verified # the status page tells the day

quick: $(READY) ## the checks that take seconds
	$(BIN)/ruff check --quiet .
	$(PYTEST) -m "not slow"

execute: $(READY) ## run chapters in place, for committing (CHAPTER="training evaluation", or all)
	$(PY) scripts/chapters.py execute $(CHAPTER) --jobs $(JOBS)

links: $(READY) ## try every link of the book that leads outside (needs a network)
	$(PY) scripts/build_book.py --check-links

checkpoints: $(READY) ## train the networks that come with the package, for committing (minutes)
	$(PY) scripts/checkpoints.py

seeds: $(READY) ## score the methods of the chapter evaluation over five seeds, for committing (an hour)
	@rm -f _build/seeds.jsonl
	$(PY) -m lcfuse_core compare --jobs $(JOBS) --only $(SEEDS) --out _build/seeds.jsonl
	mv _build/seeds.jsonl lcfuse_core/shipped/seeds.jsonl

lab: $(READY) ## open JupyterLab on the chapters
	$(BIN)/jupyter lab book

format: $(READY) ## let ruff lay out code and sort imports
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format .

lock: $(READY) ## write requirements.lock anew (UPGRADE="--upgrade-package NAME" to move a version)
	links="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-$$($(PY) -m pip config get global.find-links 2>/dev/null)}}"; \
	UV_FIND_LINKS=$$(echo $$links | tr ' ' ',') $(PY) scripts/lock.py $(UPGRADE)

address: $(READY) ## set where the project lives: make address URL=https://github.com/you/your-book
	$(PY) scripts/set_address.py "$(URL)"

clean: ## remove what was built; the environment and the data stay
	rm -rf _build .mypy_cache .pytest_cache .ruff_cache .hypothesis book/.ruff_cache *.egg-info
