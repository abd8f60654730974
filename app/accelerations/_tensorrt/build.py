"""From an ONNX file to a serialised engine, with progress. Needs no GPU with TensorRT for RTX."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.accelerations._onnx_export import Network
from app.accelerations.base import AccelerationError

log = logging.getLogger(__name__)

Report = Callable[[str], None]

PROGRESS_STEP = 10
"""Percent between two reports."""
FEW_STEPS = 5
"""A phase with fewer steps is not worth a report; there are hundreds of those."""


def build(trt: Any, network: Network, onnx: Path, report: Report) -> bytes:
    """The engine, for every batch size from 1 to the largest; tuned for the middle one.

    Raises:
        AccelerationError: with TensorRT's own words, if it cannot.
    """
    logger = logger_of(trt)
    builder = trt.Builder(logger)
    definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(definition, logger)
    if not parser.parse_from_file(str(onnx)):
        reasons = "; ".join(str(parser.get_error(number)) for number in range(parser.num_errors))
        raise AccelerationError(f"TensorRT cannot read {network.words}: {reasons}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    typical = network.batches[len(network.batches) // 2]
    for name, example in network.inputs.items():
        shape = tuple(example.shape[1:])
        profile.set_shape(name, (1, *shape), (typical, *shape), (network.batches[-1], *shape))
    config.add_optimization_profile(profile)
    monitor = _monitor(trt, network.words, report)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(definition, config)
    if plan is None:
        raise AccelerationError(
            f"TensorRT cannot build {network.words}: {logger.last or 'it gives no reason'}"
        )
    return bytes(plan)


def logger_of(trt: Any) -> Any:
    """A logger for TensorRT that writes to ours and keeps the last error."""

    class Logger(trt.ILogger):  # type: ignore[misc] # the class comes from whichever library is there
        last = ""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last = message
                log.error("TensorRT: %s", message)
            elif severity == trt.ILogger.WARNING:
                log.warning("TensorRT: %s", message)
            else:
                log.debug("TensorRT: %s", message)

    return Logger()


def _monitor(trt: Any, words: str, report: Report) -> Any:
    """Reports how far each longer phase of a build is; TensorRT calls it from several threads."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # likewise
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases: dict[str, tuple[int, int]] = {}  # steps, and the percentage last told

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if steps >= FEW_STEPS:
                self._phases[phase] = (steps, 0)

        def step_complete(self, phase: str, step: int) -> bool:
            steps, told = self._phases.get(phase, (0, 0))
            if steps:
                percent = 100 * (step + 1) // steps
                if percent >= told + PROGRESS_STEP:
                    self._phases[phase] = (steps, percent)
                    report(f"TensorRT builds {words}: {phase}, {percent} %")
            return True  # go on

        def phase_finish(self, phase: str) -> None:
            self._phases.pop(phase, None)

    return Monitor()
