# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# What there is to do, each by one word. A second run starts within seconds. tests/steps does the work and shows progress.
#   make lab                       prepare, build, run the lab's core set; report in target/lab.json
#   make lab LAB_ARGS='--all'      any options of `rnic lab`
#   make verbs-smoke               rdma-core's own programs against the NIC, in a guest of each kernel; every byte checked
#   make verbs-smoke VERBS_ARGS='--kernel 6.1'    any options of tests/verbs-smoke
#   make test                      every test there is
#   make build | prepare | clean

LAB_ARGS ?=
VERBS_ARGS ?=
export LAB_ARGS VERBS_ARGS

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help lab verbs-smoke test build prepare clean

help:
	@sed -n 's/^#   //p' Makefile

lab verbs-smoke test build prepare:
	@tests/steps $@

# The image cache stays: it lies outside the tree and other checkouts use it too (images/README.md).
clean:
	cargo clean
