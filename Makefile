# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# What there is to do, each by one word. A second run starts within seconds. tests/steps does the work and shows progress.
#   make lab                       prepare, build, run the lab's core set; report in target/lab.html and target/lab.json
#   make lab LAB_ARGS='--all'      any options of `rnic lab`
#   make verbs-smoke               rdma-core's own programs against the NIC, in a guest of each kernel; every byte checked
#   make verbs-smoke VERBS_ARGS='--kernel 6.1'    any options of tests/verbs-smoke
#   make verbs                     rdma-core's whole test suite in a guest of each kernel and model, half an hour (docs/verbs.md)
#   make perftest                  perftest over the NIC and over soft-RoCE in one guest, a quarter of an hour (docs/perftest.md)
#   make soak MINUTES=20           mixed traffic of 16 processes, every byte checked, and nothing left of it (docs/soak.md)
#   make test                      every test there is
#   make build | prepare | clean
#   make install PREFIX=/usr/local DESTDIR=    what `make build` has built, with its parts, manual pages and completions
#   make uninstall                             takes the same away

LAB_ARGS ?=
VERBS_ARGS ?=
MINUTES ?= 20
export LAB_ARGS VERBS_ARGS MINUTES

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help lab verbs verbs-smoke perftest soak test build prepare clean install uninstall

help:
	@sed -n 's/^#   //p' Makefile

lab verbs verbs-smoke perftest soak test build prepare:
	@tests/steps $@

# The image cache stays: it lies outside the tree and other checkouts use it too (images/README.md).
clean:
	cargo clean

PREFIX ?= /usr/local
DESTDIR ?=
TARGET := $(or $(CARGO_TARGET_DIR),target)
# What is installed: the program, and the folder of the guest agents.
PROGRAM ?= $(TARGET)/release/rnic
AGENTS ?= $(TARGET)/guest/x86_64-unknown-linux-gnu/release
ROOT = $(DESTDIR)$(PREFIX)
SHARE = $(ROOT)/share
BASH_COMPLETIONS = $(SHARE)/bash-completion/completions
ZSH_COMPLETIONS = $(SHARE)/zsh/site-functions
FISH_COMPLETIONS = $(SHARE)/fish/vendor_completions.d

# Builds nothing, so that it may run as another user than the one that built. The program finds its parts in ../share/rnic.
install:
	@test -x "$(PROGRAM)" -a -f "$(AGENTS)/rnic-agent" || { echo "make: nothing is built yet: run \`make build\` first" >&2; exit 1; }
	install -D -m 755 "$(PROGRAM)" "$(ROOT)/bin/rnic"
	install -d "$(SHARE)/rnic/images/lib/rnic_images" "$(SHARE)/doc/rnic" "$(SHARE)/man/man1" \
		"$(BASH_COMPLETIONS)" "$(ZSH_COMPLETIONS)" "$(FISH_COMPLETIONS)"
	install -m 755 "$(AGENTS)/rnic-agent" "$(SHARE)/rnic"
	test ! -f "$(AGENTS)/rnic-agent-verbs" || install -m 755 "$(AGENTS)/rnic-agent-verbs" "$(SHARE)/rnic"
	install -m 755 images/with-kvm images/prepare images/l1-init "$(SHARE)/rnic/images"
	install -m 644 images/lib/rnic_images/*.py "$(SHARE)/rnic/images/lib/rnic_images"
	install -m 644 LICENSE-* README.md "$(SHARE)/doc/rnic"
	"$(PROGRAM)" man "$(SHARE)/man/man1"
	"$(PROGRAM)" completions bash >"$(BASH_COMPLETIONS)/rnic"
	"$(PROGRAM)" completions zsh >"$(ZSH_COMPLETIONS)/_rnic"
	"$(PROGRAM)" completions fish >"$(FISH_COMPLETIONS)/rnic.fish"

uninstall:
	rm -rf "$(SHARE)/rnic" "$(SHARE)/doc/rnic"
	rm -f "$(ROOT)/bin/rnic" "$(SHARE)"/man/man1/rnic.1 "$(SHARE)"/man/man1/rnic-*.1 \
		"$(BASH_COMPLETIONS)/rnic" "$(ZSH_COMPLETIONS)/_rnic" "$(FISH_COMPLETIONS)/rnic.fish"
