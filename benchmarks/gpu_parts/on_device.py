"""A model on a device that is called, and answers, as one on the CPU: export's proofs know no device."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel


class Past:
    """A cache on the device, with its layers brought to the CPU when they are asked for."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    @property
    def layers(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(keys=layer.keys.cpu(), values=layer.values.cpu()) for layer in self.cache.layers]


class OnDevice:
    def __init__(self, model: GPT2LMHeadModel, device: str) -> None:
        self.model = model
        self.device = device

    @torch.no_grad()
    def __call__(self, ids: Tensor, *, past_key_values: Past | None = None, **settings: Any) -> SimpleNamespace:
        moved = {
            name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in settings.items()
        }
        past = past_key_values.cache if past_key_values else None
        result = self.model(ids.to(self.device), past_key_values=past, **moved)
        return SimpleNamespace(
            logits=result.logits.cpu(),
            past_key_values=Past(result.past_key_values) if result.past_key_values else None,
            hidden_states=[state.cpu() for state in result.hidden_states or ()],
            attentions=[weights.cpu() for weights in result.attentions or ()],
        )
