// SPDX-License-Identifier: Apache-2.0
// Products of a warpgroup, four warps, on the tensor cores of Hopper (wgmma): b, and a where it is not in registers,
// are read from shared memory, beside whatever the warps do meanwhile. Panels in shared memory are rows of 64 elements,
// 128 bytes, whose 16-byte pieces are turned by the number of the row modulo 8, as a copy with the swizzle of 128 bytes
// leaves them; wider rows are several panels one after the other. Source: PTX ISA 9.0, 9.7.15.
#pragma once

#include <cstdint>
#include <type_traits>

#include <zeropp/kernels/cuda/attention/parts.hpp>

namespace zeropp::kernels::detail {

#if defined(__CUDACC__) && defined(__CUDA_ARCH_FEAT_SM90_ALL)

/// The descriptor of a panel for the tensor cores: its address, and how far apart 8 rows lie (1024 bytes) and, for an
/// operand whose columns count as its rows, two panels (`panel` bytes).
__device__ inline std::uint64_t panel_descriptor(const void* at, int panel = 16) {
  return (std::uint64_t{1} << 62) | (std::uint64_t{1024 >> 4} << 32) | (static_cast<std::uint64_t>(panel >> 4) << 16) |
         ((shared_address(at) & 0x3ffff) >> 4);
}

/// Registers of products, or of their operands, have been written: before the first product that uses them.
__device__ inline void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/// Closes a group of products.
__device__ inline void close_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most `Open` groups of products are not done; `c` is then the result of one that is.
template <int Open, int N>
__device__ void await_products(float (&c)[N][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Open) : "memory");
#pragma unroll
  for (int n = 0; n < N; ++n)  // nothing that reads them may be moved before the wait
    asm volatile("" : "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])::"memory");
}

template <class T>
struct WgmmaName {
  static constexpr char value[] = ".f16";
};
template <>
struct WgmmaName<bf16> {
  static constexpr char value[] = ".bf16";
};

/// c [64, 64] = a [64, 16] · bᵀ [64, 16], or += it.
template <class T>
__device__ inline void multiply_panels(float (&c)[8][4], std::uint64_t a, std::uint64_t b, bool add) {
  asm volatile(
      "{.reg .pred add; setp.ne.b32 add, %34, 0; "
      "wgmma.mma_async.sync.aligned.m64n64k16.f32%35%35 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "%32, %33, add, 1, 1, 0, 0;}"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
        "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),
        "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]),
        "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),
        "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3])
      : "l"(a), "l"(b), "r"(add ? 1 : 0), "C"(WgmmaName<T>::value));
}
/// c [64, 128] = a [64, 16] · bᵀ [128, 16], or += it.
template <class T>
__device__ inline void multiply_panels(float (&c)[16][4], std::uint64_t a, std::uint64_t b, bool add) {
  asm volatile(
      "{.reg .pred add; setp.ne.b32 add, %66, 0; "
      "wgmma.mma_async.sync.aligned.m64n128k16.f32%67%67 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, add, 1, 1, 0, 0;}"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
        "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),
        "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]),
        "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),
        "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3]), "+f"(c[8][0]), "+f"(c[8][1]), "+f"(c[8][2]),
        "+f"(c[8][3]), "+f"(c[9][0]), "+f"(c[9][1]), "+f"(c[9][2]), "+f"(c[9][3]), "+f"(c[10][0]), "+f"(c[10][1]),
        "+f"(c[10][2]), "+f"(c[10][3]), "+f"(c[11][0]), "+f"(c[11][1]), "+f"(c[11][2]), "+f"(c[11][3]), "+f"(c[12][0]),
        "+f"(c[12][1]), "+f"(c[12][2]), "+f"(c[12][3]), "+f"(c[13][0]), "+f"(c[13][1]), "+f"(c[13][2]), "+f"(c[13][3]),
        "+f"(c[14][0]), "+f"(c[14][1]), "+f"(c[14][2]), "+f"(c[14][3]), "+f"(c[15][0]), "+f"(c[15][1]), "+f"(c[15][2]),
        "+f"(c[15][3])
      : "l"(a), "l"(b), "r"(add ? 1 : 0), "C"(WgmmaName<T>::value));
}
/// c [64, 64] += a [64, 16] · b [16, 64], `b` by rows of n; `a` as multiply() has it.
template <class T>
__device__ inline void multiply_registers(float (&c)[8][4], const unsigned (&a)[4], std::uint64_t b) {
  asm volatile(
      "{.reg .pred add; setp.ne.b32 add, 1, 0; "
      "wgmma.mma_async.sync.aligned.m64n64k16.f32%37%37 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, add, 1, 1, 1;}"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
        "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),
        "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]),
        "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),
        "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "C"(WgmmaName<T>::value));
}
/// c [64, 128] += a [64, 16] · b [16, 128], `b` by rows of n; `a` as multiply() has it.
template <class T>
__device__ inline void multiply_registers(float (&c)[16][4], const unsigned (&a)[4], std::uint64_t b) {
  asm volatile(
      "{.reg .pred add; setp.ne.b32 add, 1, 0; "
      "wgmma.mma_async.sync.aligned.m64n128k16.f32%69%69 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "{%64, %65, %66, %67}, %68, add, 1, 1, 1;}"
      : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),
        "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),
        "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]),
        "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),
        "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3]), "+f"(c[8][0]), "+f"(c[8][1]), "+f"(c[8][2]),
        "+f"(c[8][3]), "+f"(c[9][0]), "+f"(c[9][1]), "+f"(c[9][2]), "+f"(c[9][3]), "+f"(c[10][0]), "+f"(c[10][1]),
        "+f"(c[10][2]), "+f"(c[10][3]), "+f"(c[11][0]), "+f"(c[11][1]), "+f"(c[11][2]), "+f"(c[11][3]), "+f"(c[12][0]),
        "+f"(c[12][1]), "+f"(c[12][2]), "+f"(c[12][3]), "+f"(c[13][0]), "+f"(c[13][1]), "+f"(c[13][2]), "+f"(c[13][3]),
        "+f"(c[14][0]), "+f"(c[14][1]), "+f"(c[14][2]), "+f"(c[14][3]), "+f"(c[15][0]), "+f"(c[15][1]), "+f"(c[15][2]),
        "+f"(c[15][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "C"(WgmmaName<T>::value));
}

/// c [64, N] = a · bᵀ over D columns: `a` points to 64 rows of a panel of `Rows`, `b` to one of N.
template <class T, int D, int Rows, int N>
__device__ void product_of_rows(float (&c)[N / 8][4], const T* a, const T* b) {
  const auto left = panel_descriptor(a), right = panel_descriptor(b);
#pragma unroll
  for (int d = 0; d < D; d += 16) {
    const int column = d % 64 * 2, panel = d / 64 * 128;
    multiply_panels<T>(c, left + (Rows * panel + column) / 16, right + (N * panel + column) / 16, d > 0);
  }
}
/// c [64, D] += a · b, with `a` [64, N] in registers and `b` a panel of N rows.
template <class T, int D, int N>
__device__ void add_product(float (&c)[D / 8][4], const unsigned (&a)[N / 16][4], const T* b) {
  const auto right = panel_descriptor(b, N * 128);
#pragma unroll
  for (int n = 0; n < N / 16; ++n) multiply_registers<T>(c, a[n], right + n * 16 * 128 / 16);
}

#endif

}  // namespace zeropp::kernels::detail
