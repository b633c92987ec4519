package ping

import (
	"net/netip"
	"os"
	"testing"
)

func TestAnswering(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("raw sockets need root")
	}
	here, nobody := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("240.0.0.1")
	got, err := Answering(t.Context(), []netip.Addr{here, nobody})
	if err != nil {
		t.Fatal(err)
	}
	if !got[here] || got[nobody] {
		t.Errorf("answering are %v, want %s alone", got, here)
	}
}
