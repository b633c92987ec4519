// Package probe finds out which peers can be reached without VXLAN. That two
// nodes share a segment does not mean that the segment carries foreign addresses:
// many clouds drop packets whose addresses are not the machine's own. So each
// node sends each neighbour a datagram from its own address on the ingress network
// to the neighbour's, which travels as the mesh's packets would, and the
// neighbour answers the same way. An answer proves both directions. As long as
// answers come, connections may take the plain way.
//
// Datagrams are authenticated by a key that all nodes of the cluster have, so
// that nobody else on the segment can make a way look passable.
package probe

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/netip"
	"time"
)

// Timing of probes.
const (
	// Interval is the time between two probes of a peer.
	Interval = time.Second
	// Patience is how long a way counts as proven after a probe was answered: three
	// in a row may be lost.
	Patience = 3*Interval + Interval/2
)

type kind byte

const (
	question kind = 1
	answer   kind = 2
)

// message is a datagram: magic, version, kind, flag, nonce, authentication.
type message struct {
	kind kind
	// recognises says that the sender knows the receiver's frames and leads replies
	// back the plain way.
	recognises bool
	nonce      uint64
}

const (
	magic   = "msw\x01" // the last byte is the version
	bodyLen = len(magic) + 2 + 8
	size    = bodyLen + sha256.Size
)

func (m message) marshal(key []byte, from, to netip.Addr) []byte {
	b := append([]byte(magic), byte(m.kind), 0)
	if m.recognises {
		b[5] = 1
	}
	b = binary.BigEndian.AppendUint64(b, m.nonce)
	return append(b, sign(key, b, from, to)...)
}

// sign also covers the addresses, so that a datagram cannot be turned against
// another node.
func sign(key, body []byte, from, to netip.Addr) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(body)
	h.Write(from.AsSlice())
	h.Write(to.AsSlice())
	return h.Sum(nil)
}

var errNotOurs = errors.New("not a probe of this cluster")

func unmarshal(b, key []byte, from, to netip.Addr) (message, error) {
	if len(b) != size || string(b[:len(magic)]) != magic || !hmac.Equal(b[bodyLen:], sign(key, b[:bodyLen], from, to)) {
		return message{}, errNotOurs
	}
	m := message{kind: kind(b[4]), recognises: b[5] == 1, nonce: binary.BigEndian.Uint64(b[6:])}
	if m.kind != question && m.kind != answer {
		return message{}, errNotOurs
	}
	return m, nil
}

// Tracker remembers what was asked and answered. It knows no clock; the zero
// Tracker is empty. It is not safe for concurrent use.
type Tracker struct {
	peers map[netip.Addr]*record
}

type record struct {
	asked    [4]uint64 // nonces of the last questions
	next     int
	answered time.Time // when the last answer came that said "recognises"
}

// ask notes a question to a peer.
func (t *Tracker) ask(peer netip.Addr, nonce uint64) {
	if t.peers == nil {
		t.peers = map[netip.Addr]*record{}
	}
	r := t.peers[peer]
	if r == nil {
		r = &record{}
		t.peers[peer] = r
	}
	r.asked[r.next%len(r.asked)] = nonce
	r.next++
}

// hear notes an answer. One to a question that was not asked, or long ago, counts
// for nothing.
func (t *Tracker) hear(peer netip.Addr, m message, now time.Time) {
	r := t.peers[peer]
	if r == nil || !m.recognises {
		return
	}
	for i := range min(r.next, len(r.asked)) {
		if r.asked[i] == m.nonce {
			r.answered = now
		}
	}
}

// Proven says whether the plain way to the peer is proven at now.
func (t *Tracker) Proven(peer netip.Addr, now time.Time) bool {
	r := t.peers[peer]
	return r != nil && !r.answered.IsZero() && now.Sub(r.answered) < Patience
}

// keep forgets all peers but those.
func (t *Tracker) keep(peers map[netip.Addr]bool) {
	for p := range t.peers {
		if !peers[p] {
			delete(t.peers, p)
		}
	}
}
