"""What an export needs is said before anything is built."""

import importlib.metadata

import pytest

from e2net.export.settings import ExportSettings, torch_suffices


def test_an_older_torch_is_refused_but_for_e2nets_own_format(monkeypatch):
    assert torch_suffices("2.14.1+cpu") and torch_suffices("3.0.0a0") and not torch_suffices("2.9.1")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.6.0+cu124")
    with pytest.raises(ValueError, match=r"format=torch: expected torch 2\.14 or newer, .*, found 2\.6\.0"):
        ExportSettings(ckpt="run", format="torch").check_packages()
    ExportSettings(ckpt="run", format="safetensors").check_packages()
