"""Prediction on any picture or film: ``python -m e2net.predict`` and, in Python, ``e2net.load``.

Settings and inputs are checked by modules that import neither torch nor OpenCV's data sets, so that a wrong argument
is answered at once.
"""
