package orchestrator

import mathbits "math/bits"

// bits is a set of small non-negative integers, here slot numbers. A million members cost 128 KiB, and the lowest
// member or gap is found word by word.
type bits struct {
	words []uint64
	n     int
}

func (b *bits) len() int { return b.n }

func (b *bits) has(i int) bool {
	w := i >> 6
	return w < len(b.words) && b.words[w]&(1<<(i&63)) != 0
}

// put makes i a member or not.
func (b *bits) put(i int, member bool) {
	if b.has(i) == member {
		return
	}
	w := i >> 6
	for w >= len(b.words) {
		b.words = append(b.words, 0)
	}
	b.words[w] ^= 1 << (i & 63)
	if member {
		b.n++
	} else {
		b.n--
	}
}

// next gives the lowest member that is at least i, or -1.
func (b *bits) next(i int) int {
	for w := i >> 6; w < len(b.words); w++ {
		word := b.words[w]
		if w == i>>6 {
			word &^= 1<<(i&63) - 1
		}
		if word != 0 {
			return w<<6 + mathbits.TrailingZeros64(word)
		}
	}
	return -1
}

// gap gives the lowest integer that is at least i and no member.
func (b *bits) gap(i int) int {
	for w := i >> 6; w < len(b.words); w++ {
		word := ^b.words[w]
		if w == i>>6 {
			word &^= 1<<(i&63) - 1
		}
		if word != 0 {
			return w<<6 + mathbits.TrailingZeros64(word)
		}
	}
	return max(i, len(b.words)<<6)
}

func (b *bits) clear() {
	clear(b.words)
	b.n = 0
}
