#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Everything that needs several GPUs, on 1, 2, 4, 8 of them as there are, in one go: tests over NCCL, collectives beside
# raw NCCL, training steps at every stage beside PyTorch's DDP and FSDP2, checkpoints across meshes.
# Writes bench/results/scale_<GPUs>x_<device>.md and a timeline of one step for Perfetto beside it; figures of one file
# compare with each other only.
#   --programs DIR   built already: gpu_* of bench/ and tests/gpu/ (as test_*), and mini_gpt; else they are built
#   --quick          fewer steps
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
programs= steps=20 large=8
while [ $# -gt 0 ]; do
  case $1 in
    --programs) programs=${2:?--programs needs a folder}; shift 2 ;;
    --quick) steps=8 large=4; shift ;;
    -h | --help) sed -n '3,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) echo "unknown option $1" >&2; exit 2 ;;
  esac
done
export NCCL_NVLS_ENABLE=0
gpus=$(nvidia-smi -L 2> /dev/null | wc -l)
if [ "$gpus" = 0 ]; then
  echo "There is no NVIDIA GPU here, and nothing to measure" >&2
  exit 1
fi
if [ -z "$programs" ]; then
  build=$root/build/gpu
  cmake -S "$root" -B "$build" -G Ninja -DZEROPP_CUDA=ON > /dev/null || exit 1
  tests=$(cd "$root/tests/gpu" && for file in test_*.cu; do echo "gpu_$(basename "${file#test_}" .cu)"; done)
  # shellcheck disable=SC2086
  cmake --build "$build" -j "$(nproc)" --target bench_gpu_step bench_gpu_comm mini_gpt $tests > "$build/build.log" 2>&1 ||
    { tail -n 40 "$build/build.log" >&2; exit 1; }
  programs=$build/scale
  mkdir -p "$programs"
  ln -sf "$build"/bench/gpu_* "$build/examples/mini_gpt/mini_gpt" "$programs"
  for test in $tests; do ln -sf "$build/tests/gpu/$test" "$programs/test_${test#gpu_}"; done
fi
device=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr -c 'A-Za-z0-9\n' '_')
out=$root/bench/results/scale_${gpus}x_$device.md
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

last() { tail -n 1 | cut -c 1-600; }
ours() { timeout 150 "$programs/gpu_step" --steps $steps "$@" 2>&1 | last; }
torch() {  # torch GPUS options...
  local ranks=$1
  shift
  timeout 200 torchrun --nproc-per-node "$ranks" "$root/bench/peers/torch_gpt2.py" --steps $steps "$@" 2>&1 |
    grep -E '^\{|Error' | last
}
fixture() {  # mini_gpt on a small model
  timeout 120 "$programs/mini_gpt" --backend cuda --data "$root/examples/mini_gpt/data" --vocab-size 512 --steps 8 \
    --warmup-steps 2 --save-every 4 --eval-every 100 --sample-every 0 --sample 0 --keep 9 --micro-batches 2 "$@" 2>&1
}
mesh() {  # fixture and words for a line; what it holds is compared by its caller
  echo "- $1: $(fixture "${@:2}" | grep -E '^resumed|^error|^validation loss' | tr '\n' ';')"
}
{
  echo "# $gpus GPUs: $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | head -n 1), $(date -u +%F)"
  printf '\n## Tests over NCCL\n\n'
  for test in "$programs"/test_*; do
    [ -x "$test" ] || continue
    said=$(timeout 300 "$test" 2>&1) || touch "$work/failed"
    echo "- $(basename "$test"): $(grep -E 'test cases|Status|skipped' <<< "$said" | tr '\n' ' ')"
  done
  if [ "$gpus" -ge 2 ]; then
    printf '\n## Checkpoints across meshes\n\n'
    mesh 'tensor 2, stage 3' --ranks 2 --tp 2 --zero 3 --out "$work/a"
    for to in '--tp 1 --pp 2 --zero 2' '--tp 1 --zero 3' '--cp 2 --zero 1'; do
      rm -rf "$work/b"
      cp -r "$work/a" "$work/b"
      rm -rf "$work/b/checkpoints/step-00000008" "$work/b/checkpoints/latest"
      # shellcheck disable=SC2086
      mesh "resumed on $to" --ranks 2 $to --out "$work/b"
    done
  fi
  printf '\n## Collectives\n\n```\n'
  timeout 300 "$programs/gpu_comm" $((1 << 30)) 2>&1
  printf '```\n\n## Training steps\n\ncontext 1024, random tokens, bf16; a line a run. 1, 16 and more sequences a GPU.\n\n```\n'
  for ranks in 1 2 4 8; do
    [ "$ranks" -le "$gpus" ] || continue
    for batch in 1 16 64; do
      for stage in 0 1 2 3; do ours --ranks "$ranks" --model 124M --batch "$batch" --stage $stage; done
      [ "$batch" = 64 ] || torch "$ranks" --model 124M --batch "$batch" --mode ddp
      [ "$batch" = 64 ] || [ "$ranks" = 1 ] || torch "$ranks" --model 124M --batch "$batch" --mode fsdp2
    done
    for stage in 0 3; do steps=$large ours --ranks "$ranks" --model 1558M --batch 16 --stage $stage; done
    [ "$ranks" = 1 ] || steps=$large torch "$ranks" --model 1558M --batch 16 --mode fsdp2
  done
  echo '```'
  ours --ranks "$gpus" --model 124M --batch 16 --stage 3 --trace "${out%.md}.json" > /dev/null
} 2>&1 | tee "$out"
echo "written to $out"
[ ! -e "$work/failed" ]  # a test
