// SPDX-License-Identifier: Apache-2.0
// The parts of attention on tensor cores: products of 16 × 8 × 16 in bf16 or f16 with sums in float, operands read
// from shared memory as 8 × 8 matrices, copies from global memory that run beside the computation. A row in shared
// memory is 16 bytes longer than D elements, an odd number of 16-byte pieces: any 8 rows lie in different banks.
#pragma once

#include <cstdint>
#include <type_traits>

#include <zeropp/base/dtype.hpp>
#include <zeropp/base/shape.hpp>

namespace zeropp::kernels::detail {

#ifdef __CUDACC__

/// c [16, 8] += a [16, 16] · b [16, 8]. Lane 4·g + t holds rows g and g + 8 of c, columns 2·t and 2·t + 1.
template <class T>
__device__ inline void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  static_assert(is_half<T>, "attention on tensor cores is in bf16 or f16");
  if constexpr (std::is_same_v<T, bf16>)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline unsigned shared_address(const void* at) {
  return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

/// Four 8 × 8 matrices; lanes 8·i to 8·i + 7 point to the rows of number i.
__device__ inline void load_matrices(unsigned (&r)[4], const void* at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(at))
               : "memory");
}
/// The same, each matrix transposed.
__device__ inline void load_matrices_transposed(unsigned (&r)[4], const void* at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(at))
               : "memory");
}

/// 16 bytes to shared memory, or zeros. `from` is valid in any case.
__device__ inline void copy_16(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0)
               : "memory");
}
__device__ inline void copy_8(void* to, const void* from, bool there) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 8 : 0)
               : "memory");
}
/// Waits for all copies of this thread; those of others after the next barrier.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/// Two floats as bf16 or f16, rounded to nearest even.
template <class T>
__device__ inline unsigned packed(float low, float high) {
  unsigned both;
  if constexpr (std::is_same_v<T, bf16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
/// And back.
template <class T>
__device__ inline float2 unpacked(unsigned both) {
  T low, high;
  low.bits = static_cast<std::uint16_t>(both), high.bits = static_cast<std::uint16_t>(both >> 16);
  return {low, high};
}
/// The sum of the products of 8 pairs of elements.
template <class T>
__device__ inline float dot(const uint4& x, const uint4& y) {
  const auto both = [](unsigned a, unsigned b) {
    const float2 of_a = unpacked<T>(a), of_b = unpacked<T>(b);
    return of_a.x * of_b.x + of_a.y * of_b.y;
  };
  return both(x.x, y.x) + both(x.y, y.y) + both(x.z, y.z) + both(x.w, y.w);
}
/// 2^x within 2 units of the last place; 0 for −∞.
__device__ inline float power_of_2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#endif

}  // namespace zeropp::kernels::detail
