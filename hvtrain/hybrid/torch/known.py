"""Stacks of layers in torch.nn whose ``forward`` fx cannot trace, written so that it can."""

from __future__ import annotations

from typing import Any, Callable

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules import transformer


def stack(module: nn.Module, *args: Any, **kwargs: Any) -> Callable[[fx.Tracer], Any] | None:
    """What calls the layers of ``module``, as its forward would; None if it is no such stack or does more."""
    if type(module) is nn.TransformerEncoder:
        return _encoder(module, *args, **kwargs)
    return _decoder(module, *args, **kwargs) if type(module) is nn.TransformerDecoder else None


def _encoder(module: nn.TransformerEncoder, src: Any, mask: Any = None, src_key_padding_mask: Any = None,
             is_causal: Any = None) -> Callable[[fx.Tracer], Any] | None:
    if src_key_padding_mask is not None and getattr(module, "use_nested_tensor", False):
        return None  # evaluation may leave padding out; built with enable_nested_tensor=False it does not

    def trace(tracer: fx.Tracer) -> Any:
        padding, masked, causal = src_key_padding_mask, mask, is_causal is True
        if mask is not None or src_key_padding_mask is not None:
            prepared = tracer.create_proxy("call_function", encoder_masks, (
                src, mask, src_key_padding_mask, is_causal, module.layers[0].self_attn.batch_first), {})
            masked, padding, causal = prepared[0], prepared[1], prepared[2]
        output = src
        for layer in module.layers:
            output = layer(output, src_mask=masked, is_causal=causal, src_key_padding_mask=padding)
        return output if module.norm is None else module.norm(output)

    return trace


def _decoder(module: nn.TransformerDecoder, tgt: Any, memory: Any, tgt_mask: Any = None, memory_mask: Any = None,
             tgt_key_padding_mask: Any = None, memory_key_padding_mask: Any = None, tgt_is_causal: Any = None,
             memory_is_causal: bool = False) -> Callable[[fx.Tracer], Any]:
    def trace(tracer: fx.Tracer) -> Any:
        causal = tgt_is_causal is True
        if tgt_mask is not None:
            causal = tracer.create_proxy("call_function", is_causal_mask, (
                tgt, tgt_mask, tgt_is_causal, module.layers[0].self_attn.batch_first), {})
        output = tgt
        for layer in module.layers:
            output = layer(output, memory, tgt_mask=tgt_mask, memory_mask=memory_mask,
                           tgt_key_padding_mask=tgt_key_padding_mask, memory_key_padding_mask=memory_key_padding_mask,
                           tgt_is_causal=causal, memory_is_causal=memory_is_causal)
        return output if module.norm is None else module.norm(output)

    return trace


def encoder_masks(src: Any, mask: Any, padding: Any, is_causal: Any, batch_first: bool) -> tuple[Any, Any, bool]:
    """The masks as nn.TransformerEncoder gives them to its layers."""
    padding = F._canonical_mask(mask=padding, mask_name="src_key_padding_mask", other_type=F._none_or_dtype(mask),
                                other_name="mask", target_type=src.dtype)
    mask = F._canonical_mask(mask=mask, mask_name="mask", other_type=None, other_name="", target_type=src.dtype,
                             check_other=False)
    return mask, padding, is_causal_mask(src, mask, is_causal, batch_first)


def is_causal_mask(src: Any, mask: Any, is_causal: Any, batch_first: bool) -> bool:
    """Whether ``mask`` is the causal one."""
    return transformer._detect_is_causal_mask(mask, is_causal, transformer._get_seq_len(src, batch_first))
