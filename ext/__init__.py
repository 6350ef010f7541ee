"""The ops of Mamba, the scan, the convolution and the norm, and how they are computed on each backend.

The axes, everywhere, as einops letters:

    b batch    l length    d channels (d_inner)    n state
    k width of the convolution    r rank of Δ (dt_rank)    p rows of x_proj (r + 2n when B and C are selective)
    s packed sequences, laid end to end along l with b = 1; cu_seqlens (s+1) says where each begins and the last ends

Activations are channel-last, (b l d). States are (b d n) for the scan and (b k-1 d) for the convolution, and have one
row a sequence, (s d n) and (s k-1 d), when sequences are packed.
"""

from .backends import prepare
from .conv import causal_conv1d
from .norm import rms_norm
from .scan import selective_scan
from .step import step_

__all__ = ["causal_conv1d", "prepare", "rms_norm", "selective_scan", "step_"]
