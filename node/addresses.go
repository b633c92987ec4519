package node

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"syscall"

	"github.com/miniswarm/miniswarm/manager/identity"
)

// requestError is an error of a request to the daemon with the HTTP status it is answered with.
type requestError struct {
	status int
	text   string
}

func (e *requestError) Error() string   { return e.text }
func (e *requestError) StatusCode() int { return e.status }

func badRequest(format string, args ...any) error {
	return &requestError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

func unavailable(format string, args ...any) error {
	return &requestError{http.StatusServiceUnavailable, fmt.Sprintf(format, args...)}
}

// resolveListen completes a listen address (ip or interface, with or without port) to ip:port.
func resolveListen(s, fallback string) (string, error) {
	if s == "" {
		s = fallback
	}
	host, port, err := splitPort(s, strconv.Itoa(identity.DefaultPort))
	if err != nil {
		return "", badRequest("could not parse listen address %s", s)
	}
	ip, err := ipOf(host)
	if err != nil {
		return "", badRequest("listen address must be an IP address or network interface (with optional port number)")
	}
	return net.JoinHostPort(ip.String(), port), nil
}

// resolveAdvertise gives the address at which others reach this machine: the given one, the one it listens on, or the
// only one it has. The port is that of the listener unless one is given.
func resolveAdvertise(s, listen string) (string, error) {
	lhost, lport, err := net.SplitHostPort(listen)
	if err != nil {
		return "", badRequest("could not parse listen address %s", listen)
	}
	if s != "" {
		host, port, perr := splitPort(s, lport)
		ip, err := ipOf(host)
		if perr != nil || err != nil || ip.IsUnspecified() {
			return "", badRequest("advertise address must be a non-zero IP address or network interface (with optional port number)")
		}
		return net.JoinHostPort(ip.String(), port), nil
	}
	if ip, err := netip.ParseAddr(lhost); err == nil && !ip.IsUnspecified() {
		return listen, nil
	}
	ip, err := soleAddress()
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(ip.String(), lport), nil
}

// resolveData gives the address for overlay traffic, without port: the given one, or the advertised one.
func resolveData(s, advertise string) (string, error) {
	if s == "" {
		host, _, err := net.SplitHostPort(advertise)
		return host, err
	}
	ip, err := ipOf(s)
	if err != nil || ip.IsUnspecified() {
		return "", badRequest("data path address must be a non-zero IP address or network interface")
	}
	return ip.String(), nil
}

// splitPort cuts an address with or without port.
func splitPort(s, fallback string) (host, port string, err error) {
	if h, p, err := net.SplitHostPort(s); err == nil {
		if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
			return "", "", fmt.Errorf("%q is not a port", p)
		}
		return h, p, nil
	}
	if strings.Count(s, ":") == 1 {
		return "", "", fmt.Errorf("%q is not an address", s)
	}
	return s, fallback, nil
}

// ipOf reads an IP address or gives the first address of the interface of that name, IPv4 before IPv6.
func ipOf(s string) (netip.Addr, error) {
	if ip, err := netip.ParseAddr(s); err == nil {
		return ip, nil
	}
	ifi, err := net.InterfaceByName(s)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%q is neither an IP address nor an interface", s)
	}
	found, err := addressesOf(ifi)
	if err != nil || len(found) == 0 {
		return netip.Addr{}, fmt.Errorf("interface %s has no usable address", s)
	}
	return found[0], nil
}

// probePort says whether the cluster port can be served here.
func probePort(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return cannotListen(err)
	}
	return l.Close()
}

// cannotListen adds to why the cluster port cannot be served what to do about it.
func cannotListen(err error) error {
	cure := "choose another with --listen-addr"
	switch {
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		cure = "this machine does not have that address: give it the address, or choose one that it has with --listen-addr"
	case errors.Is(err, syscall.EADDRINUSE):
		cure = "another process may have it: choose another with --listen-addr"
	}
	return fmt.Errorf("listen on the cluster port: %w; %s", err, cure)
}

// soleAddress is the machine's address if there is no doubt which one is meant.
func soleAddress() (netip.Addr, error) {
	ifis, err := net.Interfaces()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list the network interfaces: %w", err)
	}
	var found []string
	var first netip.Addr
	for i := range ifis {
		if ifis[i].Flags&net.FlagLoopback != 0 || ifis[i].Flags&net.FlagUp == 0 || ours(ifis[i].Name) {
			continue
		}
		ips, err := addressesOf(&ifis[i])
		if err != nil || len(ips) == 0 {
			continue
		}
		if len(found) == 0 {
			first = ips[0]
		}
		found = append(found, fmt.Sprintf("%s on %s", ips[0], ifis[i].Name))
	}
	switch len(found) {
	case 0:
		return netip.Addr{}, badRequest("could not find the system's IP address - specify one with --advertise-addr")
	case 1:
		return first, nil
	}
	return netip.Addr{}, badRequest("could not choose an IP address to advertise since this system has multiple addresses (%s) - specify one with --advertise-addr", strings.Join(found, ", "))
}

// ours tells the interfaces that engines and the mesh make; they are not how others reach this machine.
func ours(name string) bool {
	for _, p := range []string{"docker", "br-", "veth", "ms"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

func addressesOf(ifi *net.Interface) ([]netip.Addr, error) {
	addrs, err := ifi.Addrs()
	if err != nil {
		return nil, err
	}
	var v4, v6 []netip.Addr
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		switch {
		case err != nil || p.Addr().IsLinkLocalUnicast():
		case p.Addr().Is4():
			v4 = append(v4, p.Addr())
		default:
			v6 = append(v6, p.Addr())
		}
	}
	return append(v4, v6...), nil
}
