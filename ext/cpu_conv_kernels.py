"""The causal convolution and its gradients on the CPU: a few steps of a slab of channels at a time, in cache.

The steps of all sequences, one sequence behind the other, are dealt out as ranges, and the channels as slabs; one range
of one slab is a unit of work. Nothing carries over from unit to unit: each reads the k-1 inputs before its own once
more, and going back it takes the gradients of the k-1 steps after its own once more.

Which unit does what depends on shapes alone, and the gradients of weight and bias are left to the caller as one partial
sum a range, so the number of threads changes no bit.

There are as many channels as lanes at least. Where the last lanes would reach beyond the last channel they begin sooner
and do some channels a second time.
"""

from numba import njit

from .cpu_tiles import inline, kernel
from .lane_math import exp
from .lanes import fill, load, prefetch, select_less, store, width

CHUNK = 32  # steps taken at a time on the way back
USUAL = 4  # the width of the released models, which has loops of its own
BLOCK = 4  # steps of the same lanes that such a loop takes one after the other
ROWS = 512  # steps that are summed in the kernels' own precision before they are added in double


@njit(nogil=True, error_model="numpy")
def conv_forward(first, last, ranges, slabs, scratch, spans, x, taps, bias, initial, silu, y, final):
    """Fill y (b l d) and final (s k-1 d), for the units that are counted `first` to `last`, of ranges times slabs.

    Row i of `spans` (s 3) is the batch row, begin and end of sequence i. taps are (k d), bias (d), initial is empty
    where there is no state, and the last axis of each is contiguous. `scratch` is the caller's memory, (CHUNK+4k d).
    """
    past = len(taps) - 1
    for unit in range(first, last):
        r, c0, c1 = unit // slabs, _edge(x, unit % slabs, slabs), _edge(x, unit % slabs + 1, slabs)
        for i in range(len(spans)):
            row, begin, end = spans[i, 0], spans[i, 1], spans[i, 2]
            t0, t1 = _step(x, row, begin, end, r, ranges), _step(x, row, begin, end, r + 1, ranges)
            if t0 < t1:
                near = min(max(begin + past, t0), t1)
                if t0 < near:
                    _gather(x, initial, i, row, begin, begin - past, scratch[: near - begin + past], c0, c1)
                    _filter(scratch[t0 - begin :], taps, bias, silu, y[row, t0:near], c0, c1)
                if near < t1 and past + 1 == USUAL:
                    _filter_usual(x[row, near - past :], taps, bias, silu, y[row, near:t1], c0, c1)
                elif near < t1:
                    _filter(x[row, near - past :], taps, bias, silu, y[row, near:t1], c0, c1)
            if _ends_in(x, row, end, r, ranges):
                _gather(x, initial, i, row, begin, end - past, final[i], c0, c1)


@njit(nogil=True, error_model="numpy")
def conv_backward(
    first, last, ranges, slabs, scratch, spans, x, taps, bias, initial, silu, dy, dfinal, dx, dinitial, sums
):  # fmt: skip
    """Fill dx (b l d), add to dinitial (s k-1 d) and to `sums` (ranges k+1 d), the gradients of the taps and the bias.

    The rest is as in `conv_forward`. Step t decides on the gradient of input t-k+1, so k-1 steps more are taken; those
    beyond the end count as zeros.
    """
    past, back = len(taps) - 1, taps[::-1]
    nothing, part, head, grads = scratch[:1], scratch[1 : past + 3], scratch[past + 3 :], scratch[3 * past + 3 :]
    current = grads[past:]
    _clear(scratch[: past + 3], 0, x.shape[2])
    for unit in range(first, last):
        r, c0, c1 = unit // slabs, _edge(x, unit % slabs, slabs), _edge(x, unit % slabs + 1, slabs)
        for i in range(len(spans)):
            row, begin, end = spans[i, 0], spans[i, 1], spans[i, 2]
            t0, t1 = _step(x, row, begin, end, r, ranges), _step(x, row, begin, end, r + 1, ranges)
            t, stop = t0, t1 + past if t0 < t1 else t0
            if t0 < min(begin + past, t1):
                _gather(x, initial, i, row, begin, begin - past, head[: min(2 * past, end - begin + past)], c0, c1)
            _clear(grads[:past], c0, c1)
            while t < stop:
                if t0 + past <= t < t1 and past + 1 == USUAL and silu and (c1 - c0) % width(x) == 0:
                    t2 = min(t + ROWS, t1)
                    target = dx[row, t - past : t2 - past]
                    _retreat_usual(x[row, t - past :], taps, bias, dy[row, t:t2], grads, target, part, c0, c1)
                else:
                    # A segment's gradients belong on one side of the begin, and its inputs lie in one place.
                    t2 = min(t + CHUNK, begin + past if t < begin + past else stop)
                    t2 = min(t2, t0 + past if t < t0 + past else stop)
                    lines = head[t - begin :] if t < begin + past else x[row, t - past :]
                    _slopes(lines, taps, bias, silu, dy[row, t : max(t, min(t2, end))], current[: t2 - t], c0, c1)
                    if t < t1:
                        _correlate(lines, current[: min(t2, t1) - t], part, c0, c1)
                    target = dx[row, max(t - past, t0) : max(t2 - past, t0)]
                    if t < t0 + past and t0 == begin:
                        target = dinitial[i, t - begin : t2 - begin]
                    _filter(grads, back, nothing[0], False, target, c0, c1)
                    _move(grads[t2 - t :], grads[:past], c0, c1)
                if t < t1:
                    _drain(part, sums[r], c0, c1)
                t = t2
            if t0 < t1 or _ends_in(x, row, end, r, ranges):
                for s in range(max(end, begin if t0 == begin else t0 + past) - past, max(t1, begin)):
                    line = dx[row, s] if s >= begin else dinitial[i, s - begin + past]
                    _add(dfinal[i, s - end + past], line, c0, c1)


@inline
def _edge(x, slab, slabs):
    """The first channel of a slab: at whole lanes, but for the end."""
    wide = width(x)
    return x.shape[2] if slab == slabs else x.shape[2] // wide * slab // slabs * wide


@inline
def _step(x, row, begin, end, r, ranges):
    """The first step of a sequence that falls into range r or a later one."""
    steps, start = len(x) * x.shape[1], row * x.shape[1]
    return min(max(steps * r // ranges - start, begin), end)


@inline
def _ends_in(x, row, end, r, ranges):
    """Whether this of all ranges holds the step before a sequence's end."""
    steps, last = len(x) * x.shape[1], row * x.shape[1] + end
    return (steps * r // ranges < last or r == 0) and last <= steps * (r + 1) // ranges


@kernel
def _filter(lines, taps, bias, silu, out, c0, c1):
    """out_t = act(bias + Σ_j taps_j lines_{t+j})."""
    for t in range(len(out)):
        for i in range(c0, c1, width(out)):
            c = min(i, c1 - width(out))
            value = _sum(lines, taps, bias, t, c)
            store(out[t], c, value / (exp(0.0 - value) + 1.0) if silu else value)


@kernel
def _filter_usual(lines, taps, bias, silu, out, c0, c1):
    """As `_filter`, of USUAL taps: BLOCK steps of the same lanes in a row, whose inputs stay in registers."""
    for t0 in range(0, len(out), BLOCK):
        t1 = min(t0 + BLOCK, len(out))
        for i in range(c0, c1, width(out)):
            c = min(i, c1 - width(out))
            w0, w1, w2, w3 = load(taps[0], c), load(taps[1], c), load(taps[2], c), load(taps[3], c)
            x0, x1, x2 = load(lines[t0], c), load(lines[t0 + 1], c), load(lines[t0 + 2], c)
            offset = load(bias, c)
            for t in range(t0, t1):
                x3 = load(lines[t + 3], c)
                prefetch(lines[t + 3 + BLOCK], c)
                value = offset + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
                store(out[t], c, value / (exp(0.0 - value) + 1.0) if silu else value)
                x0, x1, x2 = x1, x2, x3


@kernel
def _slopes(lines, taps, bias, silu, dy, out, c0, c1):
    """The gradients before the activation, out_t = dy_t act'(bias + Σ_j taps_j lines_{t+j}); zeros beyond the last."""
    for t in range(len(out)):
        for i in range(c0, c1, width(out)):
            c = min(i, c1 - width(out))
            grad = load(dy[t], c) if t < len(dy) else fill(out, 0.0)
            if silu and t < len(dy):
                grad = grad * _slope(_sum(lines, taps, bias, t, c))
            store(out[t], c, grad)


@inline
def _slope(x):
    """The derivative of SiLU, σ(x) (1 + x (1 - σ(x))), without the difference, which is lost where σ(x) is near 1.

    Below -88, where e^-x may be infinite, it is a zero; but NaN at minus infinity.
    """
    e = exp(0.0 - x)
    gate = 1.0 / (e + 1.0)
    return select_less(x, -88.0, x * 0.0, gate * (x * (e * gate) + 1.0))


@kernel
def _retreat_usual(lines, taps, bias, dy, grads, dx, sums, c0, c1):
    """Steps of USUAL taps with SiLU and whole lanes, in registers: fill dx, from three steps before, and add to sums.

    grads come in as those of the three steps before and go out as those of the last three.
    """
    for t0 in range(0, len(dy), BLOCK):
        t1 = min(t0 + BLOCK, len(dy))
        for c in range(c0, c1, width(dx)):
            w0, w1, w2, w3 = load(taps[0], c), load(taps[1], c), load(taps[2], c), load(taps[3], c)
            x0, x1, x2 = load(lines[t0], c), load(lines[t0 + 1], c), load(lines[t0 + 2], c)
            g0, g1, g2 = load(grads[0], c), load(grads[1], c), load(grads[2], c)
            s0, s1, s2, s3 = load(sums[0], c), load(sums[1], c), load(sums[2], c), load(sums[3], c)
            s4, offset = load(sums[4], c), load(bias, c)
            for t in range(t0, t1):
                x3 = load(lines[t + 3], c)
                prefetch(lines[t + 3 + BLOCK], c)
                prefetch(dy[t + BLOCK], c)
                g3 = load(dy[t], c) * _slope(offset + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3)
                store(dx[t], c, w3 * g0 + w2 * g1 + w1 * g2 + w0 * g3)
                s0, s1, s2, s3, s4 = s0 + x0 * g3, s1 + x1 * g3, s2 + x2 * g3, s3 + x3 * g3, s4 + g3
                x0, x1, x2, g0, g1, g2 = x1, x2, x3, g1, g2, g3
            store(grads[0], c, g0)
            store(grads[1], c, g1)
            store(grads[2], c, g2)
            store(sums[0], c, s0)
            store(sums[1], c, s1)
            store(sums[2], c, s2)
            store(sums[3], c, s3)
            store(sums[4], c, s4)


@inline
def _sum(lines, taps, bias, t, c):
    value = load(bias, c)
    for j in range(len(taps)):
        value = value + load(taps[j], c) * load(lines[t + j], c)
    return value


@kernel
def _correlate(lines, grads, sums, c0, c1):
    """sums_j = Σ_t lines_{t+j} grads_t, and the last of them Σ_t grads_t."""
    k, wide = len(sums) - 1, width(sums)
    for i in range(c0, c1, wide):
        for j in range(k + 1):
            total = fill(sums, 0.0)
            for t in range(len(grads)):
                grad = load(grads[t], min(i, c1 - wide))
                total = total + (grad * load(lines[t + j], min(i, c1 - wide)) if j < k else grad)
            store(sums[j], min(i, c1 - wide), total)


@kernel
def _drain(part, sums, c0, c1):
    """Add sums to more precise ones, and clear them."""
    for j in range(len(sums)):
        for c in range(c0, c1):
            sums[j, c] += part[j, c]
            part[j, c] = 0.0


@kernel
def _gather(x, initial, i, row, begin, t, target, c0, c1):
    """Copy the inputs from step t on, those before the sequence from its state, or zeros."""
    for m in range(t - begin, t - begin + len(target)):
        for j in range(c0, c1, width(x)):
            c = min(j, c1 - width(x))
            value = fill(x, 0.0)
            if m >= 0:
                value = load(x[row, begin + m], c)
            elif len(initial):
                value = load(initial[i, m + initial.shape[1]], c)
            store(target[m - t + begin], c, value)


@kernel
def _move(source, target, c0, c1):
    """Copy rows to `target`, which lies before them, from the first on."""
    for m in range(len(target)):
        for c in range(c0, c1, width(target)):
            store(target[m], min(c, c1 - width(target)), load(source[m], min(c, c1 - width(target))))


@kernel
def _clear(rows, c0, c1):
    for m in range(len(rows)):
        for c in range(c0, c1, width(rows)):
            store(rows[m], min(c, c1 - width(rows)), fill(rows, 0.0))


@kernel
def _add(source, target, c0, c1):
    for c in range(c0, c1):
        target[c] += source[c]
