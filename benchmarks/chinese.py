"""The words of the tables of docs/performance.md in Chinese, for docs/zh/performance.md.

What is not here is a name, a number or a unit, and stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from benchmarks.capacity import PACES

WORDS = {
    **PACES["zh"],
    # Heads
    "CPU ms": "CPU（ms）",
    "GPU only": "仅 GPU",
    "age p50, ms": "延迟 p50（ms）",
    "age p99, ms": "延迟 p99（ms）",
    "attention": "注意力",
    "batch fill": "批次填充率",
    "building, s": "构建（s）",
    "codec ms": "编解码（ms）",
    "convolutions": "卷积",
    "copies": "复制",
    "decode": "解码",
    "device, GiB": "设备（GiB）",
    "encode": "编码",
    "frames/s": "帧/秒",
    "host's launch": "主机启动",
    "launches": "启动次数",
    "matrix products": "矩阵乘",
    "ms a picture": "每张图片毫秒数",
    "ms per frame": "每帧毫秒数",
    "new prompt shows after, ms": "新提示词显现（ms）",
    "norms and pointwise": "归一化与逐点运算",
    "original, ms": "原版（ms）",
    "ours, ms": "本项目（ms）",
    "picture, results by": "图片, 结果经由",
    "process, GiB": "进程（GiB）",
    "quartiles": "四分位数",
    "queue p95, ms": "queue p95（ms）",
    "frames/s, padded": "帧/秒，填充",
    "frames/s, by cost": "帧/秒，按代价",
    "age p50, ms, padded": "延迟 p50（ms），填充",
    "age p50, ms, by cost": "延迟 p50（ms），按代价",
    "ratio": "比值",
    "step": "步进",
    "sum per frame": "每帧合计",
    "times as fast": "速度倍数",
    "total": "总计",
    "users": "用户",
    "warm-up, s": "预热（s）",
    # Parts of heads and rows
    "batch": "批次",
    "image": "图像",
    "keys": "个键",
    "queries": "个查询",
    "socket": "WebSocket",
    "steps": "步数",
    "stream": "图像流",
    "streams": "路数",
    "to": "至",
    "video": "视频",
}

_LONGEST_FIRST = "|".join(re.escape(words) for words in sorted(WORDS, key=len, reverse=True))


def in_chinese(make: Callable[..., str]) -> Callable[..., str]:
    """The same table, with Chinese words."""

    def made(*found: object) -> str:
        return re.sub(rf"\b({_LONGEST_FIRST})\b", lambda words: WORDS[words[0]], make(*found))

    return made
