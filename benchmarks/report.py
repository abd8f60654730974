"""Turns ``benchmarks/results`` into the tables of the documentation: ``python -m benchmarks.report``.

The text around the tables is written by hand; a table, or a sentence full of figures, stands between
``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``. ``--check`` changes nothing and says which pages are not
up to date.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import capacity
from benchmarks.chinese import in_chinese
from benchmarks.results import FOLDER

DOCS = Path(__file__).resolve().parents[1] / "docs"

Figures = Mapping[str, Any]
WAYS = ("padded", "by cost")


def table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown; all columns but the first are aligned to the right."""
    heads = list(heads)
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def kernels(found: Figures) -> str:
    """Where the device's time goes."""
    ticks = [
        (f"{name}, {batch}", figures)
        for name, batches in found["ticks"].items()
        if "error" not in batches
        for batch, figures in batches.items()
    ]
    kinds = list(ticks[0][1]["kernels_ms"]) if ticks else []
    return table(
        ["", *kinds, "launches", "TFLOP/s"],
        (
            [
                name,
                *(f"{tick['kernels_ms'][kind]:.2f}" for kind in kinds),
                tick["launches"],
                tick["tflops"],
            ]
            for name, tick in ticks
        ),
    )


def stages(found: Figures) -> str:
    """Milliseconds of the device's stages and of the host's launch, by batch size."""
    rows = []
    for name, variant in found["variants"].items():
        stages = variant.get("stages_ms")
        for batch, host in stages["host"].items() if stages else ():
            device = [
                stages["device"][f"{stage}, batch {batch}"]["median"]
                for stage in ("begin image", "step", "decode")
            ]
            rows.append(
                [
                    f"{name}, batch {batch}",
                    *(f"{ms:.2f}" for ms in device),
                    f"{sum(device) / int(batch):.2f}",
                    f"{host['launch']['median']:.2f}",
                ]
            )
    return table(["", "encode", "step", "decode", "sum per frame", "host's launch"], rows)


def start(found: Figures) -> str:
    """Seconds to readiness, memory, and how soon a new prompt shows."""
    rows = []
    for name, variant in found["variants"].items():
        seconds = variant.get("seconds", {})
        if "warm-up" not in seconds:
            continue
        change = variant.get("prompt_change_ms", {}).get("change", {})
        rows.append(
            [
                name,
                f"{seconds['acceleration']:.1f}",
                f"{seconds['warm-up']:.1f}",
                variant["memory_gib"],
                variant["process_memory_gib"],
                f"{change['median']:.0f}" if "median" in change else "",
            ]
        )
    heads = ("building, s", "warm-up, s", "device, GiB", "process, GiB", "new prompt shows after, ms")
    return table(["", *heads], rows)


def server(found: Figures) -> str:
    """Users of the whole server on a GPU."""
    return table(
        ["", "users", "frames/s", "age p50, ms", "age p99, ms", "queue p95, ms"],
        (
            [
                name,
                run["users"],
                run["frames_per_second"],
                run["age_ms"]["p50"],
                run["age_ms"]["p99"],
                run["queue_ms"]["p95"],
            ]
            for name in ("as fast as they can", "20 fps each")
            for run in found[name]
        ),
    )


def codec(found: Figures) -> str:
    """Milliseconds of one picture."""
    return table(["", "ms a picture"], ([name, run["median"]] for name, run in _measured(found["codec_ms"])))


def attention(found: Figures) -> str:
    """Microseconds of one attention by kernel."""
    names = ("cuDNN", "flash", "efficient")
    return table(
        ["", *names],
        ([shape, *(times[n] for n in names)] for shape, times in _measured(found["attention_us"])),
    )


def one_stream(found: Figures) -> str:
    """Milliseconds per frame of one stream, by variant, mode and steps; and of the first of these loads from
    tensor to tensor, without pictures and their copies.
    """
    variants = {name: v for name, v in found["variants"].items() if "one_stream" in v}
    loads = list(dict.fromkeys(load for v in variants.values() for load in v["one_stream"]))
    rows = (
        [name, *(_ms(v["one_stream"].get(load)) for load in loads), _tensors_ms(v, loads[0])]
        for name, v in variants.items()
    )
    heads = [load.replace(", ", ", steps ") for load in loads]
    return table(["ms per frame", *heads, f"{heads[0]}, GPU only"], rows)


def many_streams(found: Figures) -> str:
    """Frames per second in all, and the age of a frame, by variant and number of streams."""
    rows = [
        [name, streams, figures["frames_per_second"],
         f"{figures['age_ms']['median']:.1f}", f"{figures['age_ms']['p99']:.1f}",
         figures.get("batch_fill", "")]
        for name, variant in found["variants"].items()
        for streams, figures in variant.get("streams", {}).items()
    ]  # fmt: skip
    return table(["", "streams", "frames/s", "age p50, ms", "age p99, ms", "batch fill"], rows)


def on_cpu(found: Figures) -> str:
    """Processor time of a frame on one core, beside the original's."""
    return table(
        ["", "original, ms", "ours, ms", "times as fast", "quartiles"],
        (
            [
                name,
                figures["original cpu_ms_per_frame"]["median"],
                figures["ours cpu_ms_per_frame"]["median"],
                f"{figures['ratio']['median']:.2f}",
                f"{figures['ratio']['p25']:.2f} to {figures['ratio']['p75']:.2f}",
            ]
            for name, figures in found["loads"].items()
        ),
    )


def scheduling(found: Figures) -> str:
    """Users of a played device, with batches that are padded and with batches chosen by their cost."""
    return table(
        ["users", "frames/s, padded", "frames/s, by cost", "age p50, ms, padded", "age p50, ms, by cost"],
        (
            [
                users,
                *(runs[way]["frames_per_second"] for way in WAYS),
                *(runs[way]["age_ms"]["median"] for way in WAYS),
            ]
            for users, runs in found["loads"].items()
        ),
    )


def server_on_cpu(found: Figures) -> str:
    """One user of the whole server on a CPU: the runs of each acceleration."""
    return table(
        ["", "frames/s", "age p50, ms", "age p99, ms"],
        (
            [name, run["frames_per_second"], run["age_ms"]["p50"], run["age_ms"]["p99"]]
            for name, runs in found["server"].items()
            for run in sorted(runs, key=lambda run: run["frames_per_second"])
        ),
    )


def serving(found: Figures) -> str:
    """The serving layer alone: what a frame costs the server, beside decoding and encoding it."""
    rows = (
        [
            f"{figures['picture']}, {figures['results_by']}",
            figures["users"],
            figures["frames_per_second"],
            *((figures["age_ms"]["p50"], figures["age_ms"]["p99"]) if "age_ms" in figures else ("", "")),
            figures["cpu_ms_per_frame"],
            figures["codec_ms_per_frame"],
            figures["ratio"],
            figures["queue_ms"]["p95"],
        ]
        for figures in found["pass_through"]
    )
    heads = (
        "users",
        "frames/s",
        "age p50, ms",
        "age p99, ms",
        "CPU ms",
        "codec ms",
        "ratio",
        "queue p95, ms",
    )
    return table(["picture, results by", *heads], rows)


IN_WORDS: Mapping[capacity.Language, str] = {
    "en": """\
A frame costs the server {least:.2f} to {most:.2f} times its codec, \
**{middle:.2f} at the median** (aim: 1.25).
With a runner that takes 20 ms a tick and {users} users at 20 frames/s, each gets {fps:.2f} frames/s at an
age of {p50:.0f} ms (median) and {p99:.0f} ms (99th percentile); \
quarter by quarter the median is {young:.0f} to {old:.0f} ms.
Meanwhile `/api/queue` answers in {queue:.1f} ms (95th percentile {queue_p95:.1f}).""",
    "zh": """\
服务器处理一帧的用时是其编解码的 {least:.2f} 至 {most:.2f} 倍，**中位数为 {middle:.2f}**（目标：1.25）。
运行器每个节拍用 20 ms、{users} 位用户各 20 帧/秒时，每位得到 {fps:.2f} 帧/秒，
延迟为 {p50:.0f} ms（中位数）和 {p99:.0f} ms（第 99 百分位）；\
把时间分成四段，各段的中位数为 {young:.0f} 至 {old:.0f} ms。
与此同时，`/api/queue` 在 {queue:.1f} ms 内回答（第 95 百分位为 {queue_p95:.1f}）。""",
}


def serving_in_words(language: capacity.Language, found: Figures) -> str:
    """The serving layer's figures against its aims."""
    ratios = [run["ratio"] for run in found["pass_through"]]
    ticks = found["tick_20_ms"]
    quarters = ticks["age_p50_ms_by_quarter"]
    return IN_WORDS[language].format(
        least=min(ratios),
        most=max(ratios),
        middle=median(ratios),
        users=ticks["users"],
        fps=ticks["frames_per_user"]["median"],
        p50=ticks["age_ms"]["p50"],
        p99=ticks["age_ms"]["p99"],
        young=min(quarters),
        old=max(quarters),
        queue=ticks["queue_ms"]["p50"],
        queue_p95=ticks["queue_ms"]["p95"],
    )


def planned(name: str, language: capacity.Language, rows: capacity.Rows) -> str:
    """A table of the plan for many users."""
    return table(capacity.HEADS[name][language], rows)


def measured_gpu(language: capacity.Language, gpu: Figures, server: Figures) -> str:
    """Users of one GPU, and which GPU that is."""
    machine = gpu["machine"]
    dates = sorted({figures["machine"]["date"][:10] for figures in gpu["variants"].values()})
    caption = f"{machine['gpu']}, torch {machine['versions']['torch']}, {', '.join(dates)}"
    return f"{caption}\n\n{planned('gpu', language, capacity.users_of_a_gpu(gpu, server))}"


Tables = Mapping[str, tuple[tuple[str, ...], Callable[..., str]]]
"""The blocks of a page: the results that each is made of, and how."""


def scaling(language: capacity.Language) -> Tables:
    """The blocks of docs/scaling.md in a language."""

    def plan(server: Figures, proxies: Figures) -> str:
        return planned("plan", language, capacity.plan(server, proxies))

    def limits(server: Figures, proxies: Figures) -> str:
        return planned("limits", language, capacity.limits(language, server, proxies))

    def assumed(proxies: Figures) -> str:
        return planned("assumed", language, capacity.assumptions(language, proxies))

    def server(found: Figures) -> str:
        return planned("server", language, capacity.users_of_a_server(language, found))

    return {
        "assumed": (("proxies",), assumed),
        "gpu": (("gpu", "gpu-server"), lambda gpu, server: measured_gpu(language, gpu, server)),
        "server": (("gpu-server",), server),
        "plan": (("gpu-server", "proxies"), plan),
        "limits": (("gpu-server", "proxies"), limits),
    }


def deployment(language: capacity.Language) -> Tables:
    """The blocks of docs/deployment.md in a language."""
    return {
        "latency": (
            ("proxies",),
            lambda proxies: planned("latency", language, capacity.latency(language, proxies)),
        )
    }


def performance(language: capacity.Language) -> Tables:
    """The blocks of docs/performance.md in a language."""
    tables: Tables = {
        "kernels": (("kernels",), kernels),
        "attention": (("kernels",), attention),
        "codec": (("kernels",), codec),
        "stages": (("gpu",), stages),
        "start": (("gpu",), start),
        "server": (("gpu-server",), server),
        "one stream": (("gpu",), one_stream),
        "many streams": (("gpu",), many_streams),
        "scheduling": (("scheduling",), scheduling),
        "cpu": (("cpu",), on_cpu),
        "server on cpu": (("cpu",), server_on_cpu),
        "serving": (("serving-cpu",), serving),
    }
    if language == "zh":
        tables = {name: (files, in_chinese(make)) for name, (files, make) in tables.items()}
    return {**tables, "serving in words": (("serving-cpu",), partial(serving_in_words, language))}


PAGES: Mapping[str, Tables] = {
    "performance.md": performance("en"),
    "zh/performance.md": performance("zh"),
    "scaling.md": scaling("en"),
    "zh/scaling.md": scaling("zh"),
    "deployment.md": deployment("en"),
    "zh/deployment.md": deployment("zh"),
}


def render(page: str, tables: Tables) -> str:
    """The page with every table made anew whose results are there."""
    for name, (files, make) in tables.items():
        begin, end = f"<!-- begin: {name} -->\n", f"<!-- end: {name} -->"
        paths = [FOLDER / f"{file}.json" for file in files]
        if all(path.exists() for path in paths) and begin in page:
            before, _, rest = page.partition(begin)
            _, _, after = rest.partition(end)
            made = make(*(json.loads(path.read_text(encoding="utf-8")) for path in paths))
            page = f"{before}{begin}{made}\n{end}{after}"
    return page


def outdated() -> dict[str, str]:
    """The pages whose tables are not those of the results, by name, as they should be."""
    made = {}
    for name, tables in PAGES.items():
        page = (DOCS / name).read_text(encoding="utf-8")
        if (rendered := render(page, tables)) != page:
            made[name] = rendered
    return made


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    pages = outdated()
    if check and pages:
        sys.exit(f"run python -m benchmarks.report: {', '.join(pages)}")
    for name, page in pages.items():
        (DOCS / name).write_text(page, encoding="utf-8")


def _measured(figures: Figures) -> Iterable[tuple[str, Any]]:
    """The single figures; none if an error stands in their place."""
    return () if "error" in figures else figures.items()


def _ms(figures: Figures | None) -> str:
    if figures is None:
        return ""
    return f"{figures['ms']['median'] if 'ms' in figures else figures['ms_per_frame']:.2f}"


def _tensors_ms(variant: Figures, load: str) -> str:
    if "stages_ms" in variant:
        device = variant["stages_ms"]["device"]
        stages = ("begin image", "step", "decode")
        return f"{sum(device[f'{stage}, batch 1']['median'] for stage in stages):.2f}"
    return f"{variant['one_stream'][load]['on_device_ms']['median']:.2f}"


if __name__ == "__main__":
    main()
