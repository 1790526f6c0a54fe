# SPDX-License-Identifier: Apache-2.0
"""The peer of gpu_attention and gpu_kernels: PyTorch's attention, head + cross entropy and AdamW, at the same shapes.

Prints a table: milliseconds, the median of 20 calls, each on data that the caches do not hold; and for the head the
memory that it takes at its peak.
"""
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def median_ms(call, calls=20):
    for _ in range(5):
        call()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in zip(events, events[1:]))[calls // 2]


def attention(b, t, h, d, kv_heads=None):
    kv_heads = kv_heads or h
    flops = 2 * 2 * b * h * t * (t + 1) / 2 * d
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        sets = [[torch.randn(b, t, n, d, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
                 for n in (h, kv_heads, kv_heads)] for _ in range(4)]
        options = {"is_causal": True, "enable_gqa": kv_heads != h}
        turn = [0]

        def forward():
            turn[0] += 1
            with sdpa_kernel(backend), torch.no_grad():
                F.scaled_dot_product_attention(*sets[turn[0] % 4], **options)

        try:
            with sdpa_kernel(backend):
                out = F.scaled_dot_product_attention(*sets[0], **options)
        except RuntimeError as refused:
            print(f"{b:4} {t:5} {h:3} {kv_heads:3} {d:4}  torch {backend.name:20} {str(refused).splitlines()[0]}")
            continue
        grad = torch.randn_like(out)
        ahead = median_ms(forward)
        back = median_ms(lambda: torch.autograd.grad(out, sets[0], grad, retain_graph=True))
        print(f"{b:4} {t:5} {h:3} {kv_heads:3} {d:4}  torch {backend.name:20} {ahead:8.3f} {flops / ahead * 1e-9:7.0f}"
              f"          {back:8.3f} {2.5 * flops / back * 1e-9:7.0f}", flush=True)


def head(rows, width, vocabulary=50304):
    x = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    w = torch.randn(vocabulary, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, 50257, (rows,), device="cuda")

    def eager():
        loss = F.cross_entropy(F.linear(x, w).float(), labels)
        return torch.autograd.grad(loss, (x, w))

    compiled = torch.compile(lambda x, w: F.cross_entropy(F.linear(x, w).float(), labels))

    def fused():
        return torch.autograd.grad(compiled(x, w), (x, w))

    for name, call in (("eager", eager), ("compiled", fused)):
        torch.cuda.empty_cache()
        ms = median_ms(call, 5)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        print(f"head + cross entropy {rows} x {width}, torch {name:8} {ms:8.3f} ms, {peak:7.0f} MiB at the peak", flush=True)


def adam(count):
    p = torch.nn.Parameter(torch.randn(count, device="cuda"))
    p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW([p], fused=True)

    def step():
        torch.nn.utils.clip_grad_norm_([p], 1.0)
        optimizer.step()
        return p.to(torch.bfloat16)

    print(f"clip + fused AdamW + cast of {count} elements, torch {median_ms(step) * 1e3:8.1f} us", flush=True)
    print(f"fused AdamW alone of {count} elements, torch {median_ms(optimizer.step) * 1e3:8.1f} us", flush=True)


print(torch.cuda.get_device_name(), "torch", torch.__version__)
for shape in ((64, 1024, 12, 64), (16, 1024, 25, 64), (4, 4096, 16, 64), (2, 4096, 16, 128), (2, 4096, 32, 128),
              (2, 4096, 32, 128, 8)):
    attention(*shape)
adam(40_000_000)
head(65536, 768)
head(16384, 1600)
