#!/bin/bash
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# A campaign as a Slurm array: sbatch docs/campaigns/slurm.sh
# Each task runs its part of the rows and writes RESULTS/ID.json. A task that is requeued goes on where it was. When all have ended:
#     rnic lab merge -o report.json RESULTS/*.json
#SBATCH --job-name=rnic
#SBATCH --array=1-8
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail

RNIC=${RNIC:-rnic}
RESULTS=${RESULTS:-$PWD/results}
SEEDS=${SEEDS:-1..200}
PLAN=${PLAN:-faults/mixed.toml}

mkdir -p "$RESULTS"
name=$RESULTS/$SLURM_ARRAY_TASK_ID
# Further words come last: `slurm.sh --dry-run` prints the rows of this task.
exec "$RNIC" lab --faults "$PLAN" --seeds "$SEEDS" --shard auto --journal "$name.rows" --json-file "$name.json" "$@"
