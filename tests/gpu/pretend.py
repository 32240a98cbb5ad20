"""A GPU that is not there: CUDA's devices and functions, whose tensors lie in the CPU's memory.

Whatever e2net and Lightning choose for ``cuda`` is chosen, and computed on the CPU: autocast in bf16 and fp16, the
gradient scaler, the fused optimiser. What it cannot show is a tensor on the wrong device (the tests on the ``meta``
device do), a kernel's own faults and its speed; ``benchmarks/gpu_smoke.py`` is for those.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

TOTAL = 80 << 30
_IS_CUDA = vars(torch._C.TensorBase)["is_cuda"].__get__


def _on_cpu(value: Any) -> Any:
    """``value``, but for devices on a GPU."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")):
        return "cpu"
    return value


class PretendGpu(TorchFunctionMode):
    """Tensors that are asked for on ``cuda`` are made on the CPU.

    Args:
        bf16: whether the GPU has it.

    Attributes:
        calls: of ``torch.cuda``, in their order: (name, arguments).
        pinned: how many tensors were pinned.
        moved: whether anything was asked for on the GPU.
    """

    def __init__(self, bf16: bool = True) -> None:
        super().__init__()
        self.bf16, self.calls, self.pinned, self.moved = bf16, [], 0, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.device or func.__name__ == "_parse_to":  # a name, nothing on it yet
            return func(*args, **(kwargs or {}))
        if func == _IS_CUDA:
            return True
        here = tuple(_on_cpu(a) for a in args)
        named = {k: _on_cpu(v) for k, v in (kwargs or {}).items()}
        self.moved += here != args if any(isinstance(a, str | torch.device) for a in args) else 0
        self.moved += "device" in named and named["device"] is not (kwargs or {})["device"]
        return func(*here, **named)

    def called(self, name: str) -> list[tuple]:
        """The arguments of every call of ``torch.cuda.<name>``."""
        return [args for found, args in self.calls if found == name]


def install(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> PretendGpu:
    """Puts the functions into ``torch``, until the test ends; the caller enters the mode."""
    gpu = PretendGpu(bf16)
    results: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "set_device": None,
        "get_device_capability": (7, 0),  # without tensor cores for float32, about which Lightning has a remark
        "get_device_name": "Pretended GPU",
        "synchronize": None,
        "empty_cache": None,
        "mem_get_info": (TOTAL // 2, TOTAL),
        "memory_reserved": TOTAL // 4,
        "memory_allocated": 1 << 30,
        "max_memory_allocated": 2 << 30,
        "reset_peak_memory_stats": None,
        "set_per_process_memory_fraction": None,
        "manual_seed": None,
        "manual_seed_all": None,
        "get_rng_state_all": [],
        "set_rng_state_all": None,
        "set_rng_state": None,
        "is_current_stream_capturing": False,
    }

    def recording(name, result):
        def call(*args, **kwargs):
            gpu.calls.append((name, (*args, *kwargs.values())))
            return result

        return call

    for name, result in results.items():
        monkeypatch.setattr(torch.cuda, name, recording(name, result))
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device="cuda": torch.full((16,), 7, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation)
    autocast, scaler = torch.autocast, torch.amp.GradScaler
    monkeypatch.setattr(torch, "autocast", lambda device_type, *a, **k: autocast(_on_cpu(device_type), *a, **k))
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device="cuda", **k: scaler(_on_cpu(device), **k))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda check_available=False: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
    stream = SimpleNamespace(is_capturing=lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda device=None: stream)

    def pin(tensor, device=None):
        gpu.pinned += 1
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return gpu
