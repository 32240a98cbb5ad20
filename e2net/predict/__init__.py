"""Prediction on any picture or film: ``python -m e2net.predict`` and, in Python, ``e2net.load``.

Settings and inputs are checked by modules that import neither torch nor OpenCV's data sets, so that a wrong argument
is answered at once.

- ``settings``: of the program
- ``inputs``: which files, and under which names their results are written
- ``job``: from files to results on disk
- ``segmenter``: a trained model for people who have pictures
- ``result``: what it says about one of them
- ``objects``: ``objects.json``, all objects in COCO's format
- ``rle``: objects in COCO's run-length encoding
"""
