"""The emulator of CUDA kernels: barriers, shuffles and memory as on the device; every planted mistake is caught."""

import struct

import cuda_emulator
import pytest
import torch

reason = cuda_emulator.missing()
pytestmark = pytest.mark.skipif(reason is not None, reason=f"no emulator: {reason}")

every_order = pytest.mark.parametrize("order", cuda_emulator.ORDERS, ids=lambda order: f"{order[0]} {order[1]}")


def launched(name, x, y, *, blocks=1, threads=32, shared=0, count=0, scale=1.0, defines=(), order=("ascending", 0)):
    """y after one launch of a toy kernel on x."""
    (bits,) = struct.unpack("q", struct.pack("d", scale))
    kernel = cuda_emulator.load(cuda_emulator.SHIM / "toy.cu", name, defines)
    with cuda_emulator.order(*order):
        kernel.launch(blocks, threads, shared, (x.data_ptr(), y.data_ptr(), count, bits))
    return y


def numbers(count):
    return torch.arange(count, dtype=torch.float32)


@every_order
@pytest.mark.parametrize("warps", [1, 2, 32])
def test_a_block_sums_by_shuffles_and_shared_memory(order, warps):
    width = 32 * warps
    x, y = numbers(3 * width - 5), torch.full((3,), torch.nan)
    launched(
        "block_sum", x, y, blocks=3, threads=width, count=len(x), scale=0.5, defines=(("WARPS", warps),), order=order
    )
    expected = [0.5 * part.sum() for part in x.split(width)]
    torch.testing.assert_close(y, torch.stack(expected))


@every_order
@pytest.mark.parametrize("by", [0, 1, 3, 4, 31])
def test_a_shuffle_reads_the_lane_that_the_guide_says(order, by):
    y = launched("shuffles", numbers(32), torch.full((8, 32), torch.nan), count=by, order=order)
    lanes = range(32)
    expected = [
        [by for _ in lanes],
        [lane // 8 * 8 + by % 8 for lane in lanes],
        [lane ^ by for lane in lanes],
        [lane ^ by if lane ^ by < lane // 8 * 8 + 8 else lane for lane in lanes],
        [lane - by if lane >= by else lane for lane in lanes],
        [lane - by if lane % 8 >= by else lane for lane in lanes],
        [lane + by if lane + by < 32 else lane for lane in lanes],
        [lane + by if lane % 8 + by < 8 else lane for lane in lanes],
    ]
    assert y.tolist() == expected


@every_order
def test_masks_part_a_warp_and_threads_that_left_hold_nobody_up(order):
    y = launched("halves", numbers(0), torch.zeros(32), order=order)
    assert y.tolist() == [0 if lane == 5 else 4 for lane in range(32)]


def test_a_race_through_global_memory_shows_in_another_order():
    x = numbers(64) + 1
    results = [launched("relay", x, torch.zeros(128), threads=64, order=order)[64:] for order in cuda_emulator.ORDERS]
    assert not any(result.equal(results[0]) for result in results[1:])


@every_order
@pytest.mark.parametrize(
    ("threads", "barrier", "race"),
    [(32, 0, True), (32, 1, True), (32, 2, False), (32, 3, False), (64, 0, True), (64, 2, True), (64, 3, False)],
)
def test_a_race_through_shared_memory_is_reported(order, threads, barrier, race):
    x, y = numbers(threads), torch.zeros(threads)
    given = {"threads": threads, "shared": 4 * threads, "order": order}
    if race:
        with pytest.raises(RuntimeError, match=r"neighbour: block 0: race: thread .* with no barrier between"):
            launched("neighbour", x, y, defines=(("BARRIER", barrier),), **given)
    else:
        assert launched("neighbour", x, y, defines=(("BARRIER", barrier),), **given).equal(x.roll(1))


@every_order
def test_a_write_after_others_have_read_is_a_race(order):
    with pytest.raises(RuntimeError, match=r"race: thread \d+ (writes .* which another reads|reads .* another writes)"):
        launched(
            "neighbour", numbers(64), torch.zeros(64), threads=64, shared=256, order=order,
            defines=(("BARRIER", 3), ("AGAIN", 1)),
        )  # fmt: skip


def test_shared_memory_is_nan_at_the_start_of_every_block():
    y = launched("unwritten", numbers(0), torch.zeros(6), blocks=3, threads=1, shared=4)
    assert y.isnan().all()


@pytest.mark.parametrize("count", [-1, 4, 5, 1000])
def test_a_write_outside_the_dynamic_shared_memory_is_caught(count):
    launched("outside", numbers(0), numbers(0), threads=1, shared=16, count=3)
    with pytest.raises(RuntimeError, match="outside: block 0: wrote outside its 16 bytes of dynamic shared memory"):
        launched("outside", numbers(0), numbers(0), threads=1, shared=16, count=count)


@every_order
def test_a_deadlock_is_reported(order):
    words = "deadlock: of 64 threads 63 wait at __syncthreads, 1 at a warp's __syncwarp, 0 have left"
    with pytest.raises(RuntimeError, match=words):
        launched("deadlock", numbers(0), numbers(0), threads=64, order=order)


@pytest.mark.parametrize(("name", "words"), [("diverged", "another lane of its warp"), ("strangers", "lacks its own")])
def test_lanes_that_do_not_belong_together_are_reported(name, words):
    with pytest.raises(RuntimeError, match=words):
        launched(name, numbers(0), torch.zeros(32))


@pytest.mark.parametrize("grid", [{"blocks": -1}, {"blocks": 2**31}, {"threads": 0}, {"shared": 300_000}])
def test_what_the_driver_refuses_is_refused(grid):
    with pytest.raises(RuntimeError, match="can't launch"):
        launched("outside", numbers(0), numbers(0), **grid)


@pytest.mark.parametrize(("name", "good", "bad"), [("pair", 2, 1), ("pair", 0, 3), ("indexed", 3, 4)])
def test_a_misaligned_access_and_a_bad_index_are_reported_with_their_line(name, good, bad):
    x = numbers(8)
    expected = x[good : good + 2].sum() if name == "pair" else x[good]
    assert launched(name, x, torch.zeros(1), threads=1, count=good) == expected
    with pytest.raises(RuntimeError, match=r"(no multiple of 8|index 4, outside its array), at .*toy\.cu:\d+"):
        launched(name, x, torch.zeros(1), threads=1, count=bad)


def test_an_absent_tensor_is_not_read():
    kernel = cuda_emulator.load(cuda_emulator.SHIM / "toy.cu", "indexed")
    with pytest.raises(RuntimeError, match=r"0x0, which is null .* at .*toy\.cu:\d+"):
        kernel.launch(1, 1, 0, (0, numbers(1).data_ptr(), 0, 0))


def test_more_threads_than_the_launch_bounds_are_refused():
    with pytest.raises(RuntimeError, match="96 threads are more than the 64 of its __launch_bounds__"):
        launched("block_sum", numbers(96), torch.zeros(1), threads=96)


def test_no_blocks_are_no_work():
    launched("outside", numbers(0), numbers(0), blocks=0)


def test_a_wrong_number_of_words_is_refused():
    kernel = cuda_emulator.load(cuda_emulator.SHIM / "toy.cu", "outside")
    with pytest.raises(RuntimeError, match="takes 4 words, but 3 came"):
        kernel.launch(1, 1, 16, (0, 0, 0))


def test_a_source_that_does_not_compile_and_a_name_that_is_not_there_are_told(tmp_path):
    source = tmp_path / "broken.cu"
    source.write_text('struct Args { long long a; };\nextern "C" __global__ void broken(const Args args) { b = 1; }\n')
    with pytest.raises(RuntimeError, match=r"g\+\+ refuses broken"):
        cuda_emulator.load(source, "broken")
    with pytest.raises(RuntimeError, match="no kernel 'whole'; it has: broken"):
        cuda_emulator.load(source, "whole")


def test_float16_is_rounded_as_by_torch(tmp_path):
    source = tmp_path / "half.cu"
    source.write_text(
        '#include "common.cuh"\nstruct Args { const float* x; unsigned short* y; float* z; long long count; };\n'
        'extern "C" __global__ void half(const Args args) {\n'
        "  for (long long i = 0; i < args.count; ++i) args.z[i] = half_value(args.y[i] = half_bits(args.x[i]));\n}\n"
    )
    x = torch.arange(-(2**31), 2**31 - 1, 9973).to(torch.int32).view(torch.float32)
    short, back = torch.empty(len(x), dtype=torch.float16), torch.empty(len(x))
    kernel = cuda_emulator.load(source, "half")
    kernel.launch(1, 1, 0, (x.data_ptr(), short.data_ptr(), back.data_ptr(), len(x)))
    torch.testing.assert_close(short, x.half(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(back, x.half().float(), rtol=0, atol=0, equal_nan=True)
