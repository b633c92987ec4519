package probe

import (
	"net/netip"
	"testing"
	"time"
)

var (
	a = netip.MustParseAddr("10.0.0.1")
	b = netip.MustParseAddr("10.0.0.2")
	c = netip.MustParseAddr("10.0.0.3")
)

func TestMessagesAreForOneReceiverOfOneCluster(t *testing.T) {
	key := []byte("cluster")
	m := message{kind: answer, recognises: true, nonce: 42}
	packet := m.marshal(key, a, b)
	if got, err := unmarshal(packet, key, a, b); err != nil || got != m {
		t.Errorf("got %+v, %v, want %+v", got, err, m)
	}
	changed := append([]byte(nil), packet...)
	changed[5] = 0
	for name, x := range map[string]struct {
		packet, key []byte
		from, to    netip.Addr
	}{
		"another cluster":  {packet, []byte("other"), a, b},
		"another sender":   {packet, key, c, b},
		"another receiver": {packet, key, a, c},
		"changed":          {changed, key, a, b},
		"short":            {packet[:size-1], key, a, b},
		"long":             {append(packet[:size:size], 0), key, a, b},
		"empty":            {nil, key, a, b},
		"unknown kind":     {message{kind: 9}.marshal(key, a, b), key, a, b},
	} {
		if _, err := unmarshal(x.packet, x.key, x.from, x.to); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestTracker(t *testing.T) {
	now := time.Unix(1000, 0)
	yes := func(nonce uint64) message { return message{kind: answer, recognises: true, nonce: nonce} }
	var tr Tracker
	expect := func(want bool, at time.Time, why string) {
		t.Helper()
		if got := tr.Proven(b, at); got != want {
			t.Errorf("%s: proven %v, want %v", why, got, want)
		}
	}
	expect(false, now, "nothing asked")
	tr.hear(b, yes(7), now)
	expect(false, now, "an answer without a question")
	tr.ask(b, 1)
	tr.hear(b, yes(2), now)
	expect(false, now, "an answer to something else")
	tr.hear(b, message{kind: answer, nonce: 1}, now)
	expect(false, now, "the peer would not lead replies back")
	tr.hear(b, yes(1), now)
	expect(true, now, "answered")
	expect(true, now.Add(3*Interval), "three lost")
	expect(false, now.Add(Patience), "silence")
	for n := range uint64(4) {
		tr.ask(b, 10+n)
	}
	tr.hear(b, yes(1), now.Add(Patience))
	expect(false, now.Add(Patience), "an answer from long ago")
	tr.hear(b, yes(13), now.Add(Patience))
	expect(true, now.Add(Patience), "answered again")
	tr.keep(map[netip.Addr]bool{c: true})
	expect(false, now.Add(Patience), "no longer a peer")
}
