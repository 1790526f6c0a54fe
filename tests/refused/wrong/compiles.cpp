// SPDX-License-Identifier: Apache-2.0
// A case for the check itself: the wrong arm compiles.
// reported: the wrong arm of compiles compiles
// refused: a triangle has three sides
int sides = 4;
