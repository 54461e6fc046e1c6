"""testdata/quant: blocks of every type with the float32 values that the `gguf` package gives them.

Half of the blocks are random bytes with ordinary scales, the rest carry the scales that implementations get wrong: zero of
both signs, the smallest and largest denormal, the smallest and largest normal number, infinities and NaN.
"""

import gguf
import numpy as np

from common import TESTDATA, rng, save_tensors

COMMAND = "python tools/golden/make.py quant"
BLOCKS = 64

# Where the float16 scales lie in a block (byte offsets), for the types that have any.
SCALES = {
    "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "IQ4_NL": [0], "IQ4_XS": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"]
# The plain types have "blocks" of one element; they come in rows of 32 here to be like the others.
PLAIN_ROW = 32

F16_EDGES = np.array([
    0x0000, 0x8000,  # zeros
    0x0001, 0x8001, 0x0200, 0x03FF, 0x83FF,  # denormals
    0x0400, 0x8400, 0x7BFF, 0xFBFF,  # smallest and largest normal numbers
    0x7C00, 0xFC00,  # infinities
    0x7E00, 0xFE00, 0x7D01,  # NaNs, the last one signalling
    0x3C00, 0xBC00,  # one
], np.uint16)
BF16_EDGES = np.array([0, 0x8000, 1, 0x8001, 0x007F, 0x0080, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0xFFC0, 0x7F81, 0x3F80, 0xBF80], np.uint16)
F32_EDGES = np.array([0, 1 << 31, 1, 0x80000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000,
                      0x7FC00000, 0x7F800001, 0x3F800000, 0xBF800000], np.uint32)


def blocks(name: str) -> np.ndarray:
    generator = rng("quant", name)
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    edges = {"F32": F32_EDGES, "F16": F16_EDGES, "BF16": BF16_EDGES}.get(name)
    if edges is not None:
        values = generator.standard_normal((BLOCKS, PLAIN_ROW)).astype(np.float32)
        if name == "F32":
            bits = values.view(np.uint32)
        elif name == "F16":
            bits = values.astype(np.float16).view(np.uint16)
        else:
            bits = (values.view(np.uint32) >> 16).astype(np.uint16)
        bits[-1, : len(edges)] = edges
        # And every kind of number in a 16-bit type: the upper half of the rows runs through the bit patterns.
        if name != "F32":
            span = bits[BLOCKS // 2: -1]
            span[:] = np.linspace(0, 0xFFFF, span.size).astype(np.uint16).reshape(span.shape)
        return bits.view(np.uint8)

    out = generator.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    if name == "MXFP4":
        # One byte of exponent. Random ones nearly all lie far from 1, so half are near it; the rest walk the ends.
        out[: BLOCKS // 2, 0] = generator.integers(117, 132, BLOCKS // 2)
        out[BLOCKS // 2: BLOCKS // 2 + 16, 0] = [0, 1, 2, 3, 22, 23, 24, 126, 127, 128, 251, 252, 253, 254, 255, 0]
        out[-1, 1:17] = np.arange(16) | (np.arange(16)[::-1] << 4)  # each of the sixteen values in both nibbles
        return out
    ordinary = (generator.standard_normal((BLOCKS, 2)) * 0.02).astype(np.float16)
    for column, offset in enumerate(SCALES[name]):
        bits = ordinary[:, column].copy().view(np.uint16)
        # The second scale (a minimum) takes the edges in another order, so that the two do not always meet alike.
        bits[BLOCKS // 2: BLOCKS // 2 + len(F16_EDGES)] = F16_EDGES if column == 0 else np.roll(F16_EDGES, 5)
        out[:, offset: offset + 2] = bits.view(np.uint8).reshape(BLOCKS, 2)
    # Quants that are all zeros and all ones, under ordinary scales.
    rest = np.ones(size, bool)
    for offset in SCALES[name]:
        rest[offset: offset + 2] = False
    out[-2][rest] = 0
    out[-1][rest] = 0xFF
    return out


def make() -> None:
    for name in TYPES:
        data = blocks(name)
        with np.errstate(all="ignore"):
            values = gguf.dequantize(data, gguf.GGMLQuantizationType[name])
        values = np.array(values, np.float32).reshape(BLOCKS, -1)
        save_tensors(TESTDATA / "quant" / f"{name}.safetensors", {"blocks": data, "values": values}, COMMAND)
        print(f"{name:7} {data.shape[1]:4} bytes -> {values.shape[1]:4} values, {np.isnan(values).sum():5} NaN, {np.isinf(values).sum():5} infinite")
