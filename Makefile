# `make run` and `make test` do all the set-up a fresh Debian 12 or 13 needs; everything else builds on them.
export PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin

NATIVE := $(wildcard agent/embargo/native/*.pyx agent/embargo/native/*.pxd agent/embargo/native/*.h)

# what the Debian package is made of
PACKAGED := $(shell find agent/embargo blocklists systemd tools/debian -type f ! -name '*.so' ! -name '*.c' \
		! -path '*/__pycache__/*') \
	$(wildcard *.md docs/* tools/container/* tools/catalogue/*.csv tools/catalogue/*.toml)

# Three times as many test processes as processors, because tests wait a lot. Each file runs in one of them, slow directories first.
PARALLEL := -n $(shell echo $$((3 * $$(nproc)))) --dist loadfile --no-loadscope-reorder

TEST_PACKAGES := nftables iproute2 bind9-dnsutils bind9 unbound openssl dnsmasq-base procps mount util-linux systemd-container \
	lintian faketime debhelper dpkg-dev go-md2man mmdebstrap

.PHONY: run demo test test-all test-set-up lint unit checked deb bench lock clean

run: $(VENV)/run.stamp
	@tools/run

demo: $(VENV)/run.stamp
	@tools/apt nftables iproute2 bind9-dnsutils dnsmasq-base procps
	@$(BIN)/python -m tools.demo

# all tests but those that are marked `all` (pyproject.toml)
test: test-set-up
	$(BIN)/pytest $(PARALLEL) -m "not all"

test-all: test-set-up
	@tools/apt dnsperf
	$(BIN)/pytest $(PARALLEL)

# the checks run while packages are fetched and unpacked, which needs little of a processor
test-set-up: $(VENV)/test.stamp
	@$(MAKE) --no-print-directory lint & lint=$$!; tools/apt $(TEST_PACKAGES) && wait $$lint

# what needs no root and no packages, in seconds
unit: $(VENV)/test.stamp
	$(BIN)/pytest $(PARALLEL) tests/unit tests/property

# the compiled twins with every index checked
checked: $(VENV)/test.stamp
	$(BIN)/python -m tools.checked

lint: $(VENV)/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

deb: dist/deb.stamp
	@cat dist/deb.stamp

bench: $(VENV)/bench.stamp
	@tools/apt iproute2 dnsperf procps unbound dnsmasq-base pdns-recursor bind9 dnsdist
	$(BIN)/python -m tools.bench

lock:
	tools/lock

clean:
	rm -rf $(VENV) build dist run agent/*.egg-info agent/embargo/native/*.so agent/embargo/native/*.c

dist/deb.stamp: $(VENV)/run.stamp $(PACKAGED) tools/deb tools/manual.py
	@mkdir -p dist
	@tools/deb >$@.new
	@mv $@.new $@

$(VENV)/run.stamp: requirements.lock pyproject.toml $(NATIVE)
	@tools/venv requirements.lock
	@touch $@

$(VENV)/test.stamp: requirements-test.lock pyproject.toml $(NATIVE)
	@tools/venv requirements-test.lock
	@touch $@ $(VENV)/run.stamp

$(VENV)/bench.stamp: requirements-bench.lock pyproject.toml $(NATIVE)
	@tools/venv requirements-bench.lock
	@touch $@ $(VENV)/test.stamp $(VENV)/run.stamp
