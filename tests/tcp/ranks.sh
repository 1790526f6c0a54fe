#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Starts a program as several processes, as torchrun does on one host:
#   ranks.sh -n RANKS PROGRAM ARGUMENTS...
# Ends with the exit code of the ranks, but those ended by a signal; 99 where they differ, and after a sentence where one
# is still there 2 s after the first has ended. Each rank's end is told on stderr.
#   RANKS_PORT      MASTER_PORT; one that is free otherwise
#   RANKS_ABSENT    a rank that is not started
#   RANKS_AS=srun   with the variables of srun instead
set -u
if [ "${1:-}" != -n ] || [ $# -lt 3 ]; then
  echo "ranks.sh -n RANKS PROGRAM ARGUMENTS..." >&2
  exit 2
fi
ranks=$2
shift 2
port=${RANKS_PORT:-$((20000 + ($$ * 7 + RANDOM) % 10000))}
run=ranks$$
start() {  # start RANK program...
  local rank=$1
  shift
  if [ "${RANKS_AS:-}" = srun ]; then
    exec env SLURM_PROCID="$rank" SLURM_NTASKS="$ranks" SLURM_LOCALID="$rank" SLURM_JOB_ID=$$ SLURM_STEP_ID=0 \
      SLURM_STEP_NODELIST='localhost,other[1-3]' "$@"
  fi
  exec env RANK="$rank" WORLD_SIZE="$ranks" LOCAL_RANK="$rank" LOCAL_WORLD_SIZE="$ranks" MASTER_ADDR=127.0.0.1 \
    MASTER_PORT="$port" TORCHELASTIC_RUN_ID="$run" TORCHELASTIC_RESTART_COUNT=0 "$@"
}
declare -A rank_of
for ((r = 0; r < ranks; ++r)); do
  [ "$r" = "${RANKS_ABSENT:-}" ] && continue
  start "$r" "$@" &
  rank_of[$!]=$r
done
trap 'kill -KILL "${!rank_of[@]}" 2> /dev/null' EXIT

# The process ids of ranks that are there no more. The shell may have reaped one that a signal ended before it was waited
# for, and then `wait -n` does not return it.
gone() {
  local one
  for one in "${!rank_of[@]}"; do kill -0 "$one" 2> /dev/null || echo "$one"; done
}
code=0 known="" watchdog=""
while [ ${#rank_of[@]} -gt 0 ]; do
  pid=$(gone | head -n 1)
  if [ -n "$pid" ]; then
    wait "$pid" 2> /dev/null
    ended=$?
    [ "$ended" = 127 ] && ended=137
  else
    wait -n -p pid "${!rank_of[@]}" ${watchdog:+"$watchdog"}
    ended=$?
    [ -z "${pid:-}" ] && continue
  fi
  if [ "$pid" = "$watchdog" ]; then
    watchdog=""
    [ -n "$(gone)" ] && continue
    echo "ranks.sh: ranks ${rank_of[*]} are still there 2 s after the first ended" >&2
    [ "$code" = 0 ] && code=99
    kill -KILL "${!rank_of[@]}"
    continue
  fi
  echo "ranks.sh: rank ${rank_of[$pid]} ended with $ended" >&2
  unset "rank_of[$pid]"
  if [ -z "$watchdog" ]; then
    sleep 2 > /dev/null 2>&1 &
    watchdog=$!
  fi
  [ "$ended" -ge 128 ] && continue  # by a signal
  [ -n "$known" ] && [ "$ended" != "$code" ] && ended=99
  code=$ended known=yes
done
[ -n "$watchdog" ] && kill -KILL "$watchdog"
exit $code
