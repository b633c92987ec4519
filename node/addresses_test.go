package node

import (
	"net"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/swarm"
)

// loopback is the name of the interface that every machine has.
func loopback(t *testing.T) string {
	t.Helper()
	ifis, err := net.Interfaces()
	must(t, err)
	for _, i := range ifis {
		if i.Flags&net.FlagLoopback != 0 {
			return i.Name
		}
	}
	t.Fatal("no loopback interface")
	return ""
}

func TestListenAddresses(t *testing.T) {
	lo := loopback(t)
	for _, c := range []struct{ given, want, err string }{
		{"", "0.0.0.0:2377", ""},
		{"192.0.2.1", "192.0.2.1:2377", ""},
		{"192.0.2.1:4000", "192.0.2.1:4000", ""},
		{"::1", "[::1]:2377", ""},
		{"[::1]:4000", "[::1]:4000", ""},
		{lo + ":4000", "127.0.0.1:4000", ""},
		{lo, "127.0.0.1:2377", ""},
		{"192.0.2.1:0", "", "could not parse"},
		{"192.0.2.1:http", "", "could not parse"},
		{"192.0.2.1:70000", "", "could not parse"},
		{"no-such-interface", "", "must be an IP address or network interface"},
	} {
		got, err := resolveListen(c.given, defaultListen)
		expect(t, "listen "+c.given, got, err, c.want, c.err)
	}
}

func TestAdvertiseAddresses(t *testing.T) {
	lo := loopback(t)
	for _, c := range []struct{ given, listen, want, err string }{
		{"192.0.2.9", "0.0.0.0:2377", "192.0.2.9:2377", ""},
		{"192.0.2.9", "0.0.0.0:4000", "192.0.2.9:4000", ""},
		{"192.0.2.9:5000", "0.0.0.0:4000", "192.0.2.9:5000", ""},
		{"2001:db8::1", "0.0.0.0:4000", "[2001:db8::1]:4000", ""},
		{lo, "0.0.0.0:4000", "127.0.0.1:4000", ""},
		{"", "192.0.2.1:4000", "192.0.2.1:4000", ""},
		{"0.0.0.0", "192.0.2.1:4000", "", "non-zero IP address"},
		{"192.0.2.9:0", "0.0.0.0:4000", "", "non-zero IP address"},
		{"192.0.2.9:port", "0.0.0.0:4000", "", "non-zero IP address"},
		{"no-such-interface", "0.0.0.0:4000", "", "non-zero IP address"},
		{"192.0.2.9", "broken", "", "could not parse listen address"},
	} {
		got, err := resolveAdvertise(c.given, c.listen)
		expect(t, "advertise "+c.given+" on "+c.listen, got, err, c.want, c.err)
	}
}

func TestDataAddresses(t *testing.T) {
	for _, c := range []struct{ given, want, err string }{
		{"", "192.0.2.1", ""},
		{"192.0.2.7", "192.0.2.7", ""},
		{"::", "", "data path address"},
		{"192.0.2.7:4789", "", "data path address"},
	} {
		got, err := resolveData(c.given, "192.0.2.1:2377")
		expect(t, "data "+c.given, got, err, c.want, c.err)
	}
}

func expect(t *testing.T, what, got string, err error, want, wantErr string) {
	t.Helper()
	if got != want || (err == nil) != (wantErr == "") || err != nil && !strings.Contains(err.Error(), wantErr) {
		t.Errorf("%s: %q, %v; want %q, %q", what, got, err, want, wantErr)
	}
}

func TestWhoseInterfacesAreNotTheMachines(t *testing.T) {
	for name, want := range map[string]bool{"docker0": true, "br-1234": true, "veth12": true, "ms-in": true, "eth0": false, "enp3s0": false, "bond0": false} {
		if ours(name) != want {
			t.Errorf("ours(%s) = %v", name, !want)
		}
	}
}

func TestPools(t *testing.T) {
	for _, c := range []struct {
		pools []string
		size  uint32
		err   string
	}{
		{nil, 0, ""},
		{[]string{"10.0.0.0/8", "172.16.0.0/12"}, 24, ""},
		{[]string{"10.0.0.0/24"}, 24, ""},
		{[]string{"10.0.0.0/25"}, 24, "Subnet size is too small"},
		{[]string{"10.0.0.1/8"}, 24, "invalid base pool"},
		{[]string{"ten"}, 24, "invalid base pool"},
		{nil, 30, "subnet size is out of range"},
	} {
		expect(t, "pools "+strings.Join(c.pools, ","), "", checkPools(c.pools, c.size), "", c.err)
	}
}

func TestDefaultsOfANewCluster(t *testing.T) {
	s := withDefaults(swarm.Spec{})
	if s.Name != "default" || *s.Orchestration.TaskHistoryRetentionLimit != 5 || s.Dispatcher.HeartbeatPeriod != defaultHeartbeat || s.CAConfig.NodeCertExpiry != defaultCertExpiry {
		t.Errorf("defaults are %+v", s)
	}
	none := int64(0)
	given := swarm.Spec{Orchestration: swarm.OrchestrationConfig{TaskHistoryRetentionLimit: &none}}
	if got := withDefaults(given); *got.Orchestration.TaskHistoryRetentionLimit != 0 {
		t.Error("a history limit of 0 was overridden")
	}
}

// Why the port cannot be served tells what to do: an address that is not there is no port that is taken.
func TestWhyThePortCannotBeServed(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer taken.Close()
	for addr, want := range map[string]string{
		taken.Addr().String(): "another process may have it: choose another",
		"192.0.2.1:2377":      "this machine does not have that address: give it the address, or choose one that it has",
	} {
		if err := probePort(addr); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", addr, err, want)
		}
	}
}
