package scheduler

import "math/bits"

// bitset is a set of small numbers that finds the next member fast even when members are rare: every bit of sums says
// whether a word of words has any.
type bitset struct {
	words, sums []uint64
	n           int
}

func newBitset(size int) *bitset {
	w := (size + 63) / 64
	return &bitset{words: make([]uint64, w), sums: make([]uint64, (w+63)/64)}
}

func (b *bitset) add(i int32) {
	w := i >> 6
	if b.words[w]&(1<<(i&63)) == 0 {
		b.words[w] |= 1 << (i & 63)
		b.sums[w>>6] |= 1 << (w & 63)
		b.n++
	}
}

func (b *bitset) remove(i int32) {
	w := i >> 6
	if b.words[w]&(1<<(i&63)) == 0 {
		return
	}
	b.n--
	if b.words[w] &^= 1 << (i & 63); b.words[w] == 0 {
		b.sums[w>>6] &^= 1 << (w & 63)
	}
}

// next gives the smallest member that is at least i, or -1.
func (b *bitset) next(i int32) int32 {
	w := i >> 6
	if int(w) >= len(b.words) {
		return -1
	}
	if rest := b.words[w] >> (i & 63); rest != 0 {
		return i + int32(bits.TrailingZeros64(rest))
	}
	w++
	s := w >> 6
	if int(s) >= len(b.sums) {
		return -1
	}
	rest := b.sums[s] >> (w & 63) << (w & 63)
	for rest == 0 {
		if s++; int(s) >= len(b.sums) {
			return -1
		}
		rest = b.sums[s]
	}
	w = s<<6 + int32(bits.TrailingZeros64(rest))
	return w<<6 + int32(bits.TrailingZeros64(b.words[w]))
}
