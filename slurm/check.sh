#!/usr/bin/env bash
#SBATCH --job-name=aqaa-check
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=00:15:00
#SBATCH --output=slurm-%x-%j.out
#
# Looks at a cluster before a long job trusts it: versions alike on all ranks, an all-reduce that is
# right and how fast it is (NCCL, or gloo without a GPU), the shared disk, room on it.
#
#   sbatch --nodes=16 slurm/check.sh          all nodes of a job
#   slurm/check.sh                            this machine, two processes
#
# FOLDER=path checks another folder than runs/. Exit code 0 if everything is right.
set -uo pipefail

cd "${SLURM_SUBMIT_DIR:-.}" || exit 1
python="${PYTHON:-.venv/bin/python}"
if ! command -v "$python" >/dev/null; then
  echo "check.sh: no $python here: run make setup, or set PYTHON=" >&2
  exit 2
fi
folder="${FOLDER:-runs}"
mkdir -p "$folder" || exit 1

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" PYTHONUNBUFFERED=1 NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
if [ -n "${SLURM_JOB_NODELIST:-}" ]; then
  MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
  MASTER_PORT="$((20000 + SLURM_JOB_ID % 20000))"
  export MASTER_ADDR MASTER_PORT
  exec srun --kill-on-bad-exit=1 "$python" slurm/check.py "$folder"
fi
exec "$python" -m torch.distributed.run --standalone --nproc-per-node="${PROCESSES:-2}" \
  slurm/check.py "$folder"
