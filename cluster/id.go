package cluster

import (
	"fmt"
	"io"
	"math/bits"
	"math/rand/v2"
)

// IDLength is the number of characters of every object id.
const IDLength = 25

// Ids are the 25 digits after the first of a 136-bit number written in base 36 (swarm-semantics.md, 1.2). With its
// top bit set such a number lies in [2^135, 2^136), which is always 27 digits: the first, which is nearly constant,
// and the last are dropped. About 129 bits of the randomness remain.
const (
	idRandomBytes = 17
	idDigits      = "0123456789abcdefghijklmnopqrstuvwxyz"
	pow36x12      = 4738381338321616896 // 36^12, the largest power of 36 that fits 64 bits
)

// NewID returns a fresh object id, as Docker Swarm makes them: 25 characters of 0-9a-z from 17 bytes of r. It may be
// called concurrently if r may be read concurrently, as crypto/rand.Reader may.
//
// NewID panics when r fails: an id source that runs dry is a broken program, and an id made without randomness would
// silently clash with another.
func NewID(r io.Reader) string {
	var p [idRandomBytes]byte
	if _, err := io.ReadFull(r, p[:]); err != nil {
		panic(fmt.Sprintf("make id: random source: %v", err))
	}
	var mid, lo uint64
	for _, b := range p[1:9] {
		mid = mid<<8 | uint64(b)
	}
	for _, b := range p[9:] {
		lo = lo<<8 | uint64(b)
	}
	return formatID(p[0], mid, lo)
}

// formatID writes the number hi.mid.lo as an id. It divides by 36^12 in machine words, because a bulk operation makes
// an id for every task and math/big would dominate it.
func formatID(hi byte, mid, lo uint64) string {
	top := uint64(hi) | 0x80
	top, mid, lo, _ = divide(top, mid, lo, 36) // drop the last of the 27 digits
	top, mid, lo, low := divide(top, mid, lo, pow36x12)
	_, _, lo, high := divide(top, mid, lo, pow36x12)
	// What is left, lo, holds the two leading digits; the first is dropped.
	var out [IDLength]byte
	out[0] = idDigits[lo%36]
	for i := 12; i > 0; i-- {
		out[i] = idDigits[high%36]
		high /= 36
	}
	for i := 24; i > 12; i-- {
		out[i] = idDigits[low%36]
		low /= 36
	}
	return string(out[:])
}

// divide divides the three-word number a.b.c by d, which must be greater than a for the quotient to fit.
func divide(a, b, c, d uint64) (qa, qb, qc, rem uint64) {
	qa, rem = a/d, a%d
	qb, rem = bits.Div64(rem, b, d)
	qc, rem = bits.Div64(rem, c, d)
	return qa, qb, qc, rem
}

// IDs is a source of object ids. The core takes one as an argument wherever it creates objects, so that the same
// inputs can give the same outputs in tests, dry runs and replays.
type IDs interface {
	// Next returns an id that this source has not returned before.
	Next() string
}

// RandomIDs returns a source that reads r for every id; production gives it crypto/rand.Reader. It may be used
// concurrently if r may. Like NewID it panics when r fails.
func RandomIDs(r io.Reader) IDs { return randomIDs{r} }

type randomIDs struct{ r io.Reader }

func (s randomIDs) Next() string { return NewID(s.r) }

// SeededIDs returns a source whose ids depend on nothing but seed: the same seed gives the same sequence on every
// machine and with every Go release. It is for tests, dry runs and simulations, never for ids that outside parties
// could try to guess, and must not be used concurrently.
func SeededIDs(seed uint64) IDs {
	return &seededIDs{rand.NewPCG(seed, 0x6d696e6973776172)} // any constant serves as the second half
}

type seededIDs struct{ src *rand.PCG }

func (s *seededIDs) Next() string {
	hi, mid, lo := s.src.Uint64(), s.src.Uint64(), s.src.Uint64()
	return formatID(byte(hi>>56), mid, lo)
}

// Gather gives ids with those next to each other that begin alike, in order by their first two digits. That is nearly as
// good as sorting them for who writes many objects to the tables, at a small part of the time.
func Gather(ids []string) []string {
	const base = len(idDigits)
	// ends[k] is where the ids with the beginning k begin, and once all are in their places where they end.
	var ends [base*base + 1]int
	for _, id := range ids {
		ends[beginning(id)+1]++
	}
	for k := range base * base {
		ends[k+1] += ends[k]
	}
	out := make([]string, len(ids))
	for _, id := range ids {
		k := beginning(id)
		out[ends[k]] = id
		ends[k]++
	}
	return out
}

// beginning is the number that the first two digits of an id make.
func beginning(id string) int {
	k := 0
	for i := range min(2, len(id)) {
		switch c := id[i]; {
		case '0' <= c && c <= '9':
			k = k*len(idDigits) + int(c-'0')
		case 'a' <= c && c <= 'z':
			k = k*len(idDigits) + int(c-'a') + 10
		}
	}
	return k
}
