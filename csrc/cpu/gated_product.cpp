#include "gate.h"

namespace lada {
namespace LADA_ISA {

Status gated_product_forward(const GateForward& args) {
  return dispatch(args.shape.dtype, [&](auto storage) {
    GateForwardStage<decltype(storage)> stages(args);
    run(Plan(args.shape), stages.multiply());
  });
}

Status gated_product_backward(const GateBackward& args) {
  return dispatch(args.shape.dtype, [&](auto storage) {
    const Plan plan(args.shape);
    GateBackwardStages<decltype(storage)> stages(args, plan);
    run(plan, stages.backward(), stages.combine());
  });
}

Status gated_product_double_backward(const GateDoubleBackward& args) {
  return dispatch(args.shape.dtype, [&](auto storage) {
    const Plan plan(args.shape);
    GateDoubleBackwardStages<decltype(storage)> stages(args, plan);
    run(plan, stages.double_backward(), stages.combine());
  });
}

}  // namespace LADA_ISA
}  // namespace lada
