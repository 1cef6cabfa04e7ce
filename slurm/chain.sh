#!/usr/bin/env bash
# Queues jobs that wait for one another, each given as the words of slurm/launch.sh in one argument:
#
#   slurm/chain.sh "sft preset=paper/sft_1" "dpo preset=paper/dpo"
#   SBATCH_TIMELIMIT=12:00:00 slurm/chain.sh --nodes=32 "pretrain preset=paper/pretrain_1" "..."
#
# Words before the first stage go to every sbatch. A job starts when the one before has ended well;
# one that is queued again keeps its number, so the chain waits for its true end. If a job fails, the
# jobs behind it are cancelled. Prints one job number a line.
set -euo pipefail

options=()
while [ $# -gt 0 ] && [ "${1#--}" != "$1" ]; do
  options+=("$1")
  shift
done
if [ $# -eq 0 ]; then
  echo 'usage: slurm/chain.sh [--SBATCH-OPTION ...] "STAGE [key=value ...]" ...' >&2
  exit 2
fi

before=""
for job in "$@"; do
  # Split as a shell would, quotes included, without running anything.
  mapfile -t words < <(xargs -n 1 printf '%s\n' <<<"$job")
  wait_for=()
  [ -z "$before" ] || wait_for=("--dependency=afterok:$before" --kill-on-invalid-dep=yes)
  number="$(sbatch --parsable "${options[@]}" "${wait_for[@]}" slurm/launch.sh "${words[@]}")"
  before="${number%%;*}" # a federation adds its cluster's name
  echo "$before"
done
