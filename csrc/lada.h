// The whole native interface: one plain argument struct per kernel. Nothing here knows torch or Python.
//
// Letters: B batch, N tokens, D channels, H heads, E pooled channels per head (D/H per head, else D).
// T is the storage type named by `dtype`; A, the accumulation type, is double for F64 and float for the rest.
// Every [B,N,D] tensor has a dense last dimension; strides count elements. All other tensors are dense.
// Data lies where the kernel runs: on the CPU, or on the GPU that a Queue names.
#pragma once

#include <cstdint>

namespace lada {

enum class DType : int32_t { F32, F64, BF16, F16 };

enum class Status : int32_t { Ok, OutOfMemory };

struct Tokens {  // T [B,N,D]; an input may be absent (zero), an output unwanted: data is null
  void* data = nullptr;
  int64_t batch_stride = 0, token_stride = 0;
};

struct Shape {
  int64_t batch, tokens, channels, heads;
  DType dtype;
  int32_t threads;  // at most this many CPU threads
};

struct Pool {  // what every order of additive pooling reads
  Tokens x;
  const void* weight;     // A [H,D]
  const uint8_t* mask;    // [B,N] or null; 0 = the token takes no part
  void* pooled;           // A [B,H,E]; written by the forward
  void* normaliser;       // A [B,H,2], largest score m and Z = Σ exp(s - m), so that α = exp(s - m) / Z; written by the forward
  double scale;
  bool per_head;
};

struct PoolForward {
  Shape shape;
  Pool pool;
  void* alpha;  // A [B,H,N] out, or null
};

struct PoolBackward {
  Shape shape;
  Pool pool;
  const void* grad;   // A [B,H,E]
  Tokens grad_x;      // out
  void* grad_weight;  // A [H,D] out, or null
};

struct PoolDoubleBackward {
  Shape shape;
  Pool pool;
  const void* grad;        // A [B,H,E]
  Tokens cot_x;            // may be absent
  const void* cot_weight;  // A [H,D] or null
  void* out_grad;          // A [B,H,E]
  Tokens out_x;
  void* out_weight;        // A [H,D] or null
};

struct PoolStages {  // the double backward in two halves, between which others may work; CUDA's alone
  PoolDoubleBackward problem;
  const void* extra;  // A [B,H,E] or null: a gradient of the pooled vectors, whose backward the second half adds
  void* scalars;      // A [B,N,4,H], per token α, v = u - t, a, z = c + v a; between the halves
  void* means;        // A [B,H,3], ā, v̄ and m; between the halves
  void* weight_sum;   // A [H,D] or null: the first half's share of out_weight
};

struct GateForward {
  Shape shape;
  const void* gate;  // A [B,D]
  Tokens k, v;
  Tokens out;
};

struct GateBackward {
  Shape shape;
  const void* gate;  // A [B,D]
  Tokens grad, k, v;
  void* grad_gate;   // A [B,D] or null
  Tokens grad_k, grad_v;
};

struct GateDoubleBackward {
  Shape shape;
  const void* gate;      // A [B,D]
  Tokens grad, k, v;
  const void* cot_gate;  // A [B,D] or null
  Tokens cot_k, cot_v;   // may be absent
  void* out_gate;        // A [B,D] or null
  Tokens out_grad, out_k, out_v;
};

struct AttentionForward {
  Shape shape;
  Pool pool;  // x is q, per head
  void* alpha;
  Tokens k, v;
  Tokens out;
};

struct AttentionBackward {
  Shape shape;
  Pool pool;
  Tokens grad, k, v;
  Tokens grad_q, grad_k, grad_v;
  void* grad_pooled;  // A [B,H,E]
  void* grad_weight;  // A [H,D] or null
};

struct AttentionDoubleBackward {
  Shape shape;
  Pool pool;
  Tokens grad, k, v;
  const void* grad_pooled;  // A [B,H,E], from the backward
  Tokens cot_q, cot_k, cot_v;
  const void* cot_weight;
  Tokens out_grad, out_q, out_k, out_v;
  void* out_weight;  // A [H,D] or null
};

struct NormForward {
  Shape shape;
  double eps;
  Tokens x;
  const void *gamma, *beta;  // A [B,D]
  Tokens out;
  void *mean, *rstd;  // A [B,N]
};

struct NormBackward {
  Shape shape;
  Tokens grad, x;
  const void* gamma;         // A [B,D]
  const void *mean, *rstd;   // A [B,N]
  Tokens grad_x;
  void *grad_gamma, *grad_beta;  // A [B,D] or null
};

struct NormDoubleBackward {
  Shape shape;
  Tokens grad, x;
  const void* gamma;
  const void *mean, *rstd;
  Tokens cot_x;                            // may be absent
  const void *cot_gamma, *cot_beta;        // A [B,D] or null
  Tokens out_grad, out_x;
  void* out_gamma;  // A [B,D] or null
};

// Every kernel, once per instruction set (baseline, avx2, avx512): the same list for all.
#define LADA_FOR_EACH_KERNEL(APPLY)                      \
  APPLY(additive_pool_forward, PoolForward)              \
  APPLY(additive_pool_backward, PoolBackward)            \
  APPLY(additive_pool_double_backward, PoolDoubleBackward) \
  APPLY(gated_product_forward, GateForward)              \
  APPLY(gated_product_backward, GateBackward)            \
  APPLY(gated_product_double_backward, GateDoubleBackward) \
  APPLY(additive_attention_forward, AttentionForward)    \
  APPLY(additive_attention_backward, AttentionBackward)  \
  APPLY(additive_attention_double_backward, AttentionDoubleBackward) \
  APPLY(modulated_layer_norm_forward, NormForward)       \
  APPLY(modulated_layer_norm_backward, NormBackward)     \
  APPLY(modulated_layer_norm_double_backward, NormDoubleBackward)

#define LADA_DECLARE(name, Arguments) Status name(const Arguments&);
namespace baseline { LADA_FOR_EACH_KERNEL(LADA_DECLARE) }
namespace avx2 { LADA_FOR_EACH_KERNEL(LADA_DECLARE) }
namespace avx512 { LADA_FOR_EACH_KERNEL(LADA_DECLARE) }
#undef LADA_DECLARE

// ---- on a GPU; F64 is the CPU's alone ----

struct Queue {  // where a kernel is started, and the memory that it is lent until the stream has passed it
  int32_t device;  // becomes the current one, and stays it
  void* stream;
  void* workspace;
  int64_t workspace_bytes;
};

struct Outcome {
  int64_t wanted = 0;           // nothing was started: call again with this many bytes of workspace
  const char* error = nullptr;  // why nothing was started; it stays until this thread's next call
};

#define LADA_FOR_EACH_CUDA_KERNEL(APPLY)                         \
  APPLY(additive_pool_forward, PoolForward)                      \
  APPLY(additive_pool_backward, PoolBackward)                    \
  APPLY(additive_pool_gather, PoolStages)                        \
  APPLY(additive_pool_scatter, PoolStages)                       \
  APPLY(additive_pool_double_backward, PoolDoubleBackward)       \
  APPLY(gated_product_forward, GateForward)                      \
  APPLY(gated_product_backward, GateBackward)                    \
  APPLY(gated_product_double_backward, GateDoubleBackward)       \
  APPLY(additive_attention_forward, AttentionForward)            \
  APPLY(modulated_layer_norm_forward, NormForward)               \
  APPLY(modulated_layer_norm_backward, NormBackward)             \
  APPLY(modulated_layer_norm_double_backward, NormDoubleBackward)

#define LADA_DECLARE(name, Arguments) Outcome name(const Arguments&, const Queue&);
namespace cuda {
LADA_FOR_EACH_CUDA_KERNEL(LADA_DECLARE)
const char* why_not(int32_t device);  // what the CUDA runtime says where a device cannot run the kernels, else null
}
#undef LADA_DECLARE

}  // namespace lada
