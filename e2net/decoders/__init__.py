"""Decoders: feature maps F1..F4 in, logits out.

A decoder is built with the encoder's ``channels`` and ``strides`` and called with the maps and the image's (H, W).
"""

from e2net.decoders.caem import CAEM, CAEMDecoder
from e2net.decoders.dpt import DPTDecoder
from e2net.decoders.e2net import CCM, CFZM, LFSM, E2NetDecoder
from e2net.decoders.linear import LinearDecoder
from e2net.decoders.pyramid import Pyramid
from e2net.decoders.upernet import UPerNetDecoder

__all__ = [
    "CAEM",
    "CCM",
    "CFZM",
    "LFSM",
    "CAEMDecoder",
    "DPTDecoder",
    "E2NetDecoder",
    "LinearDecoder",
    "Pyramid",
    "UPerNetDecoder",
]
