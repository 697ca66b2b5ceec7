# make repro   set everything up and run the pipeline on params.yaml
# make help    list the other targets

SHELL := bash
VENV := $(or $(QLORA_VENV),.venv)
BIN := $(VENV)/bin
VLLM := requirements-vllm$(if $(shell nvidia-smi -L 2>/dev/null),,-cpu).txt
# Stages and tools run as `python -m stages.NAME` and `python -m tools.NAME`, with the environment's python.
export PATH := $(if $(filter /%,$(VENV)),$(BIN),$(CURDIR)/$(BIN)):$(PATH)
unexport PYTHONPATH PYTHONHOME # packages of another environment would hide the locked ones
# DVC asks for the user's name, which a container's user may lack.
ifeq ($(USER)$(LOGNAME),)
export USER := $(firstword $(shell id -un 2> /dev/null) user)
endif

.PHONY: help setup lock recipe llama.cpp llm-compressor sql-engines ui repro experiments board sweep serve demo serve-vllm pull-model publish gc test test-slow lint doctor plan preview clean

help: ## list the targets
	@grep -hE '^[a-z.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z.-]+):.*## /  make \1\t/' | expand -t 23

setup: $(VENV)/installed llama.cpp ## create .venv (PYTHON=python3.13 chooses its Python) and provide llama.cpp's tools

$(VENV)/installed: locks/main.lock locks/torch.lock requirements.txt requirements-light.txt
$(VENV)/light: locks/light.lock requirements-light.txt # suffices to pull a model

$(VENV)/installed $(VENV)/light:
	@tools/environment.sh $(VENV) $<
	@touch $@

lock: ## write locks/ anew from the requirements files; ARGS=--upgrade takes the newest versions
	@python3 -m tools.lock $(ARGS)

recipe: setup ## start params.yaml from a recipe and check this machine for it: make recipe NAME=llama3-8b-sql
	@python -m tools.recipe $(NAME)

llama.cpp: $(VENV)/installed ## find llama.cpp's tools, or build them once into a per-user cache
	@python -m tools.llama_cpp_build

sql-engines: $(VENV)/installed-sql-engines ## install what evaluate.engine needs: duckdb, and drivers of PostgreSQL and MySQL

llm-compressor: $(VENV)/installed-llm-compressor ## install what vllm.types needs (4-bit models for vLLM)

repro: setup ## run the stages that changed, and those that depend on them
	@python -m tools.repro

experiments: $(VENV)/installed ## scores of the experiments, and the parameters they changed; ARGS="--sort-by score.Q4_K_M" for DVC's options
	@# Without dependencies (paths) and each artifact's loss, it fits 200 columns.
	@dvc exp show --only-changed --drop '.*/|Created|measured_with|loss\.' $(ARGS)

board: $(VENV)/installed ## write results/board.html: experiments, loss curves, intervals, gates and answers on one page
	@python -m tools.board $(ARGS)

sweep: setup ## run one experiment per combination: make sweep GRID="lora.r=8,16,64 train.learning_rate=1e-4,2e-4" [WORKERS=2]
	@python -m tools.sweep $(GRID) $(if $(WORKERS),--workers $(WORKERS))

TYPE ?= Q4_K_M
REV ?= HEAD
pull-model: $(VENV)/light ## fetch only the GGUF (or vLLM type) of a commit: make pull-model [TYPE=Q4_K_M] [REV=HEAD]
	@git show '$(REV):./dvc.lock' | grep --quiet 'path: models/$(TYPE)$$' || \
	  { echo "error: $(REV) has no models/$(TYPE); choose a TYPE of gguf.types or vllm.types in its params.yaml" >&2; exit 1; }
	@# From the root of the Git repository, of which this project may be a subfolder.
	dvc get --force "$$(git rev-parse --show-toplevel)" "$$(git rev-parse --show-prefix)models/$(TYPE)" --rev '$(REV)' --out served/$(TYPE)

publish: $(VENV)/installed ## upload a model and its card to the hub, private: make publish TYPE=Q4_K_M TO=owner/name [ARGS=--dry-run]
	@python -m tools.publish --type '$(TYPE)' --to '$(TO)' $(ARGS)

gc: $(VENV)/installed ## delete what no branch, tag or experiment needs, and abandoned checkpoints; shows the size and asks first
	@python -m tools.gc

ui: $(VENV)/installed ## build llama.cpp's web UI for serve, once with npm into a per-user cache
	@python -m tools.web_ui

serve: setup ## serve the GGUF to ship, OpenAI-compatible; ARGS="--artifact Q8_0 --port 8081" for another
	@python -m tools.serve $(ARGS)

demo: setup $(VENV)/installed-demo ## show base and tuned model side by side in a web page
	@python -m tools.demo $(ARGS)

$(VENV)/installed-demo $(VENV)/installed-llm-compressor $(VENV)/installed-sql-engines: $(VENV)/installed-%: locks/%.lock requirements-%.txt $(VENV)/installed
	@tools/environment.sh $(VENV) $<
	@touch $@

serve-vllm: $(VENV)/installed $(VENV)-vllm/installed ## serve the merged model with vLLM; ARGS="--artifact W4A16-AWQ" for 4 bits
	@python -m tools.serve_vllm $(ARGS)

$(VENV)-vllm/installed: $(VLLM)
	@tools/environment.sh $(VENV)-vllm $<
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

preview: $(VENV)/installed ## show the prepared rows as the model sees them, and write data/preview.html; ARGS="--id rows.jsonl:12" for one row
	@python -m tools.preview $(ARGS)

clean: ## remove the environment; the pipeline's outputs and caches stay
	rm -rf $(VENV) $(VENV)-vllm
