from .base import Decoder
from .caem import CAEM, CAEMDecoder
from .dpt import DPTDecoder
from .e2net import CCM, CFZM, LFSM, E2NetDecoder
from .linear import LinearDecoder
from .pyramid import Pyramid
from .upernet import UPerNetDecoder

__all__ = [
    "CAEM",
    "CCM",
    "CFZM",
    "LFSM",
    "CAEMDecoder",
    "DPTDecoder",
    "Decoder",
    "E2NetDecoder",
    "LinearDecoder",
    "Pyramid",
    "UPerNetDecoder",
]
