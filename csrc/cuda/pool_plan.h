// On the host: how the kernels of additive pooling are laid out, in shared memory and over the device.
#pragma once

#include "pool.h"

namespace lada {
namespace cuda {

// What a kernel needs of shared memory, beside operands and its part.
struct Needs {
  int operands;                              // of [H,D], resident
  int kinds;                                 // of weights that lanes tell each other
  int sums;                                  // of a token and head that go across warps
  int inner;                                 // values of a head
  bool carries;                              // from one group of heads to the next, what is written of a tile
  int pooled_part, weight_part, fixed_part;  // of a block's part: [pooled, D] and [weight times group, D] and [fixed, HT]
};

inline int lanes_for(const Shape& shape) {
  int lanes = 8;
  while (lanes * kChannels < shape.channels) lanes *= 2;
  return lanes;
}

template <class T, class F>
Layout make_layout(const Shape& shape, bool per_head, bool wide, const Needs& needs, const Device& device) {
  constexpr int HT = F::kHeads;
  Layout layout{};
  layout.lanes = lanes_for(shape);
  layout.threads = F::kThreads;
  layout.wide = wide;
  layout.diagonal = per_head;  // where the kernel is not for PER_HEAD
  const int warps = layout.threads / 32, parts = layout.threads / (layout.lanes < 32 ? layout.lanes : 32);
  for (layout.group = int(shape.heads < HT ? shape.heads : HT);; layout.group = (layout.group + 1) / 2) {
    layout.groups = int((shape.heads + layout.group - 1) / layout.group);
    layout.held = F::kOnlyDots ? HT : layout.group;
    layout.weights = needs.operands * layout.operand();
    layout.exchange = layout.weights + parts * needs.kinds * HT * F::kTokens;
    layout.inner = layout.exchange + (layout.lanes > 32 ? 2 * warps * HT * needs.sums * F::kTokens : 0);
    layout.carry = layout.inner + needs.inner * HT;
    layout.part = layout.carry + (layout.groups > 1 && needs.carries ? F::kTokens * kChannels * layout.threads : 0);
    layout.weight_part = layout.part + needs.fixed_part * HT + min(needs.pooled_part, layout.group) * kChannels * layout.lanes;
    layout.total = layout.weight_part + needs.weight_part * layout.operand();
    if (!F::kGeneral || layout.fits(true, device.shared) || layout.group == 1) return layout;
  }
}

template <class F> int64_t pool_blocks(const Device& device) { return int64_t(F::kBlocks) * device.processors; }

// Teams for batch elements (times `groups`): as many elements one after the other as leave all blocks work at once.
template <class F>
Team pool_team(const Shape& shape, Layout& layout, int64_t groups, int64_t least, int64_t part, const Device& device,
               const Queue& queue) {
  const int64_t blocks = pool_blocks<F>(device), each = (shape.batch * groups + blocks - 1) / blocks;
  layout.teams = each ? int((shape.batch + each - 1) / each) : 0;
  return make_team(layout.teams * groups, shape.tokens, least, part, blocks, device, queue);
}

constexpr int64_t kMostTokens = int64_t(1) << 30;  // of a batch element, whose tokens are counted in 32 bits
constexpr int64_t kDoesNotFit = -1;                // instead of wanted bytes: the form takes more shared memory than there is

// body(T, Form, whether PER_HEAD) as types, for a problem whose heads may be too narrow for PER_HEAD's vectors.
template <class Body> Outcome dispatch_pool(const Shape& shape, bool per_head, Body body) {
  if (shape.tokens > kMostTokens) return {0, "more tokens than the kernels of additive pooling count"};
  return dispatch(shape.dtype, [&](auto storage) -> Outcome {
    const auto in_form = [&](auto form) -> Outcome {
      const bool vectors = per_head && shape.channels / shape.heads % kVector<decltype(storage)> == 0;
      return vectors ? body(storage, form, std::true_type()) : body(storage, form, std::false_type());
    };
    Outcome outcome{kDoesNotFit, nullptr};
    if (lanes_for(shape) <= ForEight::kThreads && shape.heads <= ForEight::kHeads)
      outcome = shape.heads > ForFour::kHeads ? in_form(ForEight()) : in_form(ForFour());
    if (outcome.wanted == kDoesNotFit) outcome = body(storage, ForAll(), std::false_type());
    return outcome.wanted == kDoesNotFit ? Outcome{0, "the device has too little shared memory for this many channels"}
                                         : outcome;
  });
}

}  // namespace cuda
}  // namespace lada
