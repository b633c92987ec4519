package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/swarm"

	"github.com/miniswarm/miniswarm/lab/claim"
	"github.com/miniswarm/miniswarm/manager/backup"
	"github.com/miniswarm/miniswarm/node"
)

// daemonWithoutEngine runs a daemon and gives its node and its socket.
func daemonWithoutEngine(t *testing.T) (*node.Node, string) {
	t.Helper()
	dir := t.TempDir()
	socket := filepath.Join(dir, "m.sock")
	n, err := node.New(node.Config{StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), Socket: socket, Engine: "unix://" + filepath.Join(dir, "no-engine.sock"),
		Version: "test", Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	for range 500 {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return n, "unix://" + socket
}

func TestBackupAndRecover(t *testing.T) {
	n, host := daemonWithoutEngine(t)
	addr := claim.Addr(t).String()
	id, err := n.Init(t.Context(), swarm.InitRequest{ListenAddr: addr})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, keyFile := filepath.Join(dir, "backup"), filepath.Join(dir, "key")
	do := func(want int, words ...string) (string, string) {
		t.Helper()
		code, out, errs := call(t.Context(), append([]string{"--host", host}, words...)...)
		if code != want {
			t.Fatalf("%v: code %d, %s%s", words, code, out, errs)
		}
		return out, errs
	}
	_, errs := do(0, "backup", file)
	key := regexp.MustCompile(`SWMBKP-1-\S+`).FindString(errs)
	if !strings.Contains(errs, "read back: cluster ") || key == "" || !strings.Contains(errs, "1 node, 1 network") {
		t.Errorf("backup says %s", errs)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup is %v, %v", info, err)
	}
	if left, _ := filepath.Glob(file + ".*"); len(left) > 0 {
		t.Errorf("backup leaves %v", left)
	}
	if _, errs := do(1, "backup", file); !strings.Contains(errs, "exists") {
		t.Errorf("over a file: %s", errs)
	}
	if err := os.WriteFile(keyFile, []byte(key+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs := do(0, "backup", "--force", "--key-file", keyFile, file); strings.Contains(errs, "SWMBKP") {
		t.Errorf("a key that was given is shown: %s", errs)
	}
	if out, _ := do(0, "backup", "--check", file); !strings.Contains(out, "No damage") {
		t.Errorf("check without the key says %s", out)
	}
	if out, _ := do(0, "backup", "--check", "--key-file", keyFile, file); !strings.Contains(out, "Whole and readable: cluster ") {
		t.Errorf("check says %s", out)
	}
	out, _ := do(0, "backup", "--key-file", keyFile, "-")
	if err := os.WriteFile(file+".2", []byte(out[:len(out)-1]), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs := do(1, "backup", "--check", file+".2"); !strings.Contains(errs, "damaged at offset") {
		t.Errorf("check of a backup that was cut off says %s", errs)
	}
	if _, errs := do(exitUsage, "recover", "--from", file); !strings.Contains(errs, "--key-file") {
		t.Errorf("without a key: %s", errs)
	}
	if _, errs := do(1, "recover"); !strings.Contains(errs, "has a leader") || !strings.Contains(errs, "--force") {
		t.Errorf("of a cluster that works: %s", errs)
	}
	out, _ = do(0, "recover", "--dry-run")
	if !strings.Contains(out, "would be recovered") || !strings.Contains(out, "missing   nothing") || !strings.Contains(out, "Nothing was done, and without --dry-run it is refused: this cluster has a leader") {
		t.Errorf("dry run says\n%s", out)
	}
	t.Log(out)
	if strings.Contains(out, "warning") {
		t.Error("a warning of an address that the machine has")
	}
	if out, _ := do(0, "recover", "--dry-run", "--advertise-addr", "192.0.2.9"); !strings.Contains(out, "warning   no interface of this machine has the address 192.0.2.9:") {
		t.Errorf("with an address that is not there it says\n%s", out)
	}
	if _, errs := do(1, "recover", "--force", "--listen-addr", "192.0.2.9"); !strings.Contains(errs, "this machine does not have the address 192.0.2.9:2377 to listen on") {
		t.Errorf("with an address that is not there to listen on it says %s", errs)
	}

	_, host = daemonWithoutEngine(t)
	out, _ = do(0, "recover", "--from", file, "--key-file", keyFile, "--listen-addr", claim.Addr(t).String(), "--format", "json")
	var r backup.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil || !r.NewNode || len(r.Dropped) != 1 || r.Dropped[0].NodeID != id {
		t.Errorf("recovered %s", out)
	}
	out, _ = do(0, "recover", "--force")
	if !strings.Contains(out, "is recovered") || !strings.Contains(out, "find it by themselves") {
		t.Errorf("recover says\n%s", out)
	}
	t.Log(out)
	if _, errs := do(1, "rejoin", addr); !strings.Contains(errs, "nothing to rejoin") {
		t.Errorf("rejoin on a manager says %s", errs)
	}
	do(exitUsage, "rejoin")
	do(exitUsage, "backup")
	do(exitUsage, "recover", "everything")
}
