"""Draws models/loss.png from the loss table of a training run."""

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from export import MODEL
from sources import BUILD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=BUILD / "run")
    args = parser.parse_args()
    with (args.run / "loss.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    epochs = [float(r["epoch"]) for r in rows]
    train = [float(r["train_loss"]) for r in rows]
    valid = [float(r["valid_loss"]) for r in rows]

    figure, axes = plt.subplots(figsize=(6.4, 3.6), dpi=110)
    axes.plot(epochs, train, label="training (with dropout)", color="#7a7a7a", linewidth=1.3)
    axes.plot(epochs, valid, label="validation", color="#b5442b", linewidth=1.8)
    best = min(range(len(valid)), key=valid.__getitem__)
    axes.annotate(f"{valid[best]:.3f}", (epochs[best], valid[best]), xytext=(-6, 10),
                  textcoords="offset points", ha="right", color="#b5442b")
    # The first evaluations, near log(8000), would flatten the rest of the curve.
    axes.set_ylim(min(train + valid) - 0.15, 5.0)
    axes.set_xlim(0, None)
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss (nats a token)")
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(MODEL.parent / "loss.png")


if __name__ == "__main__":
    main()
