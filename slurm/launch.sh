#!/usr/bin/env bash
#SBATCH --job-name=aqaa
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#
# Runs one training stage on a cluster, one task a GPU:
#
#   sbatch slurm/launch.sh sft preset=paper/sft_1
#   sbatch --nodes=2 slurm/launch.sh sft preset=paper/sft_1 optim.lr=1e-5
#
# The first word is the recipe, the rest are its overrides. Submit it from the checkout. Nodes and
# tasks are taken from the job, so change them in sbatch, not here; `aqaa plan` writes a file that
# asks for the right ones.
#
# Nothing has to be said to go on: the same command resumes from its run folder.
#   - Five minutes before the time is up (USR1), or when the job has to make room (TERM), every rank
#     saves its state and exits with 75; the job is queued again and goes on. Once such a signal has
#     come it is queued again whatever the step's code: srun takes 75 for a bad exit too, kills the
#     ranks that are a moment later, and reports the highest code.
#   - A rank that dies takes its step down; it is started again, AQAA_RESTARTS times (3).
#   - What another try would meet again ends the job at once: a setting that does not fit (2), a
#     loss that is no number (65). The rank says so in a file, for the same reason.
# Tried with real trainings against stand-ins for srun and scontrol, not on a cluster yet.
set -uo pipefail

readonly RUN_AGAIN=75 WRONG_USE=2

say() { echo "launch.sh: $*" >&2; }

if [ $# -eq 0 ]; then
  echo "usage: sbatch slurm/launch.sh STAGE [key=value ...]" >&2
  exit "$WRONG_USE"
fi
stage="$1"
shift
case "$stage" in
  pretrain | sft | dpo) trainer=zero3_nodes ;;
  tokenizer | vocoder) trainer=gpu ;;
  *)
    say "$stage is no training stage: give tokenizer, pretrain, sft, dpo or vocoder"
    exit "$WRONG_USE"
    ;;
esac

cd "${SLURM_SUBMIT_DIR:-.}" || exit 1
aqaa="${AQAA:-.venv/bin/aqaa}"
if [ ! -x "$aqaa" ]; then
  say "no $aqaa here: run make setup, or set AQAA="
  exit "$WRONG_USE"
fi

nodes="${SLURM_JOB_NUM_NODES:-1}"
tasks="${SLURM_NTASKS_PER_NODE:-1}"
words=("trainer.num_nodes=$nodes" "trainer.devices=$tasks" "$@")
case " $* " in
  *" trainer="*) ;; # chosen on the command line
  *) words=("trainer=$trainer" "${words[@]}") ;;
esac

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-8}}"
export TOKENIZERS_PARALLELISM=false # its threads and worker processes do not mix
export DS_BUILD_OPS=0               # DeepSpeed builds nothing on the nodes
export HF_HUB_OFFLINE=1             # compute nodes see no hub
export PYTHONUNBUFFERED=1           # the log shows a line when it is written
export PYTHONFAULTHANDLER=1         # a crash in compiled code leaves a trace
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1 # a lost peer is an error, not a hang
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
export AQAA_PROGRESS=lines
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-8}" # srun no longer inherits it from sbatch
if [ -n "${SLURM_JOB_NODELIST:-}" ]; then
  MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
  export MASTER_ADDR
fi

# The ranks' own word on an end that no other try would change.
export AQAA_VERDICT="$PWD/.aqaa-verdict-${SLURM_JOB_ID:-$$}"
trap 'rm -f "$AQAA_VERDICT"' EXIT

child=""
woken=""
signalled="" # stays: the signal comes once
# Slurm tells this shell; srun hands USR1 on to the tasks, which save and end with RUN_AGAIN. Told
# TERM itself, srun would kill them unsaved.
# shellcheck disable=SC2329  # called by the traps
forward() {
  woken=1
  signalled="$1"
  say "got $1"
  [ -z "$child" ] || kill -s USR1 "$child" 2>/dev/null
}
trap 'forward USR1' USR1
trap 'forward TERM' TERM

# Composed here first: what is wrong with the words is said once, before every rank says it.
"$aqaa" "$stage" "${words[@]}" --cfg job >/dev/null || exit "$WRONG_USE"

code=0
run_once() {
  # Another port for another try: the sockets of the one before may linger.
  export MASTER_PORT="$((20000 + (${SLURM_JOB_ID:-$$} + 7 * $1) % 20000))"
  rm -f "$AQAA_VERDICT"
  srun --kill-on-bad-exit=1 "$aqaa" "$stage" "${words[@]}" &
  child=$!
  wait "$child"
  code=$?
  while [ -n "$woken" ]; do # a signal ends `wait` before the tasks have ended
    woken=""
    wait "$child"
    code=$?
  done
  child=""
  [ ! -s "$AQAA_VERDICT" ] || code="$(head -n 1 "$AQAA_VERDICT")"
}

queue_again() {
  say "${1}: job ${SLURM_JOB_ID:-?} is queued again"
  scontrol requeue "${SLURM_JOB_ID:?no job to queue again}" || exit "$RUN_AGAIN"
  exit 0
}

restarts="${AQAA_RESTARTS:-3}"
for try in $(seq 0 "$restarts"); do
  [ -z "$signalled" ] || queue_again "got $signalled between two tries"
  run_once "$try"
  [ "$code" -ne 0 ] || exit 0
  [ ! -s "$AQAA_VERDICT" ] || exit "$code"
  [ "$code" -ne "$RUN_AGAIN" ] || queue_again "state saved"
  [ -z "$signalled" ] || queue_again "the step ended with code $code after $signalled"
  say "the step ended with code $code (try $((try + 1)) of $((restarts + 1)))"
  sleep "${AQAA_PAUSE_S:-10}"
done
exit "$code"
