#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Everything that is measured on one GPU, beside its peers, in one go: kernels against the ceilings of this GPU, training
# steps against PyTorch's. Writes a table to bench/results/gpu_<device>.md; its figures compare with each other only.
#   --programs DIR   built already (gpu_* of bench/); else they are built, for the architecture of this GPU
#   --quick          fewer batches and steps
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
programs= quick=
while [ $# -gt 0 ]; do
  case $1 in
    --programs) programs=${2:?--programs needs a folder}; shift 2 ;;
    --quick) quick=1; shift ;;
    -h | --help) sed -n '3,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "unknown option $1" >&2; exit 2 ;;
  esac
done
if ! command -v nvidia-smi > /dev/null || ! nvidia-smi -L > /dev/null 2>&1; then
  echo "There is no NVIDIA GPU here, and nothing to measure" >&2
  exit 1
fi
if [ -z "$programs" ]; then
  build=$root/build/gpu
  cmake -S "$root" -B "$build" -G Ninja -DZEROPP_CUDA=ON -DZEROPP_TESTS=OFF -DZEROPP_EXAMPLES=OFF > /dev/null || exit 1
  cmake --build "$build" -j "$(nproc)" > "$build/build.log" 2>&1 || { tail -n 40 "$build/build.log" >&2; exit 1; }
  programs=$build/bench
fi
device=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr -c 'A-Za-z0-9\n' '_')
out=$root/bench/results/gpu_$device.md
steps=20
[ -n "$quick" ] && steps=8

ours() { "$programs/gpu_step" --steps $steps "$@" 2>&1 | tail -n 1; }
torch() { timeout 200 python3 "$root/bench/peers/torch_gpt2.py" --steps $steps "$@" 2>&1 | grep -E '^\{|Error' | tail -n 1; }
{
  echo "# One GPU: $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader), $(date -u +%F)"
  for program in gpu_kernels gpu_products gpu_attention gpu_tiers; do
    [ -x "$programs/$program" ] || continue
    printf '\n## %s\n\n```\n' "$program"
    "$programs/$program" 2>&1
    echo '```'
  done
  printf '\n## PyTorch at the same shapes\n\n```\n'
  timeout 200 python3 "$root/bench/peers/torch_kernels.py" 2>&1
  printf '```\n'
  printf '\n## Training steps\n\nGPT-2 124M and 1558M, context 1024, random tokens, bf16; a line a run.\n\n```\n'
  for batch in ${quick:+64} ${quick:-32 64 96}; do
    [ "$batch" = 1 ] && continue
    ours --model 124M --batch "$batch"
    torch --model 124M --batch "$batch"
  done
  for batch in ${quick:+12} ${quick:-8 12 16}; do
    [ "$batch" = 1 ] && continue
    ours --model 1558M --batch "$batch" --accumulate 2
    torch --model 1558M --batch "$batch" --accumulate 2
  done
  for stage in 0 1 2 3; do ours --model 124M --batch 64 --stage $stage; done
  echo '```'
} 2>&1 | tee "$out"
echo "written to $out"
