#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a program under mpirun and looks at its end:
#   expect.sh MPIRUN RANKS EXIT SECONDS SENTENCE PROGRAM ARGUMENTS...
# EXIT is a number or "failure"; SENTENCE must be in its output once, behind a "*" any number of times but 0 ("" for
# nothing); it must end within SECONDS.
# MPIRUN may hold options. Ends with 77 (skipped) where there is no mpirun.
mpirun=$1 ranks=$2 expected=$3 seconds=$4 sentence=$5
shift 5
command -v "${mpirun%% *}" > /dev/null || { echo "no ${mpirun%% *}: skipped"; exit 77; }
# Open MPI in a container, as root, with more ranks than cores; others don't look at these
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 \
  OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_btl_vader_single_copy_mechanism=none

# MPI's own libraries keep memory to the end
export ASAN_OPTIONS=detect_leaks=0

begin=$(date +%s)
output=$(timeout --kill-after=5 60 $mpirun -n "$ranks" "$@" 2>&1)
code=$?
took=$(($(date +%s) - begin))
printf '%s\nended with %d after %d s\n' "$output" "$code" "$took"

case $expected in
  failure) [ "$code" -ne 0 ] && [ "$code" -ne 124 ] && [ "$code" -ne 126 ] && [ "$code" -ne 127 ] ;;  # it ran, and ended
  *) [ "$code" -eq "$expected" ] ;;
esac || { echo "expected to end with $expected"; exit 1; }
[ "$took" -le "$seconds" ] || { echo "expected to end within $seconds s"; exit 1; }
[ -z "$sentence" ] && exit 0
said=$(printf '%s\n' "$output" | grep -c -F -e "${sentence#\*}")
case $sentence in
  \**) [ "$said" -ge 1 ] ;;
  *) [ "$said" -eq 1 ] ;;
esac || { echo "found $said times: $sentence"; exit 1; }
