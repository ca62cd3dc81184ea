#include "pool.h"
#include "pool_double_backward.h"

namespace lada {
namespace LADA_ISA {

Status additive_pool_forward(const PoolForward& args) {
  return dispatch(args.shape.dtype, [&](auto storage) {
    const Plan plan(args.shape);
    PoolForwardStages<decltype(storage)> stages(args.shape, args.pool, args.alpha, plan);
    run(plan, stages.pool(), stages.combine(), stages.weigh());
  });
}

Status additive_pool_backward(const PoolBackward& args) {
  return dispatch(args.shape.dtype, [&](auto storage) {
    const Plan plan(args.shape);
    PoolBackwardStages<decltype(storage)> stages(args.shape, args.pool, args.grad, args.grad_x, args.grad_weight, plan);
    stages.finish(run(plan, stages.backward()));
  });
}

Status additive_pool_double_backward(const PoolDoubleBackward& args) {
  return dispatch(args.shape.dtype, [&](auto storage) {
    const Plan plan(args.shape);
    PoolDoubleBackwardStages<decltype(storage)> stages(args.shape, args.pool, args.grad, args.cot_x, args.cot_weight,
                                                       args.out_grad, args.out_x, args.out_weight, nullptr, plan);
    stages.finish(run(plan, stages.gather(), stages.combine(), stages.scatter()));
  });
}

}  // namespace LADA_ISA
}  // namespace lada
