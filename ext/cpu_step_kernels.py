"""One token of a Mamba mixer on the CPU, states in place: the convolution, and the scan, for all rows of a batch."""

from numba import njit

from .cpu_tiles import aligned, inline, read, write
from .lane_math import exp, phi, sigmoid, softplus
from .lanes import fill, fused, pairs, real, total, width


@njit(nogil=True, error_model="numpy")
def conv_step(first, last, x, taps, bias, silu, state, u):
    """Fill u (b d) with the convolution's next output and move `state` (b k-1 d) on, for rows `first` to `last`.

    `taps` are the weights (k d), the oldest input's first.
    """
    wide, past, d = width(x), state.shape[1], x.shape[1]
    for i in range(first, last):
        for c in range(0, d, wide):
            new = read(x[i], c)
            value = fused(new, read(taps[past], c), read(bias, c))
            for j in range(past):
                old = read(state[i, j], c)
                value = fused(old, read(taps[j], c), value)
                if j > 0:
                    write(state[i, j - 1], c, old)
            if past > 0:
                write(state[i, past - 1], c, new)
            write(u[i], c, value * sigmoid(value) if silu else value)


@njit(nogil=True, error_model="numpy")
def scan_step(
    first, last, u, delta, A, B, C, D, z, delta_bias, static_B, static_C, soft, zoh, state, y
):  # fmt: skip
    """Fill y (b d) with the scan's next output and move `state` (b d n) on, for rows `first` to `last`.

    B and C are (b n) when selective, (d n) when static; what was not given is an empty array.
    """
    wide, d = width(u), u.shape[1]
    steps, drives, dots = aligned(wide, u), aligned(wide, u), aligned(wide, u)
    for i in range(first, last):
        for c0 in range(0, d, wide):
            value, step = read(u[i], c0), read(delta[i], c0)
            step = step + read(delta_bias, c0) if delta_bias.size else step
            step = softplus(step) if soft else step
            write(steps, 0, step)
            write(drives, 0, step * value)
            for j in range(min(wide, d - c0)):
                c = c0 + j
                b, line = (B[c] if static_B else B[i]), (C[c] if static_C else C[i])
                dots[j] = _channel(steps[j], drives[j], A[c], b, line, zoh, state[i, c])
            dot = read(dots, 0) * pairs(A)
            dot = dot + read(D, c0) * value if D.size else dot
            if z.size:
                gate = read(z[i], c0)
                dot = dot * gate * sigmoid(gate)
            write(y[i], c0, dot)


@inline
def _channel(step, drive, a, b, c, zoh, state):
    """Move the states of one channel, which lie side by side; C·h."""
    sums = real(fill(a, 0.0))
    for k in range(0, a.size, width(a)):
        rate = fill(a, step) * read(a, k)
        gain = read(b, k) * drive
        if zoh:
            gain = gain * phi(rate)
        h = fused(exp(rate), read(state, k), gain)
        write(state, k, h)
        sums = sums + real(h * read(c, k))
    return total(sums)
