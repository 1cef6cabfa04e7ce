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
#SBATCH --signal=SIGUSR1@120
#
# Runs one training stage of the backbone on a cluster, one task a GPU:
#
#   sbatch slurm/launch.sh sft preset=paper/sft_1
#   sbatch --nodes=2 slurm/launch.sh sft preset=paper/sft_1 optim.lr=1e-5
#
# The first word is the stage, the rest are its overrides. Submit it from the checkout. Nodes and
# tasks are taken from the job, so change them in sbatch, not here. Two minutes before the time is
# up Lightning gets SIGUSR1 and has the job queued again; run again, the same command goes on from
# runs/NAME/checkpoints/last.ckpt, saved every run.save_every_s seconds.
# Written from the manuals: it was not tried on a cluster yet (README, "Honest limits").
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "usage: sbatch slurm/launch.sh STAGE [key=value ...]" >&2
  exit 2
fi
stage="$1"
shift
case "$stage" in
  pretrain | sft | dpo) ;;
  *)
    echo "launch.sh: $stage is no stage of the backbone: give pretrain, sft or dpo" >&2
    exit 2
    ;;
esac

cd "${SLURM_SUBMIT_DIR:-.}"
aqaa="${AQAA:-.venv/bin/aqaa}"
[ -x "$aqaa" ] || { echo "launch.sh: no $aqaa here: run make setup, or set AQAA=" >&2; exit 2; }

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-8}}"
export TOKENIZERS_PARALLELISM=false # its threads and worker processes do not mix
export DS_BUILD_OPS=0               # DeepSpeed builds nothing on the nodes
export HF_HUB_OFFLINE=1             # compute nodes see no hub
export PYTHONUNBUFFERED=1           # the log shows a line when it is written
export AQAA_PROGRESS=lines

place=("trainer.num_nodes=${SLURM_JOB_NUM_NODES:-1}" "trainer.devices=${SLURM_NTASKS_PER_NODE:-1}")
exec srun --kill-on-bad-exit=1 "$aqaa" "$stage" trainer=zero3_nodes "${place[@]}" "$@"
