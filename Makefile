# Each target is one line that a person could type; all of them work in .venv, made on first use.
PYTHON ?= python3
BIN := .venv/bin
# Telemetry is off unless you say otherwise.
export RAY_USAGE_STATS_ENABLED ?= 0
export WANDB_ERROR_REPORTING ?= false
# Else every process of a test run compiles this project's sources, and pytest its tests, once more.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest

.PHONY: matrix plan seed models-cpu audit sweep trace chat train cpp quick test test-all test-cluster test-installed cluster-table test-s3 test-serve test-gpu test-packages check lock clean

matrix: .venv/installed          ## measure the shipped chatbot on this machine and print the latency matrix
	$(BIN)/python -m ray_jobs matrix $(ARGS)

plan: .venv/installed            ## print what that would run, and for how long
	$(BIN)/python -m ray_jobs matrix --plan $(ARGS)

seed: .venv/installed            ## the table that this project grew from, measured properly
	$(BIN)/python -m ray_jobs matrix --spec examples/seed.toml $(ARGS)

audit: .venv/installed           ## how often this tool is wrong, on this machine (half an hour)
	$(BIN)/python -m ray_jobs audit $(ARGS)

sweep: .venv/installed           ## search for hyperparameters of the shipped chatbot, and say which mattered (hours)
	$(BIN)/python -m ray_jobs sweep --space examples/space.toml --min-count 10 --half $(ARGS)

trace: .venv/installed           ## where a reply's time goes: traces for Perfetto, operators side by side
	$(BIN)/python -m ray_jobs trace $(ARGS)

cpp: .venv/installed             ## build examples/cpp against the installed PyTorch: build/cpp/chat bot.pt
	cmake -S examples/cpp -B build/cpp -DCMAKE_PREFIX_PATH="$$($(BIN)/python -c 'import torch; print(torch.utils.cmake_prefix_path)')"
	cmake --build build/cpp

chat: .venv/installed            ## talk to the shipped chatbot
	$(BIN)/python -m chatbot chat $(ARGS)

train: .venv/installed           ## train the shipped chatbot again, into checkpoints/small.pt
	mkdir -p checkpoints && $(BIN)/python -m chatbot train --out checkpoints/small.pt --size small --min-count 10 --learning-rate 0.000468256 --dropout 0.3 --decoder-learning-ratio 1 --batch 128 --clip 1 --teacher-forcing 1 --iterations 2700 --validate-every 100 --patience 5 --seed 1349961490 --split-seed 0 --half $(ARGS)

quick: check                     ## linters and every test that starts no process, with few examples and small simulations
	TEST_PROFILE=quick $(PYTEST) -q -n 2 --dist worksteal -o tmp_path_retention_count=1 -m 'not process and not slow and not gpu and not alone' $(ARGS)

test: check                      ## linters and tests: two at a time, then those that need the machine to themselves
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow and not gpu and not alone' --durations=25 $(ARGS) || [ $$? -eq 5 ]
	$(PYTEST) -m 'not slow and not gpu and alone' --durations=25 $(ARGS) || [ $$? -eq 5 ]

test-all: check                  ## the slow tests too, and every example of Hypothesis
	TEST_PROFILE=full $(PYTEST) -m 'not gpu' --durations=25 $(ARGS)

test-installed: .venv/installed  ## what a user installs: the wheel, in another environment, run from outside this folder
	scripts/test-installed

models-cpu: .venv/installed      ## the five models of examples/models in every variant, into results/models-cpu; first: .venv/bin/pip install onnxscript openvino transformers
	scripts/measure-models

test-packages:                   ## Chromium and iproute2, which some tests need and are skipped without (apt-get, as root)
	scripts/install-test-packages

test-cluster: .venv/installed    ## every fault of a cluster, on real Ray processes (twenty minutes; needs root and iproute2)
	$(PYTEST) -m 'not gpu' tests/cluster $(ARGS)

cluster-table: .venv/installed   ## those faults once more, into the table of docs/cluster.md
	PYTHONPATH=tests/cluster $(BIN)/python -m breakage --page docs/cluster.md $(ARGS)

test-s3: .venv/installed         ## results in an object store: fetches moto's S3 server first (85 MB)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[s3]'
	$(PYTEST) -m 'not gpu' tests/test_s3.py $(ARGS)

test-serve: .venv/installed      ## variants behind Ray Serve: fetches ray[serve] first (two minutes)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[serve]'
	$(PYTEST) -m 'not gpu' tests/test_serve.py $(ARGS)

test-gpu:                        ## the tests of a GPU, with whatever PyTorch is installed; beside it: pip install pytest pytest-timeout hypothesis numpy
	$(PYTHON) -m pytest -m gpu -p no:cacheprovider tests/gpu $(ARGS)

check: .venv/installed           ## ruff, mypy, the import contracts and hadolint
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports && $(BIN)/hadolint Dockerfile

lock:                            ## write requirements.lock anew from pyproject.toml
	rm -rf .venv && $(PYTHON) -m venv .venv && $(BIN)/pip install torch==2.13.0 && $(BIN)/pip install 'setuptools>=77' -e '.[dev,sweep]'
	$(BIN)/pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' > requirements.lock
	touch .venv/installed

clean:                           ## remove the environment and caches; results stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 15) else f"Python {v[0]}.{v[1]} will not do: 3.11 to 3.14 is needed; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
