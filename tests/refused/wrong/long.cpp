// SPDX-License-Identifier: Apache-2.0
// A case for the check itself: refused with the sentence, deep inside many instantiations.
// reported: at most 25 are readable
template <int Depth>
struct Deep {
  static constexpr int value = Deep<Depth - 1>::value + 1;
  static_assert(Deep<Depth - 1>::value >= 0);
};
template <>
struct Deep<0> {
#ifdef REFUSED
  static_assert(sizeof(int) == 0, "a triangle has three sides");  // refused: a triangle has three sides
  static_assert(sizeof(int) == 1, "one more"), a, b, c;
  unknown one, two;
  unknown three;
  unknown four;
  unknown five;
  unknown six;
  unknown seven;
  unknown eight;
  unknown nine;
  unknown ten;
  unknown eleven;
#endif
  static constexpr int value = 0;
};
int deep = Deep<20>::value;
