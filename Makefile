# make repro   set everything up and run the pipeline on params.yaml
# make help    list the other targets

SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM := requirements-vllm$(if $(shell nvidia-smi -L 2>/dev/null),,-cpu).txt
# Stages and tools run as `python -m stages.NAME` and `python -m tools.NAME`, with the environment's python.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup llama.cpp llm-compressor ui repro experiments sweep serve demo serve-vllm pull-model gc test test-slow lint doctor plan clean

help: ## list the targets
	@grep -hE '^[a-z.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z.-]+):.*## /  make \1\t/' | expand -t 23

setup: $(VENV)/installed llama.cpp ## create .venv from requirements.txt and provide llama.cpp's tools

$(VENV)/installed: requirements.txt requirements-light.txt
$(VENV)/light: requirements-light.txt # suffices to pull a model

$(VENV)/installed $(VENV)/light:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] in ((3, 11), (3, 12)) else "error: $(PYTHON) is " \
	  + sys.version.split()[0] + "; the pinned packages need Python 3.11 or 3.12: make setup PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

llama.cpp: $(VENV)/installed ## find llama.cpp's tools, or build them once into a per-user cache
	@python -m tools.llama_cpp_build

llm-compressor: $(VENV)/installed-llm-compressor ## install what vllm.types needs (4-bit models for vLLM)

repro: setup ## run the stages that changed, and those that depend on them
	@python -m tools.repro

experiments: $(VENV)/installed ## scores of the experiments, and the parameters they changed; ARGS="--sort-by score.Q4_K_M" for DVC's options
	@# Without dependencies (paths) and each artifact's loss, it fits 200 columns.
	@dvc exp show --only-changed --drop '.*/|Created|loss\.' $(ARGS)

sweep: setup ## run one experiment per combination: make sweep GRID="lora.r=8,16,64 train.learning_rate=1e-4,2e-4" [WORKERS=2]
	@python -m tools.sweep $(GRID) $(if $(WORKERS),--workers $(WORKERS))

TYPE ?= Q4_K_M
REV ?= HEAD
pull-model: $(VENV)/light ## fetch only the GGUF (or vLLM type) of a commit: make pull-model [TYPE=Q4_K_M] [REV=HEAD]
	@git show '$(REV):dvc.lock' | grep --quiet 'path: models/$(TYPE)$$' || \
	  { echo "error: $(REV) has no models/$(TYPE); choose a TYPE of gguf.types or vllm.types in its params.yaml" >&2; exit 1; }
	dvc get --force . models/$(TYPE) --rev '$(REV)' --out served/$(TYPE)

gc: $(VENV)/installed ## delete what no branch, tag or experiment needs, and abandoned checkpoints; shows the size and asks first
	@python -m tools.gc

ui: $(VENV)/installed ## build llama.cpp's web UI for serve, once with npm into a per-user cache
	@python -m tools.web_ui

serve: setup ## serve the GGUF to ship, OpenAI-compatible; ARGS="--artifact Q8_0 --port 8081" for another
	@python -m tools.serve $(ARGS)

demo: setup $(VENV)/installed-demo ## show base and tuned model side by side in a web page
	@python -m tools.demo $(ARGS)

$(VENV)/installed-demo $(VENV)/installed-llm-compressor: $(VENV)/installed-%: requirements-%.txt $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt --requirement $<
	@touch $@

serve-vllm: $(VENV)/installed $(VENV)-vllm/installed ## serve the merged model with vLLM; ARGS="--artifact W4A16-AWQ" for 4 bits
	@python -m tools.serve_vllm $(ARGS)

$(VENV)-vllm/installed: $(VLLM)
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@# The index has only CUDA builds of these. They break torch's CPU build, and text models need none of them.
	$(if $(findstring cpu,$<),$(VENV)-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	@touch $@

test: setup ## run the tests on a tiny model; needs no GPU and no hub
	pytest --numprocesses 2 --dist loadfile

test-slow: setup ## run the tests that take minutes: a pipeline killed repeatedly, a sweep, a team's remote
	pytest -m slow

lint: $(VENV)/installed ## check style and formatting with ruff
	ruff check .
	ruff format --check .

doctor: $(VENV)/installed ## check this machine for the current params.yaml
	@python -m tools.doctor

plan: $(VENV)/installed ## show what a run of the current params.yaml needs: memory, tokens, time, disk
	@python -m tools.plan

clean: ## remove the environment; the pipeline's outputs and caches stay
	rm -rf $(VENV) $(VENV)-vllm
