"""The latency matrix: what to measure, how, and how the numbers come home and are judged.

Imports nothing, so that ``measure`` and ``launch`` run on a machine without Ray and pyarrow.
"""
