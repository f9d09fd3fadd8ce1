// Sums of B-splines of degree k by those k + 1 of the K functions that are not zero at a point.
//
//     out[n,o]      +=  sum_i s_io(x_ni),    s_io(x) = sum_r coef[i, c-k+r, o] B_(c-k+r)(x),   r = 0, ..., k
//     d_x[n,i]       =  sum_o d_out[n,o] s'_io(x_ni)
//     d_coef[i,m,o]  =  sum_n d_out[n,o] B_m(x_ni)
//
// where t_c <= x < t_(c+1) is the cell of the extended knots t that holds x; outside them all is zero. B and B' are
// computed by the recursion of Piegl and Tiller, The NURBS Book (1997), algorithms A2.2 and A2.3, for LANES inputs at
// once.
//
// Letters: N points, I inputs, O outputs, k degree, M extended knots, K = M - 1 - k functions.
//
// A tile of points and a block of outputs stay in the first cache while all inputs go by. Each number is summed in one
// order, whatever the number of threads.

#include <algorithm>
#include <cstdint>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#endif

extern "C" int spline_threads();

namespace {

constexpr int LANES = 16;            // numbers at once, what a register of 512 bits holds; as in local_splines.py
constexpr int TILE = 16;             // points at a time
constexpr int BLOCK = 13 * LANES;    // outputs at a time
constexpr int64_t CACHED = 1 << 20;  // bytes of coefficients that stay in the second cache

typedef float Vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

Vec& at(float* p) { return *reinterpret_cast<Vec*>(p); }
const Vec& at(const float* p) { return *reinterpret_cast<const Vec*>(p); }

float sum_of(const Vec& numbers) {
  float part[LANES];
  at(part) = numbers;
#pragma GCC unroll 4
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) part[i] += part[i + half];
  return part[0];
}

int64_t padded(int64_t size) { return (size + LANES - 1) / LANES * LANES; }

// Where a cache line begins, so that no register is loaded from two: up to LANES numbers further on.
float* aligned(float* numbers) { return numbers + (-reinterpret_cast<uintptr_t>(numbers) % (4 * LANES)) / 4; }

// Scratch that begins at a cache line.
class Numbers {
 public:
  explicit Numbers(int64_t size) : kept_(size + LANES), data(aligned(kept_.data())) {}
  Numbers(Numbers&&) = default;  // and no copies, which would begin elsewhere

 private:
  std::vector<float> kept_;

 public:
  float* data;
};

struct Layer {
  int64_t points, inputs, outputs, knots;  // N, I, O, M
  const float* x;                          // (N, I)
  const float* grid;                       // (I, M), increasing
  bool even;                               // whether all its knots are equally spaced
};

// The k + 1 functions that are not zero, or their derivatives, at LANES numbers, and the cells that hold these.
template <int k>
struct Local {
  float function[k + 1][LANES];
  int32_t cell[LANES];
};

// The grids of LANES inputs, side by side.
class Grids {
 public:
  Grids(const Layer& layer, int64_t first) : knots_(layer.knots * LANES), count_(layer.knots), even_(layer.even) {
    for (int lane = 0; lane < LANES; lane++) {
      const float* grid = layer.grid + std::min(first + lane, layer.inputs - 1) * count_;
      for (int64_t m = 0; m < count_; m++) knots_.data[m * LANES + lane] = grid[m];
    }
    low_ = knot(0), high_ = knot(count_ - 1);
    inverse_spacing_ = (float)(count_ - 1) / (high_ - low_);
  }

  template <int k, bool SLOPE>
  void evaluate(const Vec& x, Local<k>& local) const {
    const Vec zero = x - x;  // not a number where x is none
    Ints inside, cell;
    Vec left[k + 1], right[k + 1], unit;  // distances of x from the knots below and above it; what they grow by per x
    if (even_) {
      Vec u = (x - low_) * inverse_spacing_;
      inside = (u >= 0) & (u < (float)(count_ - 1));
      u = inside ? u : zero;
      cell = __builtin_convertvector(inside ? u : Vec{}, Ints);
      const Vec t = u - __builtin_convertvector(cell, Vec);
      for (int j = 1; j <= k; j++) left[j] = t + (float)(j - 1), right[j] = (float)j - t;
      unit = inverse_spacing_;
    } else {
      inside = (x >= low_) & (x < high_);
      cell = Ints{};
      const Vec y = inside ? x : low_ + zero;  // far outside, differences from knots would round to one another
      for (int64_t m = 1; m < count_ - 1; m++) cell -= y >= knot(m);  // true is -1
      const int32_t last = (int32_t)count_ - 1;
      for (int j = 1; j <= k; j++) {  // beyond the ends any knot will do: it belongs to no function that there is
        Vec below, above;
        for (int lane = 0; lane < LANES; lane++) {
          below[lane] = knots_.data[std::max(cell[lane] + 1 - j, 0) * LANES + lane];
          above[lane] = knots_.data[std::min(cell[lane] + j, last) * LANES + lane];
        }
        left[j] = y - below, right[j] = above - y;
      }
      unit = Vec{} + 1.f;
    }
    Vec value[k + 1], share[k + 1];
    value[0] = inside ? zero + 1.f : zero;
#pragma GCC unroll 8
    for (int d = 1; d <= k; d++) {
      Vec saved = {};
#pragma GCC unroll 8
      for (int r = 0; r < d; r++) {
        share[r] = even_ ? value[r] * (1.f / d) : value[r] / (right[r + 1] + left[d - r]);
        value[r] = saved + right[r + 1] * share[r];
        saved = left[d - r] * share[r];
      }
      value[d] = saved;
    }
    if (SLOPE) {
#pragma GCC unroll 8
      for (int r = 0; r <= k; r++)
        value[r] = (float)k * unit * ((r > 0 ? share[r - 1] : Vec{}) - (r < k ? share[r] : Vec{}));
    }
#pragma GCC unroll 8
    for (int r = 0; r <= k; r++) at(local.function[r]) = value[r];
    *reinterpret_cast<Ints*>(local.cell) = cell;
  }

 private:
  const Vec& knot(int64_t m) const { return at(knots_.data + m * LANES); }
  Numbers knots_;
  int64_t count_;
  bool even_;
  Vec low_, high_, inverse_spacing_;
};

// The same at a tile of points, of which a register of inputs may reach beyond the last input.
template <int k, bool SLOPE>
void evaluate_tile(const Layer& layer, const Grids& grids, int64_t first, int count, int64_t input, Local<k>* local) {
  const int64_t lanes = std::min<int64_t>(LANES, layer.inputs - input);
  for (int n = 0; n < count; n++) {
    const float* x = layer.x + (first + n) * layer.inputs + input;
    float part[LANES] = {};
    if (lanes < LANES) x = std::copy(x, x + lanes, part) - lanes;
    grids.evaluate<k, SLOPE>(at(x), local[n]);
  }
}

std::vector<Grids> all_grids(const Layer& layer) {
  std::vector<Grids> grids;
  for (int64_t i = 0; i < layer.inputs; i += LANES) grids.emplace_back(layer, i);
  return grids;
}

// Coefficients, (I, K, O), with k rows of zeros at both ends of each input's: row c + r belongs to the function
// c - k + r. A block of outputs after the other; rows fill cache lines.
class Table {
 public:
  // into memory for `size` numbers
  Table(const Layer& layer, int k, const float* coef, float* memory)
      : rows(layer.knots - 1 + k), inputs_(layer.inputs), width_(padded(layer.outputs)), numbers_(aligned(memory)) {
    const int64_t functions = layer.knots - 1 - k;
#pragma omp parallel for collapse(2)
    for (int64_t output = 0; output < width_; output += BLOCK)
      for (int64_t i = 0; i < inputs_; i++) {
        const int64_t width = width_at(output), filled = std::min(width, layer.outputs - output);
        float* end = std::fill_n(numbers_ + (output * inputs_ + i * width) * rows, k * width, 0.f);
        for (int64_t m = 0; m < functions; m++) {
          const float* row = coef + (i * functions + m) * layer.outputs + output;
          end = std::fill_n(std::copy(row, row + filled, end), width - filled, 0.f);
        }
        std::fill_n(end, k * width, 0.f);
      }
  }
  static int64_t size(const Layer& layer, int k) {
    return layer.inputs * (layer.knots - 1 + k) * padded(layer.outputs) + LANES;
  }
  int64_t width() const { return width_; }
  int64_t width_at(int64_t output) const { return std::min<int64_t>(BLOCK, width_ - output); }
  const float* row(int64_t output, int64_t input, int64_t cell) const {
    return numbers_ + output * inputs_ * rows + (input * rows + cell) * width_at(output);
  }
  const int64_t rows;

 private:
  int64_t inputs_, width_;
  float* numbers_;
};

void copy_tile(const float* rows, const Layer& layer, int64_t first, int count, int64_t output, float* tile) {
  const int64_t width = std::min<int64_t>(BLOCK, layer.outputs - output);
  for (int n = 0; n < count; n++) {
    const float* row = rows + (first + n) * layer.outputs + output;
    std::fill(std::copy(row, row + width, tile + n * BLOCK), tile + n * BLOCK + padded(width), 0.f);
  }
}

// How many inputs have a table of a block of outputs that stays in the second cache while all points go by.
int64_t inputs_at_a_time(const Table& table) {
  return std::max<int64_t>(CACHED / (table.rows * table.width_at(0) * 4 * LANES), 1) * LANES;
}

// Goes through all points, inputs and outputs, a tile of `numbers`, (N, O), after the other.
//     visit(point, input, row, outs, b, width)   for each pair: from `row` on the coefficients of its cell, a block of
//                                                the point's numbers, and the k + 1 functions or derivatives
//     leave(first, count, output, tile)          when all inputs that go together have been at a tile
template <int k, bool SLOPE, typename Visit, typename Leave>
void for_each_pair(const Layer& layer, const Table& table, const float* numbers, Visit visit, Leave leave) {
  const std::vector<Grids> grids = all_grids(layer);
  const int64_t together = inputs_at_a_time(table);
#pragma omp parallel
  {
    std::vector<Local<k>> local(TILE);
    Numbers scratch(TILE * BLOCK);
    float* tile = scratch.data;
    for (int64_t output = 0; output < table.width(); output += BLOCK)
      for (int64_t begin = 0; begin < layer.inputs; begin += together) {
        const int64_t width = table.width_at(output);
        const int64_t end = std::min(begin + together, layer.inputs);
#pragma omp for schedule(dynamic, 1)
        for (int64_t first = 0; first < layer.points; first += TILE) {
          const int count = (int)std::min<int64_t>(TILE, layer.points - first);
          copy_tile(numbers, layer, first, count, output, tile);
          for (int64_t input = begin; input < end; input += LANES) {
            evaluate_tile<k, SLOPE>(layer, grids[input / LANES], first, count, input, local.data());
            const int lanes = (int)std::min<int64_t>(LANES, end - input);
            for (int lane = 0; lane < lanes; lane++)
              for (int n = 0; n < count; n++) {
                float b[k + 1];
                for (int r = 0; r <= k; r++) b[r] = local[n].function[r][lane];
                const float* row = table.row(output, input + lane, local[n].cell[lane]);
                visit(first + n, input + lane, row, tile + n * BLOCK, b, width);
              }
          }
          leave(first, count, output, tile);
        }
      }
  }
}

template <int k>
void sums(const Layer& layer, const float* coef, float* memory, float* out) {
  const Table table(layer, k, coef, memory);
  for_each_pair<k, false>(
      layer, table, out,
      [](int64_t, int64_t, const float* row, float* outs, const float* b, int64_t width) {
        for (int64_t o = 0; o < width; o += LANES) {
          Vec sum = at(outs + o);
#pragma GCC unroll 8
          for (int r = 0; r <= k; r++) sum += b[r] * at(row + r * width + o);
          at(outs + o) = sum;
        }
      },
      [&](int64_t first, int count, int64_t output, const float* tile) {
        const int64_t width = std::min<int64_t>(BLOCK, layer.outputs - output);
        for (int n = 0; n < count; n++) {
          const float* row = tile + n * BLOCK;
          std::copy(row, row + width, out + (first + n) * layer.outputs + output);
        }
      });
}

template <int k>
void input_gradients(const Layer& layer, const float* coef, float* memory, const float* d_out, float* d_x) {
  const Table table(layer, k, coef, memory);
  std::fill_n(d_x, layer.points * layer.inputs, 0.f);
  for_each_pair<k, true>(
      layer, table, d_out,
      [&](int64_t point, int64_t input, const float* row, const float* outs, const float* b, int64_t width) {
        Vec total = {};
        for (int64_t o = 0; o < width; o += LANES) {
          Vec slope = b[0] * at(row + o);
#pragma GCC unroll 8
          for (int r = 1; r <= k; r++) slope += b[r] * at(row + r * width + o);
          total += slope * at(outs + o);
        }
        d_x[point * layer.inputs + input] += sum_of(total);
      },
      [](int64_t, int, int64_t, const float*) {});
}

template <int k>
void coef_gradients(const Layer& layer, const float* d_out, float* d_coef) {
  const int64_t functions = layer.knots - 1 - k, rows = layer.knots - 1 + k, width_of_all = padded(layer.outputs);
  const int64_t threads = spline_threads();
  // inputs are shared out, so that no two threads add to the same number, no more than whose sums stay in the cache
  const int64_t stride = std::min<int64_t>(BLOCK, width_of_all), most = CACHED / (rows * stride * 4);
  const int64_t share = std::clamp<int64_t>(std::min((layer.inputs + threads - 1) / threads, most), 1, LANES);
#pragma omp parallel
  {
    std::vector<Local<k>> local(TILE);
    Numbers numbers(TILE * BLOCK), sums(share * rows * stride);
    float* tile = numbers.data;
#pragma omp for collapse(2) schedule(dynamic, 1)
    for (int64_t input = 0; input < layer.inputs; input += share)
      for (int64_t output = 0; output < width_of_all; output += BLOCK) {
        const Grids grids(layer, input);
        const int64_t width = std::min<int64_t>(BLOCK, width_of_all - output);
        const int lanes = (int)std::min<int64_t>(share, layer.inputs - input);
        std::fill_n(sums.data, share * rows * stride, 0.f);
        for (int64_t first = 0; first < layer.points; first += TILE) {
          const int count = (int)std::min<int64_t>(TILE, layer.points - first);
          copy_tile(d_out, layer, first, count, output, tile);
          evaluate_tile<k, false>(layer, grids, first, count, input, local.data());
          for (int lane = 0; lane < lanes; lane++)
            for (int n = 0; n < count; n++) {
              float* row = sums.data + (lane * rows + local[n].cell[lane]) * stride;
              const float* outs = tile + n * BLOCK;
              float b[k + 1];
              for (int r = 0; r <= k; r++) b[r] = local[n].function[r][lane];
              for (int64_t o = 0; o < width; o += LANES) {
                const Vec gradient = at(outs + o);
#pragma GCC unroll 8
                for (int r = 0; r <= k; r++) at(row + r * stride + o) += b[r] * gradient;
              }
            }
        }
        for (int lane = 0; lane < lanes; lane++)
          for (int64_t m = 0; m < functions; m++) {
            const float* row = sums.data + (lane * rows + k + m) * stride;
            std::copy(row, row + std::min(width, layer.outputs - output),
                      d_coef + ((input + lane) * functions + m) * layer.outputs + output);
          }
      }
  }
}

}  // namespace

#define FOR_DEGREE(function, ...)                      \
  switch (degree) {                                    \
    case 1: return function<1>(__VA_ARGS__);           \
    case 2: return function<2>(__VA_ARGS__);           \
    case 3: return function<3>(__VA_ARGS__);           \
    case 4: return function<4>(__VA_ARGS__);           \
    case 5: return function<5>(__VA_ARGS__);           \
  }

extern "C" {

// How many threads the functions below run in.
int spline_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

// Numbers that the first two of them need to work with.
int64_t spline_memory(const Layer* layer, int degree) { return Table::size(*layer, degree); }

void spline_sums(const Layer* layer, int degree, const float* coef, float* memory, float* out) {
  FOR_DEGREE(sums, *layer, coef, memory, out)
}

void spline_input_gradients(const Layer* layer, int degree, const float* coef, float* memory, const float* d_out,
                            float* d_x) {
  FOR_DEGREE(input_gradients, *layer, coef, memory, d_out, d_x)
}

void spline_coef_gradients(const Layer* layer, int degree, const float* d_out, float* d_coef) {
  FOR_DEGREE(coef_gradients, *layer, d_out, d_coef)
}
}
