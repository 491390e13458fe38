"""Time a full pre-training step against transformers' ViTMAEForPreTraining.

    make bench-pretrain            # or: python -m benchmarks.bench_pretrain

Same architecture, same weights, batch, masking ratio, precision, optimizer and gradient clipping. Our step does more:
it cuts random views and keeps an average of the weights; "with refinement" looks at the images once more, unmasked, as
often as a training does once refinement has started. The masking ratio is held at MAE's 0.75 for all: AMR starts with a
lower one, which means more visible tokens and so more work in each step, whatever the implementation. All contestants
take turns in one process, and each figure is the median of ratios within a turn, so a machine that speeds up or slows
down does not favour one of them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from amlp.data.augment import apply_views, random_views, step_generator
from amlp.method.objective import amlp_loss
from amlp.method.sampling import choose_patches
from amlp.models.checkpoint import InputStats
from amlp.models.encoder import EncoderPlan
from amlp.models.mae import MaskedAutoencoder
from amlp.params import AmrParams, CclParams, DecoderParams, EncoderParams, MpsParams, PretrainParams, RrlParams
from amlp.training.optim import WeightAverage, adamw, guarded_step
from benchmarks.machine import report

RATIO = 0.75
STATS = InputStats(mean=(0.3,), std=(0.2,))
OFF = PretrainParams(
    target="normalised",
    amr=AmrParams(enabled=False, end=RATIO),
    mps=MpsParams(enabled=False),
    rrl=RrlParams(enabled=False),
    ccl=CclParams(enabled=False),
)
ON = PretrainParams(target="normalised", amr=AmrParams(enabled=False, end=RATIO))


def to_transformers(model: MaskedAutoencoder, decoder: DecoderParams) -> ViTMAEForPreTraining:
    """Build transformers' model with the same architecture and the same weights, for square images."""
    plan = model.plan
    theirs = ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=plan.height,
            patch_size=plan.patch,
            num_channels=plan.channels,
            hidden_size=plan.dim,
            num_hidden_layers=plan.depth,
            num_attention_heads=plan.heads,
            intermediate_size=4 * plan.dim,
            decoder_hidden_size=decoder.dim,
            decoder_num_hidden_layers=decoder.depth,
            decoder_num_attention_heads=decoder.heads,
            decoder_intermediate_size=4 * decoder.dim,
            layer_norm_eps=1e-6,
            mask_ratio=RATIO,
            norm_pix_loss=True,
        )
    )
    state, own = {}, model.state_dict()

    def copy(to: str, source: str) -> None:
        for kind in ("weight", "bias"):
            state[f"{to}.{kind}"] = own[f"{source}.{kind}"]

    def copy_blocks(to: str, source: str, depth: int) -> None:
        for i in range(depth):
            for kind in ("weight", "bias"):
                parts = own[f"{source}.{i}.attn.qkv.{kind}"].chunk(3)
                for name, part in zip("qkv", parts, strict=True):
                    state[f"{to}.{i}.attention.{name}_proj.{kind}"] = part
            copy(f"{to}.{i}.attention.o_proj", f"{source}.{i}.attn.proj")
            copy(f"{to}.{i}.layernorm_before", f"{source}.{i}.norm1")
            copy(f"{to}.{i}.layernorm_after", f"{source}.{i}.norm2")
            copy(f"{to}.{i}.mlp.fc1", f"{source}.{i}.mlp.fc1")
            copy(f"{to}.{i}.mlp.fc2", f"{source}.{i}.mlp.fc2")

    state["vit.embeddings.cls_token"] = own["encoder.vit.cls_token"]
    state["vit.embeddings.position_embeddings"] = own["encoder.vit.pos_embed"]
    copy("vit.embeddings.patch_embeddings.projection", "encoder.vit.patch_embed.proj")
    copy_blocks("vit.layers", "encoder.vit.blocks", plan.depth)
    copy("vit.layernorm", "encoder.vit.norm")
    state["decoder.mask_token"] = own["mask_token"]
    state["decoder.decoder_pos_embed"] = model.decoder_positions
    copy("decoder.decoder_embed", "decoder_embed")
    copy_blocks("decoder.decoder_layers", "decoder_blocks", decoder.depth)
    copy("decoder.decoder_norm", "decoder_norm")
    copy("decoder.decoder_pred", "pixel_head")
    theirs.load_state_dict(state, strict=True)
    return theirs


def our_step(
    plan: EncoderPlan, settings: PretrainParams, images: np.ndarray, scores: np.ndarray, *, refine: bool = False
) -> Callable[[], None]:
    """A training step as the pre-training loop does it, on a batch in memory."""
    torch.manual_seed(0)
    model = MaskedAutoencoder(plan, settings.decoder, categories=settings.ccl.enabled).train()
    average = WeightAverage(model, settings.ema)
    optimizer = adamw([{"parameters": model.named_parameters(), "scale": 1.0}], weight_decay=0.05, betas=(0.9, 0.95))
    parameters = [p for p in model.parameters() if p.requires_grad]
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    batch, step = len(images), 0

    def run() -> None:
        nonlocal step
        step += 1
        pixels = torch.from_numpy(images).float()
        views = random_views(batch, step_generator(0, step), size=(plan.height, plan.width), min_area=settings.min_crop)
        lesion = torch.zeros(batch, plan.patches, dtype=torch.bool)
        if settings.mps.enabled:
            maps = F.interpolate(torch.from_numpy(scores).unsqueeze(1), size=pixels.shape[-2:], mode="nearest")
            both = apply_views(torch.cat([pixels, maps], dim=1), views)
            pixels, lesion = both[:, :-1], F.avg_pool2d(both[:, -1:], plan.patch).flatten(1) > 0.5
        else:
            pixels = apply_views(pixels, views)
        noise = torch.rand(batch, plan.patches, generator=step_generator(0, step, 1))
        masked, visible = choose_patches(lesion, noise, ratio=RATIO, params=settings.mps)
        normalised = STATS.normalise(pixels)
        losses = amlp_loss(
            model, normalised, lesion, masked, visible, patch=plan.patch, settings=settings, progress=1.0
        )
        losses.total.backward()
        guarded_step(optimizer, parameters, settings.clip_norm)
        average.update(model, step)
        if refine and step % settings.mps.refresh_epochs == 0:
            # Refinement: in `refresh_epochs` epochs every image is looked at once more, unmasked.
            with torch.inference_mode():
                average.model.categories(normalised)

    return run


def their_step(plan: EncoderPlan, images: np.ndarray) -> Callable[[], None]:
    """The same for transformers' model: forward, backward, clip, AdamW."""
    torch.manual_seed(0)
    model = to_transformers(MaskedAutoencoder(plan, OFF.decoder, categories=False), OFF.decoder).train()
    optimizer = adamw([{"parameters": model.named_parameters(), "scale": 1.0}], weight_decay=0.05, betas=(0.9, 0.95))
    parameters = [p for p in model.parameters() if p.requires_grad]
    for group in optimizer.param_groups:
        group["lr"] = 1e-4

    def run() -> None:
        loss = model(STATS.normalise(torch.from_numpy(images))).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, OFF.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="turns that count")
    parser.add_argument(
        "--steps",
        type=int,
        default=10,
        help="steps of each in a turn; a multiple of mps.refresh_epochs",
    )
    parser.add_argument("--batch", type=int, default=32, help="images in a batch")
    parser.add_argument("--size", type=int, default=128, help="side of the square images, px")
    args = parser.parse_args()

    plan = EncoderPlan(channels=1, height=args.size, width=args.size, **EncoderParams().model_dump())
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (args.batch, 1, args.size, args.size), dtype=np.uint8)
    scores = (random.random((args.batch, *plan.grid)) < 0.2).astype(np.float32)
    contestants = {
        "transformers": their_step(plan, images),
        "ours, parts off": our_step(plan, OFF, images, scores),
        "ours, AMLP": our_step(plan, ON, images, scores),
        "with refinement": our_step(plan, ON, images, scores, refine=True),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(args.turns + 1):
        names = list(contestants)
        for name in names[turn % 4 :] + names[: turn % 4]:
            started = time.perf_counter()
            for _ in range(args.steps):
                contestants[name]()
            if turn >= 1:  # the first turn warms up
                times[name].append((time.perf_counter() - started) / args.steps)

    def ratio(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))

    figures = {
        "speedup_over_transformers": round(ratio("transformers", "ours, parts off"), 3),
        "amlp_overhead": round(ratio("ours, AMLP", "ours, parts off") - 1, 3),
        "amlp_overhead_with_refinement": round(ratio("with refinement", "ours, parts off") - 1, 3),
        "batch": args.batch,
        "size": args.size,
        "turns": args.turns,
    } | {f"ms_per_step[{name}]": round(1000 * statistics.median(values), 1) for name, values in times.items()}
    for name, values in times.items():
        low, median, high = (1000 * f(values) for f in (min, statistics.median, max))
        print(f"{name:16} {median:8.1f} ms a step ({low:.1f} .. {high:.1f})")
    report(
        "pretrain",
        figures,
        f"parts off: {figures['speedup_over_transformers']:.2f}x the speed of transformers' ViTMAE; "
        f"AMLP on top costs {figures['amlp_overhead']:+.1%} a step, "
        f"{figures['amlp_overhead_with_refinement']:+.1%} with the refinement of score maps (masking ratio 0.75)",
        packages=("torch", "timm", "transformers", "numpy"),
    )


if __name__ == "__main__":
    main()
