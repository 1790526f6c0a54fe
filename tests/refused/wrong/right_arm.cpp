// SPDX-License-Identifier: Apache-2.0
// A case for the check itself: the right arm does not compile either.
// reported: the right arm of right_arm does not compile
static_assert(sizeof(int) == 0, "a triangle has three sides");  // refused: a triangle has three sides
