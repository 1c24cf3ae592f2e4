# vnfs: what one types while working on it. `make` alone lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMPS := .make

# Debian packages that the tools, tests and benchmarks run. `vnfs doctor` knows which feature needs which.
HOST_PACKAGES := python3-venv util-linux squashfs-tools gpg gpgv dpkg-dev apt-utils rsync openssh-server openssh-client \
    qemu-system-x86 ipxe-qemu docker-registry skopeo mmdebstrap attr libcap2-bin iproute2 curl cpio busybox-static shellcheck \
    debian-archive-keyring python-apt-common

.DEFAULT_GOAL := help
.PHONY: help tools dev lint types unit check test demo bench clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

tools: $(STAMPS)/tools ## install the host programs that vnfs and its tests run (Debian; needs root)
$(STAMPS)/tools: Makefile
	@mkdir -p $(STAMPS)
	@if dpkg-query -W -f '$${db:Status-Status} $${Package}\n' $(HOST_PACKAGES) 2>/dev/null \
	    | grep -c '^installed ' | grep -qx $(words $(HOST_PACKAGES)); then echo "host programs: all there"; \
	else apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $(HOST_PACKAGES); fi
	@touch $@

dev: $(STAMPS)/dev ## make .venv with vnfs (editable) and everything for working on it
$(STAMPS)/dev: pyproject.toml $(STAMPS)/tools
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

lint: dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@PYTHONPATH=. $(BIN)/lint-imports --no-cache >/dev/null || PYTHONPATH=. $(BIN)/lint-imports --no-cache

types: dev
	@$(BIN)/mypy

unit: dev
	@$(BIN)/pytest -q -n 2 tests/unit tests/contract

check: lint types unit ## lint, types, unit and contract tests: under a minute, no root, no network

test: check ## all tests: unit, contract, integration with real tools, QEMU boots (root, network)
	@$(BIN)/pytest -q -n 2 --dist loadfile --durations 10 tests/integration
	@$(BIN)/pytest -v --durations 10 tests/boot

demo: dev ## the main job, end to end, on a real Debian 12 (root, network)
	@$(BIN)/python tests/demo/main_job.py

bench: dev ## figures: ours beside mmdebstrap + mksquashfs, in one run (root, network)
	@$(BIN)/python tests/bench/bench.py

clean: ## remove what the targets made in this checkout
	rm -rf $(VENV) $(STAMPS) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
