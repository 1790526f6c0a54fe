#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# source_rules.sh must pass a clean tree and name each violation, each planted alone.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
failures=0

header() {  # header path, code lines on standard input
  mkdir -p "$tree/$(dirname "$1")"
  { echo "// SPDX-License-Identifier: Apache-2.0"; echo "#pragma once"; cat; } > "$tree/$1"
}
clean() {
  rm -rf "${tree:?}"/*
  header include/zeropp/base/a.hpp <<< '#include <vector>'
  header include/zeropp/kernels/k.hpp <<< '#include <zeropp/base/a.hpp>'
  header include/zeropp/comm/c.hpp <<< '#include <zeropp/base/a.hpp>'
  header include/zeropp/comm/mpi/mpi.hpp <<< '#include <zeropp/comm/c.hpp>'
  header include/zeropp/train/t.hpp <<'EOT'
#include <filesystem>
#include <zeropp/comm/c.hpp>
#include <zeropp/kernels/k.hpp>
// printf("in a comment"); _Reserved; std::cout
/* exit(1); #define X
   __also_here */
inline const char* text = "exit(1) and // __this \" printf(";
inline int snprintf_like(int vprintf_count) { return vprintf_count + 1'000'000 + __builtin_ctz(8); }
EOT
  header include/zeropp/app/config/config.hpp <<< '#include <nlohmann/json.hpp>'
  header include/zeropp/zero.hpp <<< '#include <zeropp/train/t.hpp>'
}
expect() {  # expect sentence: the tree as it stands must be refused with it
  local output status=0
  output=$(bash "$here/source_rules.sh" "$tree" 2>&1) || status=$?
  if [ $status -eq 0 ] || ! grep -qF -- "$1" <<< "$output"; then
    printf 'planted, and not found: %s\nstatus %d, output:\n%s\n' "$1" $status "$output"
    failures=$((failures + 1))
  fi
  clean
}
plant() {  # plant room, code, sentence: one header more, reached by zero.hpp
  header "include/zeropp/$1/planted.hpp" <<< "$2"
  echo "#include <zeropp/$1/planted.hpp>" >> "$tree/include/zeropp/zero.hpp"
  expect "include/zeropp/$1/planted.hpp:$3"
}

clean
if ! output=$(bash "$here/source_rules.sh" "$tree" 2>&1) || [ -n "$output" ]; then
  printf 'a clean tree is refused:\n%s\n' "$output"
  failures=$((failures + 1))
fi

plant base '#include <zeropp/device/d.hpp>' '3: base may not include device (<zeropp/device/d.hpp>)'
plant kernels '#include <zeropp/comm/c.hpp>' '3: kernels may not include comm'
plant comm '  #  include <zeropp/kernels/k.hpp>' '3: comm may not include kernels'
plant layers '#include <zeropp/parallel/p.hpp>' '3: layers may not include parallel'
plant parallel '#include <zeropp/train/t.hpp>' '3: parallel may not include train'
plant train '#include <zeropp/zero.hpp>' '3: train may not include zero'
plant train '#include <zeropp/app/config/config.hpp>' '3: train may not include app'
plant attic 'int x;' '1: there is no room attic'
plant base '#include "a.hpp"' '3: include with angle brackets'
for name in regex filesystem iostream ranges; do
  plant parallel "#include <$name>" "3: <$name> stays out of parallel"
done
plant layers '#include <nlohmann/json.hpp>' '3: <nlohmann/json.hpp> stays out of layers'
plant train '#include <iostream>' '3: <iostream> stays out of train'
plant base '#define TWICE(x) (x, x)' '3: no macros'
plant base 'struct _Reserved {};' '3: the name _Reserved is reserved'
plant base 'int a__b;' '3: the name a__b is reserved'
plant base '/* */ inline void f() { exit(1); }' '3: a library neither ends the process nor prints'
plant base 'inline void f() { std::exit(1); }' '3: a library neither ends the process nor prints'
plant train 'inline void f() { printf("x"); }' '3: a library neither ends the process nor prints'
plant train 'inline void f() { std::cout << 1; }' '3: a library neither ends the process nor prints'
plant comm 'inline auto f(int& x) { return std::span{&x, 1}; }' '3: name the elements of a span of a pointer'
plant base "$(yes 'int x;' | head -n 330)" '332: a header of 332 lines'

echo '#pragma once' > "$tree/include/zeropp/base/a.hpp"
expect 'include/zeropp/base/a.hpp:1: the first line must be the licence'
sed -i 's/#pragma once/int x;/' "$tree/include/zeropp/base/a.hpp"
expect 'include/zeropp/base/a.hpp:1: #pragma once is missing'
header include/zeropp/base/alone.hpp <<< 'int x;'
expect 'include/zeropp/base/alone.hpp:1: zero.hpp does not reach it'
header include/zeropp/train/json.hpp <<< '#include <nlohmann/json.hpp>'
header include/zeropp/train/more.hpp <<< '#include <zeropp/train/json.hpp>'
echo '#include <zeropp/train/more.hpp>' >> "$tree/include/zeropp/zero.hpp"
expect 'include/zeropp/zero.hpp:1: zero.hpp reaches nlohmann/json.hpp'
mkdir "$tree/tests" && printf '#!/bin/bash\necho\n' > "$tree/tests/x.sh"
expect 'tests/x.sh:2: the second line must be the licence'
rm -rf "$tree/include"
expect 'no sources under'

[ $failures -eq 0 ] && echo "every planted violation was found"
exit $((failures > 0))
