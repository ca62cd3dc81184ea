// The stages of additive_pool and gated_product run one after another for each batch element while it is in cache.
#include "gate.h"
#include "pool.h"
#include "pool_double_backward.h"

namespace lada {
namespace LADA_ISA {

Status additive_attention_forward(const AttentionForward& args) {
  return dispatch(args.shape.dtype, [&](auto storage) {
    const Plan plan(args.shape);
    PoolForwardStages<decltype(storage)> pool(args.shape, args.pool, args.alpha, plan);
    GateForwardStage<decltype(storage)> gate({args.shape, args.pool.pooled, args.k, args.v, args.out});
    run(plan, pool.pool(), pool.combine(), pool.weigh(), gate.multiply());
  });
}

Status additive_attention_backward(const AttentionBackward& args) {
  return dispatch(args.shape.dtype, [&](auto storage) {
    using T = decltype(storage);
    const Plan plan(args.shape);
    GateBackwardStages<T> gate(
        {args.shape, args.pool.pooled, args.grad, args.k, args.v, args.grad_pooled, args.grad_k, args.grad_v}, plan);
    PoolBackwardStages<T> pool(args.shape, args.pool, args.grad_pooled, args.grad_q, args.grad_weight, plan);
    pool.finish(run(plan, gate.backward(), gate.combine(), pool.backward()));
  });
}

Status additive_attention_double_backward(const AttentionDoubleBackward& args) {
  return dispatch(args.shape.dtype, [&](auto storage) {
    using T = decltype(storage);
    using A = Accumulate<T>;
    const Plan plan(args.shape);
    // The pool's ∂ḡ is the cotangent of the gate's ḡ, and the gate's ∂g flows back through the pool that made g.
    const Scratch<A> cot_gate(args.shape.batch * args.shape.channels), out_gate(args.shape.batch * args.shape.channels);
    GateDoubleBackwardStages<T> gate({args.shape, args.pool.pooled, args.grad, args.k, args.v, cot_gate.data(), args.cot_k,
                                      args.cot_v, out_gate.data(), args.out_grad, args.out_k, args.out_v},
                                     plan);
    PoolDoubleBackwardStages<T> pool(args.shape, args.pool, args.grad_pooled, args.cot_q, args.cot_weight, cot_gate.data(),
                                     args.out_q, args.out_weight, out_gate.data(), plan);
    pool.finish(run(plan, pool.gather(), pool.combine(), gate.double_backward(), gate.combine(), pool.scatter()));
  });
}

}  // namespace LADA_ISA
}  // namespace lada
