"""Writes a variant as GGUF with the `gguf` package, and reads the weights back as float32."""

import struct
from pathlib import Path

import gguf
import numpy as np

from common import GOLDEN, Gguf

_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32, "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "MXFP4": gguf.LlamaFileType.MOSTLY_MXFP4_MOE,
}


def write(family, variant, file: Gguf, weights: dict[str, np.ndarray]) -> list[Path]:
    """The parts written, in order."""
    stem = f"{family.FAMILY}-{file.stem}"
    for old in GOLDEN.glob(f"{stem}*.gguf"):
        if old.stem == stem or old.stem.startswith(stem + "-0"):
            old.unlink()
    config = family.config(variant)
    writer = gguf.GGUFWriter(GOLDEN / f"{stem}.gguf", getattr(family, "GGUF_ARCHITECTURE", family.FAMILY), split_max_tensors=file.max_tensors)
    writer.add_name(stem)
    writer.add_file_type(_FILE_TYPES[file.dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if file.alignment != 32:
        writer.add_custom_alignment(file.alignment)
    family.gguf_metadata(config, writer)
    if file.tokenizer:
        writer.add_tokenizer_model(file.tokenizer)
        writer.add_vocab_size(config.vocab_size)
    for name, value in family.gguf_tensors(config, weights).items():
        dtype = gguf.GGMLQuantizationType[family.gguf_type(name, file.dtype)]
        writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(value), dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(GOLDEN.glob(f"{stem}-0*-of-*.gguf")) if file.max_tensors else [GOLDEN / f"{stem}.gguf"]
    if file.version != 3:
        for part in parts:
            # Versions 2 and 3 differ only in this number (3 allows big-endian files).
            data = bytearray(part.read_bytes())
            struct.pack_into("<I", data, 4, file.version)
            part.write_bytes(data)
    return parts


def read(family, variant, parts: list[Path]) -> dict[str, np.ndarray]:
    """The weights that these files hold, dequantised by the `gguf` package, under our names."""
    stored = {}
    for part in parts:
        for tensor in gguf.GGUFReader(part).tensors:
            value = gguf.dequantize(tensor.data, tensor.tensor_type)
            stored[tensor.name] = np.array(value, np.float32).reshape([int(n) for n in reversed(tensor.shape)])
    return family.from_gguf_tensors(family.config(variant), stored)
