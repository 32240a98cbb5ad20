"""Files of trained models that run without e2net, and the proof that they score the same.

- ``settings``: of the program
- ``job``: from a checkpoint to a file, or to none
- ``formats``: how each format is written, and how it runs
- ``network``: what a file computes
- ``onnx_file``: ONNX files, in 8 bits too
- ``calibration``: pictures that set the ranges of 8 bits
- ``metadata``: what a file says of itself
- ``parity``: whether a file does as its model did
- ``cost``: time and memory of a prediction
- ``alone``: one prediction in a process of its own
- ``table``: the figures of an export
"""
