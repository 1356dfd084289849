"""Training steps and imagined frames per second of the denoiser, one thread: memory layout, bfloat16 and compilation measured, against the arithmetic and against diffusers.

    python benchmarks/diamond_denoiser.py [--size laptop|atari|paper|all] [--rounds 5] [--compile]

A training step is the two-target segment loss, backward and AdamW (32 segments; 1 at the paper's size, where a batch of 32 takes half a minute); a frame is imagined by one or three
evaluations. "of the limit" is the operations of the network's convolutions and products (torch's counter, two for a multiply-add; backward twice the forward) over the time that they
took, divided by the rate of a 1024 x 1024 matrix product in the same arithmetic on the same thread. The rival is diffusers' UNet2DModel with the width that brings its operations nearest
to ours (`pip install diffusers`; skipped without): its usual block, time embedding, no actions, past frames as channels.
Variants take turns in one process; a number is the median over the rounds.
"""
import argparse
import importlib.util
import time

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from rlpapers.diamond.agent import optimiser_of
from rlpapers.diamond.edm import EDM, segment_loss
from rlpapers.diamond.grids import MIDDLE, SMALL, forward_flops
from rlpapers.diamond.unet import InnerModel, UNetConfig
from rlpapers.diamond.world import in_precision
from rlpapers.poem.sources import import_torchvision

SIZES = {"laptop": (SMALL, 16, 32), "atari": (MIDDLE, 32, 12), "paper": (UNetConfig(), 64, 1)}     # U-Net, side of a frame, segments in a batch


def median_seconds(steps: dict, rounds: int) -> dict[str, float]:
    "Median wall time of each call; they take turns."
    for step in steps.values(): step()
    times = {k: [] for k in steps}
    for _ in range(rounds):
        for k, step in steps.items():
            start = time.perf_counter()
            step()
            times[k].append(time.perf_counter() - start)
    return {k: float(np.median(t)) for k, t in times.items()}


def matmul_rate(dtype: torch.dtype, n: int = 1024) -> float:
    "Operations a second of a square matrix product."
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    return 2 * n ** 3 / median_seconds({"product": lambda: a @ b}, 15)["product"]


class Ours:
    "Our network in one layout and arithmetic."
    def __init__(self, c: UNetConfig, size: int, batch: int, precision: str, channels_last: bool, compiled: bool = False):
        torch.manual_seed(0)
        module = InnerModel(c, 18)
        if channels_last: module = module.to(memory_format=torch.channels_last)
        self.optimiser, self.objective, self.generator = optimiser_of(module), EDM(), torch.Generator().manual_seed(0)
        self.inner = in_precision(torch.compile(module) if compiled else module, precision)
        self.frames, self.act = torch.rand(batch, 6, 3, size, size) * 2 - 1, torch.randint(18, (batch, 6))
        self.mask, self.past = torch.ones(batch, 6, dtype=torch.bool), torch.rand(32 if batch > 1 else 1, 4, 3, size, size) * 2 - 1
        self.taken = torch.randint(18, (len(self.past), 4))

    def train(self) -> None:
        self.optimiser.zero_grad()
        segment_loss(self.objective, self.inner, self.frames, self.act, self.mask, self.generator).backward()
        self.optimiser.step()

    def imagine(self, n: int) -> None: self.objective.sample(self.inner, self.past, self.taken, self.generator, steps=n)


class Peer:
    "diffusers' U-Net of about the same operations, trained on the same number of frames."
    def __init__(self, size: int, batch: int, flops: int, patch: int, precision: str, levels: int, layers: int):
        import_torchvision()                     # diffusers imports it too; a CUDA build beside a CPU torch needs help
        from diffusers import UNet2DModel
        side, inputs = size // patch, 15 * patch ** 2
        def make(width): return UNet2DModel(sample_size=side, in_channels=inputs, out_channels=3 * patch ** 2, block_out_channels=(width,) * levels, layers_per_block=layers,
                                            down_block_types=("DownBlock2D",) * levels, up_block_types=("UpBlock2D",) * levels, norm_num_groups=8)
        def cost(width):
            with torch.device("meta"), FlopCounterMode(display=False) as counter: make(width)(torch.empty(1, inputs, side, side), torch.ones(1))
            return counter.get_total_flops()
        self.width = min(range(16, 129, 8), key=lambda w: abs(np.log(cost(w) / flops)))
        self.flops, self.model = cost(self.width), make(self.width).to(memory_format=torch.channels_last)
        self.precision, self.optimiser = precision, torch.optim.AdamW(self.model.parameters(), fused=True)
        self.x, self.more = torch.randn(2 * batch, inputs, side, side), torch.randn(32 if batch > 1 else 1, inputs, side, side)

    def run(self, x) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"): return self.model(x, torch.rand(len(x)) * 999).sample.float()

    def train(self) -> None:
        self.optimiser.zero_grad()
        self.run(self.x).square().mean().backward()
        self.optimiser.step()

    @torch.no_grad()
    def imagine(self, n: int) -> None:
        for _ in range(n): self.run(self.more)


def compare(name: str, rounds: int, compiled: bool) -> None:
    "One block of the table."
    c, size, batch = SIZES[name]
    flops = forward_flops(c, size)
    limit = {p: matmul_rate(getattr(torch, p)) for p in ("float32", "bfloat16")}
    precisions = [p for p in limit if limit[p] >= limit["float32"]]              # a CPU without bfloat16 imitates it, many times slower
    variants = {f"{p}{', channels last' if last else ''}": Ours(c, size, batch, p, last) for p in precisions for last in (False, True)}
    if compiled: variants |= {f"{p}, channels last, compiled": Ours(c, size, batch, p, True, True) for p in precisions}
    if importlib.util.find_spec("diffusers"):
        variants |= {f"diffusers, {p}": Peer(size, batch, flops, c.patch, p, len(c.channels), c.depths[0]) for p in precisions}
    fit = median_seconds({k: v.train for k, v in variants.items()}, rounds)
    one = median_seconds({k: lambda v=v: v.imagine(1) for k, v in variants.items()}, rounds)
    three = median_seconds({k: lambda v=v: v.imagine(3) for k, v in variants.items()}, rounds)
    print(f"{name}: {size} x {size}, {flops / 2e6:,.0f} million multiply-adds a frame, batch {batch}; products reach " + ", ".join(f"{x / 1e9:.0f} GFLOP/s in {p}" for p, x in limit.items()))
    for k, v in variants.items():
        own, rate = getattr(v, "flops", flops), limit["bfloat16" if "bfloat16" in k else "float32"]
        images = len(v.more) if isinstance(v, Peer) else len(v.past)
        print(f"  {k:36} {1e3 * fit[k]:9.1f} ms a step, {6 * own * batch / fit[k] / rate:4.0%} of the limit; {images / one[k]:8.1f} frames/s with n = 1, {images / three[k]:8.1f} with n = 3, "
              f"{images * own / one[k] / rate:4.0%}" + (f"  (width {v.width}, {own / flops:.2f} x our operations)" if isinstance(v, Peer) else ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="all", choices=[*SIZES, "all"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which takes minutes to compile")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not importlib.util.find_spec("diffusers"): print("diamond_denoiser: no comparison, diffusers is not installed (see the head of benchmarks/diamond_denoiser.py)")
    for name in SIZES if args.size == "all" else [args.size]: compare(name, args.rounds, args.compile)


if __name__ == "__main__": main()
