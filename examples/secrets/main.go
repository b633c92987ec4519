// Command notes is a service of two parts that shows what secrets, configs, networks and volumes are for: a web page on
// which people leave notes, and the store that keeps them.
//
//	notes web      the page, on port 8080; any number of replicas on any nodes
//	notes store    the store, on port 9000: a file on a volume, so one replica on the node that has the volume
//
// The store gives notes only to who knows the password, which both read from the file that a secret becomes. What the page
// is called and where the store is stands in a config, which every replica gets with its own name filled in.
//
// # Files
//
//	/run/secrets/password   the password of the store, for both
//	/etc/notes.json         Settings of the page
//	/data/notes             the notes, a line each; /data is the volume
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const (
	passwordFile = "/run/secrets/password"
	settingsFile = "/etc/notes.json"
	notesFile    = "/data/notes"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "notes:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errors.New("say what to be: web or store")
	}
	password, err := readPassword(passwordFile)
	if err != nil {
		return err
	}
	switch args[0] {
	case "web":
		set, err := readSettings(settingsFile)
		if err != nil {
			return err
		}
		return serve(ctx, ":8080", newPage(set, password))
	case "store":
		return serve(ctx, ":9000", newStore(notesFile, password))
	}
	return fmt.Errorf("%q is neither web nor store", args[0])
}

// readPassword reads a secret. Files that people make end with a newline that is not meant.
func readPassword(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	password := strings.TrimRight(string(data), "\r\n")
	if password == "" {
		return "", fmt.Errorf("read the password: %s is empty", path)
	}
	return password, nil
}

// serve answers requests until ctx ends, and then those that have begun.
func serve(ctx context.Context, addr string, h http.Handler) error {
	server := &http.Server{Addr: addr, Handler: h, ReadHeaderTimeout: 5 * time.Second,
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) }}
	ended := make(chan error, 1)
	go func() { ended <- server.ListenAndServe() }()
	slog.Info("serving", "addr", addr)
	select {
	case err := <-ended:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), 8*time.Second)
	defer cancel()
	return server.Shutdown(limit)
}
