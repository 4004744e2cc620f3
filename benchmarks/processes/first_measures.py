"""A process that measures a small block of each dtype in both layouts, which loads the kernels or compiles them.

python first_measures.py DTYPE…
"""

from __future__ import annotations

import sys

import numpy as np

from streamstats.statistics.extrema import ChannelExtrema
from streamstats.statistics.mean import ChannelMean

CHANNELS_LAST, CHANNELS_FIRST = (64, 64), (2, 64, 64)

for dtype in sys.argv[1:]:
    for shape in (CHANNELS_LAST, CHANNELS_FIRST):
        ChannelMean.measure(np.zeros(shape, dtype), 1)
        ChannelExtrema.measure(np.zeros(shape, dtype), 1)
