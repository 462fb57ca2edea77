// The order in which sums are taken: a binary tree over the ranks, whatever way the numbers come.
//
//   5 ranks:   ((0 + 1) + (2 + 3)) + 4         The left half is the largest power of two below the number of ranks.
//
// So 4 ranks on one host, 2 and 2 on two, and 4 hosts with one each add up to the same bits: where every host adds its
// own ranks up first, that is a subtree, as long as hosts hold equal powers of two of neighbouring ranks.
#pragma once

#include <cstddef>
#include <cstring>

#include "hvtrain_codecs.h"

namespace hvtrain {

// Sum the blocks of `count` <= kBlock numbers of the members from `first` up to `last` (not included) into `out`.
// `fetch(member, room)` returns where a member's numbers are; it may write them into `room`.
template <class Fetch> void treeSum(int first, int last, size_t count, float* out, const Fetch& fetch) {
  int members = last - first;
  if (members == 1) {
    const float* numbers = fetch(first, out);
    if (numbers != out) {
      std::memcpy(out, numbers, count * sizeof(float));
    }
    return;
  }
  int left = 1;
  while (2 * left < members) {
    left *= 2;
  }
  treeSum(first, first + left, count, out, fetch);
  float room[kBlock];
  if (members - left == 1) {
    add(out, fetch(first + left, room), count);
  } else {
    treeSum(first + left, last, count, room, fetch);
    add(out, room, count);
  }
}

} // namespace hvtrain
