"""Which number formats this build of PyTorch can compute in."""

from __future__ import annotations

import pytest

from tests.support.digits.in_torch import half_works

half = pytest.mark.skipif(not half_works(), reason="this build of PyTorch has no float16 on the CPU")
