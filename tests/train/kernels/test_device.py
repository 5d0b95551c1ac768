"""Where Triton's kernels run."""

import sys

import pytest
import torch

from train.kernels.device import on_triton, triton_runs


def test_without_triton_a_warning_says_so_once(monkeypatch, recwarn):
    monkeypatch.setitem(sys.modules, "triton", None)
    triton_runs.cache_clear()
    try:
        with pytest.warns(UserWarning, match="Triton cannot run here"):
            assert not triton_runs()
        assert not triton_runs()
        assert not recwarn.list
    finally:
        triton_runs.cache_clear()


def test_a_tensor_on_a_cpu_never_asks_for_triton(monkeypatch):
    monkeypatch.setattr("train.kernels.device.triton_runs", lambda: pytest.fail("asked"))
    assert not on_triton(torch.zeros(1))
