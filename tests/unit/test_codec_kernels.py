"""The engine's codec kernels, through ctypes, against the NumPy reference: bit for bit, whatever the numbers."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hvtrain.comm import codecs
from tests.support import wire

NUMBER = {"none": 0, "fp16": 1, "bf16": 2, "int8": 3}
LOSSY = ("fp16", "bf16", "int8")
GUARD = 64
"""Bytes on both sides of what a kernel writes; they must stay what they are."""


class Kernels:
    """The installed engine's kernels on NumPy arrays."""

    def __init__(self, library: ctypes.CDLL):
        floats, octets = ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_uint8)
        self._bytes, self._encode, self._decode, self._wide = (
            library.horovod_codec_bytes, library.horovod_codec_encode, library.horovod_codec_decode,
            library.horovod_codec_wide)
        self._bytes.argtypes, self._bytes.restype = (ctypes.c_int, ctypes.c_int64), ctypes.c_int64
        self._encode.argtypes = (ctypes.c_int, floats, ctypes.c_int64, ctypes.c_uint32, octets)
        self._decode.argtypes = (ctypes.c_int, octets, ctypes.c_int64, floats)
        self._encode.restype = self._decode.restype = None
        self._wide.argtypes, self._wide.restype = (ctypes.c_int,), ctypes.c_int
        self._floats, self._octets = floats, octets

    def bytes(self, codec: str, count: int) -> int:
        return self._bytes(NUMBER[codec], count)

    def encode(self, codec: str, values: np.ndarray, seed: int = 0) -> np.ndarray:
        length = self.bytes(codec, len(values))
        room = np.full(length + 2 * GUARD, 0xA5, np.uint8)
        before = values.tobytes()
        self._encode(NUMBER[codec], values.ctypes.data_as(self._floats), len(values), seed,
                     room[GUARD:].ctypes.data_as(self._octets))
        assert values.tobytes() == before, "what is encoded must stay what it is"
        return _guarded(room)

    def decode(self, codec: str, encoded: np.ndarray, count: int) -> np.ndarray:
        room = np.full(4 * count + 2 * GUARD, 0xA5, np.uint8)
        encoded = encoded.copy()
        self._decode(NUMBER[codec], encoded.ctypes.data_as(self._octets), count,
                     room[GUARD:].ctypes.data_as(self._floats))
        return _guarded(room).view(np.float32)

    def wide(self, on: bool) -> bool:
        return bool(self._wide(on))


def _guarded(room: np.ndarray) -> np.ndarray:
    assert (room[:GUARD] == 0xA5).all() and (room[-GUARD:] == 0xA5).all(), "written beyond the end"
    return room[GUARD:-GUARD].copy()


@pytest.fixture(scope="module")
def kernels():
    pytest.importorskip("horovod.torch", reason="no engine: hvtrain engine build")
    from hvtrain.engine.horovod_torch import library

    engine = library()
    assert hasattr(engine, "horovod_codec_encode"), "the engine has no codecs: hvtrain engine build"
    found = Kernels(engine)
    yield found
    found.wide(True)


KINDS = {
    "normal": lambda r, n: r.standard_normal(n),
    "gradient": lambda r, n: r.standard_normal(n) * 10.0 ** r.uniform(-9, -2, n),
    "tiny": lambda r, n: r.standard_normal(n) * 1e-38,
    "subnormal": lambda r, n: r.integers(-(2**23) + 1, 2**23, n) * 2.0**-149,
    "huge": lambda r, n: np.clip(r.standard_normal(n) * 3e38, -3.4e38, 3.4e38),
    "zero": lambda r, n: np.zeros(n),
    "negative zero": lambda r, n: -np.zeros(n),
    "limit": lambda r, n: r.choice([-1, 1], n) * np.float64(np.finfo(np.float32).max),
    "half": lambda r, n: r.integers(-2048, 2048, n) + 0.5,  # ties
    "wide": lambda r, n: r.choice([-1, 1], n) * 2.0 ** r.uniform(-149, 127, n),
}
SPECIAL = {"infinity": [np.inf, -np.inf], "nan": [np.nan, -np.nan]}


def numbers(kinds: list[str], count: int, seed: int) -> np.ndarray:
    """``count`` float32 numbers; each is of one of ``kinds``, and a special kind strikes one number in a hundred."""
    random = np.random.default_rng(seed)
    plain = [kind for kind in kinds if kind in KINDS] or ["normal"]
    made = np.array([KINDS[kind](random, count) for kind in plain])
    chosen = made[random.integers(0, len(plain), count), np.arange(count)].astype(np.float32)
    for kind in kinds:
        if kind in SPECIAL:
            struck = random.random(count) < 0.01
            chosen[struck] = random.choice(np.array(SPECIAL[kind], np.float32), struck.sum())
    return chosen


def payloads() -> np.ndarray:
    """Not-a-numbers of every sort, signalling ones too, among numbers."""
    bits = np.array([0x7F800001, 0xFF800001, 0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F802000, 0x7FA01234,
                     0x3F800000, 0x7F800000, 0xFF800000, 0x80000000, 0, 1, 0x80000001], np.uint32)
    return np.tile(bits, 80).view(np.float32)


drawn = given(codec=st.sampled_from(LOSSY), count=st.integers(0, 5000), seed=st.integers(0, 2**32 - 1),
              kinds=st.lists(st.sampled_from([*KINDS, *SPECIAL]), min_size=1, max_size=3, unique=True))


def same_bits(one: np.ndarray, other: np.ndarray) -> None:
    """Fails at the first number whose bits differ."""
    one, other = one.reshape(-1).view(np.uint8), other.reshape(-1).view(np.uint8)
    assert len(one) == len(other)
    apart = np.flatnonzero(one != other)
    assert not len(apart), f"{len(apart)} of {len(one)} bytes differ, the first is number {apart[0]}"


@settings(max_examples=400, deadline=None)
@drawn
@example(codec="fp16", count=5000, seed=1, kinds=["subnormal", "zero"])
@example(codec="int8", count=5000, seed=1, kinds=["limit"])
def test_bits_are_those_of_the_reference_with_and_without_vector_instructions(kernels, codec, count, seed, kinds):
    values = numbers(kinds, count, seed)
    expected = wire.encode(codec, values, seed)
    back = wire.decode(codec, expected, count)
    for wide in (False, kernels.wide(True)):
        kernels.wide(wide)
        same_bits(kernels.encode(codec, values, seed), expected)
        same_bits(kernels.decode(codec, expected, count), back)


@pytest.mark.parametrize("codec", ["none", *LOSSY])
def test_every_sort_of_not_a_number(kernels, codec):
    values = payloads()
    for count in (1, 7, 8, 9, len(values)):
        expected = wire.encode(codec, values[:count])
        for wide in (False, kernels.wide(True)):
            kernels.wide(wide)
            same_bits(kernels.encode(codec, values[:count]), expected)
            same_bits(kernels.decode(codec, expected, count), wire.decode(codec, expected, count))


def test_every_float16_is_read_alike_and_survives_another_turn(kernels):
    """All 65,536, twice: with a scale of 1, and with one that leads into float32's subnormal numbers."""
    halves = np.arange(1 << 16, dtype=np.uint16)
    for scale in (1.0, 2.0**-126):
        encoded = np.concatenate([np.full(64, scale, np.float32).view(np.uint8), halves.view(np.uint8)])
        expected = wire.decode("fp16", encoded, 1 << 16)
        for wide in (False, kernels.wide(True)):
            kernels.wide(wide)
            same_bits(kernels.decode("fp16", encoded, 1 << 16), expected)
    for codec in ("fp16", "bf16"):  # what has been encoded once is not rounded again
        once = wire.decode(codec, wire.encode(codec, numbers(["gradient"], 5000, 3)), 5000)
        same_bits(kernels.decode(codec, kernels.encode(codec, once), 5000), once)


def test_vector_instructions_are_tested_where_there_are_any(kernels):
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        flags = file.read()
    assert kernels.wide(False) is False
    assert kernels.wide(True) is (" avx2 " in flags and " f16c " in flags)


@settings(max_examples=200, deadline=None)
@given(codec=st.sampled_from(LOSSY), count=st.integers(1, 5000), seed=st.integers(0, 2**32 - 1),
       kinds=st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=3, unique=True))
def test_errors_stay_within_the_format(kernels, codec, count, seed, kinds):
    values = numbers(kinds, count, seed)
    back = kernels.decode(codec, kernels.encode(codec, values, seed), count).astype(np.float64)
    bound = allowed(codec, values)
    over = ~np.isfinite(back)  # rounded up beyond float32's range
    limit = (2 - {"fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 2.0 / 126}[codec]) * 2.0**127
    assert (np.abs(values[over].astype(np.float64)) >= limit).all()
    exact = values.astype(np.float64)
    wrong = np.flatnonzero(~over & (np.abs(back - exact) > bound))
    assert not len(wrong), f"{exact[wrong[0]]!r} became {back[wrong[0]]!r}, allowed is {bound[wrong[0]]!r}"
    assert (back[values == 0] == 0).all(), "a zero stays a zero"
    assert ((back == 0) | over | (np.sign(back) == np.sign(exact)) | (codec == "int8")).all()


def allowed(codec: str, values: np.ndarray) -> np.ndarray:
    """How far each number may be from what it was."""
    exact = np.abs(values.astype(np.float64))
    if codec == "bf16":
        return exact * 2.0**-8 + 2.0**-134
    padded = np.zeros(-(-len(values) // wire.BLOCK) * wire.BLOCK)
    padded[:len(values)] = exact
    largest = np.repeat(padded.reshape(-1, wire.BLOCK).max(1), wire.BLOCK)[:len(values)]
    if codec == "fp16":
        return exact * 2.0**-11 + largest * 2.0**-39 + 2.0**-149
    return np.where(largest < 2.0**-119, 2.0**-119, largest / 127 * (1 + 1e-5))


@pytest.mark.parametrize("place", [0, 5, 1023, 1024, 2999])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codec", LOSSY)
def test_what_is_not_finite_stays_visible(kernels, codec, value, place):
    values = numbers(["normal"], 3000, 5)
    values[place] = value
    for wide in (False, kernels.wide(True)):
        kernels.wide(wide)
        back = kernels.decode(codec, kernels.encode(codec, values), len(values))
        block = place // wire.BLOCK * wire.BLOCK
        near = np.zeros(len(values), bool)
        near[block:block + wire.BLOCK] = True
        if codec == "int8":
            assert np.isnan(back[near]).all()
        else:
            assert np.array_equal(back[place], np.float32(value), equal_nan=True)
            near &= False
            near[place] = True
        plain = np.where(np.isfinite(values), values, np.float32(0))
        assert (np.abs(back - plain)[~near] <= allowed(codec, plain)[~near]).all(), "it must not spoil the others"


def test_noise_depends_on_the_seed_and_the_place_only(kernels):
    values = np.full(4096, 0.3, np.float32)
    values[::wire.BLOCK] = 127  # so that one step is 1
    first, again, other = (kernels.encode("int8", values, seed) for seed in (7, 7, 8))
    same_bits(first, again)
    apart = np.mean(first[16:] != other[16:])
    assert 0.3 < apart < 0.55  # 2 * 0.3 * 0.7 = 0.42 of independent choices
    rows = first[16:].reshape(4, wire.BLOCK)[:, 1:]
    assert all(0.3 < np.mean(rows[a] != rows[b]) < 0.55 for a in range(4) for b in range(a)), "blocks share their noise"


@pytest.mark.parametrize("spread", ["even", "gradient"])
def test_int8_is_right_on_average(kernels, spread):
    """Over 1,000 seeds the mean of each number comes within 6 standard deviations of it, and of all together too."""
    values = np.linspace(-1, 1, wire.BLOCK, dtype=np.float32)
    if spread == "gradient":
        values = numbers(["gradient"], wire.BLOCK, 1)
    step = np.abs(values).max() / 127
    seeds = 1000
    total = np.zeros(wire.BLOCK)
    for seed in range(seeds):
        total += kernels.decode("int8", kernels.encode("int8", values, seed * 2654435761 % 2**32), wire.BLOCK)
    off = (total / seeds - values) / step
    worst = np.abs(off).argmax()
    assert abs(off[worst]) < 6 * 0.5 / seeds**0.5, f"number {worst} is {off[worst]} steps off"
    assert abs(off.mean()) < 6 * 0.5 / (seeds * wire.BLOCK) ** 0.5 + 2.0**-16


@settings(max_examples=200, deadline=None)
@given(count=st.integers(0, 200_000))
@example(count=2**33)
def test_lengths_agree(kernels, count):
    for codec in codecs.NAMES:
        assert codecs.wire_bytes(codec, count) == kernels.bytes(codec, count) == wire.wire_bytes(codec, count)


def test_numbers_that_share_nothing_with_their_neighbours(kernels):
    """Each block has its own scale: a huge one beside a tiny one loses nothing of it."""
    kinds = ("huge", "tiny", "normal", "zero", "subnormal")
    values = np.concatenate([numbers([kind], wire.BLOCK, 2) for kind in kinds])
    for codec in ("fp16", "int8"):
        back = kernels.decode(codec, kernels.encode(codec, values), len(values))
        for block in range(5):
            part = slice(block * wire.BLOCK, (block + 1) * wire.BLOCK)
            alone = kernels.decode(codec, kernels.encode(codec, values[part]), wire.BLOCK)
            if codec == "fp16":
                same_bits(back[part], alone)
            assert (np.abs(back[part] - values[part].astype(np.float64)) <= allowed(codec, values[part])).all()
