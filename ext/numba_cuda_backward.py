"""What the backward pass of the numba-cuda scan does with one tile of steps, as device functions without barriers."""

import math
from functools import cache
from typing import Any, NamedTuple

from .numba_cuda_arrays import device_function
from .numba_cuda_math import REAL, elements, functions
from .numba_cuda_plan import SOFTPLUS, D, Plan, Z
from .numba_cuda_tiles import discretise, numbers, sum_parts


class Backward(NamedTuple):
    """What the backward pass does besides."""

    stage_grads: Any
    write_gate: Any
    recompute: Any
    reverse: Any
    sum_channels: Any
    write_inputs: Any


@cache
def backward(plan: Plan) -> Backward:
    """The phases of a tile of the backward pass, in their order."""
    return Backward(
        stage_grads(plan),
        _write_gate(plan),
        _recompute(plan),
        _reverse(plan),
        _sum_channels(plan),
        _write_inputs(plan),
    )


@cache
def stage_grads(plan: Plan) -> Any:
    """The gradients of y before the gate."""
    widen, sigmoid, groups = elements(plan.dtype).widen, functions(plan.dtype, False).sigmoid, plan.groups
    zero = REAL[plan.dtype](0)

    def stage(dy, z, given, batch, at, count, place, grads):
        channel, c, g = place
        inside = channel < dy.shape[2]
        for t in range(g, count, groups):
            grad = zero
            if inside:
                grad = widen(dy[batch, at + t, channel])
                if given & Z:
                    gate = widen(z[batch, at + t, channel])
                    grad *= gate * sigmoid(gate)
            grads[t, c] = grad

    return device_function(stage)


def _write_gate(plan: Plan) -> Any:
    """dz of a tile, from the parts of C·h."""
    element, f, groups, one = elements(plan.dtype), functions(plan.dtype, False), plan.groups, REAL[plan.dtype](1)
    widen, narrow, sigmoid, whole = element.widen, element.narrow, f.sigmoid, sum_parts(plan)

    def write(dy, D_row, z, given, batch, at, count, place, inputs, parts, dz):
        channel, c, g = place
        if not given & Z or channel >= dy.shape[2]:
            return
        for t in range(g, count, groups):
            total = whole(parts, t, c)
            if given & D:
                total += D_row[channel] * inputs[t, c]
            gate = widen(z[batch, at + t, channel])
            share = sigmoid(gate)
            slope = share * (one + gate * (one - share))
            dz[batch, at + t, channel] = narrow(widen(dy[batch, at + t, channel]) * total * slope)

    return device_function(write)


def _recompute(plan: Plan) -> Any:
    """The states of a tile into `slots` (steps, states, channels), the parts of C·h, and the gradient of a static C."""
    states, selective_B, selective_C, discretised = plan.states, plan.selective_B, plan.selective_C, discretise(plan)
    f, (zero, scale) = functions(plan.dtype, plan.is_complex), numbers(plan)
    real_part, conj = f.real_part, f.conj

    def run(count, place, steps, products, grads, A, B_tile, B, C_tile, C, h, slots, parts, sums):
        _, c, g = place
        for t in range(count):
            step, product, total = steps[t, c], products[t, c], zero
            for i in range(states):
                k = g * states + i
                decay, gain = discretised(step, product, A[i])
                b = B_tile[t, k] if selective_B else B[i]
                h[i] = decay * h[i] + gain * b
                slots[t, k, c] = h[i]
                total += real_part((C_tile[t, k] if selective_C else C[i]) * h[i])
                if not selective_C:
                    sums[2, i] += conj(h[i]) * (grads[t, c] * scale)
            parts[t, g, c] = total * scale

    return device_function(run)


def _reverse(plan: Plan) -> Any:
    """The gradients dh of the states back through a tile.

    The slot of a state that is done with takes conj(φ) dh, what dB and du are made of. `parts` gets the thread's sum of
    it with B, du / Δ; `parts_A` what comes to Δ through ΔA.
    """
    states, selective_B, selective_C, zoh = plan.states, plan.selective_B, plan.selective_C, plan.zoh
    f, (zero, scale) = functions(plan.dtype, plan.is_complex), numbers(plan)
    exp, phi, phi_slope, conj, real_part = f.exp, f.phi, f.phi_slope, f.conj, f.real_part

    def run(count, place, steps, products, grads, A, B_tile, B, C_tile, C, first, dh, slots, parts, parts_A, sums):
        _, c, g = place
        for t in range(count - 1, -1, -1):
            step, product, grad = steps[t, c], products[t, c], grads[t, c] * scale
            total, total_A = zero, zero
            for i in range(states):
                k = g * states + i
                before = slots[t - 1, k, c] if t > 0 else first[i]
                b = B_tile[t, k] if selective_B else B[i]
                x = step * A[i]
                decay = exp(x)
                dh[i] += conj(C_tile[t, k] if selective_C else C[i]) * grad
                passed = dh[i]
                carried = conj(decay) * passed
                dx = carried * conj(before)
                if zoh:
                    factor = phi(x, decay)
                    dx += passed * conj(phi_slope(x, decay, factor) * b) * product
                    passed *= conj(factor)
                dh[i] = carried
                slots[t, k, c] = passed
                total += real_part(passed * conj(b))
                total_A += real_part(dx * conj(A[i]))
                sums[0, i] += dx * step
                if not selective_B:
                    sums[1, i] += passed * product
            parts[t, g, c] = total
            parts_A[t, g, c] = total_A

    return device_function(run)


def _sum_channels(plan: Plan) -> Any:
    """Σ over a block's channels of slots times what each step has of them, in the order of the channels."""
    n, channels, threads = plan.n, plan.channels, plan.threads

    def total(weights, slots, batch, at, count, thread, across, sums):
        for j in range(thread, count * n, threads):
            t, k = j // n, j % n
            whole = slots[t, k, 0] * weights[t, 0]
            for c in range(1, channels):
                whole += slots[t, k, c] * weights[t, c]
            sums[across, batch, at + t, k] = whole

    return device_function(total)


def _write_inputs(plan: Plan) -> Any:
    """du and ddelta of a tile; adds to the thread's sums for dD and dbias."""
    narrow, groups, whole = elements(plan.dtype).narrow, plan.groups, sum_parts(plan)
    real = REAL[plan.dtype]
    linear = real(20)

    def write(D_row, given, batch, at, count, place, steps, inputs, grads, parts, parts_A, du, ddelta, channel_sums):
        channel, c, g = place
        if channel >= du.shape[2]:
            return
        for t in range(g, count, groups):
            step, x, grad, gain = steps[t, c], inputs[t, c], grads[t, c], whole(parts, t, c)
            dx = step * gain
            if given & D:
                dx += D_row[channel] * grad
            dstep = x * gain + whole(parts_A, t, c)
            if given & SOFTPLUS and step <= linear:
                # The slope of softplus, from what it gave.
                dstep *= real(-math.expm1(-step))
            du[batch, at + t, channel] = narrow(dx)
            ddelta[batch, at + t, channel] = narrow(dstep)
            channel_sums[0] += grad * x
            channel_sums[1] += dstep

    return device_function(write)


@cache
def retreat(plan: Plan) -> Any:
    """The gradients of the states alone, back through a tile."""
    states, selective_C, (_, scale) = plan.states, plan.selective_C, numbers(plan)
    f = functions(plan.dtype, plan.is_complex)
    exp, conj = f.exp, f.conj

    def run(count, place, steps, grads, A, C_tile, C, dh):
        _, c, g = place
        for t in range(count - 1, -1, -1):
            step, grad = steps[t, c], grads[t, c] * scale
            for i in range(states):
                dh[i] += conj(C_tile[t, g * states + i] if selective_C else C[i]) * grad
                dh[i] *= conj(exp(step * A[i]))

    return device_function(run)
