"""Trains the model on build/train.npy and keeps the weights of the best validation loss.

Writes into --out: model-1.safetensors and model-2.safetensors (float16, names
and layout of transformers' GPT2LMHeadModel), loss.csv and train.json.

An epoch visits every token once: the token stream is cut into windows of
context + 1 tokens from a fresh random offset, and the windows are shuffled. A
window may run over a document's end; the <|endoftext|> there is all the model
gets to know about it. Every window trains all 512 positions.
"""

import argparse
import csv
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from model import Model, Shape
from sources import BUILD


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=float, default=38)
    parser.add_argument("--max-minutes", type=float, default=30, help="stop by then at the latest")
    parser.add_argument("--batch", type=int, default=64, help="windows a step")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--weight-decay", type=float, default=1.5)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--warmup", type=int, default=300, help="steps")
    parser.add_argument("--eval-every", type=int, default=250, help="steps")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="a toy shape, to try the code on a CPU")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", type=Path, default=BUILD / "run")
    return parser.parse_args()


def load(name: str, device: str) -> Tensor:
    return torch.from_numpy(np.load(BUILD / f"{name}.npy").astype(np.int64)).to(device)


def windows(tokens: Tensor, offset: int, length: int) -> Tensor:
    count = (len(tokens) - offset) // length
    return tokens[offset:offset + count * length].view(count, length)


def batches(tokens: Tensor, length: int, size: int, generator: torch.Generator):
    """Endless batches, epoch after epoch."""
    while True:
        offset = int(torch.randint(length, (1,), generator=generator))
        rows = windows(tokens, offset, length)
        order = torch.randperm(len(rows), generator=generator).to(tokens.device)
        for start in range(0, len(rows) - size + 1, size):
            batch = rows[order[start:start + size]]
            yield batch[:, :-1], batch[:, 1:]


@torch.no_grad()
def validate(model: torch.nn.Module, tokens: Tensor, context: int, size: int) -> float:
    """Mean loss over windows of `context` tokens, all but the first of each scored."""
    model.eval()
    rows = windows(tokens, 0, context)
    total = 0.0
    for start in range(0, len(rows), size):
        batch = rows[start:start + size]
        total += float(model(batch[:, :-1], batch[:, 1:])) * len(batch)
    model.train()
    return total / len(rows)


def optimizer_of(model: Model, args: argparse.Namespace, device: str) -> torch.optim.AdamW:
    """AdamW; weight decay pulls on the matrices only, not on norms and biases."""
    decayed = [p for p in model.parameters() if p.dim() == 2]
    plain = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": decayed, "weight_decay": args.weight_decay},
              {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), eps=1e-8,
                             fused=device == "cuda")


def learning_rate(step: int, steps: int, args: argparse.Namespace) -> float:
    """Linear warm-up, then a cosine down to nothing."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    progress = (step - args.warmup) / max(1, steps - args.warmup)
    return args.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def save(weights: dict[str, Tensor], shape: Shape, out: Path) -> None:
    """Two files of about the same size, so that each stays below 16 MiB."""
    half = sum(t.nbytes for t in weights.values()) / 2
    parts, size = ({}, {}), 0
    for name, tensor in weights.items():
        parts[0 if size < half else 1][name] = tensor
        size += tensor.nbytes
    for number, part in enumerate(parts, 1):
        save_file(part, out / f"model-{number}.safetensors",
                  metadata={"shape": json.dumps(shape.as_dict())})


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    shape = Shape(context=64, width=64, layers=2, heads=2) if args.tiny else Shape()
    model = Model(shape, args.dropout).to(device)
    optimizer = optimizer_of(model, args, device)
    forward = model if args.no_compile else torch.compile(model)
    train, valid = load("train", device), load("valid", device)
    steps = int(args.epochs * len(train) / (shape.context + 1) / args.batch)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(train)} training "
          f"tokens, {steps} steps of {args.batch * shape.context} tokens", flush=True)

    best, best_step, best_weights = math.inf, -1, None
    source = batches(train, shape.context + 1, args.batch, generator)
    log = (args.out / "loss.csv").open("w", newline="")
    table = csv.writer(log)
    table.writerow(["step", "epoch", "learning_rate", "train_loss", "valid_loss", "seconds"])
    losses: list[Tensor] = []
    began = time.monotonic()
    for step in range(1, steps + 1):
        rate = learning_rate(step - 1, steps, args)
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, targets = next(source)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = forward(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        out_of_time = step % 50 == 0 and time.monotonic() - began > args.max_minutes * 60
        if step % args.eval_every == 0 or step == steps or out_of_time:
            # The uncompiled model in float32: few, exact, and no second graph.
            valid_loss = validate(model, valid, shape.context, args.batch)
            train_loss = float(torch.stack(losses).mean())
            losses.clear()
            seconds = time.monotonic() - began
            epoch = step * args.batch * (shape.context + 1) / len(train)
            table.writerow([step, f"{epoch:.3f}", f"{rate:.3e}", f"{train_loss:.5f}",
                            f"{valid_loss:.5f}", f"{seconds:.1f}"])
            log.flush()
            print(f"step {step} epoch {epoch:.2f} train {train_loss:.4f} "
                  f"valid {valid_loss:.4f} {seconds:.0f}s", flush=True)
            if valid_loss < best:
                best, best_step, best_weights = valid_loss, step, model.to_gpt2()
        if out_of_time:
            print("out of time", flush=True)
            break
    log.close()
    save(best_weights, shape, args.out)
    seconds = time.monotonic() - began
    report = {
        "best_valid_loss": best, "best_step": best_step, "steps": step, "planned_steps": steps,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(step * args.batch * shape.context / seconds),
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_tokens": len(train), "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "arguments": {k: v for k, v in vars(args).items() if k != "out"},
    }
    (args.out / "train.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
