import torch
from linear import compile_all, copies_past_the_cache, exact, measure, run, run_silu
from shoal_engine.kernels.gemm_table import GemmChoice, Method
W, P = Method.WARPS, Method.STREAM
T = {64: [(P, 128, 64, 4, 4, 64), (W, 128, 128, 4, 4, 64), (W, 256, 64, 4, 5, 64)],
     128: [(P, 128, 64, 4, 3, 128), (P, 256, 64, 8, 4, 128), (P, 64, 128, 4, 4, 128), (W, 256, 64, 8, 4, 128), (W, 128, 64, 8, 6, 128)],
     256: [(P, 128, 64, 4, 3, 128), (P, 256, 64, 8, 4, 128), (P, 128, 64, 8, 4, 256), (W, 128, 64, 8, 4, 256)]}
S = {64: [(P, 64, 128, 4, 4, 64), (W, 64, 64, 4, 8, 64)], 128: [(P, 128, 64, 8, 4, 128), (W, 128, 64, 8, 4, 128), (W, 64, 64, 8, 6, 128)],
     256: [(P, 128, 64, 8, 4, 128), (W, 64, 64, 8, 4, 256)]}
SHAPES = [("gate-up", 28672, 4096, (1,)), ("silu", 28672, 4096, (1,)), ("qkv", 6144, 4096, (1, 2)), ("o", 4096, 4096, (2, 4)),
          ("down", 4096, 14336, (2, 4)), ("head", 128256, 4096, (1,))]
cases = []
for name, n, k, splits in SHAPES:
    for rows in (64, 128, 256):
        ch = [GemmChoice(m, bn, bk, s, w, st, bm, a) for m, bn, bk, w, st, bm in (S if name == "silu" else T)[rows]
              for s in splits for a in (0, 1, 4, 11, 29)
              if s < 2 or 64 <= s * -(-n // bn) * -(-rows // bm) <= 132]
        cases.append((rows, n, k, ch + [GemmChoice(Method.CUBLAS)], name == "silu"))
def main():
    compile_all(cases, False)
    for (rows, n, k, ch, paired) in cases:
        weight = torch.randn(n, k, device="cuda").bfloat16()
        x = (torch.randn(rows, k, device="cuda") * k**-0.5).bfloat16()
        found = measure(x, copies_past_the_cache(weight), None, ch, exact(x, weight, None, paired), run_silu if paired else run)
        lib = [us for us, one in found if one.method is Method.CUBLAS]
        by = {}
        for us, o in found:
            if o.block_n: by.setdefault((o.method.value, o.block_m, o.block_n, o.block_k, o.split_k, o.warps), {})[o.skew] = round(us, 1)
        print(f"{n}x{k}{' silu' if paired else ''} M={rows} cublas {lib[0]:.1f} | " + " | ".join(f"{k} {dict(sorted(v.items()))}" for k, v in by.items()), flush=True)
if __name__ == "__main__":
    with torch.inference_mode():
        main()
