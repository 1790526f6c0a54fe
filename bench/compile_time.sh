#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Seconds that each header takes to include: g++ -O0, one core, the best of three. zero.hpp has a budget of 4 s; the
# exit code says whether it holds. JSON under bench/results/.   compile_time.sh [headers, as in an include]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
budget=4.0
repeat=3
compiler=${CXX:-g++}
flags=(-std=c++20 -O0 "-I$root/include")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cd "$root/include"
if [ $# -gt 0 ]; then headers=("$@"); else
  mapfile -t headers < <(find zeropp -name '*.hpp' ! -name 'mpi*' | LC_ALL=C sort)
fi

seconds_of() {  # header
  local best= begin now
  echo "#include <$1>" > "$scratch/unit.cpp"
  for ((i = 0; i < repeat; ++i)); do
    begin=$EPOCHREALTIME
    taskset -c 0 "$compiler" "${flags[@]}" -c "$scratch/unit.cpp" -o "$scratch/unit.o" || return 1
    now=$EPOCHREALTIME
    best=$(awk -v a="${best:-1e9}" -v b="$begin" -v e="$now" 'BEGIN { t = e - b; printf "%.3f", t < a ? t : a }')
  done
  echo "$best"
}

for header in "${headers[@]}"; do
  if ! seconds=$(seconds_of "$header" 2> "$scratch/error"); then
    head -n 5 "$scratch/error" >&2
    echo "$header does not compile" >&2
    exit 1
  fi
  echo "$seconds $header"
done | sort -rn > "$scratch/table"
awk '{ printf "  %6.2f s  %s\n", $1, $2 }' "$scratch/table"

if [ $# -eq 0 ]; then
  mkdir -p "$root/bench/results"
  awk -v compiler="$("$compiler" --version | head -n 1)" '
    BEGIN { printf "{\"compiler\": \"%s -O0\", \"seconds\": {", compiler }
    { printf "%s\n  \"%s\": %s", (NR > 1 ? "," : ""), $2, $1 }
    END { print "\n}}" }' "$scratch/table" > "$root/bench/results/compile_time.json"
fi
awk -v budget=$budget '$2 == "zeropp/zero.hpp" {
    printf "zero.hpp: %.2f s, %s its budget of %.0f s\n", $1, ($1 <= budget ? "within" : "OVER"), budget
    exit ($1 > budget)
  }' "$scratch/table"
