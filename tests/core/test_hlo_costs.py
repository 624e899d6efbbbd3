"""Costs of compiled programs against what is known by hand."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cai_jax.core import hlo_costs

B, D, L = 8, 16, 5
PRODUCT = 2 * B * D * D


def costs(function, *arguments, trips=1, **options):
    compiled = jax.jit(function, **options).lower(*arguments).compile()
    return hlo_costs.Module(compiled.as_text()).costs(trips)


def abstract(*shape, sharding=None):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def scanned(x, weights, layer=lambda x, w: jnp.tanh(x @ w)):
    return jnp.sum(jax.lax.scan(lambda x, w: (layer(x, w), None), x, weights)[0])


X, WEIGHTS = abstract(B, D), abstract(L, D, D)


def test_a_scanned_product_counts_in_every_round():
    assert costs(scanned, X, WEIGHTS).flops == L * PRODUCT


def test_a_gradient_counts_three_products_and_rematerialisation_a_fourth():
    # The first layer's input has no gradient of use, but the loop's body is one for all.
    gradient = jax.grad(scanned, argnums=(0, 1))
    assert costs(gradient, X, WEIGHTS).flops == 3 * L * PRODUCT

    # Two products a layer, so that the first must be computed again to get the second's gradient.
    def layer(x, w):
        return jnp.tanh(jnp.tanh(x @ w) @ w)

    plain = jax.grad(functools.partial(scanned, layer=layer), argnums=(0, 1))
    again = functools.partial(scanned, layer=jax.checkpoint(layer, prevent_cse=False))
    assert costs(plain, X, WEIGHTS).flops == 6 * L * PRODUCT
    # The last product's value is needed for the slope of its tanh: both are computed again.
    assert costs(jax.grad(again, argnums=(0, 1)), X, WEIGHTS).flops == 8 * L * PRODUCT


def test_loops_in_loops_multiply():
    def outer(x, weights):
        def repeated(x, _):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0], None

        return jax.lax.scan(repeated, x, length=3)[0]

    assert costs(outer, X, WEIGHTS).flops == 3 * L * PRODUCT


def test_a_loop_that_ends_on_data_takes_the_callers_number():
    def until(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 100, lambda x: jnp.tanh(x @ w), x)

    found = costs(until, X, abstract(D, D), trips=7)
    assert (found.flops, found.unknown_loops) == (7 * PRODUCT, 1)
    assert costs(scanned, X, WEIGHTS, trips=7).unknown_loops == 0


def test_a_branch_counts_as_the_dearer_one():
    def either(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert costs(either, X, abstract(D, D)).flops == 2 * PRODUCT


def test_batched_products_and_several_contracted_axes():
    def attention(q, k):
        return jnp.einsum("bkth,bkhs->bkts", q, k), jnp.einsum("bkth,bkhs->ts", q, k)

    found = costs(attention, abstract(2, 3, 4, 5), abstract(2, 3, 5, 6))
    assert found.flops == 2 * (2 * (2 * 3 * 4 * 6) * 5)


def test_bytes_of_a_product_are_its_operands_and_result_and_slices_count_as_slices():
    assert costs(lambda x, w: x @ w, X, abstract(D, D)).hbm_bytes == 4 * (2 * B * D + D * D)

    # Each round reads one layer of the stack, not the stack: linear in L, not quadratic.
    def moved(layers):
        return costs(scanned, X, abstract(layers, D, D)).hbm_bytes

    growth = moved(64) - moved(32), moved(32) - moved(16)
    assert growth[0] == 2 * growth[1]


def test_each_instruction_takes_as_long_as_its_flops_or_its_bytes():
    compiled = jax.jit(lambda x, w: x @ w).lower(X, abstract(D, D)).compile()
    module, size = hlo_costs.Module(compiled.as_text()), 4 * (2 * B * D + D * D)
    assert module.costs(rates=hlo_costs.Rates(1.0, 1e9)).seconds == PRODUCT
    assert module.costs(rates=hlo_costs.Rates(1e9, 1.0)).seconds == size
    # A loop whose product takes 10 s and whose other instructions take next to nothing.
    compiled = jax.jit(scanned).lower(X, WEIGHTS).compile()
    found = hlo_costs.Module(compiled.as_text()).costs(rates=hlo_costs.Rates(PRODUCT / 10, 1e15))
    assert found.seconds == pytest.approx(10 * L)


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))


def test_collectives_by_kind_with_the_rounds_of_their_loop(mesh):
    by_row = NamedSharding(mesh, P("fsdp"))
    whole = NamedSharding(mesh, P())
    stack = abstract(L, D, D, sharding=NamedSharding(mesh, P(None, "fsdp")))

    def gathered(x, weights):
        def layer(x, w):
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, whole)), None

        return jax.lax.scan(layer, x, weights)[0]

    found = costs(gathered, abstract(B, D, sharding=by_row), stack, out_shardings=by_row)
    assert found.moved == {"all-gather": L * D * D * 4}
    assert found.sent == L * D * D * 4 * 7 / 8
    assert found.flops == L * PRODUCT / 8

    total = costs(
        lambda x: jnp.sum(x, axis=0), abstract(B, D, sharding=by_row), out_shardings=whole
    )
    assert total.moved == {"all-reduce": D * 4}
    assert total.sent == 2 * D * 4 * 7 / 8


def test_groups_of_all_spellings():
    for text in (
        "replica_groups={{0,1,2,3},{4,5,6,7}}",
        "replica_groups=[2,4]<=[8]",
        "replica_groups=mesh['a'=2,'b'=4] {'b'}",
        "replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}",
    ):
        assert hlo_costs.group_size(text) == 4


# As libtpu writes programs: products are convolutions, a batch is a dimension of space that is
# dilated so that no window holds two entries; loops have no known number of rounds, and may be
# unrolled by two; what is marked S(1) lies on the chip.
TPU = """\
HloModule m

%body (p: (u32[], bf16[4,16,8])) -> (u32[], bf16[4,16,8]) {
  %two = u32[]{:T(128)} constant(2)
  %p = (u32[]{:T(128)}, bf16[4,16,8]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=0
  %copy.1 = u32[]{:T(128)S(6)} copy(%i)
  %next = u32[]{:T(128)} add(%copy.1, %two)
  %x = bf16[4,16,8]{2,1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %on_chip = bf16[4,8,8]{2,1,0:T(8,128)(2,1)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %product = bf16[4,16,8]{2,1,0:T(8,128)(2,1)} convolution(%x, %on_chip), window={size=4 stride=3 \
lhs_dilate=4}, dim_labels=0bf_0io->0bf
  %moved = (bf16[4,16,8]{2,1,0}, bf16[4,16,8]{2,1,0}, u32[], u32[]) collective-permute-start(\
%product), source_target_pairs={{0,1},{1,0}}
  %done = bf16[4,16,8]{2,1,0} collective-permute-done(%moved)
  ROOT %t = (u32[]{:T(128)}, bf16[4,16,8]{2,1,0:T(8,128)(2,1)}) tuple(%next, /*index=1*/%done)
}
%condition (p.1: (u32[], bf16[4,16,8])) -> pred[] {
  %bound = u32[]{:T(128)} constant(6)
  %p.1 = (u32[]{:T(128)}, bf16[4,16,8]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = u32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i.1, %bound), direction=LT
}
ENTRY %main (x.1: bf16[4,16,8]) -> (u32[], bf16[4,16,8]) {
  %x.1 = bf16[4,16,8]{2,1,0:T(8,128)(2,1)} parameter(0)
  %zero = u32[]{:T(128)} constant(0)
  %start = (u32[]{:T(128)}, bf16[4,16,8]{2,1,0:T(8,128)(2,1)}) tuple(%zero, %x.1)
  ROOT %loop = (u32[]{:T(128)}, bf16[4,16,8]{2,1,0:T(8,128)(2,1)}) while(%start), \
condition=%condition, body=%body
}
"""


GPU = """\
HloModule m
ENTRY %main (x: bf16[4,16,8], w: bf16[4,8,32]) -> (bf16[4,16,32], s8[128]) {
  %x = bf16[4,16,8]{2,1,0} parameter(0)
  %w = bf16[4,8,32]{2,1,0} parameter(1)
  ROOT %gemm = (bf16[4,16,32]{2,1,0}, s8[128]{0}) custom-call(%x, %w), \
custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"alpha_real":1,\
"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"],\
"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}}
}
"""


def test_a_library_call_of_a_gpu_program_is_a_product():
    assert hlo_costs.Module(GPU).costs().flops == 2 * 4 * 16 * 32 * 8


def test_the_text_of_a_tpu_program():
    found = hlo_costs.Module(TPU).costs()
    size = 4 * 16 * 8 * 2  # bytes of x
    assert found.flops == 3 * 4 * (2 * 16 * 8 * 8)
    assert found.moved == {"collective-permute": 3 * size}
    assert found.unknown_loops == 0
    assert found.hbm_bytes >= 3 * 2 * size  # x and the product, in each round; the weights are free


def test_copies_beside_the_rest_count_what_they_move_to_and_from_hbm():
    # As libtpu writes what it fetches ahead into the memory on the chip, marked S(1).
    text = """
ENTRY %main (x: s8[4096], y: f32[64]) -> s8[1024] {
  %x = s8[4096]{0:T(1024)(128)(4,1)} parameter(0)
  %y = f32[64]{0:T(128)} parameter(1)
  %slice-start = ((s8[4096]{0:T(1024)(128)(4,1)}), s8[1024]{0:T(1024)(128)(4,1)S(1)}, \
s32[]{:S(2)}) slice-start(%x), slice={[0:1024]}
  %copy-start = (f32[64]{0:T(128)S(1)}, f32[64]{0:T(128)}, u32[]{:S(2)}) copy-start(%y)
  %copy-done = f32[64]{0:T(128)S(1)} copy-done(%copy-start)
  ROOT %slice-done = s8[1024]{0:T(1024)(128)(4,1)S(1)} slice-done(%slice-start)
}
"""
    assert hlo_costs.Module(text).costs().hbm_bytes == 1024 + 4 * 64
    to_hbm = text.replace("S(1)}, s32[]", "}, s32[]")
    assert hlo_costs.Module(to_hbm).costs().hbm_bytes == 2 * 1024 + 4 * 64


def test_a_collective_cut_into_fused_steps_is_sent_once():
    step = """
%step.NUMBER (p.NUMBER: f32[4,8]) -> f32[16,8] {
  %p.NUMBER = f32[4,8]{1,0} parameter(0)
  ROOT %gather.NUMBER = f32[16,8]{1,0} all-gather(%p.NUMBER), channel_id=CHANNEL, \
replica_groups=[1,4]<=[4], dimensions={0}
}
"""
    steps = [step.replace("NUMBER", str(i)) for i in range(3)]
    entry = """
ENTRY %main (x: f32[4,8]) -> f32[16,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %one = f32[16,8]{1,0} fusion(%x), kind=kCustom, calls=%step.0
  %two = f32[16,8]{1,0} fusion(%x), kind=kCustom, calls=%step.1
  ROOT %three = f32[16,8]{1,0} fusion(%x), kind=kCustom, calls=%step.2
}
"""

    def sent(*channels):
        text = [step.replace("CHANNEL", str(channel)) for step, channel in zip(steps, channels)]
        return hlo_costs.Module("".join([*text, entry])).costs().sent

    payload = 16 * 8 * 4 * 3 / 4
    assert sent(7, 7, 7) == payload
    assert sent(7, 8, 7) == 2 * payload and sent(1, 2, 3) == 3 * payload


def test_attention_kernels_cost_the_blocks_they_visit():
    # Three blocks of 4 queries; of keys a block sees its own and at most the one before it.
    text = """
ENTRY %main (q: bf16[2,6,12,8]) -> bf16[2,6,12,8] {
  %n = s8[1,3,2]{2,1,0} parameter(0)
  %m = s8[1,2,3]{2,1,0} parameter(1)
  %q = bf16[2,6,12,8]{3,2,1,0} parameter(2)
  %k = bf16[2,3,12,8]{3,2,1,0} parameter(3)
  %splash_mha_fwd_residuals.1 = bf16[2,6,12,8]{3,2,1,0} custom-call(%n, %n, %q, %k, %k), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 4}"
}}, backend_config={"custom_call_config":{"body":"T= ="}}
  %splash_mha_dkv_no_residuals = (bf16[2,3,12,8]{3,2,1,0}, bf16[2,3,12,8]{3,2,1,0}) \
custom-call(%m, %m, %q, %k, %k), custom_call_target="tpu_custom_call"
  ROOT %dq = bf16[2,6,12,8]{3,2,1,0} custom-call(%q, %k), custom_call_target="other"
}
"""
    visited, of_block = 1 + 2 + 2, 2 * 4 * 4 * 8
    found = hlo_costs.Module(text).costs()
    assert found.flops == 2 * 6 * visited * of_block * (2 + 4)
    queries, keys, schedule = 2 * 6 * 12 * 8 * 2, 2 * 3 * 12 * 8 * 2, 6
    once = 2 * schedule + queries + 2 * keys
    again = 2 * 6 * (visited - 3) * 2 * 4 * 8 * 2
    other = 2 * queries + keys
    assert found.hbm_bytes == (once + queries + again) + (once + 2 * keys + again) + other


def test_decoding_by_a_kernel_costs_one_layer_of_the_slots():
    # Four layers of 2 slots, 3 heads for 5 queries each, of 8 dims, and 16 columns.
    text = """
ENTRY %main (q: bf16[2,3,5,8]) -> f32[2,3,5,8] {
  %n = s32[2]{0} parameter(0)
  %q = bf16[2,3,5,8]{3,2,1,0} parameter(1)
  %k = s8[4,2,3,8,16]{4,3,2,1,0} parameter(2)
  %v = s8[4,2,3,16,8]{4,3,2,1,0} parameter(3)
  %s = f32[4,2,3,16]{3,2,1,0} parameter(4)
  ROOT %decode_slots.1 = f32[2,3,5,8]{3,2,1,0} custom-call(%n, %q, %k, %v, %s, %s), \
custom_call_target="tpu_custom_call"
}
"""
    found, columns = hlo_costs.Module(text).costs(), 2 * 3 * 16
    assert found.flops == 2 * 2 * columns * 5 * 8
    once = 2 * 4 + 2 * 3 * 5 * 8 * (2 + 4)
    assert found.hbm_bytes == once + columns * (2 * 8 + 2 * 4)


def test_cudnn_attention_costs_half_where_it_is_causal():
    def text(mask, kind):
        options = (
            '{"cudnn_fmha_backend_config":{"intermediate_tensor_shape":{"dimensions":["2","6",'
            f'"12","12"]}},"mask_type":"{mask}"}}}}'
        )
        return f"""
ENTRY %main (q: bf16[2,12,6,8]) -> bf16[2,6,12,8] {{
  %q = bf16[2,12,6,8]{{3,2,1,0}} parameter(0)
  ROOT %a = bf16[2,6,12,8]{{3,2,1,0}} custom-call(%q, %q, %q), \
custom_call_target="__cudnn$fmhaScaleBiasSoftmax{kind}", backend_config={options}
}}
"""

    product = 2 * 2 * 6 * 12 * 12 * 8
    assert hlo_costs.Module(text("NO_MASK", "")).costs().flops == 2 * product
    assert hlo_costs.Module(text("CAUSAL", "")).costs().flops == product
    assert hlo_costs.Module(text("CAUSAL", "Backward")).costs().flops == 2.5 * product
