#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# All tests: installs what is missing (Debian), configures, builds, runs. Ends with ctest's summary and its exit code.
#   --compiler clang++          another compiler (a build folder of its own)
#   --sanitize address|thread   address and undefined behaviour for the suite, or data races for the tests with thread ranks
#   anything else               goes to ctest: -R regex, -L label, -LE slow, --rerun-failed, ...
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

# A test that does not build must not hide the others: ctest reports it as not run, and that is a failure.
built=0
cmake --build "$build" -j "$jobs" -- -k 0 || built=$?
tested=0
ctest --test-dir "$build" --output-on-failure --no-tests=error -j "$jobs" "${arguments[@]}" || tested=$?
if [ $tested -eq 0 ]; then exit $built; fi
exit $tested
