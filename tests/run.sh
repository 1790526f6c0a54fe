#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Tests: installs what is missing (Debian), configures, builds and runs. Ends with ctest's summary and its exit code.
#   --compiler clang++          another compiler (a build folder of its own)
#   --sanitize address|thread   address and undefined behaviour for the suite, or data races for the tests with thread ranks
#   anything else               goes to ctest: -L quick, -L comm (a room), -R test_base, -LE slow, --rerun-failed, ...; then only the
#                               programs of those tests are built
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
compiler=g++ sanitize= jobs=$(nproc) arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --compiler | --sanitize)
      if [ $# -lt 2 ]; then echo "$1 needs a value" >&2; exit 2; fi
      if [ "$1" = --compiler ]; then compiler=$2; else sanitize=$2; fi
      shift 2 ;;
    -h | --help) sed -n '3,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) arguments+=("$1"); shift ;;
  esac
done
case $sanitize in
  "" | address) ;;
  thread) arguments=(-L ranks -LE mpi "${arguments[@]}") ;;
  *) echo "--sanitize is address or thread, got '$sanitize'" >&2; exit 2 ;;
esac

source "$root/cmake/prepare.sh"
need_to_build doctest-dev:/usr/include/doctest/doctest.h clang:clang++ libopenmpi-dev:mpicxx openmpi-bin:mpiexec \
  python3:python3 xz-utils:xz
if ! command -v "$compiler" > /dev/null; then
  echo "There is no compiler $compiler here" >&2
  exit 1
fi

build=$root/build/$compiler${sanitize:+-$sanitize}
log=$build/configure.log
mkdir -p "$build"
options=(-G Ninja "-DCMAKE_CXX_COMPILER=$compiler" "-DZEROPP_SANITIZE=$sanitize" -DZEROPP_TESTS=ON -DZEROPP_BENCH=OFF)
if ! cmake -S "$root" -B "$build" "${options[@]}" > "$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi

# The programs that the chosen tests run, as ninja calls them.
programs() {
  local known chosen
  known=$(mktemp) chosen=$(mktemp)
  ninja -C "$build" -t targets all | sed 's/: [^:]*$//' > "$known"
  ctest --test-dir "$build" -N "${arguments[@]}" | sed -n 's/^ *Test *#[0-9]*: \([^ ]*\).*/\1/p' > "$chosen"
  find "$build" -name CTestTestfile.cmake -exec cat {} + |
    awk -v build="$build/" '
      FILENAME == ARGV[1] { known[$0]; next }
      FILENAME == ARGV[2] { chosen[$0]; next }
      /^add_test\(/ && match($0, /\[=*\[[^]]*\]/) {
        name = substr($0, RSTART, RLENGTH)
        gsub(/^\[=*\[|\]$/, "", name)
        if (!(name in chosen)) next
        count = split($0, words, "\"")
        for (i = 2; i <= count; i += 2)
          if (index(words[i], build) == 1 && (substr(words[i], length(build) + 1) in known))
            print substr(words[i], length(build) + 1)
      }' "$known" "$chosen" - | sort -u
  rm -f "$known" "$chosen"
}

# A test that does not build must not hide the others: ctest reports it as not run, and that is a failure.
built=0
if [ ${#arguments[@]} -eq 0 ]; then
  cmake --build "$build" -j "$jobs" -- -k 0 || built=$?
else
  mapfile -t chosen < <(programs)
  if [ ${#chosen[@]} -gt 0 ]; then cmake --build "$build" -j "$jobs" --target "${chosen[@]}" -- -k 0 || built=$?; fi
fi
tested=0
ctest --test-dir "$build" --output-on-failure --no-tests=error -j "$jobs" "${arguments[@]}" || tested=$?
if [ $tested -eq 0 ]; then exit $built; fi
exit $tested
