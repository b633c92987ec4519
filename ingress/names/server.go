package names

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// DefaultPort is where name servers are asked.
const DefaultPort = 53

// resolvConf names the node's own name servers.
const resolvConf = "/etc/resolv.conf"

// Config is what a Server is made of.
type Config struct {
	// Logger is told about events; nil means silence.
	Logger *slog.Logger
	// Port is where to listen; zero means 53.
	Port uint16
	// ResolvConf is the file with the node's own name servers; empty means /etc/resolv.conf.
	ResolvConf string
	// UpstreamPort is the port of other name servers; zero means 53.
	UpstreamPort uint16
}

// Server answers questions by the Table it was given last. Its methods may be called from any goroutine; sockets are
// opened in the network namespace of the calling thread.
type Server struct {
	log   *slog.Logger
	port  uint16
	table atomic.Pointer[index]
	up    upstreams

	mu        sync.Mutex
	listeners map[netip.Addr]*listener // guarded by mu
}

// New gives a server that listens nowhere yet.
func New(c Config) *Server {
	s := &Server{log: c.Logger, port: c.Port, listeners: map[netip.Addr]*listener{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.port == 0 {
		s.port = DefaultPort
	}
	s.up = upstreams{log: s.log, file: c.ResolvConf, port: c.UpstreamPort, places: make(chan struct{}, maxForwards)}
	if s.up.file == "" {
		s.up.file = resolvConf
	}
	if s.up.port == 0 {
		s.up.port = DefaultPort
	}
	s.table.Store(newIndex(Table{}))
	return s
}

// Set answers by t from now on, and listens on exactly the addresses of its networks, which need not exist yet. The error joins the
// addresses that could not be had, mostly because another server has port 53 of all addresses; the next Set tries them again.
func (s *Server) Set(t Table) error {
	s.table.Store(newIndex(t))
	s.mu.Lock()
	defer s.mu.Unlock()
	wanted := map[netip.Addr]bool{}
	var errs []error
	for _, n := range t.Networks {
		if !n.Listen.IsValid() || wanted[n.Listen] {
			continue
		}
		wanted[n.Listen] = true
		if s.listeners[n.Listen] != nil {
			continue
		}
		l, err := s.listen(n.Listen)
		if err != nil {
			errs = append(errs, fmt.Errorf("names on network %s: %w", n.Name, err))
			continue
		}
		s.listeners[n.Listen] = l
	}
	for addr, l := range s.listeners {
		if !wanted[addr] {
			errs = append(errs, l.close())
			delete(s.listeners, addr)
		}
	}
	return errors.Join(errs...)
}

// Close ends listening and waits for the answers that are being written.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, addr := range slices.Collect(maps.Keys(s.listeners)) {
		errs = append(errs, s.listeners[addr].close())
		delete(s.listeners, addr)
	}
	return errors.Join(errs...)
}

// listener answers at one address, by UDP and TCP.
type listener struct {
	servers []*dns.Server
	cancel  context.CancelFunc // ends questions to others
	done    sync.WaitGroup
}

func (s *Server) listen(addr netip.Addr) (*listener, error) {
	at := net.JoinHostPort(addr.String(), strconv.Itoa(int(s.port)))
	// The address is that of a bridge, which the engine may have yet to make, or make anew.
	early := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
		}), err)
	}}
	ctx, cancel := context.WithCancel(context.Background())
	packets, err := early.ListenPacket(ctx, "udp4", at)
	if err != nil {
		cancel()
		return nil, inUse(err)
	}
	streams, err := early.Listen(ctx, "tcp4", at)
	if err != nil {
		cancel()
		return nil, errors.Join(inUse(err), packets.Close())
	}
	l := &listener{cancel: cancel}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { s.answer(ctx, addr, w, q) })
	for _, server := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: streams, Handler: handler}} {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		l.servers = append(l.servers, server)
		l.done.Go(func() {
			if err := server.ActivateAndServe(); err != nil {
				s.log.Error("names are no longer served", "address", at, "err", err)
			}
		})
		<-started // only a server that has started can be shut down
	}
	return l, nil
}

func inUse(err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w: another name server listens on all addresses of this node: bind it to those it is for", err)
	}
	return err
}

func (l *listener) close() error {
	l.cancel()
	var errs []error
	for _, s := range l.servers {
		errs = append(errs, s.Shutdown())
	}
	l.done.Wait()
	return errors.Join(errs...)
}
