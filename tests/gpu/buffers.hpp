// SPDX-License-Identifier: Apache-2.0
// Buffers on the GPU between guards, random values, and comparisons with a reference in double: what tests of kernels
// share.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/random.hpp>
#include <zeropp/device/cpu.hpp>
#include <zeropp/device/cuda.hpp>
#include <zeropp/device/tensor.hpp>

namespace zeropp::test {

/// A vector on the GPU that begins `shift` elements behind an aligned address. The memory around it must not change.
template <class T>
class OnGpu {
 public:
  OnGpu(Cuda& gpu, std::vector<T> values, std::int64_t shift = 0)
      : gpu_(gpu),
        shift_(static_cast<std::size_t>(shift)),
        size_(values.size()),
        all_(gpu.pool(), {static_cast<std::int64_t>(size_ + shift_ + guard)}) {
    std::vector<unsigned char> bytes(all_.span().size_bytes(), 0xab);
    if (size_)
      std::memcpy(bytes.data() + shift_ * sizeof(T), static_cast<const void*>(values.data()), size_ * sizeof(T));
    gpu_.upload(all_.data(), bytes.data(), bytes.size());
  }
  /// n values that are poison: NaN where T has one.
  OnGpu(Cuda& gpu, std::size_t n, std::int64_t shift = 0) : OnGpu(gpu, poison(n), shift) {}

  T* data() const { return all_.data() + shift_; }
  std::span<T> span() const { return {data(), size_}; }
  std::vector<T> values() const {
    std::vector<unsigned char> bytes(all_.span().size_bytes());
    gpu_.download(bytes.data(), all_.data(), bytes.size());
    bool untouched = true;
    for (std::size_t i = 0; i < bytes.size(); ++i)
      if (i < shift_ * sizeof(T) || i >= (shift_ + size_) * sizeof(T)) untouched = untouched && bytes[i] == 0xab;
    CHECK_MESSAGE(untouched, "written outside of a buffer");
    std::vector<T> out(size_);
    if (size_) std::memcpy(static_cast<void*>(out.data()), bytes.data() + shift_ * sizeof(T), size_ * sizeof(T));
    return out;
  }

 private:
  static constexpr std::size_t guard = 64;
  static std::vector<T> poison(std::size_t n) {
    std::vector<T> out(n);
    if (n) std::memset(static_cast<void*>(out.data()), 0xff, n * sizeof(T));
    return out;
  }
  Cuda& gpu_;
  std::size_t shift_, size_;
  Tensor<T, 1> all_;
};

/// Uniform in [-scale, scale).
template <class T>
std::vector<T> noise(std::size_t n, std::uint64_t seed, double scale = 1) {
  const Random random(seed, RandomPurpose::test);
  std::vector<T> out(n);
  for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<T>(static_cast<float>(scale * (2 * random.uniform(i) - 1)));
  return out;
}

template <class T>
double value(T v) {
  return static_cast<double>(static_cast<compute_t<T>>(v));
}
template <class T>
std::vector<double> doubles(const std::vector<T>& in) {
  std::vector<double> out(in.size());
  for (std::size_t i = 0; i < in.size(); ++i) out[i] = value(in[i]);
  return out;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || !std::memcmp(static_cast<const void*>(a.data()), b.data(), a.size() * sizeof(T)));
}

/// Each within `ulps` units of the compute type's precision, of the larger of 1 and the value (or `size`, where sums
/// cancel); and for bf16 and f16 within one rounding more.
template <class T>
void expect(const std::vector<T>& got, const std::vector<double>& wanted, double ulps = 16, double size = 1) {
  REQUIRE(got.size() == wanted.size());
  const double unit = std::is_same_v<T, double> ? 0x1p-53 : 0x1p-24;
  double worst = 0;
  std::size_t place = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double scale = std::max(size, std::abs(wanted[i]));
    const double allowed = ulps * unit * scale + (std::is_same_v<T, bf16>  ? 0x1p-8 * std::abs(wanted[i])
                                                  : std::is_same_v<T, f16> ? 0x1p-11 * std::abs(wanted[i]) + 0x1p-25
                                                                           : 0);
    double off = std::abs(value(got[i]) - wanted[i]) / allowed;
    if (!(off <= 1e300)) off = 1e300;  // NaN
    if (off > worst) worst = off, place = i;
  }
  CAPTURE(place);
  if (!got.empty()) {
    CAPTURE(value(got[place]));
    CAPTURE(wanted[place]);
    CHECK_MESSAGE(worst <= 1, "off by ", worst, " times what is allowed");
  }
}

}  // namespace zeropp::test
