"""The lung window, in whole numbers."""

import numpy as np

from e2d_lib.scans.volume import hu_to_uint8
from tests.make_scans import window


class TestWindow:
    def test_whole_numbers(self):
        hu = np.arange(-4000, 4001)
        for dtype in (np.int16, np.int32, np.float32, np.float64):
            np.testing.assert_array_equal(hu_to_uint8(hu.astype(dtype)), window(hu))

    def test_truncates_and_keeps_the_shape(self):
        one = 1500 / 255
        assert hu_to_uint8(np.array([[-1350 + 0.99 * one, -1350 + 1.01 * one]])).tolist() == [[0, 1]]
        assert hu_to_uint8(np.float32(0)).shape == ()
        assert hu_to_uint8(np.array([np.nan, np.inf, -np.inf])).tolist() == [0, 255, 0]

    def test_leaves_its_input_alone(self):
        hu = np.zeros((2, 2))
        hu_to_uint8(hu)
        assert not hu.any()
