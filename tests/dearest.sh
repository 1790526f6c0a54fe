#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The ten targets that took longest to build in some build folders, and the ten tests that took longest to run.
# Usage: dearest.sh build-folder...
set -euo pipefail
echo "Dearest to build, elapsed seconds beside other jobs:"
for build in "$@"; do
  # ninja's log: start and end in milliseconds, time of the file, output, hash of the command. The last entry counts.
  if [ -f "$build/.ninja_log" ]; then
    awk -F '\t' -v folder="$(basename "$build")" '!/^#/ { took[$4] = ($2 - $1) / 1000 }
      END { for (output in took) printf "%8.1f  %s/%s\n", took[output], folder, output }' "$build/.ninja_log"
  fi
done | sort -rn | sed -n 1,10p
echo "Dearest to run, elapsed seconds beside other jobs:"
for build in "$@"; do
  # ctest's notes: name, number of runs, mean cost; a line --- ends them.
  costs=$build/Testing/Temporary/CTestCostData.txt
  if [ -f "$costs" ]; then awk '/^---/ { exit } { printf "%8.1f  %s\n", $3, $1 }' "$costs"; fi
done | sort -rn | sed -n 1,10p
