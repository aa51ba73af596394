# What can be done here; each target installs what it needs and works on a fresh Debian.

SHELL := /bin/bash
CARGO ?= cargo
export PATH := $(HOME)/.cargo/bin:$(PATH)

.PHONY: help demo build deb tarball test lint test-unit fuzz test-native test-uml test-qemu acceptance bench bench-hostile clean

help:
	@echo 'make demo         what a container sees with and without ambit, side by side (root)'
	@echo 'make build        the programs, target/release/ambit (its symbols in ambit.debug) and ambit-verify'
	@echo 'make deb          a package for Debian 12 and later, in target/package'
	@echo 'make tarball      the same for other systems, the programs linked statically'
	@echo 'make test         everything below (root)'
	@echo '  make lint         format, clippy, rustdoc, dependencies'
	@echo '  make test-unit    unit tests and documentation tests'
	@echo '  make fuzz         each fuzz target for some seconds (FUZZ_SECONDS=)'
	@echo '  make test-native  integration tests on this kernel (root)'
	@echo '  make test-uml     the same on cgroup v2, kernel 6.1, User-Mode Linux (root)'
	@echo '  make test-qemu    the same on cgroup v2, kernel 6.12 and the newest, QEMU (root)'
	@echo 'make acceptance   the long rest, hours; its table is kept in docs/acceptance.md (root)'
	@echo 'make bench        tables of ratios: our overlay, a null server, the kernel, lxcfs (root); ONLY="cold kill"'
	@echo 'make bench-hostile  another container while one attacks for a minute (root)'
	@echo 'make clean        remove what was built'

demo:
	@scripts/build-release --quiet
	@scripts/demo

build:
	@scripts/build-release
	scripts/build-verify target/release/ambit-verify

deb:
	@scripts/package deb

tarball:
	@scripts/package tarball

test:
	@scripts/test lint unit fuzz native guests

lint:
	@scripts/test lint

test-unit:
	@scripts/test unit

fuzz:
	@scripts/test fuzz

test-native:
	@scripts/test native

test-uml:
	@scripts/test uml

test-qemu:
	@scripts/test qemu

acceptance:
	@scripts/acceptance

bench-hostile:
	@AMBIT_HOSTILE_SECONDS=60 RUST_TEST_NOCAPTURE=1 TESTS=hostile::all scripts/test native

bench:
	@scripts/bench $(ONLY)

clean:
	$(CARGO) clean
