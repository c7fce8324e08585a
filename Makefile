# make demo    a fresh clone to klines in a schema of their own
# make test    a fresh clone to a green suite (WORKERS=... processes, each with servers of its own; TESTS=... for pytest)
# make verify  a fresh clone to the verification run: the whole pipeline once, then nothing of it left (VERIFY=--json)
# make check   types, lint, layers
# make bench   loading, queries, mirrors and the undo log beside their peers: tables, and JSON in bench.json (FILES=...)
# make chaos   the long runs: servers, migrations, loads, mirrors, test runs and trading services killed again and again
# make clean   remove what these made
#
# Needs Python 3.11 or newer with its venv module, and make; PYTHON=... chooses another Python.

FILES ?=
VERIFY ?=
KILLS ?= 50
LOADS ?= 200
RUNS ?= 500
ROUNDS ?= 100
BENCH ?= --json bench.json
WORKERS ?= 2
PYTHON ?= $(shell for each in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$each" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$each" && break; done)
PIP = .venv/bin/python -m pip --quiet --disable-pip-version-check

.PHONY: demo test verify check bench chaos clean

demo: .venv/installed
	@.venv/bin/python scripts/demo.py $(FILES)

test: .venv/developing
	@.venv/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

verify: .venv/installed
	@.venv/bin/python scripts/test_data_pipeline.py $(VERIFY)

check: .venv/developing
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports

chaos: .venv/developing
	@.venv/bin/python tests/chaos_servers.py $(KILLS)
	@HELIOS_KILLS=$(KILLS) .venv/bin/python -m pytest tests/test_migrations.py -k "killed" $(TESTS)
	@PYTHONPATH=scripts .venv/bin/python tests/chaos_backfill.py $(LOADS)
	@.venv/bin/python tests/chaos_undo.py $(RUNS)
	@.venv/bin/python tests/chaos_undo_log.py $(RUNS)
	@PYTHONPATH=scripts .venv/bin/python tests/chaos_mirrors.py $(ROUNDS)
	@PYTHONPATH=scripts .venv/bin/python tests/chaos_failover.py $(ROUNDS)
	@.venv/bin/python tests/chaos_cluster.py $(KILLS)

bench: .venv/benchmarking
	@.venv/bin/python -m benchmarks $(BENCH) $(FILES)
	@.venv/bin/python -m benchmarks.queries
	@.venv/bin/python -m benchmarks.redis_log

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# A stamp is written last, so that an installation that was killed is made anew.
.venv/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: Helios needs Python 3.11 or newer with its venv module (on Debian and Ubuntu: apt install python3-venv); PYTHON=... names one" >&2; exit 1; }
	@echo "installing into .venv ..." >&2
	@$(PYTHON) -m venv --clear .venv
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(PIP) install --editable '.[embedded]'
	@touch $@

.venv/developing: .venv/installed
	@echo "installing what the tests need ..." >&2
	@$(PIP) install --group dev
	@touch $@

.venv/benchmarking: .venv/developing
	@echo "installing what is measured beside ..." >&2
	@$(PIP) install --group bench
	@touch $@
