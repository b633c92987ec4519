package docker

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// An engine that accepts connections and says nothing holds up those who wait for it, and nobody who gave himself a limit.
func TestEngineThatHangs(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "engine.sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := Open("unix://" + sock)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	patient, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := a.Info(patient)
		ended <- err
	}()
	for len(a.negotiating) == 0 {
		time.Sleep(time.Millisecond)
	}
	hurried, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := a.Networks(hurried, "label", "value"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the limit", err)
	}
	stop()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the end", err)
	}
}
