"""The message assembler, without any input or output."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from app.api.protocol import MAX_TEXT, Assembler, Frame, NoPicture, Outcome, Parameters, Refusal
from app.api.schema import input_params
from app.core.messages import Mode, Plan, Tag
from tests.fakes import FakeParams, FakePlanner

NEXT = '{"status": "next_frame"}'


def assembler(mode: Mode = "image", planner: FakePlanner | None = None) -> Assembler:
    return Assembler(mode, Parameters(planner or FakePlanner(mode), max_length=50))


def feed(machine: Assembler, *messages: str | bytes) -> list[Outcome]:
    return [
        machine.binary(message) if isinstance(message, bytes) else machine.text(message)
        for message in messages
    ]


def refusal(outcome: Outcome) -> str:
    assert isinstance(outcome, Refusal)
    return outcome.message


def frame(outcome: Outcome) -> Frame:
    assert isinstance(outcome, Frame)
    return outcome


def test_three_messages_are_a_frame() -> None:
    first, second, third = feed(assembler(), NEXT, '{"prompt": "a cat", "guidance_scale": 3}', b"picture")
    assert first is None
    assert second is None
    made = frame(third)
    assert (made.plan.prompt, made.plan.guidance_scale, made.picture) == ("a cat", 3.0, b"picture")


def test_two_are_in_video_mode() -> None:
    _, second = feed(assembler("video"), NEXT, "{}")
    assert frame(second).picture is None


def test_the_same_text_is_read_once() -> None:
    planner = FakePlanner("video")
    machine = assembler("video", planner)
    for _ in range(5):
        made = frame(feed(machine, NEXT, '{"prompt": "x"}')[1])
    assert planner.planned == 1
    assert made.revision == 0


def test_another_tag_is_no_change_of_parameters() -> None:
    planner = FakePlanner("video")
    machine = assembler("video", planner)
    frames = [frame(feed(machine, NEXT, json.dumps({"prompt": "x", "frame_id": i}))[1]) for i in range(3)]
    assert [made.tag.id for made in frames] == [0, 1, 2]
    assert [made.revision for made in frames] == [0, 0, 0]
    assert planner.planned == 1


def test_every_change_counts() -> None:
    machine = assembler("video")
    revisions = [
        frame(feed(machine, NEXT, json.dumps({"prompt": prompt}))[1]).revision
        for prompt in ("a", "b", "b", "a")
    ]
    assert revisions == [0, 1, 1, 2]


def test_what_is_refused_is_refused_whatever_came_before() -> None:
    """In Python, True is equal to 1."""
    machine = assembler("video")
    frame(feed(machine, NEXT, '{"num_inference_steps": 1}')[1])
    assert "num_inference_steps: " in refusal(feed(machine, NEXT, '{"num_inference_steps": true}')[1])


def test_a_tag_comes_along() -> None:
    made = frame(feed(assembler("video"), NEXT, '{"frame_id": 9007199254740991, "frame_time": 1.5}')[1])
    assert made.tag == Tag(9007199254740991, 1.5)


def test_unknown_keys_and_nulls_are_passed_over() -> None:
    made = frame(feed(assembler("video"), NEXT, '{"width": 1, "mode": "x", "guidance_scale": null}')[1])
    assert made.plan.guidance_scale == 7.5


def test_an_empty_picture_means_not_yet() -> None:
    machine = assembler()
    assert feed(machine, NEXT, "{}", b"")[2] is NoPicture.YET
    assert frame(feed(machine, NEXT, "{}", b"now")[2]).picture == b"now"


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"prompt": 3}, "prompt: "),
        ({"prompt": ["a"]}, "prompt: "),
        ({"prompt": "x" * 51}, "prompt: 51 characters; at most 50"),
        ({"guidance_scale": "high"}, "guidance_scale: .*number, not 'high'"),
        ({"guidance_scale": "7.5"}, "guidance_scale: "),
        ({"guidance_scale": True}, "guidance_scale: "),
        ({"guidance_scale": 0.5}, "guidance_scale: .*greater than or equal to 1"),
        ({"guidance_scale": 1e400}, "not JSON"),
        ({"num_inference_steps": 0}, "num_inference_steps: "),
        ({"num_inference_steps": 2.5}, "num_inference_steps: "),
        ({"num_inference_steps": 10**30}, "num_inference_steps: "),
        ({"seed": 2**53}, "seed: "),
        ({"seed": -1}, "seed: "),
        ({"prompt": 3, "seed": -1}, "prompt: .*; seed: "),
        ({"frame_id": "x"}, "frame_id: "),
        ({"frame_id": -1}, "frame_id: "),
        ({"frame_id": 2**53}, "frame_id: "),
        ({"frame_id": True}, "frame_id: "),
        ({"frame_time": "x"}, "frame_time: "),
        ({"frame_time": 10**400}, "frame_time: "),
    ],
)
def test_bad_parameters_are_refused_by_name(parameters: dict[str, Any], words: str) -> None:
    machine = assembler()
    *_, outcome = feed(machine, NEXT, json.dumps(parameters))
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(refusal(outcome))
    assert frame(feed(machine, b"its picture", NEXT, "{}", b"x")[3])


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (("nonsense",), "status: .* is due: this is not JSON"),
        (("",), "not JSON"),
        (("[" * 100_000,), "not JSON"),
        (("[1, 2]",), "no object"),
        (("null",), "no object"),
        (('"next_frame"',), "no object"),
        (('{"status": "nonsense"}',), "status: unknown status 'nonsense'"),
        (('{"status": 7}',), "status: unknown status 7"),
        (('{"prompt": "too early"}',), "an object without a status"),
        ((b"too early",), "binary, where text is due"),
        ((NEXT, b"too early"), "parameters: .* binary, where text is due"),
        ((NEXT, NEXT), "parameters: .* not another next_frame"),
        ((NEXT, "nonsense"), "parameters: .* not JSON"),
        ((NEXT, "[]"), "parameters: .* no object"),
        ((NEXT, '{"a": NaN}'), "not JSON"),
        ((NEXT, "{}", NEXT), "picture: .* not another next_frame"),
        ((NEXT, "{}", "{}"), "picture: .* an object without a status"),
        ((NEXT, "{}", "nonsense"), "picture: .* not JSON"),
        ((" " * (MAX_TEXT + 1),), "characters; at most"),
    ],
)
def test_what_is_out_of_order_is_refused(messages: tuple[str | bytes, ...], words: str) -> None:
    machine = assembler()
    *_, outcome = feed(machine, *messages)
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(refusal(outcome))
    machine.asked()
    assert frame(feed(machine, NEXT, "{}", b"x")[2]), "the connection lives on"


def test_binary_in_video_mode_is_refused() -> None:
    assert "video mode" in refusal(feed(assembler("video"), b"x")[0])


def test_the_rest_of_a_refused_frame_is_passed_over() -> None:
    machine = assembler()
    outcomes = feed(machine, '{"status": "wrong"}', "{}", b"x", NEXT, "{}", b"x")
    refusal(outcomes[0])
    assert outcomes[1:5] == [None] * 4
    frame(outcomes[5])


def test_what_comes_after_the_client_was_asked_again_is_meant() -> None:
    machine = assembler()
    refusal(feed(machine, "nonsense")[0])
    machine.asked()
    refusal(feed(machine, "{}")[0])
    machine.asked()
    refusal(feed(machine, b"x")[0])


def test_but_the_picture_after_bad_parameters_may_still_arrive() -> None:
    machine = assembler()
    refusal(feed(machine, NEXT, '{"seed": -1}')[1])
    machine.asked()
    assert feed(machine, b"large and late") == [None]
    refusal(feed(machine, b"another")[0])


@pytest.mark.parametrize(
    ("before", "name"), [((), "status"), ((NEXT,), "parameters"), ((NEXT, "{}"), "picture")]
)
def test_what_was_too_large_is_named(before: tuple[str, ...], name: str) -> None:
    machine = assembler()
    feed(machine, *before)
    assert machine.oversized(10**8, 10**7).message.startswith(f"{name}: ")
    assert frame(feed(machine, NEXT, "{}", b"x")[2])


TEXTS = st.sampled_from([NEXT, "{}", '{"seed": 1}', '{"seed": -1}', '{"status": "x"}', "[]", "nonsense", ""])


@given(st.lists(TEXTS | st.sampled_from([b"", b"x"]), max_size=30), st.sampled_from(["image", "video"]))
def test_no_order_of_messages_breaks_it(messages: list[str | bytes], mode: Mode) -> None:
    machine = assembler(mode)
    feed(machine, *messages)
    machine.text('{"status": "start over"}')
    machine.asked()
    *_, last = feed(machine, NEXT, "{}", *([b"x"] if mode == "image" else []))
    frame(last)


class Style(Enum):
    INK = "ink"
    OIL = "oil"


class StyledParams(BaseModel):
    count: int = 1
    strength: float = 0.5
    style: Style = Style.INK


class StyledPlanner(FakePlanner):
    def plan(self, params: Any) -> Plan:
        return super().plan(FakeParams(prompt=f"{params.count} {params.strength} {params.style.value}"))


def test_whole_numbers_may_have_a_fraction_and_choices_are_known_by_value() -> None:
    machine = assembler("video", StyledPlanner("video", StyledParams))
    _, second = feed(machine, NEXT, '{"count": 4.0, "strength": 1, "style": "oil"}')
    assert frame(second).plan.prompt == "4 1.0 oil"
    for wrong in ('{"count": 4.5}', '{"count": "4"}', '{"style": "chalk"}'):
        assert refusal(feed(assembler("video", StyledPlanner("video", StyledParams)), NEXT, wrong)[1])


class AliasedParams(FakeParams):
    prompt: str = Field("", alias="text")


def test_parameters_go_by_their_names_whatever_their_aliases() -> None:
    assert "prompt" in input_params(AliasedParams, width=64, height=64)["properties"]
    _, second = feed(assembler("video", FakePlanner("video", AliasedParams)), NEXT, '{"prompt": "a cat"}')
    assert frame(second).plan.prompt == "a cat"


class MistakenPlanner(FakePlanner):
    def plan(self, params: Any) -> Plan:
        if params.prompt == "unknown":
            raise KeyError(params.prompt)
        return super().plan(params)


def test_a_mistake_of_a_pipeline_is_a_refusal_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    machine = assembler("video", MistakenPlanner("video"))
    _, second = feed(machine, NEXT, '{"prompt": "unknown"}')
    assert refusal(second) == "parameters: KeyError: 'unknown'"
    assert [record.exc_info is not None for record in caplog.records] == [True]
    machine.asked()
    _, second = feed(machine, NEXT, '{"prompt": "known"}')
    assert frame(second).plan.prompt == "known"


def test_choices_are_drawn_as_a_select() -> None:
    style = input_params(StyledParams, width=64, height=64)["properties"]["style"]
    assert (style["values"], style["default"], style["id"]) == (["ink", "oil"], "ink", "style")
    assert "$ref" not in style


class OptionalParams(BaseModel):
    power: float | None = Field(None, ge=0, le=2, json_schema_extra={"field": "range"})
    style: Style | None = None


def test_what_may_be_left_out_is_drawn_as_what_it_is_otherwise() -> None:
    properties = input_params(OptionalParams, width=64, height=64)["properties"]
    power, style = properties["power"], properties["style"]
    assert (power["type"], power["min"], power["max"], power["default"]) == ("number", 0, 2, None)
    assert (style["values"], style["default"]) == (["ink", "oil"], None)
    assert "anyOf" not in {**power, **style}
