// SPDX-License-Identifier: Apache-2.0
// A case for the check itself: refused, but with other words.
// reported: is refused without the sentence: a triangle has three sides
template <class T>
constexpr void refuse() {
  static_assert(sizeof(T) == 0, "a square has four sides");
}
void wrong() {
#ifdef REFUSED
  refuse<int>();  // refused: a triangle has three sides
#endif
}
