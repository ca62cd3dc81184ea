// The three small matrix products that pooling is made of, over a block of token rows that sits in the L1 cache:
//   dot         out[t][h]  = ⟨x_t, w_h⟩            scores
//   accumulate  sum[h][j] += Σ_t c[t][h] x[t][j]   weighted sums of tokens
//   expand      out[t][j]  = Σ_k c[t][k] row_k[j]  gradients of tokens
// Each keeps its results in registers: a tile of tokens × heads, heads × vectors, tokens × vectors.
#pragma once

#include "simd.h"

namespace lada {
namespace LADA_ISA {

template <class A> struct Rows {  // a matrix whose rows are `stride` elements apart
  A* data;
  int64_t stride;
  A* operator[](int64_t row) const { return data + row * stride; }
};

// Calls body(first, std::integral_constant<int, count>) over [0, total) in tiles of Largest, then its halves.
template <int Largest, class Body> inline void for_tiles(int64_t total, Body&& body, int64_t first = 0) {
  for (; first + Largest <= total; first += Largest) body(first, std::integral_constant<int, Largest>{});
  if constexpr (Largest > 1) {
    if (first < total) for_tiles<Largest / 2>(total, body, first);
  }
}

// One term of `dot`: tokens and the vectors they meet. Head k meets the tokens' channels from k·shift on.
template <class A> struct Factors {
  Rows<const A> x, w;
  int64_t shift = 0;
};

template <class A, int T, int H, bool Shifted, class Lanes>
LADA_INLINE void dot_step(const Factors<A>& f, int64_t t, int64_t h, int64_t j, Vector<A> (&sum)[T * H], Lanes lanes) {
  Vector<A> row[T];
  if constexpr (!Shifted) LADA_UNROLL for (int i = 0; i < T; ++i) row[i] = load(f.x[t + i] + j, lanes);
  LADA_UNROLL for (int k = 0; k < H; ++k) {
    if constexpr (Shifted) LADA_UNROLL for (int i = 0; i < T; ++i) row[i] = load(f.x[t + i] + (h + k) * f.shift + j, lanes);
    const Vector<A> weight = load(f.w[h + k] + j, lanes);
    LADA_UNROLL for (int i = 0; i < T; ++i) sum[i * H + k] += row[i] * weight;
  }
}

template <class A, int T, int H, bool Shifted>
void dot_tile(const Factors<A>* terms, int count, int64_t t, int64_t h, int64_t channels, Rows<A> out) {
  Vector<A> sum[T * H] = {};
  for (const Factors<A>* f = terms; f != terms + count; ++f) {
    int64_t j = 0;
    for (; j + kLanes<A> <= channels; j += kLanes<A>) dot_step<A, T, H, Shifted>(*f, t, h, j, sum, Whole{});
    if (j < channels) dot_step<A, T, H, Shifted>(*f, t, h, j, sum, First{int(channels - j)});
  }
  A totals[T * H];
  sum_lanes<A, T * H>(sum, totals);
  for (int i = 0; i < T; ++i)
    for (int k = 0; k < H; ++k) out[t + i][h + k] = totals[i * H + k];
}

// out[t][h] = the sum of all terms
template <class A>
void dot(const Factors<A>* terms, int count, int64_t tokens, int64_t heads, int64_t channels, Rows<A> out) {
  for_tiles<kTileTokens>(tokens, [&](int64_t t, auto tile_tokens) {
    for_tiles<kTileHeads>(heads, [&](int64_t h, auto tile_heads) {
      if (terms->shift)
        dot_tile<A, tile_tokens, tile_heads, true>(terms, count, t, h, channels, out);
      else
        dot_tile<A, tile_tokens, tile_heads, false>(terms, count, t, h, channels, out);
    });
  });
}

template <class A>
void dot(const Factors<A>& term, int64_t tokens, int64_t heads, int64_t channels, Rows<A> out) {
  dot(&term, 1, tokens, heads, channels, out);
}

template <class A, int H, int V, class Lanes>
inline void accumulate_tile(Rows<const A> c, Rows<const A> x, int64_t tokens, int64_t j, Rows<A> sum, Lanes lanes) {
  Vector<A> total[H][V];
  LADA_UNROLL for (int k = 0; k < H; ++k)
    LADA_UNROLL for (int v = 0; v < V; ++v) total[k][v] = load(sum[k] + j + v * kLanes<A>, lanes);
  for (int64_t t = 0; t < tokens; ++t) {
    Vector<A> row[V];
    LADA_UNROLL for (int v = 0; v < V; ++v) row[v] = load(x[t] + j + v * kLanes<A>, lanes);
    LADA_UNROLL for (int k = 0; k < H; ++k)
      LADA_UNROLL for (int v = 0; v < V; ++v) total[k][v] += c[t][k] * row[v];
  }
  LADA_UNROLL for (int k = 0; k < H; ++k)
    LADA_UNROLL for (int v = 0; v < V; ++v) store(sum[k] + j + v * kLanes<A>, total[k][v], lanes);
}

template <class A>
void accumulate(Rows<const A> c, Rows<const A> x, int64_t tokens, int64_t heads, int64_t channels, Rows<A> sum) {
  for_tiles<kTileHeads>(heads, [&](int64_t h, auto tile_heads) {
    constexpr int H = tile_heads;
    const Rows<const A> coefficients{c.data + h, c.stride};
    const Rows<A> part{sum[h], sum.stride};
    const int64_t vectors = channels / kLanes<A>;
    for_tiles<kTileVectors>(vectors, [&](int64_t v, auto tile_vectors) {
      accumulate_tile<A, H, tile_vectors>(coefficients, x, tokens, v * kLanes<A>, part, Whole{});
    });
    if (const int64_t j = vectors * kLanes<A>; j < channels)
      accumulate_tile<A, H, 1>(coefficients, x, tokens, j, part, First{int(channels - j)});
  });
}

// One term of `expand`: Σ_k c[t][k] row_k over `count` rows.
template <class A> struct Term {
  Rows<const A> c, rows;
  int64_t count;
};

template <class A, class T, int Tokens, int V, class Lanes>
inline void expand_tile(const Term<A>* terms, int count, int64_t t, int64_t j, Rows<T> out, bool streaming, Lanes lanes) {
  Vector<A> total[Tokens][V] = {};
  for (const Term<A>* term = terms; term != terms + count; ++term) {
    const A* c[Tokens];
    LADA_UNROLL for (int i = 0; i < Tokens; ++i) c[i] = term->c[t + i];
    for (int64_t k = 0; k < term->count; ++k) {
      Vector<A> row[V];
      LADA_UNROLL for (int v = 0; v < V; ++v) row[v] = load(term->rows[k] + j + v * kLanes<A>, lanes);
      LADA_UNROLL for (int i = 0; i < Tokens; ++i)
        LADA_UNROLL for (int v = 0; v < V; ++v) total[i][v] += c[i][k] * row[v];
    }
  }
  LADA_UNROLL for (int i = 0; i < Tokens; ++i) {
    LADA_UNROLL for (int v = 0; v < V; ++v) {
      T* to = out[t + i] + j + v * kLanes<A>;
      if constexpr (std::is_same_v<Lanes, Whole>) {
        if (streaming) {
          stream(to, total[i][v]);
          continue;
        }
      }
      store(to, total[i][v], lanes);
    }
  }
}

// out[t][j] = Σ over the terms, for j in [begin, end). Streams past the caches when asked: rows must then be aligned.
template <class A, class T>
void expand(const Term<A>* terms, int count, int64_t tokens, int64_t begin, int64_t end, Rows<T> out, bool streaming) {
  for_tiles<kTileTokens>(tokens, [&](int64_t t, auto tile_tokens) {
    constexpr int Tokens = tile_tokens;
    const int64_t vectors = (end - begin) / kLanes<A>;
    for_tiles<kTileVectors>(vectors, [&](int64_t v, auto tile_vectors) {
      expand_tile<A, T, Tokens, tile_vectors>(terms, count, t, begin + v * kLanes<A>, out, streaming, Whole{});
    });
    if (const int64_t j = begin + vectors * kLanes<A>; j < end)
      expand_tile<A, T, Tokens, 1>(terms, count, t, j, out, streaming, First{int(end - j)});
  });
}

}  // namespace LADA_ISA
}  // namespace lada
