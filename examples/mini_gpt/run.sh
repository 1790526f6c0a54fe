#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Trains a small GPT on two novels with ZeRO-2 on two thread ranks, or one for each GPU: installs what is missing (Debian), builds, runs.
# Arguments pass through to mini_gpt and override these: --steps 50 --zero 3 --ranks 4, --help for all of them.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
source "$root/cmake/prepare.sh"
need_to_build xz-utils:xz

build=$root/build/g++  # as tests/run.sh: what one has built, the other need not
log=$build/build.log
mkdir -p "$build"
echo "Building mini_gpt (once, some minutes; $log)"
options=(-G Ninja -DCMAKE_CXX_COMPILER=g++ -DZEROPP_BENCH=OFF)
if [ ! -e "$build/CMakeCache.txt" ]; then options+=(-DZEROPP_TESTS=OFF); fi
if ! { cmake -S "$root" -B "$build" "${options[@]}" > "$log" 2>&1 &&
       cmake --build "$build" --target mini_gpt -j "$(nproc)" 2>&1 | tee -a "$log" | show_build; }; then
  tail -n 40 "$log" >&2
  exit 1
fi

out=$root/build/mini_gpt
previous=
for argument in "$@"; do  # the last --out counts
  case $argument in --out=*) out=${argument#--out=} ;; esac
  if [ "$previous" = --out ]; then out=$argument; fi
  previous=$argument
done
ranks=2
if command -v nvcc > /dev/null || [ -x /usr/local/cuda/bin/nvcc ]; then
  gpus=$({ nvidia-smi -L 2> /dev/null || true; } | wc -l)  # no driver: none
  if [ "$gpus" -gt 0 ]; then ranks=$gpus; fi
fi
program=$(find "$build/examples" -name mini_gpt -type f -perm -u+x | head -n 1)
started=$(mktemp)
trap 'rm -f "$started"' EXIT
"$program" --data "$root/examples/mini_gpt/data" --ranks "$ranks" --zero 2 --out "$out" "$@"

# What compressors need for the same held-out text, written by the run.
heldout=$out/heldout.txt
if [ "$heldout" -nt "$started" ]; then
  echo "For comparison, the same held-out text in bits per byte:"
  for command in gzip xz; do
    bytes=$("$command" -9 -c "$heldout" | wc -c)
    awk -v name="$command -9" -v bytes="$bytes" -v size="$(wc -c < "$heldout")" \
      'BEGIN { printf "  %-8s %.4f\n", name, 8 * bytes / size }'
  done
fi
