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
    expect 0 'validation' "$program" "${small[@]}" --n-layer 3 --resume none --out straight
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
  tcp)  # processes as torchrun starts them
    ranks=$here/../tcp/ranks.sh
    expect 0 'validation' "$program" "${small[@]}" --ranks 2 --zero 3 --out threads
    expect 0 'ranks: 2 (torchrun)' "$ranks" -n 2 "$program" "${small[@]}" --zero 3 --out processes
    diff <(losses threads) <(losses processes) || fail 'processes have other losses than threads'
    cmp {threads,processes}/checkpoints/step-00000012/model.safetensors || fail 'processes have other weights'
    expect 2 'not expected' "$ranks" -n 2 "$program" "${small[@]}" --n-headd 3
    expect 4 'rank 0: ' "$ranks" -n 2 "$program" "${small[@]}" --data nowhere
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
    diff <(losses threads4) <(losses processes4) || fail 'processes on a mesh have other losses than threads'
    cmp {threads4,processes4}/checkpoints/step-00000012/model.safetensors || fail 'processes on a mesh have other weights'
    ;;
  *) fail "no case $case" ;;
esac
echo "$case: as it should be"
