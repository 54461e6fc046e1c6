"""The model: GPT-2's architecture, small, written for fast training.

The arithmetic is that of GPT-2 (learned positions, pre-norm blocks, fused
query/key/value, tanh GELU, tied head). `to_gpt2` hands the weights out under the
names and in the layout of transformers' GPT2LMHeadModel, whose matrices are
stored (in, out).
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    vocabulary: int = 8_000
    context: int = 512
    width: int = 384
    layers: int = 6
    heads: int = 6

    def gpt2_config(self) -> dict:
        """The keyword arguments of transformers' GPT2Config."""
        return {
            "vocab_size": self.vocabulary, "n_positions": self.context, "n_embd": self.width,
            "n_layer": self.layers, "n_head": self.heads, "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5, "bos_token_id": 0, "eos_token_id": 0,
        }

    def as_dict(self) -> dict:
        return asdict(self)


class Block(nn.Module):
    def __init__(self, shape: Shape, dropout: float):
        super().__init__()
        width = shape.width
        self.heads, self.dropout = shape.heads, dropout
        self.ln_1 = nn.LayerNorm(width)
        self.c_attn = nn.Linear(width, 3 * width)
        self.attn_proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.c_fc = nn.Linear(width, 4 * width)
        self.mlp_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        qkv = self.c_attn(self.ln_1(x)).view(batch, time, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        rate = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=rate)
        y = self.attn_proj(y.transpose(1, 2).reshape(batch, time, width))
        x = x + F.dropout(y, rate)
        y = F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh")
        return x + F.dropout(self.mlp_proj(y), rate)


class Model(nn.Module):
    def __init__(self, shape: Shape, dropout: float = 0.0):
        super().__init__()
        self.shape, self.dropout = shape, dropout
        self.wte = nn.Embedding(shape.vocabulary, shape.width)
        self.wpe = nn.Embedding(shape.context, shape.width)
        self.h = nn.ModuleList(Block(shape, dropout) for _ in range(shape.layers))
        self.ln_f = nn.LayerNorm(shape.width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # GPT-2's initialisation: the projections back into the residual
                # stream are scaled down by the number of those additions.
                scale = (2 * shape.layers) ** -0.5 if name.endswith("_proj.weight") else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over all targets in nats."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.wte(ids) + self.wpe(positions)
        x = F.dropout(x, self.dropout if self.training else 0.0)
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def to_gpt2(self) -> dict[str, Tensor]:
        """The weights as float16 under GPT-2's names and in its layout."""
        names = {"c_attn": "attn.c_attn", "attn_proj": "attn.c_proj",
                 "c_fc": "mlp.c_fc", "mlp_proj": "mlp.c_proj"}
        result = {}
        for name, tensor in self.state_dict().items():
            tensor = tensor.detach().to("cpu", torch.float16)
            parts = name.split(".")
            if parts[0] == "h" and parts[2] in names:
                parts[2] = names[parts[2]]
                if parts[3] == "weight":
                    tensor = tensor.t()
            result["transformer." + ".".join(parts)] = tensor.contiguous()
        return result
