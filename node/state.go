package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/miniswarm/miniswarm/cluster/protocol"
)

// state is what the machine remembers of its membership, in state.json.
type state struct {
	// ListenAddr is ip:port of the cluster port; it is served while this machine is a manager.
	ListenAddr string
	// AdvertiseAddr is ip:port at which others reach the cluster port.
	AdvertiseAddr string
	// DataAddr is the IP address that carries overlay traffic.
	DataAddr string
	// Managers are the managers known last, by which an agent finds the cluster again.
	Managers []protocol.ManagerAddr
	// RaftID is this manager's member id; 0 on a worker.
	RaftID uint64 `json:",omitempty"`
	// Flags are the daemon's own addresses at its last start, and Interface is the network interface that had AdvertiseAddr
	// then, empty if none had: see readdress.
	Flags     flags
	Interface string `json:",omitempty"`
	// Epoch is the greatest epoch of the cluster that this machine has seen: see cluster.NextEpoch.
	Epoch uint64 `json:",omitempty"`
	// Managed is the epoch of the cluster that this machine was a manager of until the other managers refused it; nil if they
	// did not. If it is smaller than Epoch, the cluster was recovered without this machine.
	Managed *uint64 `json:",omitempty"`
}

const stateFile = "state.json"

// loadState reads the membership; nil means that this machine is part of no swarm.
func loadState(dir string) (*state, error) {
	raw, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read this node's state: %w", err)
	}
	var s state
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("read this node's state: %s is damaged (%w); restore it from a backup, or remove the directory and join again", filepath.Join(dir, stateFile), err)
	}
	return &s, nil
}

// save writes the membership so that a crash leaves the old or the new file.
func (s *state) save(dir string) error {
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write this node's state: %w", err)
	}
	return writeFileDurably(filepath.Join(dir, stateFile), raw)
}

// writeFileDurably replaces a file by way of a temporary one, with both the content and the name on disk when it
// returns.
func writeFileDurably(path string, content []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(path)
}

// removeDurably removes a file that may be missing, and is back when the disk knows.
func removeDurably(path string) error {
	if err := os.Remove(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return syncDir(path)
}

// syncDir makes the names in a file's directory durable.
func syncDir(path string) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
