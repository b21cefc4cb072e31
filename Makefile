# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# What there is to do, each by one word. A second run starts within seconds. tests/steps does the work and shows progress.
#   make lab                       prepare, build, run the lab's core set; report in target/lab.json
#   make lab LAB_ARGS='--all'      any options of `rnic lab`
#   make test                      every test there is
#   make build | prepare | clean

LAB_ARGS ?=
export LAB_ARGS

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help lab test build prepare clean

help:
	@sed -n 's/^#   //p' Makefile

lab test build prepare:
	@tests/steps $@

# The image cache stays: it lies outside the tree and other checkouts use it too (images/README.md).
clean:
	cargo clean
