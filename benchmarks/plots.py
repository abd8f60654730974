"""Draws ``docs/images/streams.svg`` from the results on a GPU: ``python -m benchmarks.plots``.

Needs matplotlib, which nothing else does: ``pip install matplotlib``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.results import FOLDER

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "streams.svg"
OURS = "fused"


def main() -> None:
    """One curve for each variant that served many streams: frames/s in all, and the age of a frame."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "streams", "font.size": 9, "axes.spines.top": False})
    from matplotlib import pyplot

    found: dict[str, Any] = json.loads((FOLDER / "gpu.json").read_text(encoding="utf-8"))
    figure, (rate, age) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for name, variant in found["variants"].items():
        loads = variant.get("streams", {})
        if not loads:
            continue
        style = {
            "marker": "o",
            "markersize": 3,
            "linewidth": 2.2 if name.startswith(OURS) else 1.1,
            "label": name,
        }
        streams = [int(count) for count in loads]
        rate.plot(streams, [load["frames_per_second"] for load in loads.values()], **style)
        age.plot(streams, [load["age_ms"]["p99"] for load in loads.values()], **style)
    rate.set_ylabel("frames/s in all")
    rate.set_ylim(bottom=0)
    age.set_ylabel("age of a frame, 99th percentile, ms")
    age.set_yscale("log")
    for axes in (rate, age):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("streams")
        ticks = sorted({int(c) for v in found["variants"].values() for c in v.get("streams", {})})
        axes.set_xticks(ticks, [str(count) for count in ticks])
        axes.grid(alpha=0.25)
    figure.legend(*rate.get_legend_handles_labels(), frameon=False, fontsize=7, loc="outside right center")
    figure.suptitle(f"{found['machine']['gpu']}: SD-Turbo's architecture, 512×512, img2img, one step")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None})
    print(PICTURE)


if __name__ == "__main__":
    main()
