package lb

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// BenchmarkRequest answers what the balancer costs: the time of one small request straight to a backend and through each
// mode, with client connections kept and made anew. Client, balancer and backend share the machine.
//
//	go test -run - -bench Request ./ingress/lb
func BenchmarkRequest(b *testing.B) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") }))
	defer server.Close()
	backend := server.Listener.Addr().String()
	for _, way := range []struct {
		name string
		to   func(b *testing.B) string
	}{
		{"direct", func(*testing.B) string { return backend }},
		{"tcp", func(b *testing.B) string { return through(b, Config{Mode: TCP, Source: Static{backend}}) }},
		{"http", func(b *testing.B) string { return through(b, Config{Mode: HTTP, Source: Static{backend}}) }},
	} {
		for _, fresh := range []bool{false, true} {
			b.Run(fmt.Sprintf("way=%s/fresh=%v", way.name, fresh), func(b *testing.B) {
				address := way.to(b)
				transport := &http.Transport{DisableKeepAlives: fresh}
				defer transport.CloseIdleConnections()
				client := &http.Client{Transport: transport}
				for b.Loop() {
					resp, err := client.Get("http://" + address + "/")
					if err != nil {
						b.Fatal(err)
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
			})
		}
	}
}

// BenchmarkBytes answers how fast one connection moves bytes, straight and through TCP mode.
//
//	go test -run - -bench Bytes ./ingress/lb
func BenchmarkBytes(b *testing.B) {
	const size = 64 << 20
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	go func() {
		buf := make([]byte, 256<<10)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for sent := 0; sent < size; sent += len(buf) {
					if _, err := conn.Write(buf); err != nil {
						return
					}
				}
			}()
		}
	}()
	for _, way := range []string{"direct", "tcp"} {
		b.Run("way="+way, func(b *testing.B) {
			address := ln.Addr().String()
			if way == "tcp" {
				address = through(b, Config{Source: Static{address}})
			}
			b.SetBytes(size)
			for b.Loop() {
				conn, err := net.Dial("tcp", address)
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.Copy(io.Discard, conn)
				conn.Close()
				if err != nil || n != size {
					b.Fatalf("%d bytes, %v", n, err)
				}
			}
		})
	}
}

// through returns the address of a Balancer that runs until the benchmark ends.
func through(b *testing.B, cfg Config) string {
	_, address, _ := start(b, cfg)
	return address
}
