"""Sizes, as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from reconciler.model.units import human_size, human_time, parse_rate, parse_size

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4

SIZES = [
    ("512", 512),
    (1024, 1024),
    ("10G", 10 * GIB),
    ("10g", 10 * GIB),
    ("512 MiB", 512 * MIB),
    ("512MB", 512 * MIB),
    ("  1.5T  ", TIB * 3 // 2),
    ("0.5K", 512),
    ("1P", 1024 * TIB),
    ("7E", 7 * 1024**6),
    ("512B", 512),
]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_a_size_is_read(text, size):
    assert parse_size(text) == size


NO_SIZES = [
    ("", "'' is no size; write bytes or a unit, such as 10G or 512M"),
    ("G", "'G' is no size; write bytes or a unit, such as 10G or 512M"),
    ("10X", "'10X' is no size; write bytes or a unit, such as 10G or 512M"),
    ("-10G", "'-10G' is no size; write bytes or a unit, such as 10G or 512M"),
    ("1e6", "'1e6' is no size; write bytes or a unit, such as 10G or 512M"),
    ("0x200", "'0x200' is no size; write bytes or a unit, such as 10G or 512M"),
    ("1.G", "'1.G' is no size; write bytes or a unit, such as 10G or 512M"),
    ("1,5G", "'1,5G' is no size; write bytes or a unit, such as 10G or 512M"),
    ("inf", "'inf' is no size; write bytes or a unit, such as 10G or 512M"),
    ("nan", "'nan' is no size; write bytes or a unit, such as 10G or 512M"),
    ("0", "'0' is out of range; a disk has from 512 bytes to 8 EiB"),
    (0, "0 is out of range; a disk has from 512 bytes to 8 EiB"),
    (-512, "-512 is out of range; a disk has from 512 bytes to 8 EiB"),
    ("8E", "'8E' is out of range; a disk has from 512 bytes to 8 EiB"),
    (2**63, "9223372036854775808 is out of range; a disk has from 512 bytes to 8 EiB"),
    ("1", "'1' is no multiple of 512 bytes"),
    ("0.3K", "'0.3K' is no multiple of 512 bytes"),
    (1000, "1000 is no multiple of 512 bytes"),
]


@pytest.mark.parametrize(("text", "said"), NO_SIZES)
def test_what_is_no_size_is_told(text, said):
    with pytest.raises(ValueError, match=r"size|range|multiple") as raised:
        parse_size(text)

    assert str(raised.value) == said


ODD = [
    ("more digits than Python reads", "9" * 5000),
    ("more than the largest float", "9" * 400 + ".5"),
    ("more than the largest float with a unit", "9" * 308 + ".0E"),
    ("a Kelvin sign, which is the letter K in small", "1\u212a"),
]


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in ODD])
def test_an_odd_size_is_a_value_error_too(text):
    with pytest.raises(ValueError, match=r"\S"):
        parse_size(text)


@given(st.text("0123456789.KMGTPEkmgtpeiB \u212a\u0661", max_size=12))
def test_any_text_is_a_size_or_a_value_error(text):
    try:
        size = parse_size(text)
    except ValueError:
        return

    assert (0 < size < 2**63, size % 512) == (True, 0)


@given(st.integers(1, 2**54))
def test_a_size_in_bytes_is_read_back(sectors):
    size = sectors * 512
    assume(size < 2**63)

    assert parse_size(str(size)) == parse_size(size) == parse_size(f"{size} B") == size


SHOWN = [
    (0, "0 B"),
    (512, "512 B"),
    (1023, "1023 B"),
    (KIB, "1.0 KiB"),
    (1536, "1.5 KiB"),
    (64 * KIB, "64 KiB"),
    (196 * KIB, "196 KiB"),
    (8 * MIB, "8.0 MiB"),
    (8 * MIB + 300 * KIB, "8.3 MiB"),
    (12 * MIB + 512 * KIB, "12.5 MiB"),
    (600 * MIB, "600 MiB"),
    (600 * MIB + 900 * KIB, "601 MiB"),
    (10 * GIB, "10 GiB"),
    (3 * TIB, "3.0 TiB"),
    (2**63, "8192 PiB"),
]


@pytest.mark.parametrize(("size", "shown"), SHOWN)
def test_a_size_is_shown(size, shown):
    assert human_size(size) == shown


@given(st.integers(0, 2**63))
def test_a_shown_size_is_near_the_real_one(size):
    number, unit = human_size(size).split(" ")
    power = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].index(unit)

    assert abs(float(number) * 1024**power - size) <= size * 0.05


@pytest.mark.parametrize(
    ("size", "shown"), [(MIB - 1, "1.0 MiB"), (GIB - 1, "1.0 GiB"), (100 * MIB - 1, "100 MiB")]
)
def test_a_size_that_rounds_up_to_the_next_form_is_shown_in_it(size, shown):
    assert human_size(size) == shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (604800, "7 days"),
        (86400, "1 day"),
        (5400, "90 minutes"),
        (61, "61 seconds"),
        (1, "1 second"),
        (0, "0 seconds"),
    ],
)
def test_a_time_in_words(seconds: int, text: str) -> None:
    assert human_time(seconds) == text


@pytest.mark.parametrize(
    ("text", "rate"), [("100000000", 100_000_000), ("100M", 100 * MIB), ("1", 1), ("0.5K", 512)]
)
def test_a_rate_is_any_number_of_bytes(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "8E", "1e9", "9" * 5000, ""])
def test_what_is_no_rate_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no rate; write|is out of range; write"):
        parse_rate(text)
