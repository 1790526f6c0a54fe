#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Checks the rules of the source tree: which room includes which, standard headers that stay out, no macros, no reserved
# names, nothing that prints or ends the process, the licence line, the length of headers, a complete zero.hpp.
# Usage: source_rules.sh [root of the tree]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "${1:-$here/../..}"
mapfile -t files < <(
  for folder in include tests examples bench cmake; do
    if [ -d $folder ]; then
      find $folder -type f \( -name '*.hpp' -o -name '*.cpp' -o -name '*.sh' -o -name '*.awk' -o -name '*.cmake' \
        -o -name '*.py' -o -name CMakeLists.txt \)
    fi
  done | LC_ALL=C sort)
if [ ${#files[@]} -eq 0 ]; then
  echo "source_rules.sh: no sources under $PWD" >&2
  exit 2
fi
LC_ALL=C awk -f "$here/source_rules.awk" "${files[@]}"
