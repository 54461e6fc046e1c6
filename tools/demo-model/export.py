"""Writes the trained weights as a Q8_0 GGUF file, models/demo.gguf.

Names, metadata and layout are those that llama.cpp uses for GPT-2: matrices
are stored (out, in), the head is tied to the token embedding and therefore not
stored. Matrices become Q8_0 except the position embedding, which is only ever
added to the input and stays float32 with the biases and norms.
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open
from tokenizers import Tokenizer

from corpus import END
from sources import BUILD

MODEL = Path(__file__).resolve().parents[2] / "models/demo.gguf"
LIMIT = 16 * 1024 * 1024

BLOCK_NAMES = {
    "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}
TOP_NAMES = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}


def load_weights(run: Path) -> tuple[dict[str, np.ndarray], dict]:
    """The float weights of a training run in GPT-2's names, and the model's shape."""
    weights = {}
    for path in sorted(run.glob("model-*.safetensors")):
        with safe_open(path, "numpy") as f:
            shape = json.loads(f.metadata()["shape"])
            for name in f.keys():
                weights[name] = f.get_tensor(name).astype(np.float32)
    return weights, shape


def gguf_name(name: str) -> str:
    """transformer.h.3.mlp.c_fc.bias -> blk.3.ffn_up.bias"""
    path, kind = name.removeprefix("transformer.").rsplit(".", 1)
    if path in TOP_NAMES:
        return f"{TOP_NAMES[path]}.{kind}"
    _, number, part = path.split(".", 2)
    return f"blk.{number}.{BLOCK_NAMES[part]}.{kind}"


def is_conv1d(name: str) -> bool:
    return name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def add_tokenizer(writer: gguf.GGUFWriter, path: Path) -> None:
    # The file is read rather than asked for: the order of the merges matters.
    model = json.loads(path.read_text("utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    end = Tokenizer.from_file(str(path)).token_to_id(END)
    types = [gguf.TokenType.CONTROL if t == END else gguf.TokenType.NORMAL for t in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=BUILD / "run")
    parser.add_argument("--out", type=Path, default=MODEL)
    args = parser.parse_args()
    weights, shape = load_weights(args.run)

    args.out.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(args.out, "gpt2")
    writer.add_name("oxgpt demo")
    writer.add_description(
        f"A toy GPT-2 of {sum(w.size for w in weights.values()) / 1e6:.1f} million parameters, "
        "trained on public-domain English text for the demonstrations and tests of oxgpt"
    )
    writer.add_license("MIT OR Apache-2.0")
    writer.add_languages(["en"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(shape["context"])
    writer.add_embedding_length(shape["width"])
    writer.add_feed_forward_length(4 * shape["width"])
    writer.add_block_count(shape["layers"])
    writer.add_head_count(shape["heads"])
    writer.add_layer_norm_eps(1e-5)
    add_tokenizer(writer, BUILD / "tokenizer.json")

    q8 = gguf.GGMLQuantizationType.Q8_0
    for name, array in weights.items():
        target = gguf_name(name)
        if is_conv1d(name):
            array = array.T
        array = np.ascontiguousarray(array)
        if array.ndim == 2 and target != "position_embd.weight":
            writer.add_tensor(target, gguf.quantize(array, q8), raw_dtype=q8)
        else:
            writer.add_tensor(target, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    size = args.out.stat().st_size
    print(f"{args.out.name}: {len(weights)} tensors, {size} bytes")
    if size > LIMIT:
        raise RuntimeError(f"{size} bytes are more than the {LIMIT} allowed")


if __name__ == "__main__":
    main()
