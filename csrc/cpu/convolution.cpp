// Winograd's F(2x2, 3x3) between maps and their tiles; lada_kernels/backends/cpu/convolution.py has every formula.
#include "parallel.h"

namespace lada {
namespace LADA_ISA {

namespace {

constexpr int kSide = 4, kPixels = 2;  // of a tile, and of what it stands for

template <class A> struct Square {
  Vector<A> at[kSide][kSide];
};

// Both sides of a square, by what `transform` makes of From values along one of them.
template <int From, int To, class A, class Transform> LADA_INLINE Square<A> both(const Square<A>& in, Transform transform) {
  Square<A> columns, out;
  LADA_UNROLL for (int c = 0; c < From; ++c) {
    Vector<A> from[kSide], to[kSide];
    LADA_UNROLL for (int r = 0; r < From; ++r) from[r] = in.at[r][c];
    transform(from, to);
    LADA_UNROLL for (int r = 0; r < To; ++r) columns.at[r][c] = to[r];
  }
  LADA_UNROLL for (int r = 0; r < To; ++r) transform(columns.at[r], out.at[r]);
  return out;
}

// One tile, and the pixels that it stands for.
template <class T> class Tile {
  using A = Accumulate<T>;

 public:
  Tile(const Winograd& args, int64_t b, int64_t n) : row_stride_(args.row_stride), pixel_stride_(args.pixel_stride) {
    const int64_t y = n / args.columns * kPixels, x = n % args.columns * kPixels, rows = args.shape.tokens / args.columns;
    pixel_ = static_cast<T*>(args.map) + b * args.batch_stride + y * row_stride_ + x * pixel_stride_;
    const auto place = static_cast<T*>(args.tiles) + (b * args.shape.tokens + n) * args.shape.channels;
    for (int r = 0; r < kSide; ++r)
      for (int c = 0; c < kSide; ++c) {
        const bool above = y + r == 0, below = y + r > kPixels * rows, left = x + c == 0, right = x + c > kPixels * args.columns;
        inside_[r][c] = !(above || below || left || right);
        const auto mirror = [&args](int i) { return args.mirrored && (i == 0 || i == kSide - 1) ? kSide - 1 - i : i; };
        places_[r][c] = place + (mirror(r) * kSide + mirror(c)) * args.place_stride;
      }
  }

  // The 4x4 pixels around, zeros outside of the map.
  template <class Lanes> LADA_INLINE Square<A> load_window(int64_t j, Lanes lanes) const {
    Square<A> values;
    LADA_UNROLL for (int r = 0; r < kSide; ++r)
      LADA_UNROLL for (int c = 0; c < kSide; ++c)
        values.at[r][c] = inside_[r][c] ? load(pixel(r - 1, c - 1) + j, lanes) : Vector<A>{};
    return values;
  }
  template <class Lanes> LADA_INLINE Square<A> load_pixels(int64_t j, Lanes lanes) const {
    Square<A> values;
    LADA_UNROLL for (int r = 0; r < kPixels; ++r)
      LADA_UNROLL for (int c = 0; c < kPixels; ++c) values.at[r][c] = load(pixel(r, c) + j, lanes);
    return values;
  }
  template <class Lanes> LADA_INLINE void store_pixels(int64_t j, Lanes lanes, const Square<A>& values) const {
    LADA_UNROLL for (int r = 0; r < kPixels; ++r)
      LADA_UNROLL for (int c = 0; c < kPixels; ++c) store(pixel(r, c) + j, values.at[r][c], lanes);
  }
  template <class Lanes> LADA_INLINE Square<A> load_tile(int64_t j, Lanes lanes) const {
    Square<A> values;
    LADA_UNROLL for (int r = 0; r < kSide; ++r)
      LADA_UNROLL for (int c = 0; c < kSide; ++c) values.at[r][c] = load(places_[r][c] + j, lanes);
    return values;
  }
  template <class Lanes> LADA_INLINE void store_tile(int64_t j, Lanes lanes, const Square<A>& values) const {
    LADA_UNROLL for (int r = 0; r < kSide; ++r)
      LADA_UNROLL for (int c = 0; c < kSide; ++c) store(places_[r][c] + j, values.at[r][c], lanes);
  }

 private:
  T* pixel(int r, int c) const { return pixel_ + r * row_stride_ + c * pixel_stride_; }

  int64_t row_stride_, pixel_stride_;
  T *pixel_, *places_[kSide][kSide];
  bool inside_[kSide][kSide];
};

// body(tile, first of a vector of channels, its lanes), for all of them.
template <class Body> Status for_tiles(const Winograd& args, Body&& body) {
  return dispatch(args.shape.dtype, [&](auto storage) {
    using T = decltype(storage);
    run(Plan(args.shape), per_unit([&](const Unit& unit) {
          for (int64_t n = unit.begin; n < unit.end; ++n) {
            const Tile<T> tile(args, unit.b, n);
            for_vectors<Accumulate<T>>(0, args.shape.channels, [&](int64_t j, auto lanes) { body(tile, j, lanes); });
          }
        }));
  });
}

}  // namespace

Status winograd_input(const Winograd& args) {
  return for_tiles(args, [](const auto& tile, int64_t j, auto lanes) {
    tile.store_tile(j, lanes, both<4, 4>(tile.load_window(j, lanes), [](const auto* d, auto* out) {
      out[0] = d[0] - d[2], out[1] = d[1] + d[2], out[2] = d[2] - d[1], out[3] = d[1] - d[3];
    }));
  });
}

Status winograd_output(const Winograd& args) {
  return for_tiles(args, [](const auto& tile, int64_t j, auto lanes) {
    tile.store_pixels(j, lanes, both<4, 2>(tile.load_tile(j, lanes), [](const auto* m, auto* out) {
      out[0] = m[0] + m[1] + m[2], out[1] = m[1] - m[2] - m[3];
    }));
  });
}

Status winograd_gradient(const Winograd& args) {
  return for_tiles(args, [](const auto& tile, int64_t j, auto lanes) {
    tile.store_tile(j, lanes, both<2, 4>(tile.load_pixels(j, lanes), [](const auto* g, auto* out) {
      out[0] = g[0], out[1] = g[0] + g[1], out[2] = g[0] - g[1], out[3] = -g[1];
    }));
  });
}

}  // namespace LADA_ISA
}  // namespace lada
