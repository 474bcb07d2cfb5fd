"""DeviceState: the input and output arrays of runs of one shape, bound in a device's memory."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.graphs.device.cache import DeviceCache
from runtime.ort.install import load_onnxruntime
from runtime.ort.memory import DeviceArray

LOG = 32  # steps that a row's log of ids holds


class DeviceState:
    """Arrays for runs over `count` ids in each of some rows, with `wanted` indices where the next id is wanted.

    If each row takes one id and gives one, the outputs of a run are bound to the inputs of the next.

    Attributes:
        feeds: Whether the outputs are bound so.
        logits: [wanted, V], on the device.
    """

    def __init__(self, session: Any, cache: DeviceCache, first: int, rows: int, count: int, wanted: int) -> None:
        self.rows, self.count, self.wanted = rows, count, wanted
        self.feeds = count == 1 and wanted == rows
        self.binding = session.io_binding()
        placement, make = cache.placement, load_onnxruntime().OrtValue.ortvalue_from_numpy
        log = wanted * (LOG if self.feeds else 1)
        self._inputs = {
            "input_ids": DeviceArray((rows, count), np.int64, placement),
            "position_ids": DeviceArray((rows, count), np.int64, placement),
            "seqlens_k": DeviceArray((rows,), np.int32, placement),
            "logits_indices": DeviceArray((wanted,), np.int64, placement),
            "log_indices": DeviceArray((wanted,), np.int64, placement),
            "token_log": DeviceArray((log,), np.int64, placement),
        }
        self._next_token = self._inputs["input_ids"] if self.feeds else DeviceArray((wanted, 1), np.int64, placement)
        self.logits = DeviceArray((wanted, cache.architecture.vocab_size), np.float32, placement)
        self._total = np.zeros(1, np.int32)  # on the host, where GroupQueryAttention reads it
        self._total_value = make(self._total)
        self._held: dict[str, NDArray[Any]] = {}  # what the inputs are known to hold
        self._bind(cache, first)

    def _bind(self, cache: DeviceCache, first: int) -> None:
        binding = self.binding
        binding.bind_ortvalue_input("total_sequence_length", self._total_value)
        for name, array in self._inputs.items():
            binding.bind_ortvalue_input(name, array.value)
            if name != "logits_indices" and name != "input_ids":
                binding.bind_ortvalue_output(f"next_{name}", array.value)
        binding.bind_ortvalue_output("next_token", self._next_token.value)
        binding.bind_ortvalue_output("logits", self.logits.value)
        for name, array in cache.arrays.items():
            binding.bind_input(f"past_key_values{name}", *array.rows(first, self.rows))
            binding.bind_output(f"present{name}", *array.rows(first, self.rows))

    def put(self, total: int, **values: NDArray[Any]) -> None:
        """Write inputs, except those that already hold the values, as most do after a step."""
        self._total[0] = total
        for name, value in values.items():
            if name not in self._held or not np.array_equal(self._held[name], value):
                self._held.pop(name, None)
                self._inputs[name].write(value)
                self._held[name] = value.copy()

    @property
    def total(self) -> int:
        return int(self._total[0])

    def held(self) -> dict[str, NDArray[Any]]:
        return {name: value.copy() for name, value in self._held.items()}

    def forget(self) -> None:
        """Assume nothing about the inputs: the next `put` writes them all."""
        self._held.clear()

    def log_position(self, steps: int) -> int:
        """The position in the logs, moved back to 0 if `steps` more would not fit."""
        position = int(self._held["log_indices"][0]) if "log_indices" in self._held else LOG
        if position + steps <= LOG:
            return position
        self.put(self.total, log_indices=np.arange(self.wanted) * LOG)
        return 0

    def next_ids(self) -> NDArray[np.int64]:
        """The next ids [wanted], copied to the host."""
        return self._next_token.read()[:, 0]

    def logged(self, start: int, steps: int) -> NDArray[np.int64]:
        """The logged ids of `steps` steps from `start` on, [rows, steps]."""
        return self._inputs["token_log"].read().reshape(self.wanted, LOG)[:, start : start + steps]

    def advanced(self, steps: int, ids: NDArray[np.int64]) -> None:
        """Record what the inputs hold after `steps` steps, the last of which gave `ids` [wanted]."""
        if not self.feeds:
            self.forget()
            return
        for name in ("position_ids", "seqlens_k", "log_indices"):
            self._held[name] = self._held[name] + steps
        self._held["input_ids"] = ids[:, None].copy()

    def steps_done(self, start: int) -> int:
        """How many steps the device has done since the logs were at `start`."""
        return int(self._inputs["log_indices"].read()[0]) - start
