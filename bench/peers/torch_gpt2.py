# SPDX-License-Identifier: Apache-2.0
"""The peer of gpu_step: GPT-2 of the same shape in PyTorch, trained for some steps and timed. Prints one line of JSON.

bf16 autocast over float32 weights, torch.compile, fused AdamW, clipping, scaled_dot_product_attention; with several
GPUs under torchrun, DistributedDataParallel or FSDP2. Random tokens.
  python3 torch_gpt2.py --model 124M --batch 64 --accumulate 2 --attention cudnn
  torchrun --nproc-per-node 2 torch_gpt2.py --mode fsdp2 --batch 16
With --curve FILE --tokens train.bin it trains on real tokens in a fixed order and writes the loss of every step.
"""
import argparse
import json
import os
import statistics
import time

import numpy
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

SIZES = {"124M": (12, 12, 768), "355M": (24, 16, 1024), "774M": (36, 20, 1280), "1558M": (48, 25, 1600)}
VOCABULARY = 50304


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(width)
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.c_fc = nn.Linear(width, 4 * width)
        self.mlp_proj = nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(heads.transpose(1, 2).reshape(b, t, c))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self, layers, heads, width, context):
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, width)
        self.wpe = nn.Embedding(context, width)
        self.h = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens, labels):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.view(-1, VOCABULARY).float(), labels.view(-1))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="124M", choices=SIZES)
    parser.add_argument("--mode", default="ddp", choices=["ddp", "fsdp2"])
    parser.add_argument("--attention", default="cudnn", choices=["flash", "cudnn"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--warmup-rate", type=int, default=0, help="steps of a linear warm-up of the learning rate")
    parser.add_argument("--fp32", action="store_true", help="float32 throughout, without TF32")
    parser.add_argument("--weights", help="safetensors to begin with, under Hugging Face's names")
    parser.add_argument("--tokens", help="uint16 tokens behind a header of 1024 bytes")
    parser.add_argument("--curve", help="file for the loss of every step")
    return parser.parse_args()


def tensors_of(path):
    """The tensors of a safetensors file: a JSON header behind its length, then the bytes."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    types = {"F32": torch.float32, "BF16": torch.bfloat16}
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            flat = torch.frombuffer(bytearray(data[begin:end]), dtype=types[entry["dtype"]])
            tensors[name] = flat.view(entry["shape"])
    return tensors


def load(model, path):
    """GPT-2's weights as Hugging Face stores them: four matrices of a block are [in, out]."""
    found = tensors_of(path)
    names = {"attn.c_attn": "c_attn", "attn.c_proj": "c_proj", "mlp.c_fc": "c_fc", "mlp.c_proj": "mlp_proj"}
    state = {}
    for name, value in found.items():
        name = name.removeprefix("transformer.")
        for theirs, ours in names.items():
            if theirs + "." in name:
                name = name.replace(theirs, ours)
                value = value.t() if value.dim() == 2 else value
        if name != "lm_head.weight":
            state[name] = value.float()
    rows = state["wte.weight"].shape[0]
    state["wte.weight"] = F.pad(state["wte.weight"], (0, 0, 0, VOCABULARY - rows))
    model.load_state_dict(state)


def main():
    a = arguments()
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if world > 1:
        dist.init_process_group("nccl")
    torch.backends.cuda.enable_flash_sdp(a.attention == "flash")
    torch.backends.cuda.enable_cudnn_sdp(a.attention == "cudnn")
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.set_float32_matmul_precision("highest" if a.fp32 else "high")
    torch.manual_seed(1)
    layers, heads, width = SIZES[a.model]
    model = Gpt(layers, heads, width, a.context).cuda()
    if a.weights:
        load(model, a.weights)
    parameters = sum(p.numel() for p in model.parameters())
    autocast = not a.fp32
    if a.mode == "fsdp2" and world > 1:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
        for block in model.h:
            block.compile()
            fully_shard(block, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
        autocast = False
        trained = model
    else:
        trained = torch.compile(model)
        if world > 1:
            trained = nn.parallel.DistributedDataParallel(trained, gradient_as_bucket_view=True)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=a.lr, betas=(0.9, 0.95), eps=1e-8, fused=True)
    rows = a.batch * a.accumulate
    if a.tokens:
        data = torch.from_numpy(numpy.fromfile(a.tokens, dtype=numpy.uint16, offset=1024).astype(numpy.int64))

    def batch(step):
        if not a.tokens:
            return torch.randint(0, 50257, (2, rows, a.context), device="cuda")
        at = step * rows * a.context % (len(data) - rows * a.context)
        part = data[at:at + rows * a.context + 1].cuda()
        return torch.stack([part[:-1].view(rows, -1), part[1:].view(rows, -1)])

    def train(pair):
        total = 0
        for i in range(a.accumulate):
            tokens, labels = pair[:, i * a.batch:(i + 1) * a.batch]
            if world > 1 and a.mode == "ddp":
                trained.require_backward_grad_sync = i + 1 == a.accumulate
            with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
                loss = trained(tokens, labels) / a.accumulate
            loss.backward()
            total = total + loss.detach()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total, norm

    if a.curve:
        with open(a.curve, "w") as out:
            for step in range(a.steps):
                for group in optimizer.param_groups:
                    group["lr"] = a.lr * min(1, (step + 1) / max(1, a.warmup_rate))
                loss, norm = train(batch(step))
                out.write(f"{step + 1} {loss.item():.6f} {float(norm):.6f}\n")
        return
    pair = batch(0)
    for _ in range(a.warmup):
        train(pair)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(a.steps):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        loss, _ = train(pair)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds)
    speed = rows * a.context * world / median
    flops = 6 * parameters + 6 * layers * a.context * width
    if rank == 0:
        print(json.dumps({
            "program": "torch " + torch.__version__, "gpu": torch.cuda.get_device_name(), "gpus": world,
            "model": a.model, "mode": a.mode, "attention": a.attention, "batch": a.batch, "accumulate": a.accumulate,
            "ms": round(1e3 * median, 2), "ms_best": round(1e3 * min(seconds), 2), "tok_s": round(speed),
            "tflops": round(speed * flops / 1e12, 1),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3), "loss": round(loss.item(), 5)}))
    if world > 1:
        dist.destroy_process_group()


main()
