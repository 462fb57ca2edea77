"""What ``hvtrain/engine/native`` is held against, bit for bit: the codecs, and the sum that uses them, in NumPy.

Written from the formats' descriptions rather than from the kernels: float16 by NumPy's own conversion, what is not
finite by hand, all blocks of a chunk at once.
"""

from __future__ import annotations

import numpy as np

BLOCK = 1024
INFINITY, QUIET = np.uint32(0x7F800000), np.uint32(0x00400000)
MAGNITUDE = np.uint32(0x7FFFFFFF)


def wire_bytes(codec: str, count: int) -> int:
    each = {"none": 4, "fp16": 2, "bf16": 2, "int8": 1}[codec]
    return count * each + (4 * ((count + BLOCK - 1) // BLOCK) if codec in ("fp16", "int8") else 0)


def encode(codec: str, values: np.ndarray, seed: int = 0, first: int = 0) -> np.ndarray:
    """A chunk as it travels (uint8): the scales of its blocks, then its numbers. ``values`` is float32, 1-d."""
    assert values.dtype == np.float32 and values.ndim == 1
    if codec == "none":
        return values.view(np.uint8).copy()
    if codec == "bf16":
        return _to_bf16(values).view(np.uint8)
    blocks, scales, numbers = _blocks(values), np.empty(0, np.float32), np.empty(0, np.uint8)
    if len(blocks):
        with np.errstate(all="ignore"):
            scales, encoded = (_to_fp16(blocks) if codec == "fp16"
                               else _to_int8(blocks, _noise(blocks.shape, seed, first)))
        numbers = encoded.reshape(-1)[:len(values)].copy().view(np.uint8)
    return np.concatenate([scales.view(np.uint8), numbers])


def decode(codec: str, wire: np.ndarray, count: int) -> np.ndarray:
    """The float32 numbers of a chunk of ``count``."""
    if codec == "none":
        return wire.view(np.float32).copy()
    if codec == "bf16":
        return (wire.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    table = 4 * ((count + BLOCK - 1) // BLOCK)
    scales = np.repeat(wire[:table].copy().view(np.float32), BLOCK)[:count]
    numbers = wire[table:].copy()
    with np.errstate(all="ignore"):
        if codec == "int8":
            return numbers.view(np.int8).astype(np.float32) * scales
        bits = numbers.view(np.uint16)
        plain = bits.view(np.float16).astype(np.float32) * scales
    nan = (bits & 0x7FFF) > 0x7C00
    kept = ((bits.astype(np.uint32) & 0x8000) << 16) | INFINITY | ((bits.astype(np.uint32) & 0x3FF) << 13) | QUIET
    return np.where(nan, kept, plain.view(np.uint32)).astype(np.uint32).view(np.float32)


def total(parts: list[np.ndarray], codec: str, seed: int, name: str, hosts: list[list[int]]) -> np.ndarray:
    """What every rank holds after the sum of ``parts``, one of each rank, under the engine's tensor name ``name``.

    ``hosts`` are the ranks that share memory, host by host, the same number on each. The ranks of a host own a part
    each, of which they add up what their host has; what the hosts have is then exchanged, part by part.
    """
    count, width, common = len(parts[0]), len(hosts[0]), name_seed(seed, name)
    assert all(len(host) == width for host in hosts)
    length = _up(-(-count // width), 16) if width > 1 else count
    result = np.empty(count, np.float32)
    for place in range(width):
        piece = slice(min(count, place * length), min(count, (place + 1) * length))
        across = sorted(hosts, key=lambda host: host[place])
        sums = [tree([parts[rank][piece] for rank in host]) for host in across]
        noise = common if width == 1 else int(_mixed(np.uint32((common + place) & 0xFFFFFFFF)))
        result[piece] = exchange(sums, codec, noise)
    return result


def exchange(parts: list[np.ndarray], codec: str, seed: int) -> np.ndarray:
    """The sum of ``parts`` as all get it who own one.

    Slices are whole blocks and belong to the members in order. The owner adds up its own numbers as they are and the
    others' decoded; everybody takes the encoded sums, the owner too.
    """
    size, count = len(parts), len(parts[0])
    if size == 1:
        return parts[0].copy()
    length, result = _up(-(-count // size), BLOCK), np.empty(count, np.float32)
    for owner in range(size):
        begin, end = min(count, owner * length), min(count, (owner + 1) * length)
        if begin == end:
            continue
        pieces = [part[begin:end] for part in parts]
        known = [piece if member == owner else
                 decode(codec, encode(codec, piece, _stage(seed, member, 0), begin), end - begin)
                 for member, piece in enumerate(pieces)]
        result[begin:end] = decode(codec, encode(codec, tree(known), _stage(seed, owner, 1), begin), end - begin)
    return result


def tree(parts: list[np.ndarray]) -> np.ndarray:
    """The float32 sum in the order of a binary tree, whose left half is the largest power of two below their number."""
    if len(parts) == 1:
        return parts[0].copy()
    left = 1
    while 2 * left < len(parts):
        left *= 2
    with np.errstate(all="ignore"):
        return tree(parts[:left]) + tree(parts[left:])


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def name_seed(seed: int, name: str) -> int:
    """The seed of one tensor's noise, from that of the step."""
    found = int(_mixed(np.uint32((seed & 0xFFFFFFFF) ^ int(_mixed(np.uint32(seed >> 32 & 0xFFFFFFFF))))))
    for letter in name.encode():
        found = (found ^ letter) * 16777619 & 0xFFFFFFFF
    return found


def _stage(seed: int, rank: int, stage: int) -> int:
    return int(_mixed(np.uint32((seed + 2 * rank + stage) & 0xFFFFFFFF)))


def _mixed(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = np.asarray(x, np.uint32)
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
        return x ^ (x >> np.uint32(16))


def _noise(shape: tuple[int, int], seed: int, first: int) -> np.ndarray:
    """16 bits of noise for each number, a function of its place and of the seed."""
    places = (np.arange(shape[0] * shape[1], dtype=np.uint64) + np.uint64(first)).astype(np.uint32)
    with np.errstate(over="ignore"):
        return (_mixed(places * np.uint32(0x9E3779B9) + np.uint32(seed)) >> np.uint32(16)).reshape(shape)


def _blocks(values: np.ndarray) -> np.ndarray:
    """The blocks as rows, the last one filled up by zeros, which change no largest value."""
    padded = np.zeros(-(-len(values) // BLOCK) * BLOCK, np.float32)
    padded[:len(values)] = values
    return padded.reshape(-1, BLOCK)


def _largest(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest finite magnitude of each block (float32), and which blocks have none but finite numbers."""
    finite = np.isfinite(blocks)
    return np.where(finite, np.abs(blocks), np.float32(0)).max(1), finite.all(1)


def _to_bf16(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint32)
    low, high = bits & np.uint32(0xFFFF), bits >> np.uint32(16)
    up = (low > 0x8000) | ((low == 0x8000) & (high & 1 == 1))
    return np.where(np.isnan(values), high | 0x40, high + up).astype(np.uint16)


def _to_fp16(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    largest, _ = _largest(blocks)
    # The power of two that brings the largest into [2^14, 2^15); no more than 2^126, and 1 for a block of zeros.
    power = np.minimum(15 - np.frexp(np.where(largest > 0, largest, np.float32(1)))[1], 126)
    power = np.where(largest > 0, power, 0)
    scaled = blocks * np.ldexp(np.float32(1), power).astype(np.float32)[:, None]
    halves = scaled.astype(np.float16).view(np.uint16)
    bits = blocks.view(np.uint32)
    nan = ((bits >> np.uint32(16)) & 0x8000) | 0x7E00 | ((bits >> np.uint32(13)) & 0x3FF)
    return (np.ldexp(np.float32(1), -power).astype(np.float32),
            np.where((bits & MAGNITUDE) > INFINITY, nan, halves).astype(np.uint16))


def _to_int8(blocks: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    largest, finite = _largest(blocks)
    tiny = largest < np.float32(2.0**-119)
    factor = np.where(tiny | ~finite, np.float32(0), np.float32(127) / largest).astype(np.float32)
    scales = np.where(tiny, np.float32(0), largest / np.float32(127)).astype(np.float32)
    scales = np.where(finite, scales, np.uint32(0x7FC00000).view(np.float32)).astype(np.float32)
    shares = np.where(finite[:, None], blocks, np.float32(0)) * factor[:, None]
    moved = shares + np.float32(128) + noise.astype(np.float32) * np.float32(2.0**-16)
    numbers = np.clip(moved.astype(np.int32), 1, 255) - 128
    numbers = np.where(tiny[:, None], 0, numbers)
    return scales, np.where(finite[:, None], numbers, 1).astype(np.int8)
