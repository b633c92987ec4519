package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// settings are what the process takes from its environment.
type settings struct {
	port    int
	drain   time.Duration
	grace   time.Duration
	replica string
}

func main() {
	healthcheck := flag.Bool("healthcheck", false, "ask the service on this host for /healthz and exit 0 if it is well, 1 if not")
	flag.Parse()
	if err := start(*healthcheck); err != nil {
		fmt.Fprintln(os.Stderr, "prime:", err)
		os.Exit(1)
	}
}

func start(healthcheck bool) error {
	set, err := readSettings(os.Getenv)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if healthcheck {
		return checkHealth(ctx, fmt.Sprintf("http://127.0.0.1:%d", set.port))
	}
	context.AfterFunc(ctx, stop) // from the first signal on, a second one kills
	ln, err := net.Listen("tcp", ":"+strconv.Itoa(set.port))
	if err != nil {
		return fmt.Errorf("listen (set PORT to use another port): %w", err)
	}
	return serve(ctx, ln, set, slog.New(slog.NewTextHandler(os.Stdout, nil)))
}

func readSettings(getenv func(string) string) (settings, error) {
	set := settings{port: 8000, drain: time.Second, grace: 8 * time.Second}
	if v := getenv("PORT"); v != "" {
		port, err := strconv.ParseUint(v, 10, 16)
		if err != nil || port == 0 {
			return set, fmt.Errorf("PORT must be a number from 1 to 65535, not %q", v)
		}
		set.port = int(port)
	}
	if err := readDuration(getenv, "DRAIN", &set.drain); err != nil {
		return set, err
	}
	if err := readDuration(getenv, "GRACE", &set.grace); err != nil {
		return set, err
	}
	host, err := os.Hostname()
	if err != nil {
		return set, fmt.Errorf("own host name: %w", err)
	}
	set.replica = host
	return set, nil
}

// readDuration leaves *into alone when the variable is unset or empty.
func readDuration(getenv func(string) string, name string, into *time.Duration) error {
	v := getenv(name)
	if v == "" {
		return nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		return fmt.Errorf("%s must be a duration such as 1.5s, not %q", name, v)
	}
	*into = d
	return nil
}

// serve answers requests on ln until ctx ends, then stops as the package comment describes. It owns ln. It returns nil
// after an orderly stop, and an error when requests had to be cut off.
func serve(ctx context.Context, ln net.Listener, set settings, log *slog.Logger) error {
	svc := newService(set.replica, log)
	server := &http.Server{
		Handler:           svc.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ln) }()
	log.Info("listening", "address", ln.Addr().String(), "replica", set.replica)

	select {
	case err := <-ended:
		return fmt.Errorf("serve on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	}

	log.Info("stopping: still answering, but asking for no more", "drain", set.drain)
	svc.drain()
	drained := time.NewTimer(set.drain)
	defer drained.Stop()
	select {
	case err := <-ended:
		return fmt.Errorf("serve on %s: %w", ln.Addr(), err)
	case <-drained.C:
	}

	graceful, cancel := context.WithTimeout(context.WithoutCancel(ctx), set.grace)
	defer cancel()
	err := server.Shutdown(graceful)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("requests still in flight after %s were cut off", set.grace)
		_ = server.Close() // what it would report is what was just said
	}
	<-ended // http.ErrServerClosed
	log.Info("stopped")
	return err
}

// checkHealth asks the service at base for /healthz once.
func checkHealth(ctx context.Context, base string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/healthz", nil)
	if err != nil {
		return fmt.Errorf("health check: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("health check: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("health check: %s answered %s", base, resp.Status)
	}
	return nil
}
