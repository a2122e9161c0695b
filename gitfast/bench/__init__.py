"""``gitfast bench kernels``: every kernel at the shapes of the published models, beside its peers.

``cpu_cases.py`` and ``cuda_cases.py`` say what is run: one function per kernel. ``run.py`` checks every side of a case
against float64 (``case.py``, ``truth.py``) and times those that pass, in turns (``cpu_clock.py``, ``cuda_clock.py``);
``report.py`` prints and writes the results, ``roofline.py`` draws them.
"""
