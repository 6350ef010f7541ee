"""What the CPU scan does with a chunk of steps of one tile: reading it, its states forwards and back, writing it."""

from .cpu_tiles import (
    BLOCK,
    CHUNK,
    DECAYS,
    DGAIN,
    DGATE,
    DOT,
    DRIVE,
    DSTEP,
    LINES_B,
    LINES_C,
    ROW,
    SEED,
    STEP,
    TRACE,
    U,
    add,
    inline,
    kernel,
    load_four,
    read,
    store_four,
    write,
)  # fmt: skip
from .lane_math import decay, exp, phi, phi_slope, sigmoid, softplus, softplus_slope
from .lanes import conjugate, fill, fused, load, pairs, prefetch, real, select_less, store, width

INFINITY = float("inf")


@kernel
def prepare(x, tile, row, t0, count):
    """Read u and form Δ, for all of the tile's channels of one step at a time, as they lie in memory."""
    wide = width(x.u)
    for g in range(len(tile.a)):
        store(tile.low[g], 0, fill(x.u, INFINITY))
        store(tile.high[g], 0, fill(x.u, -INFINITY))
    for t in range(count):
        i = t * ROW * wide
        for g in range(len(tile.a)):
            c, rows = tile.c0 + g * wide, tile.rows[g]
            u, step = read(x.u[row, t0 + t], c), _raw_step(x, row, t0 + t, c)
            step = softplus(step) if x.soft else step
            store(rows, i + U * wide, u)
            store(rows, i + STEP * wide, step)
            store(rows, i + DRIVE * wide, step * u)
            store(rows, i + DOT * wide, fill(x.u, 0.0))
            low, high = load(tile.low[g], 0), load(tile.high[g], 0)
            store(tile.low[g], 0, select_less(step, low, step, low))
            store(tile.high[g], 0, select_less(high, step, step, high))
    plain = not (x.static_B or x.static_C or x.zoh) and pairs(x.A) == 1.0
    for g in range(len(tile.a)):
        tile.calm[g] = plain and _is_calm(tile.low[g], tile.high[g], tile.reach[g])


@kernel
def _is_calm(low, high, reach):
    """Whether each rate ΔA of the chunk is where `decay` holds; NaN, which stays what it is, may pass."""
    least, most = low[0], high[0]
    for j in range(1, low.size):
        least, most = min(least, low[j]), max(most, high[j])
    calm = True
    for a in reach:
        calm = calm and least * a >= -1e6 and least * a <= 87.0 and most * a >= -1e6 and most * a <= 87.0
    return calm


@inline
def _raw_step(x, row, t, c):
    """Δ before its softplus."""
    step = read(x.delta[row, t], c)
    return step + read(x.delta_bias, c) if x.delta_bias.size else step


@inline
def _ask(array, row, t, c):
    """Have a row that a later chunk will touch come nearer, while there is arithmetic to wait behind."""
    if 0 <= t < array.shape[1]:
        prefetch(array[row, t], c)


@kernel
def advance(x, tile, g, row, t0, count, state, dots, y):
    """Take all states of one group of lanes over a chunk; with `dots` C·h is added up, for a y that will be written."""
    k, n, trace = 0, x.A.shape[1], state[:0]
    while k < n:
        if tile.calm[g] and k + BLOCK <= n:
            wanted = (x.u, x.delta, x.z, y)[k // BLOCK % 4]
            advance_four(x, tile, g, k, row, t0, count, state, trace, dots, wanted, CHUNK)
            k += BLOCK
        else:
            advance_one(x, tile, g, k, row, t0, count, state, trace, dots)
            k += 1


@kernel
def advance_one(x, tile, g, k, row, t0, count, state, trace, dots):
    """Take one state over a chunk: h_t = exp(Δ_t A) h_{t-1} + Δ_t φ_t B_t u_t.

    With `dots` its share of C·h is added to the dot rows. `trace`, if not empty, gets the state before each step and
    after the last, and the decays.
    """
    wide, rows = width(x.u), tile.rows[g]
    a, h = load(tile.a[g], k * wide), load(state, k * wide)
    for t in range(count):
        i = t * ROW * wide
        step = load(rows, i + STEP * wide)
        fade = exp(step * a)
        gain = load(rows, i + DRIVE * wide) * _coefficient(x.static_B, tile.b[g], x.B, row, t0 + t, k, wide)
        if x.zoh:
            gain = gain * phi(step * a)
        if trace.size:
            store(trace, t * TRACE * wide, h)
            store(trace, (t * TRACE + DECAYS) * wide, fade)
        h = fused(fade, h, gain)
        if dots:
            share = real(h * _coefficient(x.static_C, tile.c[g], x.C, row, t0 + t, k, wide))
            store(rows, i + DOT * wide, load(rows, i + DOT * wide) + share)
    if trace.size:
        store(trace, count * TRACE * wide, h)
    store(state, k * wide, h)


@kernel
def advance_four(x, tile, g, k, row, t0, count, state, trace, dots, wanted, ahead):
    """`advance_one` for four states, the k-th and those after it, of the released models' kind where it is calm.

    On the way it asks for the rows of `wanted` that lie `ahead` steps further on.
    """
    wide, rows = width(x.u), tile.rows[g]
    a0, a1, a2, a3 = load_four(tile.a[g], k * wide)
    h0, h1, h2, h3 = load_four(state, k * wide)
    for t in range(count):
        i = t * ROW * wide
        B, C = x.B[row, t0 + t], x.C[row, t0 + t]
        _ask(wanted, row, t0 + t + ahead, tile.c0 + g * wide)
        step, drive = load(rows, i + STEP * wide), load(rows, i + DRIVE * wide)
        e0, e1, e2, e3 = decay(step, a0), decay(step, a1), decay(step, a2), decay(step, a3)
        if trace.size:
            store_four(trace, t * TRACE * wide, h0, h1, h2, h3)
            store_four(trace, (t * TRACE + DECAYS) * wide, e0, e1, e2, e3)
        h0, h1 = fused(e0, h0, drive * B[k]), fused(e1, h1, drive * B[k + 1])
        h2, h3 = fused(e2, h2, drive * B[k + 2]), fused(e3, h3, drive * B[k + 3])
        if dots:
            dot = load(rows, i + DOT * wide) + h0 * C[k] + h1 * C[k + 1] + (h2 * C[k + 2] + h3 * C[k + 3])
            store(rows, i + DOT * wide, real(dot))
    if trace.size:
        store_four(trace, count * TRACE * wide, h0, h1, h2, h3)
    store_four(state, k * wide, h0, h1, h2, h3)


@inline
def _coefficient(static, column, matrix, row, t, k, wide):
    """B or C of one state, the same in all lanes where it is selective."""
    return load(column, k * wide) if static else fill(column, matrix[row, t, k])


@kernel
def gate(x, tile, row, t0, count, y):
    """Write y = (C·h + D u) silu(z)."""
    wide = width(x.u)
    for t in range(count):
        for g in range(len(tile.a)):
            c = tile.c0 + g * wide
            value = _ungated(x, tile, g, t, c)
            if x.z.size:
                z = read(x.z[row, t0 + t], c)
                value = value * z * sigmoid(z)
            write(y[row, t0 + t], c, value)


@inline
def _ungated(x, tile, g, t, c):
    """C·h + D u, for a complex state 2 Re(C·h) + D u."""
    wide, rows = width(x.u), tile.rows[g]
    value = load(rows, (t * ROW + DOT) * wide) * pairs(x.A)
    return value + read(x.D, c) * load(rows, (t * ROW + U) * wide) if x.D.size else value


@kernel
def seed(x, tile, row, t0, count, dy):
    """The gradient of y before its gate, and of the gate but for the ungated y; silu'(z) = σ(z) (1 + z (1 - σ(z)))."""
    wide = width(x.u)
    for t in range(count):
        for g in range(len(tile.a)):
            i, c, rows = t * ROW * wide, tile.c0 + g * wide, tile.rows[g]
            value = read(dy[row, t0 + t], c)
            if x.z.size:
                z = read(x.z[row, t0 + t], c)
                share = sigmoid(z)
                store(rows, i + DGATE * wide, value * share * (z * (1.0 - share) + 1.0))
                value = value * z * share
            store(rows, i + SEED * wide, value)
            store(rows, i + DGAIN * wide, fill(x.u, 0.0))
            store(rows, i + DSTEP * wide, fill(x.u, 0.0))


@kernel
def retreat_one(x, tile, scratch, g, k, row, t0, count):
    """The gradients of `advance_one` over the same chunk, from its last step to its first.

    `scratch.carry` comes in as the gradient of the state after the chunk and goes out as that of the state before it.
    """
    wide = width(x.u)
    j, rows, trace = k * wide, tile.rows[g], scratch.trace
    a, back, da = load(tile.a[g], j), load(scratch.carry[g], j), load(scratch.da[g], j)
    for t in range(count - 1, -1, -1):
        i, at = t * ROW * wide, t * TRACE * wide
        step, drive = load(rows, i + STEP * wide), load(rows, i + DRIVE * wide)
        fade = conjugate(load(trace, at + DECAYS * wide))
        ddot = load(rows, i + SEED * wide) * pairs(x.A)
        dh = back + conjugate(_coefficient(x.static_C, tile.c[g], x.C, row, t0 + t, k, wide)) * ddot
        back = fade * dh
        # The rate ΔA acts through its decay, and with ZOH through φ as well.
        drate = conjugate(load(trace, at)) * back
        dstep = load(rows, i + DSTEP * wide) + real(conjugate(a) * drate)
        dgain = conjugate(_coefficient(x.static_B, tile.b[g], x.B, row, t0 + t, k, wide)) * dh
        dB = drive * dh
        if x.zoh:
            rate = step * a
            # d(Δ φ(ΔA))/dΔ is the decay again.
            dstep = dstep + load(rows, i + U * wide) * real(fade * dgain)
            drate = drate + conjugate(phi_slope(rate)) * drive * dgain
            dgain, dB = conjugate(phi(rate)) * dgain, conjugate(phi(rate)) * dB
        store(rows, i + DSTEP * wide, dstep)
        store(rows, i + DGAIN * wide, load(rows, i + DGAIN * wide) + real(dgain))
        da = da + step * drate
        dC = conjugate(load(trace, at + TRACE * wide)) * ddot
        _accumulate(x.static_B, scratch.db[g], j, trace, at + LINES_B * wide, dB)
        _accumulate(x.static_C, scratch.dc[g], j, trace, at + LINES_C * wide, dC)
    store(scratch.carry[g], j, back)
    store(scratch.da[g], j, da)


@inline
def _accumulate(static, column, j, lines, i, value):
    """Add to the gradient of B or C: a static one has a sum for each channel, a selective one for each step."""
    if static:
        store(column, j, load(column, j) + value)
    else:
        store(lines, i, load(lines, i) + value)


@kernel
def retreat_four(x, tile, scratch, g, k, row, t0, count, wanted):
    """`retreat_one` for four states, as `advance_four`; on the way it asks for this chunk's rows of `wanted`."""
    wide = width(x.u)
    j, rows, trace = k * wide, tile.rows[g], scratch.trace
    a0, a1, a2, a3 = load_four(tile.a[g], j)
    c0, c1, c2, c3 = load_four(scratch.carry[g], j)
    d0, d1, d2, d3 = load_four(scratch.da[g], j)
    h0, h1, h2, h3 = load_four(trace, count * TRACE * wide)
    for t in range(count - 1, -1, -1):
        i, at = t * ROW * wide, t * TRACE * wide
        B, C = x.B[row, t0 + t], x.C[row, t0 + t]
        _ask(wanted, row, t0 + t, tile.c0 + g * wide)
        step, drive, ddot = load(rows, i + STEP * wide), load(rows, i + DRIVE * wide), load(rows, i + SEED * wide)
        p0, p1, p2, p3 = load_four(trace, at)
        e0, e1, e2, e3 = load_four(trace, at + DECAYS * wide)
        c0, r0, s0 = _retreat(trace, at, ddot, drive, c0, e0, p0, h0, C[k])
        c1, r1, s1 = _retreat(trace, at + wide, ddot, drive, c1, e1, p1, h1, C[k + 1])
        c2, r2, s2 = _retreat(trace, at + 2 * wide, ddot, drive, c2, e2, p2, h2, C[k + 2])
        c3, r3, s3 = _retreat(trace, at + 3 * wide, ddot, drive, c3, e3, p3, h3, C[k + 3])
        h0, h1, h2, h3 = p0, p1, p2, p3
        d0, d1, d2, d3 = fused(step, r0, d0), fused(step, r1, d1), fused(step, r2, d2), fused(step, r3, d3)
        dstep = load(rows, i + DSTEP * wide) + a0 * r0 + a1 * r1 + (a2 * r2 + a3 * r3)
        store(rows, i + DSTEP * wide, real(dstep))
        dgain = load(rows, i + DGAIN * wide) + s0 * B[k] + s1 * B[k + 1] + (s2 * B[k + 2] + s3 * B[k + 3])
        store(rows, i + DGAIN * wide, real(dgain))
    store_four(scratch.carry[g], j, c0, c1, c2, c3)
    store_four(scratch.da[g], j, d0, d1, d2, d3)


@inline
def _retreat(trace, at, ddot, drive, carry, fade, before, after, c):
    """One state's step back: the new carry, and the gradients of the rate ΔA and of the state."""
    share = ddot * c
    dh = carry + share
    # Not fade * dh, which would make the way from step to step longer.
    carry = fused(fade, carry, fade * share)
    wide = width(trace)
    store(trace, at + LINES_B * wide, load(trace, at + LINES_B * wide) + drive * dh)
    store(trace, at + LINES_C * wide, load(trace, at + LINES_C * wide) + after * ddot)
    return carry, before * carry, dh


@kernel
def settle(x, tile, row, t0, count, dx):
    """Write du, dΔ and dz of the chunk, and add up those of D and of the bias of Δ."""
    wide = width(x.u)
    for g in range(len(tile.a)):
        c, rows = tile.c0 + g * wide, tile.rows[g]
        dD, dbias = fill(x.u, 0.0), fill(x.u, 0.0)
        for t in range(count):
            i = t * ROW * wide
            u, step, value = load(rows, i + U * wide), load(rows, i + STEP * wide), load(rows, i + SEED * wide)
            dgain, dstep = load(rows, i + DGAIN * wide), load(rows, i + DSTEP * wide)
            if not x.zoh:
                dstep = dstep + u * dgain
            if x.soft:
                dstep = dstep * softplus_slope(_raw_step(x, row, t0 + t, c))
            du = step * dgain
            if x.D.size:
                du = du + read(x.D, c) * value
            write(dx.u[row, t0 + t], c, du)
            write(dx.delta[row, t0 + t], c, dstep)
            if x.z.size:
                write(dx.z[row, t0 + t], c, load(rows, i + DGATE * wide) * _ungated(x, tile, g, t, c))
            dD, dbias = dD + u * value, dbias + dstep
        if x.D.size:
            add(dx.D, c, dD, wide)
        if x.delta_bias.size:
            add(dx.delta_bias, c, dbias, wide)
