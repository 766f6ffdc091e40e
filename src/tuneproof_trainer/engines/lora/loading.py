"""Models and tokenizers from disk or hub, on the device and in the precision at hand."""

from __future__ import annotations

from typing import Any

from tuneproof_trainer.engines.lora.conversations import Conversations
from tuneproof_trainer.engines.lora.options import Base, LoraOptions
from tuneproof_trainer.engines.protocol import EngineError

__all__ = [
    "device_of",
    "limit_of",
    "load_conversations",
    "load_model",
]

_QUANTIZED_FROM = 0.6
"""Share of a device's free memory beyond which 16-bit weights are loaded in 4 bits."""


def device_of(options: LoraOptions) -> str:
    """`cuda` or `cpu`; raises EngineError if a device was asked for that is not there."""
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise EngineError(
            "device_not_available", "No CUDA device is available. Use --device cpu.", None
        )
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and options.quantize == "4bit":
        raise EngineError(
            "device_not_available", "4-bit loading needs CUDA. Use --quantize none.", None
        )
    return device


def load_conversations(base: Base) -> Conversations:
    """The tokenizer of a base model with its chat template."""
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = _loaded(base, AutoTokenizer.from_pretrained)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    try:
        eos = GenerationConfig.from_pretrained(base.source).eos_token_id
    except OSError:  # the model brings none
        eos = None
    return Conversations(tokenizer, eos)


def load_model(base: Base, options: LoraOptions) -> Any:
    """A base model on its device: float32 on the CPU, 16 or 4 bits on CUDA."""
    import torch
    from transformers import AutoModelForCausalLM

    device = device_of(options)
    how: dict[str, Any] = {"dtype": torch.float32}
    if device == "cuda":
        how["dtype"] = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        if _wants_4bit(base, options):
            how |= _in_4bit(how["dtype"])
    if base.gguf_file is not None:
        from transformers import GgufConfig

        how["quantization_config"] = GgufConfig(dequantize=True)
    model = _loaded(base, AutoModelForCausalLM.from_pretrained, **how)
    return model if "device_map" in how else model.to(device)


def _in_4bit(dtype: Any) -> dict[str, Any]:
    import torch
    from transformers import BitsAndBytesConfig

    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": quantized, "device_map": {"": torch.cuda.current_device()}}


def _loaded(base: Base, load: Any, **how: Any) -> Any:
    """Load, and say clearly what was missing."""
    if base.gguf_file is not None:
        how["gguf_file"] = base.gguf_file
    try:
        return load(base.source, **how)
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise EngineError(
            "model_not_loadable", f"The model {base.id!r} cannot be loaded: {error}", "model"
        ) from error


def _wants_4bit(base: Base, options: LoraOptions) -> bool:
    import torch
    from transformers.utils import is_bitsandbytes_available

    if options.quantize == "none" or base.gguf_file is not None:
        return False
    if not is_bitsandbytes_available():
        if options.quantize == "4bit":
            raise EngineError(
                "device_not_available", "4-bit loading needs bitsandbytes: install it.", None
            )
        return False
    free, _ = torch.cuda.mem_get_info()
    return options.quantize == "4bit" or _bytes_in_16_bits(base) > _QUANTIZED_FROM * free


def _bytes_in_16_bits(base: Base) -> int:
    """What the weights weigh, from the model's shape alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.source))
    return int(2 * sum(weight.numel() for weight in empty.parameters()))


def limit_of(model: Any) -> int:
    """The longest context in tokens."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 2048)
