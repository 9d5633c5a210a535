"""The table of generation parameters against the contract, value by value and by property."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from jobs.errors import LineError
from jobs.lines.parameters import CHECKS
from jobs.params import ALIASES, OPENAI_DEFAULTS, PARAMETERS, Sampling, did_you_mean

CONTRACT: dict[str, tuple[str, Any, Any, Any]] = {
    # name: kind, lowest, highest, default
    "max_tokens": ("int", 1, 2**31, 512),
    "min_tokens": ("int", 0, None, 0),
    "temperature": ("float", 0, 100, 0.0),
    "do_sample": ("bool", None, None, True),
    "top_p": ("float above", 0, 1, 1.0),
    "top_k": ("int", 0, None, 0),
    "min_p": ("float", 0, 1, 0.0),
    "min_tokens_to_keep": ("int", 1, None, 1),
    "xtc_probability": ("float", 0, 1, 0.0),
    "xtc_threshold": ("float", 0, 0.5, 0.1),
    "repetition_penalty": ("float above", 0, None, 1.0),
    "repetition_context_size": ("int", 0, None, 20),
    "presence_penalty": ("float", None, None, 0.0),
    "frequency_penalty": ("float", None, None, 0.0),
    "presence_context_size": ("int", 0, None, None),
    "frequency_context_size": ("int", 0, None, None),
    "logit_bias": ("bias", -100, 100, {}),
    "stop": ("strings", None, 16, ()),
    "stop_in_reasoning": ("bool", None, None, False),
    "extra_eos_tokens": ("strings", None, None, ()),
    "ignore_eos": ("bool", None, None, False),
    "seed": ("int", 0, 2**64 - 1, None),
    "n": ("int", 1, 128, 1),
    "logprobs": ("bool", None, None, False),
    "top_logprobs": ("int", 0, 20, 0),
}


def names(*kinds: str) -> list[str]:
    return [name for name, row in CONTRACT.items() if row[0] in kinds]


def refused(name: str, value: Any) -> LineError:
    """The error with which ``value`` is refused."""
    with pytest.raises(LineError) as caught:
        CHECKS[name](value)
    return caught.value


def test_table_holds_exactly_the_parameters_of_the_contract_with_their_defaults() -> None:
    """Names, order and defaults of the table are those of the contract."""
    defaults = Sampling()
    assert {name: getattr(defaults, name) for name in PARAMETERS} == {name: row[3] for name, row in CONTRACT.items()}
    assert list(PARAMETERS) == list(CONTRACT)
    assert ALIASES == {"temp": "temperature", "max_new_tokens": "max_tokens"}
    assert OPENAI_DEFAULTS == {"max_tokens": None, "temperature": 1.0, "top_p": 1.0}


@pytest.mark.parametrize("name", names("int"))
def test_integers_in_range_are_kept_and_others_refused(name: str) -> None:
    """Bounds are inclusive; one past them is out_of_range and names the field and the value."""
    _, low, high, _ = CONTRACT[name]
    for value in (low, low + 1, high if high is not None else 2**62):
        assert CHECKS[name](value) == value
    for value in [low - 1] + ([] if high is None else [high + 1]):
        error = refused(name, value)
        assert (error.code, error.field) == ("out_of_range", name)
        assert str(value) in error.message


@pytest.mark.parametrize("name", names("int"))
@pytest.mark.parametrize("value", [1.5, "1", True, [1], {"a": 1}, None, math.inf, math.nan])
def test_integers_take_no_other_type(name: str, value: Any) -> None:
    """A broken number, a string and even a boolean are invalid_type: nothing is rounded or guessed."""
    error = refused(name, value)
    assert (error.code, error.field) == ("invalid_type", name)


@pytest.mark.parametrize("name", names("int"))
def test_whole_floats_are_integers(name: str) -> None:
    """20.0 is 20, as tools write it that have no integers, and is recorded so; the range is that of integers."""
    _, low, high, _ = CONTRACT[name]
    checked = CHECKS[name](float(low + 1))
    assert (checked, type(checked)) == (low + 1, int)
    assert refused(name, float(low - 1)).code == "out_of_range"
    if high is not None:
        assert refused(name, float(high) * 2).code == "out_of_range"


@pytest.mark.parametrize("name", names("float", "float above"))
@given(value=st.floats(allow_nan=True, allow_infinity=True) | st.integers(-(2**70), 2**70))
@settings(max_examples=60, deadline=None)
def test_numbers_are_taken_as_floats_exactly_when_in_range(name: str, value: float) -> None:
    """Every finite number within the bounds becomes the same float; every other is out_of_range."""
    kind, low, high, _ = CONTRACT[name]
    above = low is None or (value > low if kind == "float above" else value >= low)
    # JSON has integers of 64 bits at most; Python's longer ones are refused before they overflow a float.
    finite = abs(value) < 2**64 if isinstance(value, int) else math.isfinite(value)
    within = finite and above and (high is None or value <= high)
    if within:
        checked = CHECKS[name](value)
        assert type(checked) is float
        assert checked == float(value)
    else:
        assert (refused(name, value).code, refused(name, value).field) == ("out_of_range", name)


@pytest.mark.parametrize("name", names("float", "float above"))
def test_bounds_of_numbers_are_as_the_contract_says(name: str) -> None:
    """The bounds themselves belong to the range, but for the open ones, (0, ...]."""
    kind, low, high, _ = CONTRACT[name]
    if high is not None:
        assert CHECKS[name](high) == high
        assert refused(name, math.nextafter(high, math.inf)).code == "out_of_range"
    if low is not None and kind == "float above":
        assert refused(name, low).code == "out_of_range"
        assert CHECKS[name](math.nextafter(low, 1)) > low
    elif low is not None:
        assert CHECKS[name](low) == low
        assert refused(name, math.nextafter(low, -1)).code == "out_of_range"


@pytest.mark.parametrize("name", names("float", "float above"))
@pytest.mark.parametrize("value", ["0.5", True, [0.5], {}, None])
def test_numbers_take_no_other_type(name: str, value: Any) -> None:
    """A string that looks like a number is invalid_type, and so is a boolean."""
    error = refused(name, value)
    assert (error.code, error.field) == ("invalid_type", name)


@pytest.mark.parametrize("name", names("bool"))
def test_booleans_are_true_or_false_and_nothing_else(name: str) -> None:
    """0, 1 and words are refused."""
    assert CHECKS[name](True) is True
    assert CHECKS[name](False) is False
    for value in (0, 1, "true", None, []):
        error = refused(name, value)
        assert (error.code, error.field) == ("invalid_type", name)


@pytest.mark.parametrize("name", names("strings"))
def test_strings_are_one_or_a_list(name: str) -> None:
    """A single string counts as a list of one; empty strings and other types are refused."""
    assert CHECKS[name]("###") == ("###",)
    assert CHECKS[name](["a", "b"]) == ("a", "b")
    assert CHECKS[name]([]) == ()
    assert refused(name, ["a", ""]).code == "out_of_range"
    assert refused(name, "").code == "out_of_range"
    for value in (1, ["a", 1], {"a": "b"}, None):
        assert (refused(name, value).code, refused(name, value).field) == ("invalid_type", name)


def test_what_a_value_is_called_is_json() -> None:
    """Messages name values as the file has them, and of a list what is wrong in it."""
    assert refused("max_tokens", True).message == "must be an integer, not true"
    assert refused("stop", ["a", None]).message == "must hold strings alone, not null"


def test_at_most_16_stop_strings() -> None:
    """The seventeenth is out_of_range; extra_eos_tokens has no such limit."""
    assert len(CHECKS["stop"](["x"] * 16)) == 16
    assert "at most 16" in refused("stop", ["x"] * 17).message
    assert len(CHECKS["extra_eos_tokens"](["x"] * 17)) == 17


@given(st.dictionaries(st.integers(0, 10**10 - 1), st.floats(-100, 100) | st.integers(-100, 100), max_size=20))
@settings(max_examples=60, deadline=None)
def test_logit_bias_maps_token_ids_to_floats(bias: dict[int, float]) -> None:
    """Keys arrive as JSON strings and become integers."""
    checked = CHECKS["logit_bias"]({str(token): value for token, value in bias.items()})
    assert checked == bias
    assert all(type(value) is float for value in checked.values())
    assert CHECKS["logit_bias"]({f"{token}.0": value for token, value in bias.items()}) == bias


@pytest.mark.parametrize(
    ("bias", "code"),
    [
        ({"hello": 1}, "invalid_type"),
        ({"-1": 1}, "invalid_type"),
        ({"1.5": 1}, "invalid_type"),
        ({"²": 1}, "invalid_type"),
        ({"9" * 400: 1}, "invalid_type"),
        ({"1": "x"}, "invalid_type"),
        ({"1": 100.1}, "out_of_range"),
        ({"1": -101}, "out_of_range"),
        ([1, 2], "invalid_type"),
        (None, "invalid_type"),
    ],
)
def test_logit_bias_refuses_other_keys_and_values(bias: Any, code: str) -> None:
    """Token ids are digits and biases lie within -100..100."""
    error = refused("logit_bias", bias)
    assert (error.code, error.field) == (code, "logit_bias")


def test_effective_values_are_json_and_complete() -> None:
    """What a record shows of the values names every parameter, with JSON's types."""
    shown = Sampling(stop=("a",), logit_bias={7: 1.0}).as_dict()
    assert set(shown) == set(CONTRACT)
    assert shown["stop"] == ["a"]
    assert shown["logit_bias"] == {"7": 1.0}


def test_long_values_are_cut_in_messages() -> None:
    """A megabyte of text in the wrong place does not become a megabyte of error."""
    assert len(refused("temperature", "x" * 10**6).message) < 200


@pytest.mark.parametrize(
    ("sampling", "greedy"),
    [
        (Sampling(), True),
        (Sampling(temperature=0.1), False),
        (Sampling(temperature=1.0, do_sample=False), True),
    ],
)
def test_greedy_is_temperature_zero_or_no_sampling(sampling: Sampling, greedy: bool) -> None:
    """do_sample false wins over any temperature."""
    assert sampling.greedy is greedy


def test_close_names_are_suggested_and_far_ones_not() -> None:
    """A typo gets its remedy, gibberish and endless names get none."""
    assert did_you_mean("temprature", PARAMETERS) == "; did you mean 'temperature'?"
    assert did_you_mean("qqqq", PARAMETERS) == ""
    assert did_you_mean("temperature" * 100_000, PARAMETERS) == ""


@pytest.mark.parametrize(
    "name", ["topic", "text", "mode", "tokens", "steps", "tempo", "label", "stem", "score", "prob"]
)
def test_no_guess_is_absurd(name: str) -> None:
    """A column of somebody's data is not taken for a slip of a parameter that happens to share some letters."""
    assert did_you_mean(name, PARAMETERS) == ""


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("max-tokens", "max_tokens"),
        ("Top_P", "top_p"),
        ("stops", "stop"),
        ("topk", "top_k"),
        ("max_token", "max_tokens"),
    ],
)
def test_slips_of_one_letter_are_guessed(slip: str, meant: str) -> None:
    """However short the name is, and whatever its capitals and dashes are."""
    assert did_you_mean(slip, PARAMETERS) == f"; did you mean '{meant}'?"


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("top_p", 0, "for greedy give temperature 0"),
        ("top_p", 90, "it is a share"),
        ("seed", -1, "leave it out: a seed is drawn and recorded"),
        ("max_tokens", -1, "leave it out (512; on OpenAI lines to the context's end)"),
        ("max_tokens", 0, "at least one token"),
        ("temperature", -1, "0 is greedy"),
        ("temperature", "0.7", "without the quotes"),
        ("do_sample", "true", "without the quotes"),
        ("top_k", -2, "0 is off"),
        ("min_p", 5, "it is a share"),
        ("n", 0, "1 is one text"),
        ("n", 1000, "write the line several times"),
        ("repetition_penalty", 0, "1 is off"),
        ("repetition_context_size", -1, "0 is all"),
        ("logprobs", 5, "'top_logprobs': k"),
    ],
)
def test_values_out_of_range_name_the_remedy(name: str, value: Any, remedy: str) -> None:
    """What people mean by such a value is said in our words."""
    assert remedy in refused(name, value).message
