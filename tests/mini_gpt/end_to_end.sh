#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The built mini_gpt as a user meets it. end_to_end.sh PROGRAM CASE [MPIRUN]; prints what is wrong and exits 1.
set -u
program=$1
case=$2
mpirun=${3:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1

awk 'BEGIN { for (i = 0; i < 1500; ++i) printf "line %d says %d and %d\n", i, i * 7 % 13, i * i % 17 }' > text.txt
small=(--data text.txt --n-layer 2 --n-head 2 --n-embd 32 --block-size 32 --vocab-size 256 --batch-tokens 256
       --steps 12 --warmup-steps 2 --sample 8 --eval-every 5 --sample-every 6 --save-every 5 --keep 5)

fail() { echo "FAILED: $*"; exit 1; }
expect() {  # expect CODE WORDS command...: the exit code, and words somewhere in what is printed
  local code=$1 words=$2
  shift 2
  "$@" > out.txt 2>&1
  local got=$?
  [ "$got" = "$code" ] || { cat out.txt; fail "exit code $got instead of $code: $*"; }
  grep -qF -- "$words" out.txt || { cat out.txt; fail "does not say '$words': $*"; }
}
losses() { sed 's/"milliseconds".*"bytes":[0-9]*//' "$1/metrics.jsonl"; }  # what must be the same in equal runs

case $case in
  plan)
    expect 0 'in all' "$program" --dry-run --ranks 1000 --zero 3 --model 1558M --batch-tokens 1024000
    expect 0 '1,557,686,400' "$program" --dry-run --model 1558M
    expect 0 'GFLOP/s' "$program" --doctor
    expect 0 '--batch-tokens' "$program" --help
    [ -e out ] && fail 'a dry run leaves files behind'
    ;;
  stages)
    for stage in 0 1 2 3; do
      expect 0 'validation bits per byte' "$program" "${small[@]}" --ranks 2 --zero $stage --out z$stage
      diff <(losses z0) <(losses z$stage) || fail "stage $stage has other losses than stage 0"
    done
    [ "$(wc -l < z2/metrics.jsonl)" = 12 ] || fail 'metrics.jsonl does not hold a line a step'
    grep -q polyline z2/loss.svg || fail 'loss.svg holds no curve'
    cmp -s <(tail -c 20 text.txt) <(tail -c 20 z2/heldout.txt) || fail 'heldout.txt is not the end of the text'
    expect 0 'validation' "$program" "${small[@]}" --ranks 2 --zero 3 --recompute --batch 2 --out r
    expect 0 'validation' "$program" "${small[@]}" --ranks 2 --zero 1 --batch 2 --out m
    diff <(losses r) <(losses m) || fail 'recomputed micro-batches have other losses'
    expect 0 'validation' "$program" "${small[@]}" --ranks 3 --precision bf16 --out b3
    ;;
  resume)
    expect 0 'checkpoint' "$program" "${small[@]}" --ranks 2 --out straight
    expect 0 'checkpoint' "$program" "${small[@]}" --ranks 2 --out broken
    rm -r broken/checkpoints/step-00000012 broken/checkpoints/latest
    expect 0 'resumed after step 10' "$program" "${small[@]}" --ranks 2 --out broken
    diff <(losses straight) <(losses broken) || fail 'the resumed run has other losses'
    cmp {straight,broken}/checkpoints/step-00000012/model.safetensors || fail 'the resumed run has other weights'
    # a damaged checkpoint is refused by name, the one before it is used
    rm -r broken/checkpoints/step-00000012
    printf 'x' | dd of=broken/checkpoints/step-00000010/model.safetensors bs=1 seek=5000 conv=notrunc 2> /dev/null
    expect 0 'step-00000010' "$program" "${small[@]}" --ranks 3 --zero 3 --out broken
    # another model
    expect 4 'of another model' "$program" "${small[@]}" --n-layer 3 --out straight
    expect 0 'validation' "$program" "${small[@]}" --n-layer 3 --resume none --out straight
    ;;
  signal)
    "$program" "${small[@]}" --steps 100000 --save-every 100000 --eval-every 100000 --sample-every 0 --out s > out.txt 2>&1 &
    pid=$!
    for _ in $(seq 100); do grep -q '^step' out.txt && break; sleep 0.1; done
    kill -TERM $pid
    wait $pid
    code=$?
    [ $code = 143 ] || { cat out.txt; fail "exit code $code after SIGTERM instead of 143"; }
    ls s/checkpoints/step-*/manifest.json > /dev/null || fail 'no checkpoint after SIGTERM'
    ;;
  refused)
    expect 2 'give --data PATH' "$program"
    expect 2 'nearest that is: 1024' "$program" "${small[@]}" --block-size 128 --batch-tokens 1000
    expect 2 'the nearest that is: 6 sequences' "$program" "${small[@]}" --batch-tokens 160 --batch 3 --ranks 2
    expect 2 'not expected' "$program" "${small[@]}" --n-headd 3
    expect 2 'not divisible by 3 heads' "$program" "${small[@]}" --n-head 3
    expect 2 'zero' "$program" "${small[@]}" --zero 4
    expect 2 'there is no model "9T"' "$program" --model 9T
    expect 2 'does not fit a training of 12 steps' "$program" "${small[@]}" --warmup-steps 13
    expect 4 'nowhere' "$program" "${small[@]}" --data nowhere
    head -c 40 text.txt > short.txt
    expect 4 'less than one batch' "$program" "${small[@]}" --data short.txt
    printf 'abc' > odd.bin
    expect 4 'in the middle of its header' "$program" "${small[@]}" --data odd.bin
    expect 4 'even number' "$program" "${small[@]}" --data odd.bin --data-format raw
    printf '{\n"zero_optimization": {"stage": 2},\n"sed": 3}' > bad.json
    expect 2 'bad.json line 3: unknown key "sed"; the nearest that exists is "seed"' "$program" "${small[@]}" --config bad.json
    expect 2 'unknown key "sed"' "$program" "${small[@]}" --config=bad.json
    printf '{"train_batch_size": 8, "zero_optimization": {"stage": 1}, "model": {"block_size": 16}, "steps": 3}' > good.json
    expect 0 'step 2/2' "$program" --data text.txt --vocab-size 256 --config good.json --steps 2 --warmup-steps 0 --out c
    ;;
  mpi)
    export ASAN_OPTIONS=detect_leaks=0  # MPI's own libraries keep memory to the end
    expect 0 'validation' "$program" "${small[@]}" --ranks 2 --zero 3 --out threads
    expect 0 'validation' "$mpirun" --allow-run-as-root --oversubscribe -n 2 "$program" "${small[@]}" --zero 3 --out processes
    diff <(losses threads) <(losses processes) || fail 'processes have other losses than threads'
    ;;
  *) fail "no case $case" ;;
esac
echo "$case: as it should be"
