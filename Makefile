# make repro   sets everything up and runs the pipeline on params.yaml
# make help    lists the rest

SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := requirements-vllm$(if $(shell nvidia-smi -L 2>/dev/null),,-cpu).txt
# The stages run as `python -m stages.NAME`: this puts the environment's python first.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup llama.cpp llm-compressor ui repro sweep serve demo serve-vllm pull-model gc test test-slow lint doctor plan clean

help: ## list the targets
	@grep -hE '^[a-z.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z.-]+):.*## /  make \1\t/' | expand -t 23

setup: $(VENV)/installed llama.cpp ## make .venv from requirements.txt, and provide llama.cpp's tools

$(VENV)/installed: requirements.txt requirements-light.txt
$(VENV)/light: requirements-light.txt # enough to pull a model

$(VENV)/installed $(VENV)/light:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] in ((3, 11), (3, 12)) else "error: $(PYTHON) is " \
	  + sys.version.split()[0] + "; the pinned packages need Python 3.11 or 3.12: make setup PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

llama.cpp: $(VENV)/installed ## llama.cpp's tools: found, or built once into a per-user cache
	@python -m stages.llama_cpp_install

llm-compressor: $(VENV)/installed-llm-compressor ## what vllm.types needs: the merged model in 4 bits for vLLM

repro: setup ## run the pipeline: what changed, and what depends on it
	@python -m stages.repro

sweep: setup ## experiments: make sweep GRID="lora.r=8,16,64 train.learning_rate=1e-4,2e-4" [WORKERS=2]
	@python -m stages.sweep $(GRID) $(if $(WORKERS),--workers $(WORKERS))

TYPE ?= Q4_K_M
REV ?= HEAD
pull-model: $(VENV)/light ## the GGUF (or vLLM type) of a commit, and nothing else: make pull-model [TYPE=Q4_K_M] [REV=HEAD]
	@git show '$(REV):dvc.lock' | grep --quiet 'path: models/$(TYPE)$$' || \
	  { echo "error: $(REV) has no models/$(TYPE); choose a TYPE of gguf.types or vllm.types in its params.yaml" >&2; exit 1; }
	dvc get --force . models/$(TYPE) --rev '$(REV)' --out served/$(TYPE)

# All that a branch, a tag or an experiment still needs stays; what only the run-cache or a deleted branch knows goes.
KEEP := --workspace --all-branches --all-tags --all-experiments
gc: $(VENV)/installed ## free the cache of what no branch, tag or experiment needs: shows how much, and asks
	@dvc gc $(KEEP) --dry 2>/dev/null | sed -n 's/^Removing //p' | tr '\n' '\0' | \
	  du --files0-from=- --total --human-readable --summarize 2>/dev/null | tail -n 1 | \
	  { read -r size _; echo "this would free $${size:-0}"; }
	@dvc gc $(KEEP) || [ $$? = 1 ] # 1: answered no

ui: $(VENV)/installed ## llama.cpp's web UI, built once with npm into a per-user cache; for serve
	@python -m stages.web_ui

serve: setup ## serve the shipped GGUF, OpenAI-compatible; ARGS="--artifact Q8_0 --port 8081" for another
	@python -m stages.serve $(ARGS)

demo: setup $(VENV)/installed-demo ## a page that shows base and tuned model side by side
	@python -m stages.demo $(ARGS)

$(VENV)/installed-demo $(VENV)/installed-llm-compressor: $(VENV)/installed-%: requirements-%.txt $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt --requirement $<
	@touch $@

serve-vllm: $(VENV)/installed $(VENV)-vllm/installed ## serve the merged model with vLLM; ARGS="--artifact W4A16-AWQ" for 4 bits
	@python -m stages.serve_vllm $(ARGS)

$(VENV)-vllm/installed: $(VLLM)
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@# The index's builds of these are for CUDA and stop a CPU's torch; text needs none of them.
	$(if $(findstring cpu,$<),$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	@touch $@

test: setup ## the tests, on a tiny model; no GPU and no hub needed
	pytest --numprocesses 2 --dist loadfile

test-slow: setup ## the tests that take minutes: the pipeline killed again and again, a sweep, a team's remote
	pytest -m slow

lint: $(VENV)/installed ## ruff: style and formatting
	ruff check .
	ruff format --check .

doctor: $(VENV)/installed ## check this machine for the current params.yaml
	@python -m stages.doctor

plan: $(VENV)/installed ## what a run of the current params.yaml needs: memory, tokens, time, disk
	@python -m stages.plan

clean: ## remove the environment; the pipeline's outputs and caches stay
	rm -rf $(VENV) $(VENV)-vllm
