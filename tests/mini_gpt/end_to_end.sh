#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The built mini_gpt as a user meets it. end_to_end.sh PROGRAM CASE [MPIRUN]; prints what is wrong and exits 1.
set -u
program=$1
case=$2
here=$(cd "$(dirname "$0")" && pwd)
mpirun=${3:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1

awk 'BEGIN { for (i = 0; i < 1500; ++i) printf "line %d says %d and %d\n", i, i * 7 % 13, i * i % 17 }' > text.txt
small=(--backend cpu --data text.txt --n-layer 2 --n-head 2 --n-embd 32 --block-size 32 --vocab-size 256 --batch-tokens 256
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
wait_for() {  # wait_for command...: until it succeeds, at most 20 s
  for _ in $(seq 200); do
    "$@" && return
    sleep 0.1
  done
  fail "in vain: $*"
}
ends_with() {  # ends_with CODE PID: within 10 s
  wait_for eval "! kill -0 $2 2> /dev/null || grep -q '^State:.Z' /proc/$2/status"
  wait "$2"
  local got=$?
  [ $got = "$1" ] || { cat out.txt; fail "exit code $got instead of $1"; }
}
losses() { sed 's/"milliseconds".*"bytes":[0-9]*//' "$1/metrics.jsonl"; }  # what must be the same in equal runs

case $case in
  plan)
    expect 0 'in all' "$program" --backend cpu --dry-run --ranks 1000 --zero 3 --model 1558M --batch-tokens 1024000
    expect 0 '1,557,686,400' "$program" --backend cpu --dry-run --model 1558M
    expect 0 'GFLOP/s' "$program" --backend cpu --doctor
    expect 0 '--batch-tokens' "$program" --help
    expect 0 'tensor 7, pipeline 3: blocks 38-47 back' "$program" --backend cpu --dry-run --ranks 64 --tp 8 --pp 4 --micro-batches 8 \
      --model 1558M --n-head 24 --n-embd 1536
    [ "$(grep -c '  tensor [0-7], pipeline [0-3]: ' out.txt)" = 32 ] || fail 'not a line for each of 32 parts'
    grep -qF '1f1b: 27.3 % of a step idle' out.txt || fail 'does not say how long the pipeline is idle'
    expect 0 'tensor 0, pipeline 0, context 3: ' "$program" --backend cpu --dry-run --ranks 8 --cp 4 --model 124M
    gpu=(--backend cuda --dry-run --model 1558M --ranks 8 --zero 3)
    if ldd "$program" | grep -q libcudart; then
      expect 0 ' on NVIDIA ' "$program" "${gpu[@]}"
      grep -qF 'ZeRO-3, bf16' out.txt || fail 'a plan for GPUs is not in bf16'
      expect 2 'this mini_gpt was compiled for GPUs in' "$program" "${gpu[@]}" --precision fp32
    else
      expect 2 'was built without CUDA' "$program" "${gpu[@]}"
    fi
    expect 0 'ranks: 4 (--ranks 4)' "$program" "${small[@]}" --dry-run --ranks 4 --zero 3
    grep -qE '^all 4 ranks of this machine: .* of ' out.txt || fail 'does not say what all ranks take'
    expect 0 "ZeRO-2" "$program" "${small[@]}" --dry-run --ranks 1
    grep -q '^all 1 ranks' out.txt && fail 'one rank is not all ranks'
    expect 0 'MORE THAN THERE IS' "$program" --backend cpu --dry-run --ranks 32 --zero 0 --model 1558M
    # Data and weights are opened.
    expect 0 ' training tokens, ' "$program" "${small[@]}" --dry-run --ranks 2
    expect 4 'nowhere' "$program" "${small[@]}" --dry-run --data nowhere
    expect 4 'less than one batch' "$program" "${small[@]}" --dry-run --batch-tokens 262144
    [ -e out ] && fail 'a dry run leaves files behind'
    expect 0 'validation' "$program" "${small[@]}" --steps 2 --out w
    weights=w/checkpoints/step-00000002/model.safetensors
    expect 0 'has every tensor of this model' "$program" "${small[@]}" --dry-run --weights $weights
    expect 2 '--n-layer is 3, but the weights have 2' "$program" "${small[@]}" --dry-run --weights $weights --n-layer 3
    mkdir alone  # without the config.json beside them only the tensors tell
    cp $weights w/checkpoints/step-00000002/tokenizer.json alone
    expect 4 'of another model' "$program" "${small[@]}" --dry-run --weights alone --n-layer 3
    expect 4 'of another model' "$program" "${small[@]}" --dry-run --weights alone --n-embd 64
    head -c 100 $weights > torn.safetensors
    expect 4 'torn.safetensors' "$program" "${small[@]}" --dry-run --weights torn.safetensors
    # Every option has a group and a text.
    expect 0 'Exit codes: ' "$program" --help
    grep -q '^Environment:' out.txt || fail 'no environment in --help'
    grep -q '^Options:' out.txt && fail 'an option without a group'
    awk '/^  -/ { line = $0; if (line !~ /^ .*[^ ]  +[A-Za-z0-9]/) { getline next_line; if (next_line !~ /^    +[A-Za-z0-9]/) print line } }' out.txt |
      grep . && fail 'an option without a text'
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
    expect 0 'validation' "$program" "${small[@]}" --ranks 2 --zero 3 --recompute-blocks 1 --batch 2 --out one
    diff <(losses r) <(losses one) || fail 'with one block of two recomputed the losses are others'
    bytes() { grep '"step":2,' "$1/metrics.jsonl" | sed 's/.*"bytes": *\([0-9]*\).*/\1/'; }
    [ "$(bytes r)" -lt "$(bytes one)" ] || fail 'and its memory is not more than with both'
    expect 0 'validation' "$program" "${small[@]}" --ranks 3 --precision bf16 --out b3
    # fp16: a scale that is too large is seen and halved, at any stage alike
    printf '{"fp16": {"enabled": true, "initial_scale_power": 24, "hysteresis": 1}}' > fp16.json
    for stage in 0 3; do
      expect 0 'validation' "$program" "${small[@]}" --ranks 2 --config fp16.json --zero $stage --out h$stage
      grep -qF 'step 1: the gradient is not finite at the loss scale 16777216; all ranks skip it' out.txt ||
        fail 'does not say that a step was skipped'
      grep -qF 'step 12: the gradient is not finite' out.txt && fail 'the scale was not halved'
    done
    diff <(losses h0) <(losses h3) || fail 'in fp16 stage 3 has other losses than stage 0'
    cmp {h0,h3}/checkpoints/step-00000012/model.safetensors || fail 'and other weights'
    grep -q '"scale": ' h0/checkpoints/step-00000012/state.json || fail 'the loss scale is not in the checkpoint'
    ;;
  mesh)
    small+=(--n-layer 4 --n-head 4 --save-every 6)
    # The bits of one rank for any pipeline and schedule; those of two tensor ranks with and without a pipeline.
    expect 0 'validation bits per byte' "$program" "${small[@]}" --micro-batches 4 --out one
    expect 0 'validation bits per byte' "$program" "${small[@]}" --ranks 2 --tp 2 --micro-batches 4 --out tp
    for schedule in gpipe 1f1b interleaved zb-h1 zb-v; do
      expect 0 'validation bits per byte' "$program" "${small[@]}" --ranks 2 --pp 2 --micro-batches 4 --schedule $schedule \
        --zero 3 --out $schedule
      diff <(losses one) <(losses $schedule) || fail "$schedule has other losses than one rank"
      cmp {one,$schedule}/checkpoints/step-00000012/model.safetensors || fail "$schedule has other weights"
    done
    expect 0 '1 data x 2 tensor x 2 pipeline' "$program" "${small[@]}" --ranks 4 --tp 2 --pp 2 --micro-batches 4 --out both
    diff <(losses tp) <(losses both) || fail 'a pipeline of two tensor ranks has other losses than without'
    for attention in ulysses ring; do  # the same bits at every stage
      cp=(--ranks 4 --cp 2 --context-attention $attention --micro-batches 2)
      for stage in 0 3; do
        expect 0 '2 data x 1 tensor x 1 pipeline x 2 context' "$program" "${small[@]}" "${cp[@]}" --zero $stage --out cp$stage
      done
      diff <(losses cp0) <(losses cp3) || fail "context ranks that attend by $attention have other losses at stage 3"
      cmp {cp0,cp3}/checkpoints/step-00000012/model.safetensors || fail "and other weights"
      rm -r cp0 cp3
    done
    # Stopped on one mesh, resumed there and on others.
    for mesh in '--ranks 4 --tp 2 --pp 2' '--ranks 4 --tp 2 --cp 2' '--ranks 2' '--ranks 8 --tp 2 --pp 2 --zero 3 --sequence-parallel' '--ranks 3'; do
      rm -rf again
      cp -r both again
      rm -r again/checkpoints/step-00000012 again/checkpoints/latest
      # shellcheck disable=SC2086
      expect 0 'resumed after step 6' "$program" "${small[@]}" --micro-batches 2 $mesh --out again
      [ "$(wc -l < again/metrics.jsonl)" = 12 ] || fail "resumed on $mesh: not 12 steps"
      grep -q polyline again/loss.svg || fail 'loss.svg holds no curve'
    done
    rm -rf again
    cp -r both again
    rm -r again/checkpoints/step-00000012 again/checkpoints/latest
    expect 0 'resumed after step 6' "$program" "${small[@]}" --ranks 4 --tp 2 --pp 2 --micro-batches 4 --out again
    diff <(losses both) <(losses again) || fail 'the resumed run has other losses'
    cmp {both,again}/checkpoints/step-00000012/model.safetensors || fail 'the resumed run has other weights'
    ;;
  simulate)
    printf '{"ranks": 64, "mesh": {"tensor": 4, "pipeline": 2, "context": 2}, "batch": {"rows": 32, "micro_batches": 8},
      "model": {"layers": 4, "heads": 8, "width": 64, "context": 128, "vocabulary": 512},
      "zero_optimization": {"stage": 3}, "pipeline": {"schedule": "zb-h1"}, "precision": "bf16"}' > mesh.json
    expect 0 '64 ranks = 4 data x 4 tensor x 2 pipeline x 2 context' "$program" --simulate mesh.json --trace step.json
    grep -q 'bubble ' out.txt || fail 'does not say how long ranks are idle'
    python3 -c 'import json; assert len(json.load(open("step.json"))["traceEvents"]) > 20' || fail 'no trace of the step'
    expect 0 'tokens/s' "$program" --simulate mesh.json --trace step.svg
    grep -q '</svg>' step.svg || fail 'no picture of the step'
    printf '{"rank": 64}' > wrong.json
    expect 2 'unknown key "rank"' "$program" --simulate wrong.json
    expect 4 'nowhere.json' "$program" --simulate nowhere.json
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
    # A run that is at its end trains nothing and says so; one that is beyond it was asked for something else.
    cp straight/metrics.jsonl before.jsonl
    for ranks in 1 2; do
      expect 0 'nothing left to train: straight/checkpoints/step-00000012 has done 12 steps, --steps asks for 12; give more' \
        "$program" "${small[@]}" --ranks $ranks --out straight
      grep -q 'sample:' out.txt && fail 'prints an old sample'
      grep -q 'resume with' out.txt && fail 'would have it resumed'
    done
    expect 2 'has done 12 steps, --steps asks for 8; give more --steps, or a new run another --out' \
      "$program" "${small[@]}" --ranks 2 --steps 8 --out straight
    expect 2 'has done 12 steps, --steps asks for 1;' "$program" "${small[@]}" --steps 1 --warmup-steps 0 --out straight \
      --resume straight/checkpoints/step-00000012
    cmp before.jsonl straight/metrics.jsonl || fail 'and loses the history'
    expect 0 'resumed after step 12' "$program" "${small[@]}" --ranks 2 --steps 14 --out straight
    expect 0 'validation' "$program" "${small[@]}" --n-layer 3 --resume none --out straight
    ;;
  not_finite)  # ends with a sentence, a code and the good checkpoints
    small+=(--save-every 2 --keep 2 --sample 0)
    printf '{"fp16": {"enabled": true, "loss_scale": 3.3230699894622897e+35}}' > fp16.json
    for kind in '--ranks 1' '--ranks 2 --zero 3' '--ranks 2 --pp 2 --micro-batches 2 --precision bf16'; do
      rm -rf r
      # shellcheck disable=SC2086
      expect 0 'validation' "$program" "${small[@]}" $kind --steps 4 --out r
      # shellcheck disable=SC2086
      expect 1 'not finite' "$program" "${small[@]}" $kind --steps 60 --lr 1e30 --out r
      grep -qE '^error: .*\. Lower --lr or raise --warmup-steps; --resume auto goes on from the checkpoint$' out.txt ||
        { cat out.txt; fail 'does not say what to do'; }
      grep -q 'validation loss -\?nan' out.txt && fail 'and validates what is no number'
      for step in 2 4; do [ -e r/checkpoints/step-0000000$step/manifest.json ] || fail "step $step is gone"; done
      grep -q polyline r/loss.svg || fail 'no curve'
      # shellcheck disable=SC2086
      expect 0 'resumed after step 4' "$program" "${small[@]}" $kind --steps 8 --out r
    done
    expect 1 'the gradients of 8 steps in a row are not finite, from step 1 on' "$program" "${small[@]}" --config fp16.json \
      --ranks 2 --steps 60 --save-every 20 --out h
    grep -q 'Lower the loss scale' out.txt || fail 'does not say what to do'
    [ -e h/checkpoints/latest ] && fail 'saves what it has not learned'
    ;;
  terminal)  # what is printed where
    for closed in '0<&-' '1>&-' '2>&-' '0<&- 1>&- 2>&-'; do
      rm -rf d
      eval '"$program" "${small[@]}" --ranks 2 --out d' "$closed" > /dev/null || fail "ends with $? under $closed"
      [ "$(grep -c '^{"step":.*}$' d/metrics.jsonl)" = 12 ] || fail "metrics.jsonl is no longer a line a step under $closed"
      [ "$(wc -l < d/metrics.jsonl)" = 12 ] || fail "metrics.jsonl holds what was printed under $closed"
    done
    for kind in xterm dumb; do  # a terminal of 60 columns
      TERM=$kind script -qec "stty cols 60; '$program' ${small[*]} --out $kind" /dev/null > "$kind.txt" 2>&1 || fail "under TERM=$kind"
    done
    grep -q "$(printf '\r\033\[K')" xterm.txt || { cat xterm.txt; fail 'no bar on a terminal'; }
    tr '\r' '\n' < xterm.txt | sed 's/\x1b\[[0-9]*[mK]//g' | grep '^\[' | awk 'length > 59 { exit 1 }' || fail 'the bar is wider than its terminal'
    grep -q "$(printf '\033')" dumb.txt && fail 'escapes on a terminal that does not know them'
    expect 0 'validation' "$program" "${small[@]}" --steps 100 --eval-every 100 --save-every 100 --out f
    [ "$(grep -c '^step ' out.txt)" = 11 ] || fail 'not a line each tenth'
    [ "$(grep -c '^validation loss' out.txt)" = 1 ] || fail 'not one validation loss at the end'
    grep -q 'resume with' out.txt && fail 'a run that is done is not to be resumed'
    ;;
  hub)  # to other libraries and back
    expect 0 'data: ' "$program" "${small[@]}" --vocab-size 2048 --eval-every 12 --out fewer
    tokens=$(sed -n 's/.*"tokens": \([0-9]*\).*/\1/p' fewer/checkpoints/step-00000012/training.json)
    { [ "$tokens" -gt 256 ] && [ "$tokens" -lt 2048 ]; } || fail "the model knows $tokens tokens"
    [ -e fewer/checkpoints/step-00000012/config.json ] && fail 'a padded table would be read with its padding'
    expect 0 'exported step 12' "$program" export fewer exported
    grep -qF "\"vocab_size\": $tokens" exported/config.json || fail 'the export is padded'
    [ -e exported/tokenizer.json ] || fail 'the export has no tokenizer'
    expect 4 'is there already' "$program" export fewer exported
    expect 4 'holds no whole checkpoint' "$program" export . other
    expect 2 'export does not know --force' "$program" export fewer other --force
    expect 2 'the run had 2; leave it out' "$program" export fewer other --n-head 4
    expect 0 'validation' "$program" "${small[@]}" --eval-every 12 --out bytes
    [ -e bytes/checkpoints/step-00000012/config.json ] || fail 'a checkpoint is not one of transformers too'
    # A run that begins with either has their sizes, their tokenizer and their loss.
    begin=(--backend cpu --data text.txt --batch-tokens 256 --steps 1 --warmup-steps 0 --lr 0 --min-lr 0 --eval-every 1 --sample 8)
    loss() { tail -n 1 "$1/metrics.jsonl" | sed 's/.*"validation_loss": *\([0-9.]*\).*/\1/'; }
    for weights in exported bytes/checkpoints/step-00000012; do
      rm -rf begun
      expect 0 'validation' "$program" "${begin[@]}" --weights $weights --out begun
      from=${weights%%/*} && from=${from/exported/fewer}
      awk -v a="$(loss begun)" -v b="$(loss "$from")" 'BEGIN { exit !(a > 0 && (a - b) ^ 2 < 1e-12) }' ||
        fail "begins with $weights at $(loss begun), not $(loss "$from")"
    done
    expect 2 '--n-head is 4, but the weights have 2' "$program" "${begin[@]}" --weights exported --n-head 4 --out x
    expect 2 '--n-layer is 12, but the weights have 2' "$program" "${begin[@]}" --weights exported --model 124M --out x
    expect 4 'is JSON, not safetensors; give a model.safetensors' "$program" "${begin[@]}" --weights exported/config.json --out x
    mkdir bare && cp exported/model.safetensors bare
    expect 2 'weights alone do not say how many heads they have' "$program" "${begin[@]}" --weights bare --out x
    mkdir torch && touch torch/pytorch_model.bin
    expect 4 'holds pytorch_model.bin but no model.safetensors' "$program" "${begin[@]}" --weights torch --out x
    sed -i 's/gelu_new/relu/' exported/config.json
    expect 4 'activation_function is "relu"' "$program" "${begin[@]}" --weights exported --out x
    sed -i 's/relu/gelu_new/' exported/config.json
    if python3 -c 'import torch, transformers' 2> /dev/null; then
      for folder in "exported fewer" "bytes/checkpoints/step-00000012 bytes"; do
        # shellcheck disable=SC2086
        python3 "$here/transformers_loss.py" $folder 32 8 12 || fail "transformers reads $folder otherwise"
      done
    fi
    ;;
  data)
    # Resumed with other settings: all are said, the tokenizer stays, samples are counted.
    run=("${small[@]}" --vocab-size 300 --sample-every 0)
    expect 0 'validation' "$program" "${run[@]}" --out r
    expect 0 'settings that changed since the checkpoint: --held-out 0.1 -> 0.2, --steps 12 -> 14, sequences a step 8 -> 16' \
      "$program" "${run[@]}" --steps 14 --held-out 0.2 --batch-tokens 512 --out r
    grep -qF 'the data changed since the checkpoint' out.txt || fail 'does not say that the data changed'
    grep -q '"cursor": 128' r/checkpoints/step-00000014/state.json || fail 'the cursor is not 12 * 8 + 2 * 16 samples'
    cmp r/checkpoints/step-000000{12,14}/tokenizer.json || fail 'the tokenizer was learned anew'
    awk -F'"loss": *' '{ split($2, a, ","); last[NR] = a[1] } END { exit !(last[13] < last[12] + 0.3) }' r/metrics.jsonl ||
      fail 'the loss jumps'
    expect 4 'its n_head is 2, now it is 4' "$program" "${run[@]}" --steps 15 --n-head 4 --out r
    sed 's/line/word/' text.txt > other.txt
    expect 2 'more than the 256 of the model' "$program" "${run[@]}" --vocab-size 256 --steps 15 --out r
    expect 0 'the data changed since the checkpoint' "$program" "${run[@]}" --data other.txt --steps 15 --out r
    # Folders of tokens, bytes as uint16.
    mkdir nano
    tr -d '\n' < text.txt | sed 's/./&\x00/g' > all.bin
    head -c 40000 all.bin > nano/train.bin
    tail -c 10000 all.bin > nano/val.bin
    expect 0 'data: 20,000 tokens for training, 5,000 held out' "$program" "${small[@]}" --data nano --out n
    [ -e n/heldout.txt ] && fail 'tokens without a tokenizer have a text'
    cp r/checkpoints/step-00000012/tokenizer.json nano
    expect 0 'over 5,000 held-out bytes' "$program" "${small[@]}" --vocab-size 300 --data nano --out n2
    grep -qF 'sample:' out.txt || fail 'tokens with their tokenizer have no sample'
    # One line is cut too.
    tr '\n' ' ' < text.txt > line.txt
    expect 0 'held out (10.0 %)' "$program" "${small[@]}" --data line.txt --steps 1 --warmup-steps 0 --out l
    ;;
  signal)
    "$program" "${small[@]}" --steps 100000 --save-every 100000 --eval-every 100000 --sample-every 0 --out s > out.txt 2>&1 &
    pid=$!
    wait_for grep -q '^step' out.txt
    kill -TERM $pid
    ends_with 143 $pid
    ls s/checkpoints/step-*/manifest.json > /dev/null || fail 'no checkpoint after SIGTERM'
    grep -q 'finishing this step and saving; another signal ends at once' out.txt || fail 'no word on the signal'
    grep -q '^resume with .* --out s --resume auto$' out.txt || fail 'does not say how to go on'
    # timeout sends its signal twice
    timeout 2 "$program" "${small[@]}" --steps 100000 --save-every 100000 --sample-every 0 --out t > out.txt 2>&1
    ls t/checkpoints/step-*/manifest.json > /dev/null || { cat out.txt; fail 'no checkpoint under timeout'; }
    # nohup: an ignored SIGHUP stays ignored
    (trap '' HUP; exec "$program" "${small[@]}" --ranks 2 --steps 100000 --save-every 100000 --sample-every 0 --out n) > out.txt 2>&1 &
    pid=$!
    wait_for grep -q '^step' out.txt
    kill -HUP $pid
    sleep 0.3
    kill -0 $pid || fail 'SIGHUP ended a run under nohup'
    kill -TERM $pid
    ends_with 143 $pid
    # while it waits for other ranks, and while it evaluates
    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 ZEROPP_PORT=$((20000 + RANDOM % 10000)) "$program" "${small[@]}" --out w > out.txt 2>&1 &
    pid=$!
    sleep 0.5
    kill -TERM $pid
    ends_with 143 $pid
    for _ in $(seq 100); do cat text.txt; done > long.txt
    "$program" "${small[@]}" --data long.txt --held-out 0.9 --n-embd 128 --steps 2 --eval-every 100 --out e > out.txt 2>&1 &
    pid=$!
    wait_for test -e e/checkpoints/latest
    kill -TERM $pid
    ends_with 143 $pid
    grep -q '^validation' out.txt && fail 'the evaluation was not long enough for this test'
    ;;
  refused)
    expect 2 'give --data PATH' "$program"
    expect 2 'nearest that is: 1024' "$program" "${small[@]}" --block-size 128 --batch-tokens 1000
    expect 2 'the nearest that is: 6 sequences' "$program" "${small[@]}" --batch-tokens 160 --batch 3 --ranks 2
    expect 2 'not expected' "$program" "${small[@]}" --n-headd 3
    expect 2 'not divisible by 3 heads' "$program" "${small[@]}" --n-head 3
    expect 2 'zero' "$program" "${small[@]}" --zero 4
    expect 2 'there is no model "9T"' "$program" --model 9T
    expect 2 '3 tensor x 1 pipeline x 1 context ranks do not divide 4 ranks; their product can be 1, 2, 4' \
      "$program" "${small[@]}" --ranks 4 --tp 3
    expect 2 '2 heads are not divisible by 4 tensor ranks' "$program" "${small[@]}" --ranks 4 --tp 4
    expect 2 'a pipeline of 4 parts (stages x chunks) needs as many blocks, the model has 2' \
      "$program" "${small[@]}" --ranks 4 --pp 4
    expect 2 'the micro-batches must be a multiple of the 2 stages, got 3; the nearest is 4' \
      "$program" "${small[@]}" --n-layer 4 --ranks 2 --pp 2 --schedule interleaved --micro-batches 3
    expect 2 'sequences of 33 tokens are not divisible by 2 tensor ranks' \
      "$program" "${small[@]}" --block-size 33 --batch-tokens 264 --ranks 2 --tp 2 --sequence-parallel
    expect 2 'can not be cut into 9 micro-batches; at most 8' "$program" "${small[@]}" --micro-batches 9
    expect 2 'makes 4 micro-batches, not 2' "$program" "${small[@]}" --batch 2 --micro-batches 2
    expect 2 'it runs 1 chunk a stage, got 3' "$program" "${small[@]}" --ranks 2 --pp 2 --chunks 3
    expect 2 'schedule' "$program" "${small[@]}" --schedule cosine
    for ranks in 4097 100000; do expect 2 'asks for more threads than the 4096' "$program" "${small[@]}" --ranks $ranks; done
    expect 2 '--trace goes with --simulate' "$program" "${small[@]}" --trace step.json
    expect 2 '--share-gpus goes with GPUs' "$program" "${small[@]}" --share-gpus
    expect 2 '--no-graph goes with GPUs' "$program" "${small[@]}" --no-graph
    expect 2 'a simulation is told everything by mesh.json' "$program" --simulate mesh.json --zero 3
    expect 2 '--recompute-blocks 3: the model has 2 blocks' "$program" "${small[@]}" --recompute-blocks 3
    expect 2 '--bucket-size' "$program" "${small[@]}" --bucket-size -1
    expect 4 'nowhere.safetensors: there is no such file' "$program" "${small[@]}" --weights nowhere.safetensors
    [ -e out ] && fail 'a refused run leaves files behind'
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
  config)  # a file of DeepSpeed's, and flags beside it
    dry=("$program" --backend cpu --dry-run --n-layer 2 --n-head 2 --n-embd 32 --block-size 32 --vocab-size 256)
    cat > ds.json << 'END'
{ # as people write them
  "train_batch_size": 32, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2,
  "steps_per_print": 2, // lines
  "zero_optimization": {"stage": 2, "overlap_comm": true, "allgather_bucket_size": 2e8,
    "offload_optimizer": {"device": "none"},},
  "bf16": {"enabled": "auto"}, "fp16": {"enabled": false, "min_loss_scale": 1e-10},
  "optimizer": {"type": "adam", "params": {"lr": 1e-3, "betas": [0.8, 0.999], "weight_decay": 0.01}},
  "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-3, "warmup_num_steps": "auto"}},
  "tensorboard": {"enabled": true, "output_path": "logs", "job_name": "run"}, /* and
  both */ "csv_monitor": {"enabled": true, "output_path": "csv"}
}
END
    expect 0 'learning rate at step 0: 0, 1: 0, 10: 0.00033333' "${dry[@]}" --ranks 4 --config ds.json
    said() { tr -s ' ' < out.txt | grep -qF -- " $1" || { cat out.txt; fail "the plan does not say '$1'"; }; }
    said 'sequences a step 32 ds.json line 2, train_batch_size'
    said '--zero 2 ds.json line 4, zero_optimization.stage'
    said '--precision fp32 default'
    said 'betas 0.8 0.999 ds.json line 7, optimizer.params.betas'
    said "--warmup-steps 1000 DeepSpeed's default"
    said 'ranks 4 flag --ranks'
    grep -qF 'without effect here: zero_optimization.allgather_bucket_size (' out.txt || fail 'no word on keys without effect'
    expect 2 'a batch of 32 is not a micro-batch of 4 x accumulation 2 x 1 data rank = 8; start 4 data ranks' \
      "${dry[@]}" --config ds.json
    for order in '--config ds.json --lr 5e-4 --batch 2' '--lr 5e-4 --batch 2 --config ds.json'; do
      # shellcheck disable=SC2086
      expect 0 '--lr' "${dry[@]}" $order
      said '--lr 5e-04 flag'
      said '--batch 2 flag'
      said '--micro-batches 16 from what is said of the batch, and 1 data rank'
    done
    printf '{"model": {"preset": "355M"}, "zero_optimization": {"offload_param": {"device": "nvme"}}}' > offload.json
    expect 2 '"zero_optimization.offload_param" to "nvme" asks for offload, which is not there yet' "${dry[@]}" --config offload.json
    printf '{"model": {"preset": "355M"}}' > model.json
    expect 0 ' parameters' "$program" --backend cpu --dry-run --model tiny --config model.json
    said '--n-layer 4 flag --model'
    # Numbers are never cut to fit, and defaults follow what was said.
    expect 2 '--seed: must be a whole number from 0 to 18446744073709551615, got -1' "${dry[@]}" --seed -1
    expect 2 '--steps: must be a whole number from' "${dry[@]}" --steps 1e20
    expect 2 '--lr: must be a number, got nan' "${dry[@]}" --lr nan
    expect 0 'learning rate at step' "${dry[@]}" --lr 5e-5 --steps 5
    expect 2 '--min-lr must be from 0 to --lr = 5e-05, got 1e-04' "${dry[@]}" --lr 5e-5 --min-lr 1e-4
    expect 0 'step 4/5' "$program" "${small[@]}" --config ds.json --steps 5 --ranks 2 --out run
    [ "$(grep -c '^step [0-9]*/5' out.txt)" = 4 ] || fail 'not a line for steps 1, 2, 4 and 5'
    tr -d '\r' < csv/DeepSpeedJobName/Train_Samples_train_loss.csv | cut -d, -f1 | paste -sd' ' > got.txt
    [ "$(cat got.txt)" = 'step 8 16 24 32 40' ] || fail "CSV holds $(cat got.txt)"
    python3 "$here/read_events.py" logs/run 5
    code=$?  # 77: there is no tensorboard
    [ $code = 0 ] || [ $code = 77 ] || fail 'TensorBoard does not read the events'
    ;;
  tcp)  # processes as torchrun starts them
    ranks=$here/../tcp/ranks.sh
    expect 0 'validation' "$program" "${small[@]}" --ranks 2 --zero 3 --out threads
    expect 0 'ranks: 2 (torchrun)' "$ranks" -n 2 "$program" "${small[@]}" --zero 3 --out processes
    diff <(losses threads) <(losses processes) || fail 'processes have other losses than threads'
    cmp {threads,processes}/checkpoints/step-00000012/model.safetensors || fail 'processes have other weights'
    expect 2 'not expected' "$ranks" -n 2 "$program" "${small[@]}" --n-headd 3
    expect 4 'rank 0: ' "$ranks" -n 2 "$program" "${small[@]}" --data nowhere
    grep -qE 'rank ([0-9]): (rank|.*rank \1:)' out.txt && { cat out.txt; fail 'names a rank twice'; }
    # only the launcher says how many ranks there are
    printf '{"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2}' > triple.json
    expect 0 'ranks: 2 (torchrun)' "$ranks" -n 2 "$program" "${small[@]}" --batch-tokens 256 --config triple.json --out triple
    expect 0 'ranks: 2 (torchrun)' "$ranks" -n 2 "$program" "${small[@]}" --dry-run
    expect 0 'ranks: 2 (srun)' env RANKS_AS=srun "$ranks" -n 2 "$program" "${small[@]}" --steps 2 --out slurm
    expect 0 'one process' env SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_JOB_ID=7 "$program" "${small[@]}" --steps 2 --out batch
    # stopped and resumed as processes
    rm -r processes/checkpoints/step-00000012 processes/checkpoints/latest
    expect 0 'resumed after step 10' "$ranks" -n 2 "$program" "${small[@]}" --zero 3 --out processes
    diff <(losses threads) <(losses processes) || fail 'the resumed processes have other losses'
    ;;
  mpi)
    export ASAN_OPTIONS=detect_leaks=0  # MPI's own libraries keep memory to the end
    expect 0 'validation' "$program" "${small[@]}" --ranks 2 --zero 3 --out threads
    expect 0 'validation' "$mpirun" --allow-run-as-root --oversubscribe -n 2 "$program" "${small[@]}" --zero 3 --out processes
    diff <(losses threads) <(losses processes) || fail 'processes have other losses than threads'
    mesh=(--tp 2 --pp 2 --micro-batches 2 --sequence-parallel)
    expect 0 'validation' "$program" "${small[@]}" "${mesh[@]}" --ranks 4 --out threads4
    expect 0 'validation' "$mpirun" --allow-run-as-root --oversubscribe -n 4 "$program" "${small[@]}" "${mesh[@]}" --out processes4
    grep -q "$(printf '\033')" out.txt && fail 'escapes in a file'
    diff <(losses threads4) <(losses processes4) || fail 'processes on a mesh have other losses than threads'
    cmp {threads4,processes4}/checkpoints/step-00000012/model.safetensors || fail 'processes on a mesh have other weights'
    ;;
  *) fail "no case $case" ;;
esac
echo "$case: as it should be"
