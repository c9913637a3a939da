"""Collectives and loops as read from compiled programs, against programs whose costs are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from inti_jax.config import Mesh
from inti_jax.cost import hlo
from inti_jax.distributed import sharding

WIDTH = 64


def compiled(function, *arguments, **options):
    return jax.jit(function, **options).lower(*arguments).compile()


def counted(program):
    costs = program.cost_analysis()
    return hlo.Cost(costs["flops"], costs["bytes accessed"])


def layers(count, rounds=1, loop=True):
    """`rounds` times `count` layers of one matrix product, in loops or unrolled."""

    def layer(x, kernel):
        return jnp.tanh(x @ kernel), None

    def once(x, kernels):
        if loop:
            return jax.lax.scan(layer, x, kernels)[0], None
        return functools.reduce(lambda x, i: layer(x, kernels[i])[0], range(count), x), None

    def function(x, kernels):
        if loop:
            return jax.lax.scan(lambda x, _: once(x, kernels), x, length=rounds)[0]
        return functools.reduce(lambda x, _: once(x, kernels)[0], range(rounds), x)

    kernels = jax.ShapeDtypeStruct((count, WIDTH, WIDTH), jnp.float32)
    return compiled(function, jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32), kernels)


@settings(max_examples=5, deadline=None)
@given(count=st.integers(2, 9), rounds=st.integers(1, 4))
def test_loops_count_as_often_as_they_go_round(count, rounds):
    program = layers(count, rounds)
    products = 2 * WIDTH**3 * count * rounds
    whole = hlo.Program(program.as_text()).cost(counted(program))
    assert whole.flops == pytest.approx(products, rel=0.02)
    assert counted(program).flops < 1.2 * products / (count * rounds)


def test_a_loop_costs_what_it_costs_unrolled():
    loop, unrolled = layers(6), layers(6, loop=False)
    whole = hlo.Program(loop.as_text()).cost(counted(loop))
    plain = hlo.Program(unrolled.as_text()).cost(counted(unrolled))
    assert plain == counted(unrolled)
    assert whole.flops == pytest.approx(plain.flops, rel=0.02)
    assert plain.bytes < whole.bytes < 3 * plain.bytes  # a loop takes each kernel out of the stack


# As libtpu writes loops: how often they go round is not noted.
LOOP = """HloModule loop

%body (c.1: (s32[], f32[64], s32[])) -> (s32[], f32[64], s32[]) {
  %c.1 = (s32[]{:T(128)}, f32[64]{0:T(128)}, s32[]{:T(128)}) parameter(0)
  %constant.1 = s32[]{:T(128)} constant(STEP)
  %get-tuple-element.1 = s32[]{:T(128)} get-tuple-element(%c.1), index=0
  %add.1 = s32[]{:T(128)} add(%get-tuple-element.1, %constant.1)
  %get-tuple-element.2 = f32[64]{0:T(128)} get-tuple-element(%c.1), index=1
  %get-tuple-element.3 = s32[]{:T(128)} get-tuple-element(%c.1), index=2
  %multiply.1 = f32[64]{0:T(128)} multiply(%get-tuple-element.2, %get-tuple-element.2)
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[64]{0:T(128)}, s32[]{:T(128)}) \
tuple(%add.1, %multiply.1, %get-tuple-element.3)
}

%condition (c.2: (s32[], f32[64], s32[])) -> pred[] {
  %c.2 = (s32[]{:T(128)}, f32[64]{0:T(128)}, s32[]{:T(128)}) parameter(0)
  %constant.2 = s32[]{:T(128)} constant(LAST)
  %get-tuple-element.4 = s32[]{:T(128)} get-tuple-element(%c.2), index=0
  %get-tuple-element.5 = s32[]{:T(128)} get-tuple-element(%c.2), index=2
  ROOT %lt.1 = pred[]{:T(512)} compare(%get-tuple-element.4, BOUND), direction=LT
}

ENTRY %main (x: f32[64]) -> f32[64] {
  %x = f32[64]{0:T(128)} parameter(0)
  %constant.3 = s32[]{:T(128)} constant(FIRST)
  %copy.1 = s32[]{:T(128)} copy(%constant.3)
  %constant.4 = s32[]{:T(128)} constant(LAST)
  %tuple.2 = (s32[]{:T(128)}, f32[64]{0:T(128)}, s32[]{:T(128)}) tuple(%copy.1, %x, %constant.4)
  %while.1 = (s32[]{:T(128)}, f32[64]{0:T(128)}, s32[]{:T(128)}) while(%tuple.2), condition=%condition, \
body=%body
  ROOT %get-tuple-element.6 = f32[64]{0:T(128)} get-tuple-element(%while.1), index=1
}
"""


@pytest.mark.parametrize("bound", ["%constant.2", "%get-tuple-element.5"])
@given(first=st.integers(-3, 5), last=st.integers(-3, 40), step=st.integers(1, 4))
def test_rounds_are_read_from_the_condition_where_they_are_not_noted(bound, first, last, step):
    text = LOOP.replace("BOUND", bound)
    for name, value in (("FIRST", first), ("LAST", last), ("STEP", step)):
        text = text.replace(name, str(value))
    rounds = len(range(first, last, step))
    program = hlo.Program(text)
    assert program.loops() == {"body": rounds}
    once = hlo.count(text)
    assert program.cost(once).flops == pytest.approx(once.flops + 65 * (rounds - 1), abs=1)


# A kernel, in the words of libtpu.
KERNEL = """custom-call(%get-tuple-element.2), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"body":"", "cost_estimate":{"flops":"7000","transcendentals":"0",\
"bytes_accessed":"1024","remote_bytes_transferred":"0"}}}"""


def test_kernels_count_what_they_say_as_often_as_they_run():
    text = (
        LOOP.replace("BOUND", "%constant.2").replace("FIRST", "0").replace("LAST", "5").replace("STEP", "1")
    )
    kernel = text.replace("multiply(%get-tuple-element.2, %get-tuple-element.2)", KERNEL)
    plain, found = (hlo.Program(one).cost(hlo.Cost(0.0, 1e4)) for one in (text, kernel))
    # The body's product of 64 numbers, and the kernel in its place, in the rounds but the first.
    assert found.flops - plain.flops == pytest.approx(4 * (7000 - 64), abs=4)


def test_what_instructions_access_counts_as_often_as_they_run():
    text = (
        LOOP.replace("BOUND", "%constant.2").replace("FIRST", "0").replace("LAST", "5").replace("STEP", "1")
    )
    found = {one.opcode: one for one in hlo.Program(text).accesses()}
    # Two operands and the result, each of 64 numbers padded to 128.
    assert (found["multiply"].count, found["multiply"].bytes, found["multiply"].hbm) == (5, 1536, 1536)
    near = hlo.Program(text.replace("f32[64]{0:T(128)}", "f32[64]{0:T(128)S(1)}")).accesses()
    assert [one.hbm for one in near if one.opcode == "multiply"] == [0]


def test_of_what_is_sliced_the_slices_count():
    x = jax.ShapeDtypeStruct((4096, WIDTH), jnp.float32)

    def function(x, start):
        part = jax.lax.dynamic_slice(x, (start, 0), (16, WIDTH))
        return jnp.sin(part) * 2 + jnp.cos(part)

    program = hlo.Program(compiled(function, x, 3).as_text())
    taken = 16 * WIDTH * 4
    assert 2 * taken <= sum(one.bytes for one in program.accesses()) < 4 * taken


def test_a_loop_whose_rounds_are_decided_as_it_runs_counts_once():
    program = compiled(lambda x: jax.lax.while_loop(lambda x: x < 100, lambda x: x * x, x), 3.0)
    read = hlo.Program(program.as_text())
    assert list(read.loops().values()) == [1] and read.cost(counted(program)) == counted(program)


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no entry"):
        hlo.Program("HloModule nothing")


@pytest.mark.parametrize("rounds", [1, 5])
def test_collectives_are_counted_by_the_loops_they_are_in(rounds):
    mesh = sharding.make_mesh(Mesh(data=2, fsdp=4), jax.devices()[:8])
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    x = jax.ShapeDtypeStruct((16, WIDTH), jnp.float32, sharding=split)

    def body(x, kernel):
        # The product over a dimension that is split is summed over its four devices.
        y = jax.lax.with_sharding_constraint(x @ kernel, NamedSharding(mesh, PartitionSpec()))
        return jax.lax.with_sharding_constraint(jnp.tanh(y), split), None

    where = NamedSharding(mesh, PartitionSpec(None, "fsdp", None))
    kernels = jax.ShapeDtypeStruct((rounds, WIDTH, WIDTH), jnp.float32, sharding=where)
    program = compiled(lambda x, kernels: jax.lax.scan(body, x, kernels)[0], x, kernels)
    found = [one for one in hlo.Program(program.as_text()).collectives() if one.kind == "all-reduce"]
    assert [(one.count, one.bytes, one.group) for one in found] == [(rounds, 16 * WIDTH * 4, 4)]
    assert found[0].sent == 2 * 3 / 4 * found[0].bytes


# As libtpu writes them: one exchange in two places, two reduce-scatters, and an asynchronous one.
TPU = """HloModule step, is_scheduled=true

%async_collective_fusion.1 (p.1: bf16[24,96]) -> bf16[96,96] {
  %p.1 = bf16[24,96]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[96,96]{1,0:T(8,128)(2,1)} all-gather(%p.1), channel_id=3, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}, frontend_attributes={chain_id="0"}
}

%async_collective_fusion.2 (p.2: bf16[24,96]) -> bf16[96,96] {
  %p.2 = bf16[24,96]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[96,96]{1,0:T(8,128)(2,1)} all-gather(%p.2), channel_id=3, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, dimensions={0}, frontend_attributes={chain_id="0"}
}

%add (p.4: f32[], p.5: f32[]) -> f32[] {
  %p.4 = f32[]{:T(128)} parameter(0)
  %p.5 = f32[]{:T(128)} parameter(1)
  ROOT %add.1 = f32[]{:T(128)} add(%p.4, %p.5)
}

%all-reduce-scatter.1 (p.3: f32[64,32]) -> f32[8,32] {
  %p.3 = f32[64,32]{1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[64,32]{1,0:T(8,128)} all-reduce(%p.3), channel_id=4, replica_groups=[1,8]<=[8], \
to_apply=%add
  %constant.1 = s32[]{:T(128)} constant(0)
  ROOT %dynamic-slice.1 = f32[8,32]{1,0:T(8,128)} dynamic-slice(%all-reduce.1, %constant.1, %constant.1), \
dynamic_slice_sizes={8,32}
}

%all-reduce-scatter.2 (p.6: f32[64,32]) -> f32[8,32] {
  %p.6 = f32[64,32]{1,0:T(8,128)} parameter(0)
  %all-reduce.2 = f32[64,32]{1,0:T(8,128)} all-reduce(%p.6), channel_id=4, replica_groups=[1,8]<=[8], \
to_apply=%add
  %constant.2 = s32[]{:T(128)} constant(0)
  ROOT %dynamic-slice.2 = f32[8,32]{1,0:T(8,128)} dynamic-slice(%all-reduce.2, %constant.2, %constant.2), \
dynamic_slice_sizes={8,32}
}

ENTRY %main (a: bf16[24,96], b: f32[64,32]) -> (bf16[96,96], bf16[96,96], f32[8,32], f32[64,32]) {
  %a = bf16[24,96]{1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[64,32]{1,0:T(8,128)} parameter(1)
  %fusion.1 = bf16[96,96]{1,0:T(8,128)(2,1)} fusion(%a), kind=kCustom, calls=%async_collective_fusion.1
  %fusion.2 = bf16[96,96]{1,0:T(8,128)(2,1)} fusion(%a), kind=kCustom, calls=%async_collective_fusion.2
  %fusion.3 = f32[8,32]{1,0:T(8,128)} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
  %fusion.4 = f32[8,32]{1,0:T(8,128)} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.2
  %collective-permute-start.1 = (f32[64,32]{1,0:T(8,128)}, f32[64,32]{1,0:T(8,128)}, u32[]{:S(2)}) \
collective-permute-start(%b), channel_id=5, source_target_pairs={{0,1},{1,0}}
  %collective-permute-done.1 = f32[64,32]{1,0:T(8,128)} collective-permute-done(%collective-permute-start.1)
  ROOT %tuple.1 = (bf16[96,96]{1,0:T(8,128)(2,1)}, bf16[96,96]{1,0:T(8,128)(2,1)}, f32[8,32]{1,0:T(8,128)}, \
/*index=3*/f32[64,32]{1,0:T(8,128)}) tuple(%fusion.1, %fusion.2, %fusion.3, %collective-permute-done.1)
}
"""


def test_the_forms_of_tpus_are_read():
    found = [(one.kind, one.count, one.bytes, one.group) for one in hlo.Program(TPU).collectives()]
    assert sorted(found) == [
        ("all-gather", 1, 96 * 96 * 2, 4),
        ("collective-permute", 1, 64 * 32 * 4, 2),
        ("reduce-scatter", 1, 64 * 32 * 4, 8),
        ("reduce-scatter", 1, 64 * 32 * 4, 8),
    ]
    assert np.isfinite(hlo.count(TPU).bytes)


# As libtpu writes what four slices sum, and gather: through their hosts.
BETWEEN_SLICES = """HloModule step, is_scheduled=true

ENTRY %main (a: f32[5,8,128]) -> f32[5,8,128] {
  %a = f32[5,8,128]{2,1,0:T(8,128)} parameter(0)
  %after-all.1 = token[] after-all()
  %send.1 = (f32[5,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%a, %after-all.1), channel_id=12, \
is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2,3,4}x{0:7}",\
_xla_megascale_transfer_type="ALL_REDUCE"}
  %send-done.1 = token[] send-done(%send.1), channel_id=12, is_host_transfer=true
  %send.2 = (f32[5,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%a, %after-all.1), channel_id=13, \
is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2,3,4}x{0:7}",\
_xla_megascale_transfer_type="ALL_GATHER"}
  %send-done.2 = token[] send-done(%send.2), channel_id=13, is_host_transfer=true
  %recv.1 = (f32[5,8,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%after-all.1), channel_id=11, \
is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2,3,4}x{0:7}",\
_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv-done.1 = (f32[5,8,128]{2,1,0:T(8,128)}, token[]) recv-done(%recv.1), channel_id=11, \
is_host_transfer=true
  ROOT %got.1 = f32[5,8,128]{2,1,0:T(8,128)} get-tuple-element(%recv-done.1), index=0
}
"""


def test_exchanges_between_slices_are_told_from_those_between_chips():
    part = 5 * 8 * 128 * 4
    found = hlo.Program(BETWEEN_SLICES).collectives()
    assert [(one.kind, one.between, one.group, one.bytes, one.sent) for one in found] == [
        ("all-reduce", "slices", 4, part, 2 * 3 / 4 * part),
        ("all-gather", "slices", 4, 4 * part, 3 * part),
    ]
