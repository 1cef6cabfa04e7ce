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
#     saves its state and exits with 75; the job is queued again and goes on. srun ends the slower
#     ranks as soon as one has left, so what it returns after a signal is 75 or any other code.
#   - A rank that dies takes its step down; it is started again, AQAA_RESTARTS times (3).
#   - A setting that does not fit ends the job at once.
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

# Composed here first: what is wrong with the words is said once, before every rank says it.
"$aqaa" "$stage" "${words[@]}" --cfg job >/dev/null || exit "$WRONG_USE"

child=""
woken=""
asked="" # by a signal to stop: kept, unlike woken
# Slurm tells this shell; srun hands it on to the tasks, which save and end with RUN_AGAIN.
# shellcheck disable=SC2329  # called by the traps
forward() {
  woken=1
  asked=1
  say "got $1"
  [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null
}
trap 'forward USR1' USR1
trap 'forward TERM' TERM

code=0
run_once() {
  # Another port for another try: the sockets of the one before may linger.
  export MASTER_PORT="$((20000 + (${SLURM_JOB_ID:-$$} + 7 * $1) % 20000))"
  srun --kill-on-bad-exit=1 "$aqaa" "$stage" "${words[@]}" &
  child=$!
  wait "$child"
  code=$?
  local again
  while [ -n "$woken" ]; do # a signal ends `wait` before the tasks have ended
    woken=""
    wait "$child"
    again=$?
    [ "$again" -eq 127 ] || code=$again # 127: it had ended already
  done
  child=""
}

restarts="${AQAA_RESTARTS:-3}"
for try in $(seq 0 "$restarts"); do
  run_once "$try"
  if [ -n "$asked" ] && [ "$code" -ne 0 ] && [ "$code" -ne "$WRONG_USE" ]; then
    code="$RUN_AGAIN"
  fi
  case "$code" in
    0) exit 0 ;;
    "$WRONG_USE") exit "$WRONG_USE" ;;
    "$RUN_AGAIN")
      say "state saved: job ${SLURM_JOB_ID:-?} is queued again"
      scontrol requeue "${SLURM_JOB_ID:?no job to queue again}" || exit "$RUN_AGAIN"
      exit 0
      ;;
    *) say "the step ended with code $code (try $((try + 1)) of $((restarts + 1)))" ;;
  esac
  sleep "${AQAA_PAUSE_S:-10}"
done
exit "$code"
