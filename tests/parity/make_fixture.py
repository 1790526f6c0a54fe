#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the fixture of tests/test_parity.cpp: a small GPT-2 trained for 20 steps by PyTorch in fp32.

    pip install torch numpy && python3 make_fixture.py

gpt2_small.safetensors       the first weights, under Hugging Face's GPT-2 names
gpt2_small.grad.safetensors  the gradients of the first step, before clipping, under the same names
gpt2_small.json              sizes, hyper-parameters, the tokens of every step, losses and gradient norms
"""
import json
import struct
from pathlib import Path

import torch
import torch.nn.functional as F

LAYERS, HEADS, WIDTH, CONTEXT, VOCABULARY, BATCH, STEPS = 2, 4, 32, 24, 96, 4, 20
ADAM = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1, "clip": 1.0}


def parameters():
    torch.manual_seed(7)
    p = {"wte.weight": torch.randn(VOCABULARY, WIDTH) * 0.2, "wpe.weight": torch.randn(CONTEXT, WIDTH) * 0.1}
    for i in range(LAYERS):
        for norm in ("ln_1", "ln_2"):
            p[f"h.{i}.{norm}.weight"] = 1 + 0.1 * torch.randn(WIDTH)
            p[f"h.{i}.{norm}.bias"] = 0.1 * torch.randn(WIDTH)
        # Conv1D: stored [in, out]
        for name, inputs, outputs in (("attn.c_attn", WIDTH, 3 * WIDTH), ("attn.c_proj", WIDTH, WIDTH),
                                      ("mlp.c_fc", WIDTH, 4 * WIDTH), ("mlp.c_proj", 4 * WIDTH, WIDTH)):
            p[f"h.{i}.{name}.weight"] = torch.randn(inputs, outputs) * 0.15
            p[f"h.{i}.{name}.bias"] = torch.randn(outputs) * 0.05
    p["ln_f.weight"] = 1 + 0.1 * torch.randn(WIDTH)
    p["ln_f.bias"] = 0.1 * torch.randn(WIDTH)
    return {name: tensor.requires_grad_() for name, tensor in p.items()}


def loss_of(p, tokens, labels):
    b, t = tokens.shape
    x = p["wte.weight"][tokens] + p["wpe.weight"][:t]
    for i in range(LAYERS):
        h = f"h.{i}."
        norm = lambda x, n: F.layer_norm(x, (WIDTH,), p[h + n + ".weight"], p[h + n + ".bias"], 1e-5)
        conv = lambda x, n: x @ p[h + n + ".weight"] + p[h + n + ".bias"]
        q, k, v = (z.view(b, t, HEADS, -1).transpose(1, 2) for z in conv(norm(x, "ln_1"), "attn.c_attn").split(WIDTH, 2))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, WIDTH)
        x = x + conv(a, "attn.c_proj")
        x = x + conv(F.gelu(conv(norm(x, "ln_2"), "mlp.c_fc"), approximate="tanh"), "mlp.c_proj")
    x = F.layer_norm(x, (WIDTH,), p["ln_f.weight"], p["ln_f.bias"], 1e-5)
    return F.cross_entropy((x @ p["wte.weight"].T).view(-1, VOCABULARY), labels.reshape(-1))


def save(path, tensors):
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.detach().contiguous().numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def main():
    here = Path(__file__).parent
    torch.set_num_threads(1)
    p = parameters()
    save(here / "gpt2_small.safetensors", p)
    groups = [{"params": [t for t in p.values() if t.dim() > 1], "weight_decay": ADAM["weight_decay"]},
              {"params": [t for t in p.values() if t.dim() == 1], "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=ADAM["lr"], betas=(ADAM["beta1"], ADAM["beta2"]), eps=ADAM["epsilon"])
    generator = torch.Generator().manual_seed(11)
    # One step of a noisy counter: something to learn, so that the loss moves.
    losses, norms, batches = [], [], []
    for step in range(STEPS):
        start = torch.randint(VOCABULARY, (BATCH, 1), generator=generator)
        row = (start + 5 * torch.arange(CONTEXT + 1)) % VOCABULARY
        noise = torch.randint(VOCABULARY, row.shape, generator=generator)
        row = torch.where(torch.rand(row.shape, generator=generator) < 0.1, noise, row)
        loss = loss_of(p, row[:, :-1], row[:, 1:])
        adam.zero_grad()
        loss.backward()
        if step == 0:
            save(here / "gpt2_small.grad.safetensors", {n: t.grad for n, t in p.items()})
        norms.append(torch.nn.utils.clip_grad_norm_(p.values(), ADAM["clip"]).item())
        losses.append(loss.item())
        batches.append(row.tolist())
        adam.step()
    (here / "gpt2_small.json").write_text(json.dumps({
        "torch": torch.__version__.split("+")[0], "layers": LAYERS, "heads": HEADS, "width": WIDTH, "context": CONTEXT,
        "vocabulary": VOCABULARY, "batch": BATCH, "steps": STEPS, **ADAM, "losses": losses, "norms": norms,
        "rows": batches}))
    print(losses[0], losses[-1], norms[0])


if __name__ == "__main__":
    main()
