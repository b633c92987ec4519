package raftstore

import (
	"net"
	"testing"
)

func TestTwoRunsOfOneMember(t *testing.T) {
	type call struct {
		boot            string
		refused, copies bool // the call is refused; the call proves that there is a copy
	}
	const gone = "" // the present connection ends
	for _, c := range []struct {
		name  string
		calls []call
	}{
		{"the same run calls again", []call{{"a", false, false}, {"a", false, false}, {"a", false, false}}},
		{"restarts", []call{{"a", false, false}, {"b", false, false}, {"c", false, false}, {"c", false, false}}},
		{"a copy", []call{{"a", false, false}, {"b", false, false}, {"a", false, true}, {"b", true, false}, {"a", false, false}, {"b", true, false}}},
		{"a copy while the original is away", []call{{"a", false, false}, {"b", false, false}, {"a", false, true}, {gone, false, false}, {"b", false, false}}},
		{"a restart after a break", []call{{"a", false, false}, {gone, false, false}, {"b", false, false}, {gone, false, false}, {"c", false, false}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &streams{}
			defer s.close()
			var last net.Conn
			for i, step := range c.calls {
				if step.boot == gone {
					s.remove(1, last)
					continue
				}
				if got := s.refuses(1, step.boot); got != step.refused {
					t.Fatalf("call %d of %s: refused %v", i, step.boot, got)
				}
				if step.refused {
					continue
				}
				conn, peer := net.Pipe()
				defer peer.Close()
				if stopped, copied := s.add(1, step.boot, conn); stopped || (copied != "") != step.copies {
					t.Fatalf("call %d of %s: stopped %v, copy %q", i, step.boot, stopped, copied)
				}
				last = conn
			}
		})
	}
}
