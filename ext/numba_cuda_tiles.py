"""What the numba-cuda scan does with one tile of steps, as device functions: no barriers here, those stand in kernels.

A thread is at `place`: it has that channel, number c of its block, and group g of the channel's states, or shares out
with the other threads of its channel what is done once a step. The shared arrays of a tile are
(steps, channels) for Δ ("steps"), u ("inputs"), Δu ("products") and dy ("grads"), and (steps, states) for B and C.
"""

from functools import cache
from typing import Any

from .numba_cuda_arrays import device_function
from .numba_cuda_math import REAL, elements, functions
from .numba_cuda_plan import BIAS, SOFTPLUS, D, Plan, Z


@cache
def stage_inputs(plan: Plan) -> Any:
    """Δ, u and Δu of a tile; the threads of a channel share its steps."""
    widen, softplus = elements(plan.dtype).widen, functions(plan.dtype, False).softplus
    groups, zero = plan.groups, REAL[plan.dtype](0)

    def stage(u, delta, bias, given, batch, at, count, place, steps, inputs, products):
        channel, c, g = place
        inside = channel < u.shape[2]
        offset = zero
        if inside and given & BIAS:
            offset = bias[channel]
        for t in range(g, count, groups):
            step = zero
            x = zero
            if inside:
                x = widen(u[batch, at + t, channel])
                step = widen(delta[batch, at + t, channel]) + offset
                if given & SOFTPLUS:
                    step = softplus(step)
            steps[t, c] = step
            inputs[t, c] = x
            products[t, c] = step * x

    return device_function(stage)


@cache
def stage_matrix(plan: Plan, selective: bool) -> Any:
    """A tile of a selective B or C; all threads share it out."""
    widen, n, padded, threads = elements(plan.stored(selective)).widen, plan.n, plan.padded, plan.threads
    zero = REAL[plan.dtype](0)

    def stage(matrix, batch, at, count, thread, tile):
        if not selective:
            return
        for j in range(thread, count * padded, threads):
            t, k = j // padded, j % padded
            if k < n:
                tile[t, k] = widen(matrix[batch, at + t, k])
            else:
                tile[t, k] = zero

    return device_function(stage)


@cache
def load_own(plan: Plan) -> Any:
    """A thread's own elements of a row of numbers over the states; zeros past the end, and where it is not wanted."""
    n, states, zero = plan.n, plan.states, REAL[plan.dtype](0)

    def load(matrix, row, place, own, wanted):
        channel, _, g = place
        for i in range(states):
            k = g * states + i
            own[i] = zero
            if wanted and channel < matrix.shape[1] and k < n:
                own[i] = matrix[row, channel, k]

    return device_function(load)


@cache
def store_own(plan: Plan) -> Any:
    """The way back."""
    n, states = plan.n, plan.states

    def store(own, row, place, matrix):
        channel, _, g = place
        for i in range(states):
            k = g * states + i
            if channel < matrix.shape[1] and k < n:
                matrix[row, channel, k] = own[i]

    return device_function(store)


@cache
def discretise(plan: Plan) -> Any:
    """Ā and B̄u / B of one state, given Δ, Δu and A."""
    f, zoh = functions(plan.dtype, plan.is_complex), plan.zoh
    exp, phi = f.exp, f.phi

    def euler_of(step, product, A):
        return exp(step * A), product

    def zoh_of(step, product, A):
        x = step * A
        decay = exp(x)
        return decay, product * phi(x, decay)

    return device_function(zoh_of if zoh else euler_of)


@cache
def advance(plan: Plan) -> Any:
    """A thread's states through a tile."""
    states, selective_B, discretised = plan.states, plan.selective_B, discretise(plan)

    def run(count, place, steps, products, A, B_tile, B, h):
        _, c, g = place
        for t in range(count):
            step, product = steps[t, c], products[t, c]
            for i in range(states):
                decay, gain = discretised(step, product, A[i])
                b = B_tile[t, g * states + i] if selective_B else B[i]
                h[i] = decay * h[i] + gain * b

    return device_function(run)


@cache
def observe(plan: Plan) -> Any:
    """The same, leaving in `parts` (steps, groups, channels) the thread's part of C·h, twice that if complex."""
    states, selective_B, selective_C, discretised = plan.states, plan.selective_B, plan.selective_C, discretise(plan)
    real_part, zero, scale = functions(plan.dtype, plan.is_complex).real_part, *numbers(plan)

    def run(count, place, steps, products, A, B_tile, B, C_tile, C, h, parts):
        _, c, g = place
        for t in range(count):
            step, product, total = steps[t, c], products[t, c], zero
            for i in range(states):
                decay, gain = discretised(step, product, A[i])
                b = B_tile[t, g * states + i] if selective_B else B[i]
                h[i] = decay * h[i] + gain * b
                total += real_part((C_tile[t, g * states + i] if selective_C else C[i]) * h[i])
            parts[t, g, c] = total * scale

    return device_function(run)


def numbers(plan: Plan) -> tuple[Any, Any]:
    """0, and by what y is more than the real part of C·h."""
    real = REAL[plan.dtype]
    return real(0), real(2 if plan.is_complex else 1)


@cache
def sum_parts(plan: Plan) -> Any:
    """One step of a channel's parts, added up in the order of its threads."""
    groups, zero = plan.groups, REAL[plan.dtype](0)

    def total(parts, t, c):
        whole = zero
        for j in range(groups):
            whole += parts[t, j, c]
        return whole

    return device_function(total)


@cache
def write_outputs(plan: Plan) -> Any:
    """y of a tile, from the parts of C·h."""
    element, f, groups = elements(plan.dtype), functions(plan.dtype, False), plan.groups
    widen, narrow, sigmoid, whole = element.widen, element.narrow, f.sigmoid, sum_parts(plan)

    def write(D_row, z, given, batch, at, count, place, inputs, parts, y):
        channel, c, g = place
        if channel >= y.shape[2]:
            return
        for t in range(g, count, groups):
            total = whole(parts, t, c)
            if given & D:
                total += D_row[channel] * inputs[t, c]
            if given & Z:
                gate = widen(z[batch, at + t, channel])
                total *= gate * sigmoid(gate)
            y[batch, at + t, channel] = narrow(total)

    return device_function(write)
