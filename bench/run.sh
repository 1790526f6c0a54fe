#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Builds and runs every benchmark, prints a table, keeps the JSON under bench/results/. With a word, only the benchmarks
# whose name has it: bench/run.sh adam. Figures of one run compare with each other, not with those of another machine.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/cmake/prepare.sh"
need_to_build libbenchmark-dev:/usr/include/benchmark/benchmark.h python3:python3

build=$root/build/bench
results=$root/bench/results
mkdir -p "$build" "$results"
cmake -S "$root" -B "$build" -G Ninja -DZEROPP_TESTS=OFF -DZEROPP_EXAMPLES=OFF > "$build/configure.log" || {
  cat "$build/configure.log" >&2
  exit 1
}
cmake --build "$build" -j "$(nproc)"

for program in "$build"/bench/bench_*; do
  if [ ! -x "$program" ] || [ ! -f "$program" ]; then continue; fi
  name=$(basename "$program")
  if [[ $name != *"${1:-}"* ]]; then continue; fi
  echo "== $name"
  if grep -q '^int main(' "$root/bench/$name.cpp"; then
    rm -f "$results/$name.jsonl"
    "$program" --json "$results/$name.jsonl"
  else
    "$program" --benchmark_out="$results/$name.json" --benchmark_out_format=json --benchmark_counters_tabular=true
    # what is kept names neither the machine nor its folders
    sed -i -e '/"host_name":/d' -e 's|"executable": ".*/|"executable": "|' "$results/$name.json"
  fi
done
if [[ compile_time == *"${1:-}"* ]]; then
  echo "== compile_time"
  bash "$root/bench/compile_time.sh"
fi
