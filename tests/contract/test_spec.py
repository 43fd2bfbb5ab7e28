"""The spec travels as JSON and comes back the same; a wrong one says which field."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetrt.contract.errors import UserError
from unetrt.contract.spec import MaskValue, ModelSpec, SpecOverrides

BYTES = st.integers(0, 255)


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    classes = draw(st.integers(1, 20))
    count = max(2, classes)
    value: st.SearchStrategy[Any] = st.one_of(st.tuples(BYTES, BYTES, BYTES))
    if draw(st.booleans()):
        value = BYTES
    values = draw(st.lists(value, min_size=count, max_size=count, unique=True))
    names = draw(st.lists(st.text(max_size=8), min_size=count, max_size=count))
    return ModelSpec(
        channels=draw(st.sampled_from([1, 2, 3, 4, 13])),
        classes=classes,
        class_names=tuple(names),
        mask_values=tuple(values),
        width=draw(st.integers(1, 128)),
        bilinear=draw(st.booleans()),
        scale=draw(st.floats(0.01, 8)),
        resize=draw(st.sampled_from(["area", "pil-bicubic"])),
        threshold=draw(st.floats(0.01, 0.99)),
        ignore_index=draw(st.none() | BYTES),
        palette=tuple(draw(st.lists(st.tuples(BYTES, BYTES, BYTES, BYTES), max_size=3))),
        bit_depth=draw(st.none() | st.integers(8, 16)),
    )


@given(spec=specs())
@settings(deadline=None)
def test_json_and_back_is_the_same(spec: ModelSpec) -> None:
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert ModelSpec.from_json(spec.to_json()).to_json() == spec.to_json()


def test_defaults_are_filled_in() -> None:
    spec = ModelSpec(classes=3)
    assert spec.mask_values == (0, 1, 2)
    assert spec.class_names == ("background", "class 1", "class 2")
    assert ModelSpec.from_json("{}") == ModelSpec()


def test_one_output_tells_two_classes() -> None:
    spec = ModelSpec(classes=1, mask_values=(0, 255))
    assert spec.mask_classes == 2
    assert len(spec.class_names) == 2


BAD: list[tuple[str, Any]] = [
    ("version", 2),
    ("channels", 0),
    ("channels", "3"),
    ("classes", 0),
    ("classes", 255),
    ("classes", 2.0),
    ("classes", True),
    ("width", 0),
    ("width", 1.5),
    ("scale", 0.0),
    ("scale", -1.0),
    ("scale", 9.0),
    ("scale", float("nan")),
    ("scale", float("inf")),
    ("scale", "0.5"),
    ("bilinear", "no"),
    ("resize", "nearest"),
    ("resize", ["area"]),
    ("normalization", "mean"),
    ("threshold", 0.0),
    ("threshold", 1.0),
    ("threshold", None),
    ("class_names", ("one",)),
    ("class_names", (1, 2)),
    ("mask_values", (0, 1, 2)),
    ("mask_values", (1, 1)),
    ("mask_values", (0, 256)),
    ("mask_values", (-1, 0)),
    ("mask_values", (0, 0.5)),
    ("mask_values", (0, (1, 2, 3))),
    ("mask_values", ((0, 0), (1, 1))),
    ("mask_values", ("a", "b")),
    ("ignore_index", 256),
    ("ignore_index", -1),
    ("ignore_index", 1.5),
    ("palette", ((0, 1, 2),)),
    ("palette", ((0, 1, 2, 256),)),
    ("bit_depth", 7),
    ("bit_depth", 17),
    ("bit_depth", 12.0),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_wrong_field_is_named(field: str, value: Any) -> None:
    changed: dict[str, Any] = {field: value}
    with pytest.raises(UserError, match=f"spec's {field} is wrong"):
        replace(ModelSpec(), **changed)


@pytest.mark.parametrize(("field", "value"), [b for b in BAD if b[1] == b[1]])
def test_a_wrong_field_in_json_is_a_user_error(field: str, value: Any) -> None:
    raw = {**json.loads(ModelSpec().to_json()), field: value}
    with pytest.raises(UserError, match="spec"):
        ModelSpec.from_json(json.dumps(raw))


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "7", '"a"', "{", '{"mask_values": 3}', '{"class_names": 3}']
)
def test_what_is_no_spec_is_a_user_error(text: str) -> None:
    with pytest.raises(UserError, match="spec"):
        ModelSpec.from_json(text)


def test_what_a_spec_has_not_it_does_not_speak_of() -> None:
    assert not {"palette", "bit_depth"} & set(json.loads(ModelSpec().to_json()))


def test_the_depth_that_is_asked_goes_before_the_models() -> None:
    spec = ModelSpec(bit_depth=12)
    assert (spec.depth(None), spec.depth(14), ModelSpec().depth(14)) == (12, 14, 14)


def test_fields_of_a_later_version_are_named() -> None:
    with pytest.raises(UserError, match="does not know") as caught:
        ModelSpec.from_json('{"colour": 1, "channels": 3}')
    assert caught.value.seen == "colour"
    assert "git pull" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((1280, 1918), 0.5, (640, 959)),
        ((3, 5), 0.5, (1, 2)),
        ((1, 1), 0.5, (1, 1)),
        ((1, 100), 0.01, (1, 1)),
        ((10, 20), 2.0, (20, 40)),
        ((7, 9), 1.0, (7, 9)),
    ],
)
def test_sizes_are_truncated(
    size: tuple[int, int], scale: float, expected: tuple[int, int]
) -> None:
    assert ModelSpec(scale=scale).input_size(size) == expected


def test_colours_are_told_from_integers() -> None:
    values: tuple[MaskValue, ...] = ((0, 0, 0), (1, 0, 0))
    assert ModelSpec(mask_values=values).rgb_masks
    assert not ModelSpec().rgb_masks


@pytest.mark.parametrize("values", [(0, 255), ((0, 0, 0), (255, 255, 255))])
def test_what_is_ignored_is_no_value_of_a_class(values: tuple[MaskValue, ...]) -> None:
    """Every pixel of that class would be left out of the scores, which would be perfect."""
    with pytest.raises(UserError, match="--mask-values names the value") as caught:
        SpecOverrides(mask_values=values).applied_to(ModelSpec(ignore_index=255))
    assert "ignore_index 255" in str(caught.value.seen)
    assert SpecOverrides().applied_to(ModelSpec(ignore_index=255)).ignore_index == 255
